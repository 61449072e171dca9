// SPDX-License-Identifier: GPL-2.0

//! The view of the zeroer: finds free blocks with pages that are not known to be zero, has them
//! cleared, and says what C knows of a node. `unsafe` over these is here, decisions are in
//! [`super::policy`].
//!
//! There is no list of what is to be cleared: the flag on each page says it. A sweep walks over the
//! pages of the node's zones, once for blocks of at least 2 MiB and once for smaller ones. It holds
//! the zone lock for some 1000 looks at a time.

use super::policy::{
    Clear,
    Cleared,
    Node,
    Settings,
    Zeroer,
    Zeroing, //
};
use crate::{
    map::{
        Run,
        GROUP, //
    },
    primitives::{
        cond_resched,
        Kind, //
    },
    worker::{
        self,
        Batch,
        Budget,
        FreePage,
        IsolatedPages,
        Never,
        Outcome,
        Source,
        Stats,
        Step,
        Treatment, //
    },
    zone::{
        FreeLists,
        Tracking,
        Zone,
        ZoneGuard, //
    },
};
use core::{
    cell::Cell,
    ops::Range,
    ptr, //
};
use kernel::{
    bindings,
    ffi::{
        c_int,
        c_long,
        c_ulong,
        c_void, //
    },
    page::PAGE_SIZE,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// Blocks of at least this order are cleared first.
const LARGE_ORDER: u32 = bindings::FREEPAGE_GROUP_ORDER;

/// Blocks that are off the free lists at a time.
const BATCH_BLOCKS: usize = 128;

/// Groups visited during one hold of the zone lock.
const GROUPS_PER_HOLD: usize = 16;

/// Pages looked at during one hold of the zone lock, give or take a block.
const LOOKS_PER_HOLD: usize = 1000;

/// Holds of the zone lock during one step: between steps the zeroer can be stopped, frozen, and
/// interrupted, and sleeps for its limits.
const HOLDS_PER_STEP: usize = 64;

static LONGEST_HOLD_NS: Atomic<i64> = Atomic::new(0);

/// `pages` as aligned runs, the first one first.
fn runs_of(pages: Range<usize>) -> impl Iterator<Item = Run> {
    let mut next = pages.start;

    core::iter::from_fn(move || {
        let start = next;
        let left = pages.end.checked_sub(start)?.checked_ilog2()?;
        let order = left.min(start.trailing_zeros());

        next += 1 << order;
        Some(Run { start, order })
    })
}

/// Whether `run`, which is on a free list of the zone whose lock is held, has pages that are to be
/// cleared.
fn is_wanted(_lists: &FreeLists<'_>, run: Run) -> bool {
    // SAFETY: The zone lock is held, and the run is on a free list.
    unsafe { bindings::page_zero_wanted(run.start, run.pages()) }
}

/// The parts of `pages`, which are on a free list, that are to be cleared.
///
/// To write to a page that was reported to the host would take it back: those are left out.
fn wanted<'a>(
    lists: &'a FreeLists<'_>,
    mut tracking: Option<&'a mut Tracking>,
    pages: Range<usize>,
) -> impl Iterator<Item = Run> + 'a {
    let mut next = pages.start;

    core::iter::from_fn(move || {
        let rest = next..pages.end;
        let kept = match &mut tracking {
            Some(tracking) => tracking.next_untreated(rest)?,
            None if rest.is_empty() => return None,
            None => rest,
        };

        next = kept.end;
        Some(kept)
    })
    .flat_map(runs_of)
    .filter(move |run| is_wanted(lists, *run))
}

/// A walk over the pages of a zone: a pass isolates one batch.
struct Walk {
    zone: &'static Zone,
    /// The next page to be visited.
    cursor: Cell<usize>,
}

impl Walk {
    /// Takes the zone lock, to see also what was reported.
    fn lock(&self) -> ZoneGuard<'_> {
        self.zone.lock(Kind::Reporting, &LONGEST_HOLD_NS)
    }

    /// Whether the walk has come to the end of the zone.
    fn is_over(&self) -> bool {
        self.cursor.get() >= self.zone.span().end
    }

    /// Isolates what `treatment` wants, from the cursor on, as long as there is room.
    fn walk<T: Treatment>(
        &self,
        guard: &mut ZoneGuard<'_>,
        treatment: &T,
        batch: &mut Batch,
    ) -> Step {
        let end = self.zone.span().end;
        let small = treatment.order() < LARGE_ORDER;
        let mut looks = LOOKS_PER_HOLD;
        let mut floor = 0;
        let mut room = bindings::freepage_block::default();
        let ZoneGuard {
            lists, tracking, ..
        } = guard;

        for _ in 0..GROUPS_PER_HOLD {
            let mut pfn = self.cursor.get();
            let group_end = ((pfn / GROUP + 1) * GROUP).min(end);

            if pfn >= end {
                return Step::Done;
            }
            // A zone may begin within a group, which has no large block then.
            if (!small && pfn % GROUP != 0) || !self.zone.is_online(pfn) {
                self.cursor.set(group_end);
                continue;
            }
            while pfn < group_end && looks > 0 {
                looks -= 1;
                let Some(found) = lists.find(pfn, floor, &mut room) else {
                    // A block that has one of the next pages does not have this one.
                    floor = pfn + 1;
                    pfn = if small { pfn + 1 } else { group_end };
                    continue;
                };
                let block = found.run();
                // Of a larger block 2 MiB at a time. A smaller part would come back to the tail of
                // a list when it is put back, and huge pages are taken from the head.
                let part = Run {
                    start: pfn >> block.order.min(LARGE_ORDER) << block.order.min(LARGE_ORDER),
                    order: block.order.min(LARGE_ORDER),
                };

                floor = block.start;
                let mut first = None;
                if treatment.wants(&FreePage::new(lists, block, false)) {
                    // To look at a flag takes less than to look for a block.
                    looks = looks.saturating_sub(part.pages() / 4);
                    first = wanted(lists, tracking.as_deref_mut(), part.range()).next();
                }
                if let Some(first) = first.filter(|_| !found.is_isolated()) {
                    if batch.is_full() || batch.room() < part.pages() {
                        self.cursor.set(pfn);
                        return Step::Done;
                    }
                    if lists.spare() < part.pages() {
                        self.cursor.set(pfn);
                        return Step::Short;
                    }
                    lists.isolate(found, part);
                    batch.push_block(part);
                    let rest = first.start..part.range().end;
                    if !wanted(lists, tracking.as_deref_mut(), rest).all(|run| batch.push(run)) {
                        // What did not fit is found again, and the rest of it is zeroed then.
                        self.cursor.set(pfn);
                        return Step::Done;
                    }
                }
                pfn = part.range().end;
            }
            self.cursor.set(pfn);
            if looks == 0 {
                break;
            }
        }
        Step::More
    }
}

impl Source for Walk {
    fn begin(&self) -> usize {
        if self.is_over() {
            0
        } else {
            HOLDS_PER_STEP
        }
    }

    fn pending(&self) -> usize {
        self.begin()
    }

    fn isolate<T: Treatment>(&self, treatment: &T, batch: &mut Batch, budget: &mut Budget) -> Step {
        if budget.is_spent() {
            return Step::Done;
        }
        budget.visited(true);
        self.walk(&mut self.lock(), treatment, batch)
    }

    fn put_back(&self, batch: &mut Batch, _treated: usize) {
        let guard = self.lock();

        guard.lists.put_back(&batch.blocks);
        batch.clear();
    }
}

/// Clears by what the kernel clears memory with.
struct Clearing;

impl Clear for Clearing {
    fn clear<S: Source>(&mut self, batch: &mut IsolatedPages<'_, S>) -> usize {
        let clear = |run: &Run| {
            cond_resched();
            // SAFETY: The run is off the free lists, and belongs to the batch.
            unsafe { bindings::page_zero_clear(run.start, run.pages()) }
        };
        batch.runs().iter().map(clear).sum()
    }
}

/// What works on a node: where it is in its sweep, and room for a batch.
struct NodeState {
    nid: c_int,
    zeroer: Zeroer,
    sweep: Sweep,
}

/// A sweep over the zones of a node, for blocks of some orders.
struct Half {
    walks: KVec<Walk>,
    /// The zone that the sweep has come to.
    at: usize,
}

impl Half {
    fn new(nid: c_int) -> Result<Self> {
        let mut walks = KVec::new();

        for zone in Zone::all().filter(|zone| zone.nid() == nid) {
            walks.push(
                Walk {
                    zone,
                    cursor: Cell::new(zone.span().start),
                },
                GFP_KERNEL,
            )?;
        }
        // As allocations of users do, the highest zone first.
        walks.reverse();
        Ok(Self { walks, at: 0 })
    }

    /// Goes to the start of the first zone.
    fn rewind(&mut self) {
        self.at = 0;
        for walk in self.walks.iter() {
            walk.cursor.set(walk.zone.span().start);
        }
    }
}

/// A sweep over a node, for large blocks and for small ones, one after the other.
struct Sweep {
    large: Half,
    small: Half,
    /// Whether a zone was short of memory.
    short: bool,
    batch: Batch,
    stats: Stats,
}

impl Sweep {
    fn new(nid: c_int) -> Result<Self> {
        Ok(Self {
            large: Half::new(nid)?,
            small: Half::new(nid)?,
            short: false,
            batch: Batch::new(BATCH_BLOCKS)?,
            stats: Stats::new(),
        })
    }

    /// Begins anew.
    fn restart(&mut self) {
        self.short = false;
        self.large.rewind();
        self.small.rewind();
    }

    /// Clears at most one batch of blocks whose order is in `orders`; `None`: that half is done.
    fn clear_half(&mut self, small: bool, orders: Range<u32>) -> Option<Cleared> {
        let half = if small {
            &mut self.small
        } else {
            &mut self.large
        };

        while let Some(walk) = half.walks.get(half.at) {
            let mut zeroing = Zeroing {
                clear: Clearing,
                order: orders.start,
                end: orders.end,
                cleared: 0,
            };
            let outcome = worker::pass(walk, &mut zeroing, &mut self.batch, &self.stats, &Never);
            if zeroing.cleared > 0 {
                return Some(Cleared::Pages(zeroing.cleared as u64));
            }
            if outcome == Ok(Outcome::Short) {
                self.short = true;
                half.at += 1;
            } else if walk.is_over() {
                half.at += 1;
            } else {
                return Some(Cleared::Looked);
            }
        }
        None
    }

    /// Clears at most one batch of blocks of at least `min_order`.
    fn clear(&mut self, min_order: u32, small_first: bool) -> Cleared {
        for small in [small_first, !small_first] {
            let orders = if small {
                min_order..LARGE_ORDER
            } else {
                min_order.max(LARGE_ORDER)..u32::MAX
            };
            if orders.is_empty() {
                continue;
            }
            if let Some(cleared) = self.clear_half(small, orders) {
                return cleared;
            }
        }

        let short = self.short;
        self.restart();
        if short {
            Cleared::Short
        } else {
            Cleared::Nothing
        }
    }
}

/// A node as the policy sees it.
struct View<'a> {
    nid: c_int,
    sweep: &'a mut Sweep,
}

impl Node for View<'_> {
    fn settings(&self) -> Settings {
        let settings = &raw const bindings::page_zero_settings;
        // SAFETY: A static of C, whose fields are written one at a time, without tearing.
        let read = |field: *const u32| unsafe { field.read_volatile() };

        // SAFETY: A static of C; no reference is made.
        unsafe {
            Settings {
                delay_ms: read(&raw const (*settings).delay_ms).into(),
                min_order: read(&raw const (*settings).min_order),
                low_percent: read(&raw const (*settings).low_percent).into(),
                high_percent: read(&raw const (*settings).high_percent).into(),
                cpu_percent: read(&raw const (*settings).cpu_percent).into(),
                rate_mib: read(&raw const (*settings).rate_mib).into(),
            }
        }
    }

    fn zeroed(&self) -> u64 {
        // SAFETY: The node is online: it has or had memory.
        unsafe { bindings::page_zero_nr_zeroed(self.nid) as u64 }
    }

    fn free(&self) -> u64 {
        // SAFETY: As above.
        unsafe { bindings::page_zero_nr_free(self.nid) as u64 }
    }

    fn managed(&self) -> u64 {
        // SAFETY: As above.
        unsafe { bindings::page_zero_nr_managed(self.nid) as u64 }
    }

    fn page_bytes(&self) -> u64 {
        PAGE_SIZE as u64
    }

    fn now_ns(&self) -> u64 {
        // SAFETY: Process context.
        unsafe { bindings::ktime_get() as u64 }
    }

    fn runtime_ns(&self) -> u64 {
        // SAFETY: Process context.
        unsafe { bindings::page_zero_runtime() }
    }

    fn missed(&self) -> u64 {
        // SAFETY: Sums counters.
        unsafe { bindings::page_zero_nr_missed() as u64 }
    }

    fn look(&mut self) {
        // SAFETY: Process context, and nobody else works on the node.
        unsafe { bindings::page_zero_look(self.nid) }
    }

    fn collect(&mut self) -> bool {
        // SAFETY: As above.
        unsafe { bindings::page_zero_collect(self.nid) }
    }

    fn clear_pool(&mut self) -> Option<u64> {
        // SAFETY: As above; null stands for pools of any size.
        let pages = unsafe { bindings::page_zero_pool_clear(self.nid, ptr::null_mut()) };
        u64::try_from(pages).ok()
    }

    fn clear(&mut self, min_order: u32, small_first: bool) -> Cleared {
        self.sweep.clear(min_order, small_first)
    }

    fn look_again(&mut self) {
        self.sweep.large.rewind();
    }

    fn begin(&mut self, zeroed: u64, high: u64) {
        self.sweep.restart();
        // SAFETY: The tracepoint takes plain values.
        unsafe { trace::page_zero_begin(self.nid, zeroed as usize, high as usize) };
    }

    fn end(&mut self, cleared: u64) {
        // SAFETY: The tracepoint takes plain values.
        unsafe { trace::page_zero_end(self.nid, cleared as usize) };
    }
}

mod trace {
    use kernel::{
        declare_trace,
        ffi::c_int, //
    };

    declare_trace! {
        /// # Safety
        ///
        /// Always safe to call.
        pub(super) unsafe fn page_zero_begin(nid: c_int, zeroed: usize, high: usize);

        /// # Safety
        ///
        /// Always safe to call.
        pub(super) unsafe fn page_zero_end(nid: c_int, cleared: usize);
    }
}

/// Makes what works on a node. Returns null if there is no memory for it.
///
/// # Safety
///
/// Process context; may sleep. The node is online, and its zones are initialized.
#[export]
pub(crate) unsafe extern "C" fn page_zero_node_new(nid: c_int) -> *mut c_void {
    let state = Sweep::new(nid).and_then(|sweep| {
        let state = NodeState {
            nid,
            zeroer: Zeroer::new(),
            sweep,
        };
        Ok(KBox::new(state, GFP_KERNEL)?)
    });

    state.map_or(ptr::null_mut(), |state| KBox::into_raw(state).cast())
}

/// Does one step: clears at most a batch, and looks for it for a bounded time.
///
/// Returns the time in ms until the next, 0: at once.
///
/// # Safety
///
/// Process context; may sleep. `node` is from [`page_zero_node_new`], and nobody else uses it.
#[export]
pub(crate) unsafe extern "C" fn page_zero_node_step(node: *mut c_void) -> c_ulong {
    // SAFETY: By the safety requirements.
    let state = unsafe { &mut *node.cast::<NodeState>() };

    state.zeroer.step(&mut View {
        nid: state.nid,
        sweep: &mut state.sweep,
    }) as c_ulong
}

/// Begins anew with the sweep, so that a flush ends when it has looked at all pages.
///
/// # Safety
///
/// As [`page_zero_node_step`].
#[export]
pub(crate) unsafe extern "C" fn page_zero_node_restart(node: *mut c_void) {
    // SAFETY: By the safety requirements.
    unsafe { &mut *node.cast::<NodeState>() }.sweep.restart();
}

/// Clears at most one batch, whatever the watermarks say, and returns the number of pages.
///
/// 0 means that none was found yet, -ENOENT that nothing is left that could be cleared now.
///
/// # Safety
///
/// As [`page_zero_node_step`].
#[export]
pub(crate) unsafe extern "C" fn page_zero_node_flush(node: *mut c_void) -> c_long {
    // SAFETY: By the safety requirements.
    let state = unsafe { &mut *node.cast::<NodeState>() };
    let mut view = View {
        nid: state.nid,
        sweep: &mut state.sweep,
    };
    let order = view.settings().min_order;

    match view.clear(order, false) {
        Cleared::Pages(pages) => pages as c_long,
        Cleared::Looked => 0,
        Cleared::Short | Cleared::Nothing => ENOENT.to_errno() as c_long,
    }
}

/// The longest time for which a zeroer held a zone lock, in ns.
///
/// # Safety
///
/// Always safe to call.
#[export]
pub(crate) unsafe extern "C" fn page_zero_longest_hold_ns() -> u64 {
    LONGEST_HOLD_NS.load(Relaxed) as u64
}

#[cfg(CONFIG_FREEPAGE_KUNIT_TEST)]
#[kunit_tests(freepage_zeroing_sweep)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_zone_comes_first() -> Result {
        for zone in Zone::all() {
            let half = Half::new(zone.nid())?;
            let zones = half.walks.iter().map(|walk| walk.zone.span());
            let starts = zones.filter(|span| !span.is_empty()).map(|span| span.start);

            assert!(starts.is_sorted_by(|before, after| before > after));
        }
        Ok(())
    }
}
