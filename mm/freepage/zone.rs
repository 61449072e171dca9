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
        Bits,
        Chunk,
        Map,
        Run,
        CHUNK,
        GROUP, //
    },
    worker::{
        cond_resched,
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

/// Groups visited during one hold of the zone lock.
const GROUPS_PER_HOLD: usize = 8;

/// Blocks looked up during one hold of the zone lock, give or take a group.
const LOOKUPS_PER_HOLD: usize = 64;

/// If so many groups are pending, 128 MiB, a pass first frees the pages on the per-CPU lists. There
/// a few of the pages of someone who freed much keep the others from merging.
const DRAIN_MIN: usize = 64;

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

/// What is known about the pages of a zone; `raw` is what the hooks see.
#[repr(C)]
struct Tracking {
    raw: bindings::freepage_map,
    chunks: KVVec<Chunk>,
}

impl Tracking {
    /// Allocates a map of `pages`, without memory for any chunk.
    fn new(pages: Range<usize>) -> Result<KBox<Self>> {
        let start_pfn = pages.start / CHUNK * CHUNK;
        let nr_chunks = (pages.end - start_pfn).div_ceil(CHUNK);
        let mut chunks = KVVec::with_capacity(nr_chunks, GFP_KERNEL)?;

        for _ in 0..nr_chunks {
            let chunk = Chunk {
                freed: None,
                pending: 0,
            };
            chunks.push_within_capacity(chunk)?;
        }
        Ok(KBox::new(
            Self {
                raw: bindings::freepage_map {
                    start_pfn,
                    nr_chunks,
                    chunks: chunks.as_mut_ptr().cast(),
                    ..Default::default()
                },
                chunks,
            },
            GFP_KERNEL,
        )?)
    }

    /// The pages that are covered.
    fn pages(&self) -> Range<usize> {
        self.raw.start_pfn..self.raw.start_pfn + self.raw.nr_chunks * CHUNK
    }

    /// The chunk that `pfn` belongs to.
    fn chunk(&mut self, pfn: usize) -> Option<&mut Chunk> {
        let index = pfn.checked_sub(self.raw.start_pfn)? / CHUNK;
        self.chunks.get_mut(index)
    }

    fn map(&mut self) -> Map<'_> {
        Map {
            chunks: &mut self.chunks,
            nr_pending: &mut self.raw.nr_pending,
        }
    }

    /// Takes over what `old` knows about pages that are covered by both, and leaves it nothing.
    fn take_over(&mut self, old: &mut Tracking) {
        let mut pfn = old.raw.start_pfn;

        for from in old.chunks.iter_mut() {
            if let Some(to) = self.chunk(pfn) {
                core::mem::swap(to, from);
            }
            pfn += CHUNK;
        }
        self.raw.nr_pending = old.raw.nr_pending;
        self.raw.notified = old.raw.notified;
        self.raw.requested = old.raw.requested;
    }
}

/// The free lists of a zone whose lock is held.
///
/// # Invariants
///
/// Part of a [`ZoneGuard`] for this zone.
struct FreeLists<'a>(&'a Zone);

/// A block on a free list.
///
/// # Invariants
///
/// Is on a free list of the zone whose lock is held by the guard that it borrows from.
struct FoundBlock<'guard>(&'guard bindings::freepage_block);

impl FoundBlock<'_> {
    fn run(&self) -> Run {
        Run {
            start: self.0.pfn,
            order: self.0.order,
        }
    }
}

/// Proof that the zone lock is held. Interrupts are off.
///
/// # Invariants
///
/// The lock of the zone is held by this CPU until the guard is dropped.
struct ZoneGuard<'a> {
    lists: FreeLists<'a>,
    /// What is known about the pages, if the zone is tracked.
    tracking: Option<&'a mut Tracking>,
    since: Instant<Monotonic>,
    _not_send: NotThreadSafe,
}

impl Drop for ZoneGuard<'_> {
    fn drop(&mut self) {
        let held = self.since.elapsed().as_nanos();

        // SAFETY: By the type invariant the lock is held.
        unsafe { bindings::freepage_unlock(self.lists.0.as_ptr()) };
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
        // SAFETY: The lock was just taken, and protects the pointer and what it leads to until the
        // guard is dropped. `replace()` stores the address of a `Tracking`: its first field.
        let tracking = unsafe { (*self.as_ptr()).freepage_map.cast::<Tracking>().as_mut() };
        // INVARIANT: The lock was just taken.
        ZoneGuard {
            lists: FreeLists(self),
            tracking,
            since: Instant::now(),
            _not_send: NotThreadSafe,
        }
    }

    /// The pages from the first to the last of the zone, holes included.
    fn span(&self) -> Range<usize> {
        // SAFETY: By the type invariant this is a zone. Both fields change with memory hotplug
        // only, which tells through `freepage_memory_online()` and waits for it.
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
        let mut tracking = Tracking::new(span)?;
        let mut pages = tracking.pages();
        for chunk in tracking.chunks.iter_mut() {
            let next = pages.start + CHUNK;
            if (pages.start..next)
                .step_by(GROUP)
                .any(|pfn| self.is_online(pfn))
            {
                chunk.freed = Some(new_bits()?);
            }
            pages.start = next;
        }
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

    /// Makes room for what is to be known about `pages`, which are about to come online.
    ///
    /// May sleep.
    fn extend(&self, pages: Range<usize>) -> Result {
        let mut bits = KVec::new();
        for _ in pages.start / CHUNK..pages.end.div_ceil(CHUNK) {
            bits.push(new_bits()?, GFP_KERNEL)?;
        }

        let tracked = self
            .lock()
            .tracking
            .as_ref()
            .map(|tracking| tracking.pages());
        let mut larger = None;
        if !tracked.is_some_and(|range| range.start <= pages.start && pages.end <= range.end) {
            let span = self.span();
            larger = Some(Tracking::new(
                span.start.min(pages.start)..span.end.max(pages.end),
            )?);
        }

        let mut guard = self.lock();
        let mut old = None;
        if let Some(mut larger) = larger {
            if let Some(tracking) = &mut guard.tracking {
                larger.take_over(tracking);
            }
            old = guard.replace(Some(larger));
        }
        if let Some(tracking) = &mut guard.tracking {
            for pfn in pages.step_by(CHUNK) {
                if let Some(chunk) = tracking.chunk(pfn).filter(|chunk| chunk.freed.is_none()) {
                    chunk.freed = bits.pop();
                }
            }
        }
        // Freed without the lock, as is what is left of `bits`.
        drop(guard);
        drop(old);
        Ok(())
    }

    /// Forgets what is known about `pages`, which went offline.
    fn forget_offline(&self, pages: Range<usize>) {
        let mut start = pages.start;

        while start < pages.end {
            let end = pages.end.min((start / CHUNK + 1) * CHUNK);
            let mut guard = self.lock();
            let mut bits = None;

            if let Some(tracking) = &mut guard.tracking {
                let covered = tracking.pages();
                if covered.contains(&start) {
                    let range = start - covered.start..end - covered.start;
                    let mut map = tracking.map();
                    map.clear_freed(range.clone());
                    if range.len() == CHUNK {
                        (range.start / GROUP..range.end / GROUP)
                            .for_each(|group| map.clear_pending(group));
                        bits = tracking.chunk(start).and_then(|chunk| chunk.freed.take());
                    }
                }
            }
            // Freed without the lock.
            drop(guard);
            drop(bits);
            start = end;
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

    /// Begins to note who requests a pass, and returns the number of pending groups.
    fn reset_request(&self) -> usize {
        let mut guard = self.lock();
        let Some(tracking) = &mut guard.tracking else {
            return 0;
        };
        tracking.raw.requested = false;
        tracking.raw.notified = 0;
        tracking.raw.nr_pending
    }

    /// Calls `visit` for each group that is online and in this zone, with the zone lock held.
    fn for_each_group(&self, visit: impl Fn(&mut Map<'_>, Range<usize>)) {
        let mut next = 0;

        loop {
            let mut guard = self.lock();
            let Some(tracking) = &mut guard.tracking else {
                return;
            };
            let start_pfn = tracking.raw.start_pfn;
            let mut map = tracking.map();
            let end = map.len().min(next + GROUPS_PER_HOLD * GROUP);
            for group in (next..end).step_by(GROUP) {
                if self.is_online(start_pfn + group) {
                    visit(&mut map, group..group + GROUP);
                }
            }
            if end == map.len() {
                return;
            }
            next = end;
            drop(guard);
            cond_resched();
        }
    }
}

impl ZoneGuard<'_> {
    /// Replaces what is known about the pages. Returns the old, to be freed without the lock.
    fn replace(&mut self, new: Option<KBox<Tracking>>) -> Option<KBox<Tracking>> {
        let new = new.map_or(ptr::null_mut(), KBox::into_raw);
        let zone = self.lists.0.as_ptr();
        // SAFETY: By the type invariant the lock is held, which protects the field.
        let old = unsafe { ptr::replace(&raw mut (*zone).freepage_map, new.cast()) };

        // SAFETY: It came from `KBox::into_raw()`, and the lock is held.
        self.tracking = unsafe { new.as_mut() };
        // SAFETY: What is not null came from `KBox::into_raw()` here. It is gone from the zone, and
        // from this guard.
        (!old.is_null()).then(|| unsafe { KBox::from_raw(old.cast()) })
    }
}

impl FreeLists<'_> {
    /// The block on a free list that `pfn` belongs to; `room` is where to describe it.
    ///
    /// The caller knows that no such block begins below `floor`.
    fn find<'f>(
        &'f self,
        pfn: usize,
        floor: usize,
        room: &'f mut bindings::freepage_block,
    ) -> Option<FoundBlock<'f>> {
        // SAFETY: By the type invariant the lock is held. `pfn` is in the same section as a page
        // that was freed here, and did not go offline since, see `Zone::forget_offline()`. So it
        // has a `struct page`.
        let found = unsafe { bindings::freepage_find(self.0.as_ptr(), pfn, floor, room) };

        // INVARIANT: It is on a free list now, and `self` is borrowed.
        found.then_some(FoundBlock(room))
    }

    /// Takes a block off its free list; false if its pageblock is isolated.
    fn isolate(&self, block: FoundBlock<'_>) -> bool {
        // SAFETY: By the type invariants the lock is held, and the block is on a free list.
        unsafe { bindings::freepage_isolate(self.0.as_ptr(), block.0) }
    }

    /// How many pages can be taken without getting the zone below its low watermark.
    fn spare(&self) -> usize {
        // SAFETY: By the type invariant the lock is held.
        unsafe { bindings::freepage_spare(self.0.as_ptr()) }
    }

    /// Puts blocks back that [`Self::isolate`] took.
    fn put_back(&self, blocks: &[Run]) {
        let zone = self.0.as_ptr();

        // SAFETY: By the type invariant the lock is held. The blocks were isolated from this zone.
        unsafe { bindings::freepage_put_back(zone, Run::as_raw(blocks), blocks.len()) }
    }

    /// Takes what `treatment` wants of one group into `batch`.
    ///
    /// Returns false if the group is not finished.
    fn isolate_group(
        &self,
        tracking: &mut Tracking,
        group: usize,
        treatment: &impl Treatment,
        batch: &mut Batch,
        limits: &mut Limits,
    ) -> bool {
        let start_pfn = tracking.raw.start_pfn;
        let mut map = tracking.map();
        let pages = group * GROUP..(group + 1) * GROUP;
        let unit_pages = 1 << treatment.order();
        let mut next = pages.start;
        let mut floor = 0;
        let mut later = false;
        let mut room = bindings::freepage_block::default();

        while let Some(page) = map.next_freed(next..pages.end) {
            // A block that is large enough for a unit covers its first page.
            let unit = page & !(unit_pages - 1);
            next = unit + unit_pages;
            limits.lookups = limits.lookups.saturating_sub(1);
            let Some(found) = self.find(start_pfn + unit, floor, &mut room) else {
                if unit_pages == 1 {
                    // Allocated since. It will be noted again when it is freed.
                    map.clear_freed(page..next);
                }
                floor = start_pfn + next;
                continue;
            };

            let block = found.run();
            next = next.max(block.range().end - start_pfn);
            floor = start_pfn + next;
            if !treatment.wants(&FreePage::new(self, block)) {
                continue;
            }
            if batch.is_full() || block.pages() > limits.spare {
                map.set_pending(page..pages.end);
                return false;
            }
            if !self.isolate(found) {
                later = true;
                continue;
            }
            limits.spare -= block.pages();
            batch.push_block(block);

            let in_map = Run {
                start: block.start - start_pfn,
                order: block.order,
            };
            let left = map.take_runs(in_map, treatment.order(), |run| {
                batch.push(Run {
                    start: start_pfn + run.start,
                    order: run.order,
                })
            });
            if let Some(left) = left {
                map.set_pending(left..next);
                return false;
            }
        }
        if later {
            // Found again when the pageblock is free, as soon as another pass is requested.
            map.set_pending(pages);
        }
        true
    }
}

/// What may be done during one hold of the zone lock.
struct Limits {
    /// Blocks that may be looked up, beyond which no other group is begun.
    lookups: usize,
    /// Pages that may be taken.
    spare: usize,
}

/// Allocates the bits of a chunk, none of them set.
fn new_bits() -> Result<Bits> {
    KBox::init(pin_init::init_zeroed(), GFP_KERNEL)
}

impl Source for Zone {
    fn begin(&self) -> usize {
        if self.span().is_empty() {
            return 0;
        }
        let pending = self.reset_request();
        if pending < DRAIN_MIN {
            return pending;
        }
        // SAFETY: By the type invariant this is a zone. No lock is held.
        unsafe { bindings::freepage_drain(self.as_ptr()) };
        self.reset_request()
    }

    fn isolate(&self, treatment: &impl Treatment, batch: &mut Batch, budget: &mut usize) -> Step {
        let mut guard = self.lock();
        let ZoneGuard {
            lists, tracking, ..
        } = &mut guard;
        let Some(tracking) = tracking else {
            return Step::Done;
        };
        let mut limits = Limits {
            lookups: LOOKUPS_PER_HOLD,
            spare: lists.spare(),
        };

        for _ in 0..GROUPS_PER_HOLD {
            if *budget == 0 {
                return Step::Done;
            }
            if batch.is_full() {
                return Step::Full;
            }
            if limits.lookups == 0 {
                return Step::More;
            }
            let cursor = tracking.raw.cursor;
            let Some(group) = tracking.map().next_pending(cursor) else {
                return Step::Done;
            };
            tracking.map().clear_pending(group);
            tracking.raw.cursor = group;
            if !lists.isolate_group(tracking, group, treatment, batch, &mut limits) {
                return Step::Full;
            }
            tracking.raw.cursor = group + 1;
            *budget -= 1;
        }
        Step::More
    }

    fn put_back(&self, batch: &mut Batch, treated: bool) {
        let mut guard = self.lock();

        guard.lists.put_back(&batch.blocks);
        if let Some(tracking) = guard.tracking.as_mut().filter(|_| !treated) {
            let start_pfn = tracking.raw.start_pfn;
            let mut map = tracking.map();
            for run in &batch.runs {
                let pages = run.start - start_pfn..run.range().end - start_pfn;
                map.set_freed(pages.clone());
                map.set_pending(pages);
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
