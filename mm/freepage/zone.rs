// SPDX-License-Identifier: GPL-2.0

//! The view of zones: the only place with `unsafe` over them.
//!
//! Locks and the free lists are reached through `glue.c` and three functions of
//! `mm/page_alloc.c`. A held zone lock is a [`ZoneGuard`]; whatever needs the lock takes one. What
//! a treatment knows of a zone is a [`Tracking`], and the zone is its [`TrackedZone`].
//!
//! Lock order: the mutexes of the users of this file, memory hotplug's, `TRACKED`, the zone lock.
//! Nothing here allocates or sleeps while it holds the zone lock.

use crate::{
    map::{
        self,
        Bits,
        Chunk,
        Map,
        Run,
        CHUNK,
        GROUP, //
    },
    primitives::{
        cond_resched,
        Held,
        Kind, //
    },
    worker::{
        Batch,
        Budget,
        FreePage,
        Rest,
        Resting,
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

/// If so many groups are pending, 128 MiB, a pass first frees all pages on the per-CPU lists. There
/// a few of the pages of someone who freed much keep the others from merging.
const DRAIN_MIN: usize = 64;

/// If a CPU keeps so many pages more than it has to, a pass first frees what all of them do.
const EXCESS_MIN: i32 = GROUP as i32;

global_lock! {
    // SAFETY: Initialized by `init()`, from an initcall before there is a user.
    unsafe(uninit) static TRACKED: Mutex<[bool; Kind::COUNT]> = [false; Kind::COUNT];
}

/// The longest time for which a zone lock was held by each treatment, in ns.
static LONGEST_HOLD_NS: [Atomic<i64>; Kind::COUNT] = [const { Atomic::new(0) }; Kind::COUNT];

/// Initializes the lock.
///
/// # Safety
///
/// Called once, before anything else in this file.
pub(crate) unsafe fn init() {
    // SAFETY: By the safety requirement.
    unsafe { TRACKED.init() };
}

/// Keeps memory from coming online and going offline.
struct OnlineMems(NotThreadSafe);

impl OnlineMems {
    fn get() -> Self {
        // SAFETY: Its callers may sleep, and are not called by memory hotplug.
        unsafe { bindings::freepage_get_online_mems() };
        Self(NotThreadSafe)
    }
}

impl Drop for OnlineMems {
    fn drop(&mut self) {
        // SAFETY: They were got by `get()`, by this task.
        unsafe { bindings::freepage_put_online_mems() };
    }
}

/// Starts to track which pages of all zones are freed, and takes all for freed at first.
///
/// May sleep; not called by memory hotplug. On error nothing is tracked.
pub(crate) fn track(kind: Kind) -> Result {
    // Else memory that is just coming online is neither seen as online here, nor tracked by
    // `freepage_memory_online()`, which was called before.
    let mems = OnlineMems::get();
    let mut tracked = TRACKED.lock();

    for zone in sources(kind) {
        if let Err(error) = zone.track(&mems) {
            sources(kind).for_each(|zone| zone.untrack());
            return Err(error);
        }
    }
    tracked[kind as usize] = true;
    Ok(())
}

/// Stops to track. May sleep.
pub(crate) fn untrack(kind: Kind) {
    let mut tracked = TRACKED.lock();

    sources(kind).for_each(|zone| zone.untrack());
    tracked[kind as usize] = false;
}

/// All zones, as a treatment sees them.
pub(crate) fn sources(kind: Kind) -> impl Iterator<Item = TrackedZone> {
    Zone::all().map(move |zone| TrackedZone { zone, kind })
}

/// The longest time for which a treatment held a zone lock, in ns.
pub(crate) fn longest_hold_ns(kind: Kind) -> i64 {
    LONGEST_HOLD_NS[kind as usize].load(Relaxed)
}

/// A zone.
///
/// # Invariants
///
/// Is an initialized `struct zone` of an online node.
#[repr(transparent)]
pub(crate) struct Zone(Opaque<bindings::zone>);

/// What a treatment knows about the pages of a zone; `raw` is what the hooks see.
#[repr(C)]
pub(crate) struct Tracking {
    raw: bindings::freepage_map,
    chunks: KVVec<Chunk>,
    rest: Rest,
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
                rest: Rest::NONE,
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

    /// The first pages of `pages`, which are free, that were not treated since they were freed.
    #[cfg(CONFIG_PAGE_ZERO)]
    pub(crate) fn next_untreated(&mut self, pages: Range<usize>) -> Option<Range<usize>> {
        let covered = self.pages();
        if pages.start < covered.start || pages.end > covered.end {
            // Nothing is known: the map could not be extended when its memory came online.
            return None;
        }
        let start_pfn = self.raw.start_pfn;
        let map = self.map();
        let end = pages.end - start_pfn;
        let first = map.next_freed(pages.start - start_pfn..end)?;

        Some(start_pfn + first..start_pfn + map.freed_until(first, end, 0))
    }

    fn map(&mut self) -> Map<'_> {
        Map {
            chunks: &mut self.chunks,
            nr_pending: &mut self.raw.nr_pending,
        }
    }

    /// Takes over what `old`, whose pages are all covered, knows, and leaves it nothing.
    fn take_over(&mut self, old: &mut Tracking) {
        let offset = old.raw.start_pfn - self.raw.start_pfn;

        self.raw.nr_pending = map::take_over(&mut self.chunks, &mut old.chunks, offset);
        self.raw.notified = old.raw.notified;
        self.raw.requested = old.raw.requested;
        self.rest = old.rest;
    }
}

/// The free lists of a zone whose lock is held.
///
/// # Invariants
///
/// Part of a [`ZoneGuard`] for this zone.
pub(crate) struct FreeLists<'a>(&'a Zone);

/// A block on a free list.
///
/// # Invariants
///
/// Is on a free list of the zone whose lock is held by the guard that it borrows from.
pub(crate) struct FoundBlock<'guard>(&'guard bindings::freepage_block);

impl FoundBlock<'_> {
    pub(crate) fn run(&self) -> Run {
        Run {
            start: self.0.pfn,
            order: self.0.order,
        }
    }

    /// Whether its pageblock is isolated, so that nothing of it can be taken.
    pub(crate) fn is_isolated(&self) -> bool {
        self.0.isolated
    }
}

/// Proof that the zone lock is held. Interrupts are off.
///
/// # Invariants
///
/// The lock of the zone is held by this CPU until the guard is dropped.
pub(crate) struct ZoneGuard<'a> {
    pub(crate) lists: FreeLists<'a>,
    kind: Kind,
    /// What the treatment knows about the pages, if it tracks the zone.
    pub(crate) tracking: Option<&'a mut Tracking>,
    since: Instant<Monotonic>,
    /// The longest time, in ns, for which locks were held on behalf of the same user.
    longest: &'static Atomic<i64>,
    _not_send: NotThreadSafe,
}

impl Drop for ZoneGuard<'_> {
    fn drop(&mut self) {
        let held = self.since.elapsed().as_nanos();

        // SAFETY: By the type invariant the lock is held.
        unsafe { bindings::freepage_unlock(self.lists.0.as_ptr()) };
        if held > self.longest.load(Relaxed) {
            self.longest.store(held, Relaxed);
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

    /// Takes the zone lock, to see what the treatment `kind` knows; `longest` is where the longest
    /// hold, in ns, is noted.
    ///
    /// Process context, interrupts on.
    pub(crate) fn lock(&self, kind: Kind, longest: &'static Atomic<i64>) -> ZoneGuard<'_> {
        // SAFETY: By the type invariant this is a zone, and no caller holds a zone lock.
        unsafe { bindings::freepage_lock(self.as_ptr()) };
        // SAFETY: The lock was just taken, and protects the pointer and what it leads to until the
        // guard is dropped. `replace()` stores the address of a `Tracking`: its first field.
        let tracking = unsafe {
            (&raw const (*self.as_ptr()).freepage_maps)
                .cast::<*mut Tracking>()
                .add(kind as usize)
                .read()
                .as_mut()
        };
        // INVARIANT: The lock was just taken.
        ZoneGuard {
            lists: FreeLists(self),
            kind,
            tracking,
            since: Instant::now(),
            longest,
            _not_send: NotThreadSafe,
        }
    }

    /// The pages from the first to the last of the zone, holes included.
    pub(crate) fn span(&self) -> Range<usize> {
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

    /// The node that the zone belongs to.
    #[cfg(CONFIG_PAGE_ZERO)]
    pub(crate) fn nid(&self) -> i32 {
        // SAFETY: By the type invariant this is a zone.
        unsafe { bindings::page_zero_zone_nid(self.as_ptr()) }
    }

    /// Whether the memory of `pfn` is online, and in this zone.
    pub(crate) fn is_online(&self, pfn: usize) -> bool {
        // SAFETY: By the type invariant this is a zone; any PFN may be asked for.
        unsafe { bindings::freepage_online(self.as_ptr(), pfn) }
    }

    /// Whether free blocks that are zeroed are kept from being reported now.
    fn keeps_zeroed(&self) -> bool {
        #[cfg(CONFIG_PAGE_ZERO)]
        // SAFETY: By the type invariant this is a zone.
        return unsafe { bindings::page_zero_keeps(self.as_ptr()) };
        #[cfg(not(CONFIG_PAGE_ZERO))]
        false
    }

    /// Whether `pfn`, which has a `struct page`, is in this zone.
    fn has_page(&self, pfn: usize) -> bool {
        // SAFETY: By the type invariant this is a zone.
        unsafe { bindings::freepage_has_page(self.as_ptr(), pfn) }
    }
}

/// A zone, as a treatment sees it.
#[derive(Clone, Copy)]
pub(crate) struct TrackedZone {
    zone: &'static Zone,
    kind: Kind,
}

impl TrackedZone {
    /// Takes the zone lock. Process context, interrupts on.
    fn lock(&self) -> ZoneGuard<'_> {
        self.zone
            .lock(self.kind, &LONGEST_HOLD_NS[self.kind as usize])
    }

    /// See [`track`].
    fn track(&self, _mems: &OnlineMems) -> Result {
        let span = self.zone.span();
        if span.is_empty() {
            return Ok(());
        }
        let mut tracking = Tracking::new(span)?;
        let mut pages = tracking.pages();
        for chunk in tracking.chunks.iter_mut() {
            let next = pages.start + CHUNK;
            if map::pieces(pages.start..next, section_pages()).any(|piece| self.has_some(&piece)) {
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
        let covers = |range: &Range<usize>| range.start <= pages.start && pages.end <= range.end;
        if !tracked.as_ref().is_some_and(covers) {
            // All that the old one has, though the zone may have become smaller since.
            let span = match self.zone.span() {
                span if span.is_empty() => pages.clone(),
                span => span,
            };
            let start = tracked.iter().map(|range| range.start);
            let end = tracked.iter().map(|range| range.end);
            larger = Some(Tracking::new(
                start.fold(span.start.min(pages.start), usize::min)
                    ..end.fold(span.end.max(pages.end), usize::max),
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
            for pfn in (pages.start / CHUNK * CHUNK..pages.end).step_by(CHUNK) {
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
                    tracking.map().forget(range.clone());
                    if range.len() == CHUNK {
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
        self.rest(|rest| *rest = Rest::NONE);
        self.for_each_piece(|map, pages| {
            map.set_freed(pages.clone());
            map.set_pending(pages);
        });
    }

    /// Makes the next pass visit every group with a freed page.
    pub(crate) fn revisit(&self) {
        self.rest(|rest| *rest = Rest::NONE);
        self.for_each_piece(|map, pages| {
            if map.next_freed(pages.clone()).is_some() {
                map.set_pending(pages);
            }
        });
    }

    /// Whether some of `pages`, which have a memmap if one of them has, are in this zone.
    ///
    /// Nodes and zones may begin and end anywhere. Pages of another one do no harm: no block of
    /// this zone is found there.
    fn has_some(&self, pages: &Range<usize>) -> bool {
        self.zone.is_online(pages.start) || self.zone.is_online(pages.end - 1)
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

    /// Calls `visit` for each part of a group that is online and in this zone, with the zone lock
    /// held.
    fn for_each_piece(&self, visit: impl Fn(&mut Map<'_>, Range<usize>)) {
        let mut next = 0;

        loop {
            let mut guard = self.lock();
            let Some(tracking) = &mut guard.tracking else {
                return;
            };
            let start_pfn = tracking.raw.start_pfn;
            let mut map = tracking.map();
            let end = map.len().min(next + GROUPS_PER_HOLD * GROUP);
            for piece in map::pieces(start_pfn + next..start_pfn + end, section_pages()) {
                if self.has_some(&piece) {
                    visit(&mut map, piece.start - start_pfn..piece.end - start_pfn);
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

/// Pages that have a memmap all in one, see [`map::pieces`].
fn section_pages() -> usize {
    // SAFETY: Returns a constant.
    unsafe { bindings::freepage_section_pages() }
}

impl ZoneGuard<'_> {
    /// Replaces what is known about the pages. Returns the old, to be freed without the lock.
    fn replace(&mut self, new: Option<KBox<Tracking>>) -> Option<KBox<Tracking>> {
        let new = new.map_or(ptr::null_mut(), KBox::into_raw);
        let zone = self.lists.0.as_ptr();
        // SAFETY: By the type invariant the lock is held, which protects the field.
        let old = unsafe {
            let maps = (&raw mut (*zone).freepage_maps).cast::<*mut Tracking>();
            maps.add(self.kind as usize).replace(new)
        };

        // SAFETY: It came from `KBox::into_raw()`, and the lock is held.
        self.tracking = unsafe { new.as_mut() };
        // SAFETY: What is not null came from `KBox::into_raw()` here. It is gone from the zone, and
        // from this guard.
        (!old.is_null()).then(|| unsafe { KBox::from_raw(old) })
    }
}

// SAFETY: By the type invariant it is part of a guard.
unsafe impl Held for FreeLists<'_> {
    fn is_zeroed(&self, block: Run) -> bool {
        #[cfg(CONFIG_PAGE_ZERO)]
        // SAFETY: The lock is held, and the block is on a free list.
        return unsafe { !bindings::page_zero_needed(block.start, block.pages()) };
        #[cfg(not(CONFIG_PAGE_ZERO))]
        {
            let _ = block;
            false
        }
    }
}

impl FreeLists<'_> {
    /// The block on a free list that `pfn` belongs to; `room` is where to describe it.
    ///
    /// The caller knows that no such block begins below `floor`.
    pub(crate) fn find<'f>(
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

    /// Takes `part` of a block, which is not isolated, off its free list.
    pub(crate) fn isolate(&self, block: FoundBlock<'_>, part: Run) {
        assert!(block.run().contains(part));
        let raw = Run::as_raw(core::slice::from_ref(&part));
        // SAFETY: By the type invariants the lock is held, and the block is on a free list.
        unsafe { bindings::freepage_isolate(self.0.as_ptr(), block.0, raw) };
    }

    /// How many pages can be taken without getting the zone below its low watermark.
    pub(crate) fn spare(&self) -> usize {
        // SAFETY: By the type invariant the lock is held.
        unsafe { bindings::freepage_spare(self.0.as_ptr()) }
    }

    /// How many pages treatments have off the free lists.
    pub(crate) fn off(&self) -> usize {
        // SAFETY: By the type invariant the lock is held.
        unsafe { bindings::freepage_nr_off(self.0.as_ptr()) }
    }

    /// Puts blocks back that [`Self::isolate`] took.
    pub(crate) fn put_back(&self, blocks: &[Run]) {
        let zone = self.0.as_ptr();

        // SAFETY: By the type invariant the lock is held. The blocks were isolated from this zone.
        unsafe { bindings::freepage_put_back(zone, Run::as_raw(blocks), blocks.len()) }
    }

    /// Takes what `treatment` wants of one group into `batch`: of each block the smallest part that
    /// has all of it.
    ///
    /// Returns whether all of it was visited that can be, or how the hold ends.
    fn isolate_group<T: Treatment>(
        &self,
        tracking: &mut Tracking,
        group: usize,
        treatment: &T,
        batch: &mut Batch,
        limits: &mut Limits,
    ) -> Result<bool, Step> {
        let start_pfn = tracking.raw.start_pfn;
        let mut map = tracking.map();
        let pages = group * GROUP..(group + 1) * GROUP;
        let unit_pages = 1 << treatment.order();
        let mut next = pages.start;
        let mut floor = 0;
        let mut later = false;
        let mut raw = bindings::freepage_block::default();

        while let Some(page) = map.next_freed(next..pages.end) {
            // A block that is large enough for a unit covers its first page.
            let unit = page & !(unit_pages - 1);
            next = unit + unit_pages;
            limits.lookups = limits.lookups.saturating_sub(1);
            let Some(found) = self.find(start_pfn + unit, floor, &mut raw) else {
                if unit_pages == 1 && limits.alone {
                    // Allocated since, not in use by another treatment. It will be noted again when
                    // it is freed.
                    map.clear_freed(page..next);
                }
                floor = start_pfn + next;
                continue;
            };

            let block = found.run();
            next = next.max(block.range().end - start_pfn);
            floor = start_pfn + next;
            let free = FreePage::new(self, block, limits.keeps_zeroed);
            let wanted = treatment.wants(&free);
            if free.was_looked_at() {
                // To look at a flag takes less than to look up a block.
                limits.lookups = limits.lookups.saturating_sub(block.pages() / 4);
            }
            if !wanted {
                continue;
            }
            if found.is_isolated() {
                later = true;
                continue;
            }
            let room = batch.room().min(limits.spare);
            // For less than a group it is not worth while.
            let is_short = limits.spare < unit_pages.max(GROUP);
            if batch.is_full() || is_short || room < unit_pages {
                map.set_pending(page..pages.end);
                return Err(if is_short { Step::Short } else { Step::Full });
            }

            let mut part: Option<Run> = None;
            let orders = treatment.order()..=room.ilog2();
            let left = map.take_runs(block.in_map(start_pfn), orders, |run| {
                let run = run.at(start_pfn);
                let with = part.map_or(run, |part| part.with(run));
                let fits = with.pages() <= room && batch.push(run);
                if fits {
                    part = Some(with);
                }
                fits
            });
            if let Some(part) = part {
                limits.spare -= part.pages();
                batch.push_block(part);
                self.isolate(found, part);
            }
            if let Some(left) = left {
                map.set_pending(left..next);
                return Err(Step::Full);
            }
        }
        if later {
            // Found again when the pageblock is free, as soon as another pass is requested.
            map.set_pending(pages);
        }
        Ok(!later)
    }
}

/// What may be done during one hold of the zone lock.
struct Limits {
    /// Blocks that may be looked up, beyond which no other group is begun.
    lookups: usize,
    /// Pages that may be taken.
    spare: usize,
    /// Whether blocks that are zeroed are a reserve.
    keeps_zeroed: bool,
    /// Whether no other treatment has pages off the free lists.
    alone: bool,
}

/// Allocates the bits of a chunk, none of them set.
fn new_bits() -> Result<Bits> {
    KBox::init(pin_init::init_zeroed(), GFP_KERNEL)
}

impl Source for TrackedZone {
    fn begin(&self) -> usize {
        let pending = self.reset_request();
        let all = pending >= DRAIN_MIN && !self.zone.span().is_empty();
        if !(all || self.hides_some()) {
            return pending;
        }
        // SAFETY: By the type invariant this is a zone, which has pages. No lock is held.
        unsafe { bindings::freepage_drain_zone(self.zone.as_ptr(), all) };
        self.reset_request()
    }

    fn hides_some(&self) -> bool {
        if self.zone.span().is_empty() {
            return false;
        }
        // SAFETY: By the type invariant this is a zone, which has pages.
        let excess = unsafe { bindings::freepage_excess(self.zone.as_ptr()) };
        excess >= EXCESS_MIN
    }

    fn pending(&self) -> usize {
        let guard = self.lock();
        guard
            .tracking
            .as_ref()
            .map_or(0, |tracking| tracking.raw.nr_pending)
    }

    fn isolate<T: Treatment>(&self, treatment: &T, batch: &mut Batch, budget: &mut Budget) -> Step {
        // Asks each CPU: not with the lock held.
        let keeps_zeroed = self.zone.keeps_zeroed();
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
            keeps_zeroed,
            alone: lists.off() == batch.pages(),
        };

        for _ in 0..GROUPS_PER_HOLD {
            if budget.is_spent() {
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
            match lists.isolate_group(tracking, group, treatment, batch, &mut limits) {
                Ok(finished) => budget.visited(finished),
                Err(step) => return step,
            }
            tracking.raw.cursor = group + 1;
        }
        Step::More
    }

    fn put_back(&self, batch: &mut Batch, treated: usize) {
        let mut guard = self.lock();

        guard.lists.put_back(&batch.blocks);
        if let Some(tracking) = &mut guard.tracking {
            let start_pfn = tracking.raw.start_pfn;
            let mut map = tracking.map();
            for run in batch.runs.iter().skip(treated) {
                let pages = run.in_map(start_pfn).range();
                map.set_freed(pages.clone());
                map.set_pending(pages);
            }
        }
        batch.clear();
    }
}

impl Resting for TrackedZone {
    fn rest<R>(&self, access: impl FnOnce(&mut Rest) -> R) -> R {
        let mut guard = self.lock();
        // A zone that is not tracked has nothing to be treated.
        let mut none = Rest::NONE;

        access(match &mut guard.tracking {
            Some(tracking) => &mut tracking.rest,
            None => &mut none,
        })
    }

    fn is_requested(&self) -> bool {
        let guard = self.lock();
        guard
            .tracking
            .as_ref()
            .is_some_and(|tracking| tracking.raw.requested)
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
    let kinds = Kind::ALL.into_iter().filter(|kind| tracked[*kind as usize]);

    for zone in kinds
        .flat_map(sources)
        .filter(|zone| zone.zone.has_page(pfn))
    {
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
    for zone in Kind::ALL.into_iter().flat_map(sources) {
        zone.forget_offline(pfn..pfn + nr_pages);
    }
}
