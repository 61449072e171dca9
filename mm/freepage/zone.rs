// SPDX-License-Identifier: GPL-2.0

//! The view of zones: the only place with `unsafe` over them.
//!
//! Locks and the free lists are reached through `glue.c` and two functions of `mm/page_alloc.c`. A
//! held zone lock is a [`ZoneGuard`]; whatever needs the lock takes one.
//!
//! Lock order: the mutexes of the users of this file, then the zone lock. Nothing here allocates
//! or sleeps while it holds the zone lock.

use crate::{
    map::{
        Map,
        Run,
        GROUP, //
    },
    worker::{
        Batch,
        FreePage,
        Source,
        Step,
        Treatment, //
    },
};
use core::{
    ops::Range,
    ptr, //
};
use kernel::{
    bindings,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        global_lock, //
    },
    time::{
        Instant,
        Monotonic, //
    },
    types::{
        NotThreadSafe,
        Opaque, //
    },
};

/// Groups visited during one hold of the zone lock, if no page is taken.
const GROUPS_PER_HOLD: usize = 8;

/// Pages of the largest block on a free list.
const MAX_ORDER_PAGES: usize = 1 << bindings::MAX_PAGE_ORDER;

global_lock! {
    // SAFETY: Initialized by `init()`, from an initcall before there is a user.
    unsafe(uninit) static TRACKED: Mutex<bool> = false;
}

static LONGEST_HOLD_NS: Atomic<i64> = Atomic::new(0);

/// Initializes the lock.
///
/// # Safety
///
/// Called once, before anything else in this file.
pub(crate) unsafe fn init() {
    // SAFETY: By the safety requirement.
    unsafe { TRACKED.init() };
}

/// Starts to track which pages of all zones are freed, and takes all for freed at first.
///
/// May sleep. On error nothing is tracked.
pub(crate) fn track() -> Result {
    let mut tracked = TRACKED.lock();

    for zone in Zone::all() {
        if let Err(error) = zone.track() {
            Zone::all().for_each(Zone::untrack);
            return Err(error);
        }
    }
    *tracked = true;
    Ok(())
}

/// Stops to track. May sleep.
pub(crate) fn untrack() {
    let mut tracked = TRACKED.lock();

    Zone::all().for_each(Zone::untrack);
    *tracked = false;
}

/// The longest time for which a zone lock was held here, in ns.
pub(crate) fn longest_hold_ns() -> i64 {
    LONGEST_HOLD_NS.load(Relaxed)
}

/// A zone.
///
/// # Invariants
///
/// Is an initialized `struct zone` of an online node.
#[repr(transparent)]
pub(crate) struct Zone(Opaque<bindings::zone>);

/// What a zone's map consists of; `raw` is what the hooks see.
#[repr(C)]
struct Tracking {
    raw: bindings::freepage_map,
    freed: KVVec<usize>,
    pending: KVVec<usize>,
}

impl Tracking {
    /// Allocates a map of `pages`, with nothing freed and nothing pending.
    fn new(pages: Range<usize>) -> Result<KBox<Self>> {
        let align = GROUP.max(MAX_ORDER_PAGES);
        let start_pfn = pages.start / align * align;
        let nr_pages = (pages.end - start_pfn).next_multiple_of(align);
        let words = |bits: usize| bits.div_ceil(usize::BITS as usize);
        let mut freed = KVVec::zeroed(words(nr_pages), GFP_KERNEL)?;
        let mut pending = KVVec::zeroed(words(nr_pages / GROUP), GFP_KERNEL)?;

        Ok(KBox::new(
            Self {
                raw: bindings::freepage_map {
                    start_pfn,
                    nr_pages,
                    freed: freed.as_mut_ptr(),
                    pending: pending.as_mut_ptr(),
                    ..Default::default()
                },
                freed,
                pending,
            },
            GFP_KERNEL,
        )?)
    }

    fn pages(&self) -> Range<usize> {
        self.raw.start_pfn..self.raw.start_pfn + self.raw.nr_pages
    }

    fn map(&mut self) -> Map<'_> {
        Map {
            freed: &mut self.freed,
            pending: &mut self.pending,
            nr_pending: &mut self.raw.nr_pending,
        }
    }

    /// Takes over what `old`, a part of this map, knows.
    fn copy_from(&mut self, old: &Tracking) {
        let first = old.raw.start_pfn - self.raw.start_pfn;
        let word = first / usize::BITS as usize;

        self.freed[word..word + old.freed.len()].copy_from_slice(&old.freed);
        for group in 0..old.raw.nr_pages / GROUP {
            if old.pending[group / usize::BITS as usize] & (1 << (group % usize::BITS as usize))
                != 0
            {
                let start = first + group * GROUP;
                self.map().set_pending(start..start + GROUP);
            }
        }
        self.raw.notified = old.raw.notified;
        self.raw.requested = old.raw.requested;
    }
}

/// Proof that the zone lock is held. Interrupts are off.
///
/// # Invariants
///
/// The lock of `zone` is held by this CPU until the guard is dropped.
pub(crate) struct ZoneGuard<'a> {
    zone: &'a Zone,
    since: Instant<Monotonic>,
    _not_send: NotThreadSafe,
}

impl Drop for ZoneGuard<'_> {
    fn drop(&mut self) {
        let held = self.since.elapsed().as_nanos();

        // SAFETY: By the type invariant the lock is held.
        unsafe { bindings::freepage_unlock(self.zone.as_ptr()) };
        if held > LONGEST_HOLD_NS.load(Relaxed) {
            LONGEST_HOLD_NS.store(held, Relaxed);
        }
    }
}

impl Zone {
    /// All zones of all online nodes, populated or not.
    pub(crate) fn all() -> impl Iterator<Item = &'static Zone> {
        // SAFETY: There is always an online node.
        let first = unsafe { bindings::freepage_first_zone() };

        core::iter::successors(ptr::NonNull::new(first), |zone| {
            // SAFETY: `zone` is a zone of an online node.
            ptr::NonNull::new(unsafe { bindings::next_zone(zone.as_ptr()) })
        })
        // SAFETY: Zones are never freed, and `Zone` is transparent.
        // INVARIANT: `first_online_pgdat()` and `next_zone()` return zones of online nodes.
        .map(|zone| unsafe { zone.cast::<Zone>().as_ref() })
    }

    fn as_ptr(&self) -> *mut bindings::zone {
        self.0.get()
    }

    /// Takes the zone lock. Process context, interrupts on.
    fn lock(&self) -> ZoneGuard<'_> {
        // SAFETY: By the type invariant this is a zone, and no caller holds a zone lock.
        unsafe { bindings::freepage_lock(self.as_ptr()) };
        // INVARIANT: Just taken.
        ZoneGuard {
            zone: self,
            since: Instant::now(),
            _not_send: NotThreadSafe,
        }
    }

    /// The pages from the first to the last of the zone, holes included.
    fn span(&self) -> Range<usize> {
        // SAFETY: By the type invariant this is a zone. Both fields change with memory hotplug only,
        // which tells through `freepage_memory_online()` and waits for it.
        let (start, spanned) = unsafe {
            (
                (&raw const (*self.as_ptr()).zone_start_pfn).read_volatile(),
                (&raw const (*self.as_ptr()).spanned_pages).read_volatile(),
            )
        };
        start..start + spanned
    }

    /// Whether the memory of `pfn` is online, and in this zone.
    fn is_online(&self, pfn: usize) -> bool {
        // SAFETY: By the type invariant this is a zone; any PFN may be asked for.
        unsafe { bindings::freepage_online(self.as_ptr(), pfn) }
    }

    /// Whether `pfn`, which has a `struct page`, is in this zone.
    fn has_page(&self, pfn: usize) -> bool {
        // SAFETY: By the type invariant this is a zone.
        unsafe { bindings::freepage_has_page(self.as_ptr(), pfn) }
    }

    /// See [`track`].
    fn track(&self) -> Result {
        let span = self.span();
        if span.is_empty() {
            return Ok(());
        }
        let tracking = Tracking::new(span)?;
        let old = self.lock().replace(Some(tracking));
        drop(old);
        self.forget();
        Ok(())
    }

    /// See [`untrack`].
    fn untrack(&self) {
        let old = self.lock().replace(None);
        // Freed without the lock.
        drop(old);
    }

    /// Makes the map cover `pages` too, which are about to come online. May sleep.
    fn extend(&self, pages: Range<usize>) -> Result {
        if !self.is_tracked_or(|covered| covered.start <= pages.start && pages.end <= covered.end) {
            let mut span = self.span();
            span.start = span.start.min(pages.start);
            span.end = span.end.max(pages.end);
            let mut tracking = Tracking::new(span)?;
            let mut guard = self.lock();
            if let Some(old) = guard.tracking() {
                tracking.copy_from(old);
            }
            let old = guard.replace(Some(tracking));
            drop(guard);
            drop(old);
        }
        Ok(())
    }

    /// `covered(pages of the map)`, or false if the zone is not tracked.
    fn is_tracked_or(&self, covered: impl FnOnce(Range<usize>) -> bool) -> bool {
        self.lock()
            .tracking()
            .is_some_and(|tracking| covered(tracking.pages()))
    }

    /// Forgets what was noted about `pages`, which went offline.
    pub(crate) fn forget_offline(&self, pages: Range<usize>) {
        for start in pages.clone().step_by(GROUP) {
            let mut guard = self.lock();
            let Some(tracking) = guard.tracking() else {
                return;
            };
            let covered = tracking.pages();
            if covered.contains(&start) {
                let end = pages.end.min(start + GROUP).min(covered.end);
                tracking
                    .map()
                    .clear_freed(start - covered.start..end - covered.start);
            }
        }
    }

    /// Takes all pages for freed, as if none had ever been treated.
    pub(crate) fn forget(&self) {
        self.for_each_group(|map, pages| {
            map.set_freed(pages.clone());
            map.set_pending(pages);
        });
    }

    /// Makes the next pass visit every group with a freed page.
    pub(crate) fn revisit(&self) {
        self.for_each_group(|map, pages| {
            if map.next_freed(pages.clone()).is_some() {
                map.set_pending(pages);
            }
        });
    }

    /// Calls `visit` for each group that is online, with the zone lock held.
    fn for_each_group(&self, visit: impl Fn(&mut Map<'_>, Range<usize>)) {
        let mut next = 0;

        loop {
            let mut guard = self.lock();
            let Some(tracking) = guard.tracking() else {
                return;
            };
            let start_pfn = tracking.raw.start_pfn;
            let end = tracking.raw.nr_pages.min(next + GROUPS_PER_HOLD * GROUP);
            let mut map = tracking.map();
            for group in (next..end).step_by(GROUP) {
                if self.is_online(start_pfn + group) {
                    visit(&mut map, group..group + GROUP);
                }
            }
            if end == tracking.raw.nr_pages {
                return;
            }
            next = end;
        }
    }
}

impl<'a> ZoneGuard<'a> {
    /// What is tracked, if the zone is.
    fn tracking(&mut self) -> Option<&mut Tracking> {
        // SAFETY: By the type invariant the lock is held, which protects the field and what it
        // points to. `replace()` stores the address of a `Tracking`, whose first field this is.
        unsafe {
            (*self.zone.as_ptr())
                .freepage_map
                .cast::<Tracking>()
                .as_mut()
        }
    }

    /// Replaces what is tracked. The old one is returned, to be freed without the lock.
    fn replace(&mut self, new: Option<KBox<Tracking>>) -> Option<KBox<Tracking>> {
        let new = new.map_or(ptr::null_mut(), KBox::into_raw);
        // SAFETY: By the type invariant the lock is held, which protects the field.
        let old = unsafe { ptr::replace(&raw mut (*self.zone.as_ptr()).freepage_map, new.cast()) };

        // SAFETY: A non-null pointer came from `KBox::into_raw()` here, and is gone from the zone.
        (!old.is_null()).then(|| unsafe { KBox::from_raw(old.cast()) })
    }

    /// The block on a free list that `pfn` belongs to, and whether its pageblock is isolated.
    ///
    /// The caller knows that no such block begins below `floor`.
    fn find(&self, pfn: usize, floor: usize) -> Option<(FreePage<'_>, bool)> {
        let mut block = bindings::freepage_block::default();

        // SAFETY: By the type invariant the lock is held. `pfn` was freed in this zone and did not go
        // offline since, see `Zone::forget_offline()`, so it has a `struct page`.
        unsafe { bindings::freepage_find(self.zone.as_ptr(), pfn, floor, &mut block) }.then(|| {
            let run = Run {
                start: block.pfn,
                order: block.order,
            };
            (FreePage::new(self, run), block.isolated)
        })
    }

    /// Takes a block off its free list; false if the zone is short of memory.
    fn isolate(&self, block: Run) -> bool {
        // SAFETY: By the type invariant the lock is held. `block` is on a free list: it was just found
        // there.
        unsafe { bindings::freepage_isolate(self.zone.as_ptr(), block.start, block.order) }
    }

    /// Puts a block back that [`Self::isolate`] took.
    fn put_back(&self, block: Run) {
        // SAFETY: By the type invariant the lock is held. The block was isolated from this zone.
        unsafe { bindings::freepage_put_back(self.zone.as_ptr(), block.start, block.order) }
    }

    /// Takes what `treatment` wants of one group into `batch`.
    ///
    /// Returns false if the group is not finished.
    fn isolate_group(
        &mut self,
        group: usize,
        treatment: &impl Treatment,
        batch: &mut Batch,
    ) -> bool {
        let pages = group * GROUP..(group + 1) * GROUP;
        let mut next = pages.start;
        let mut floor = 0;
        let mut later = false;

        while let Some(tracking) = self.tracking() {
            let start_pfn = tracking.raw.start_pfn;
            let Some(page) = tracking.map().next_freed(next..pages.end) else {
                break;
            };
            let found = self.find(start_pfn + page, floor);
            let Some((free, isolated)) = found else {
                // Allocated since. It will be noted again when it is freed.
                self.clear_freed(page..page + 1);
                next = page + 1;
                floor = start_pfn + next;
                continue;
            };

            let block = free.block;
            let in_map = Run {
                start: block.start - start_pfn,
                order: block.order,
            };
            let wanted = treatment.wants(&free);
            next = in_map.range().end;
            floor = start_pfn + next;
            if isolated {
                later = true;
                continue;
            }
            if !wanted {
                continue;
            }
            if !self.isolate(block) {
                self.set_pending(pages);
                return false;
            }
            batch.push_block(block);
            if let Some(left) = self.take_runs(in_map, treatment.order(), batch) {
                self.set_pending(left..in_map.range().end);
                return false;
            }
        }
        if later {
            // Found again when the pageblock is free, as soon as another pass is requested.
            self.set_pending(pages);
        }
        true
    }

    /// Moves the runs of `block`, given in pages of the map, to `batch`; returns what did not fit.
    fn take_runs(&mut self, block: Run, order: u32, batch: &mut Batch) -> Option<usize> {
        let tracking = self.tracking()?;
        let start_pfn = tracking.raw.start_pfn;

        tracking.map().runs(block, order, |run| {
            batch.push(Run {
                start: start_pfn + run.start,
                order: run.order,
            })
        })
    }

    fn clear_freed(&mut self, pages: Range<usize>) {
        if let Some(tracking) = self.tracking() {
            tracking.map().clear_freed(pages);
        }
    }

    fn set_pending(&mut self, pages: Range<usize>) {
        if let Some(tracking) = self.tracking() {
            tracking.map().set_pending(pages);
        }
    }
}

impl Source for Zone {
    fn begin(&self) -> usize {
        self.lock().tracking().map_or(0, |tracking| {
            tracking.raw.requested = false;
            tracking.raw.notified = 0;
            tracking.raw.nr_pending
        })
    }

    fn can_spare(&self, pages: usize) -> bool {
        // SAFETY: By the type invariant this is a zone. Watermarks are read without the lock.
        unsafe { bindings::freepage_can_spare(self.as_ptr(), pages) }
    }

    fn isolate(&self, treatment: &impl Treatment, batch: &mut Batch, budget: &mut usize) -> Step {
        let mut guard = self.lock();

        for _ in 0..GROUPS_PER_HOLD {
            if *budget == 0 {
                return Step::Done;
            }
            if batch.is_full() {
                return Step::Full;
            }
            let Some(tracking) = guard.tracking() else {
                return Step::Done;
            };
            let cursor = tracking.raw.cursor;
            let Some(group) = tracking.map().next_pending(cursor) else {
                return Step::Done;
            };
            tracking.map().clear_pending(group);
            tracking.raw.cursor = group;
            if !guard.isolate_group(group, treatment, batch) {
                return Step::Full;
            }
            if let Some(tracking) = guard.tracking() {
                tracking.raw.cursor = group + 1;
            }
            *budget -= 1;
        }
        Step::More
    }

    fn put_back(&self, batch: &mut Batch, treated: bool) {
        let mut guard = self.lock();

        for block in &batch.blocks {
            guard.put_back(*block);
        }
        if let Some(tracking) = guard.tracking() {
            let start_pfn = tracking.raw.start_pfn;
            for run in &batch.runs {
                let pages = run.start - start_pfn..run.range().end - start_pfn;
                let mut map = tracking.map();
                if treated {
                    map.clear_freed(pages);
                } else {
                    map.set_freed(pages.clone());
                    map.set_pending(pages);
                }
            }
        }
        batch.clear();
    }
}

/// Memory is about to come online.
///
/// Pages whose map cannot be extended are not treated.
///
/// # Safety
///
/// Called by the memory hotplug notifier: process context, the pages have a `struct page`.
#[export]
pub(crate) unsafe extern "C" fn freepage_memory_online(pfn: usize, nr_pages: usize) {
    let tracked = TRACKED.lock();

    if !*tracked {
        return;
    }
    for zone in Zone::all().filter(|zone| zone.has_page(pfn)) {
        if zone.extend(pfn..pfn + nr_pages).is_err() {
            pr_warn!(
                "no memory to track PFN {:#x}-{:#x}: free pages there are left alone\n",
                pfn,
                pfn + nr_pages - 1
            );
        }
    }
}

/// Memory went offline; its `struct page`s may vanish.
///
/// # Safety
///
/// Called by the memory hotplug notifier: process context.
#[export]
pub(crate) unsafe extern "C" fn freepage_memory_offline(pfn: usize, nr_pages: usize) {
    for zone in Zone::all() {
        zone.forget_offline(pfn..pfn + nr_pages);
    }
}
