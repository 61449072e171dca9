// SPDX-License-Identifier: GPL-2.0

//! The view of pages and of the direct map: the only place with `unsafe` over them.
//!
//! What can be done to memory is [`Memory`], so that the cache can be tested on memory that is
//! simulated. [`Kernel`] is the real one, through `glue.c`.

use super::buddy::{
    Lists,
    Run, //
};
use core::ptr::{
    self,
    NonNull, //
};
use kernel::{
    bindings,
    error::to_result,
    prelude::*, //
};

/// Number of orders that the page allocator has.
pub(crate) const ORDERS: usize = bindings::NR_PAGE_ORDERS as usize;

/// The largest order.
pub(crate) const MAX_ORDER: u32 = bindings::MAX_PAGE_ORDER;

/// The order of a block that one entry of the direct map can map.
pub(crate) const BLOCK_ORDER: u32 = bindings::PMD_ORDER;

/// Who may be disturbed for an allocation, and the nodes that it may use.
#[derive(Clone, Copy)]
pub(crate) struct Gfp {
    flags: bindings::gfp_t,
    nodes: *mut bindings::nodemask_t,
}

impl Gfp {
    /// For an allocation from any node.
    pub(crate) fn new(flags: bindings::gfp_t) -> Self {
        Self {
            flags,
            nodes: ptr::null_mut(),
        }
    }

    /// For an allocation from some nodes.
    ///
    /// # Safety
    ///
    /// `nodes` is null, for all of them, or is valid until the allocation is over.
    pub(crate) unsafe fn within(self, nodes: *mut bindings::nodemask_t) -> Self {
        Self { nodes, ..self }
    }

    /// Whether the caller holds nothing that another allocation could wait for.
    pub(crate) fn may_wait(self) -> bool {
        // SAFETY: Only looks at the flags.
        unsafe { bindings::unmapped_may_wait(self.flags) }
    }
}

/// What happens to be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A block left the direct map.
    Refill,
    /// None could.
    RefillFail,
    /// An entry of the direct map had to be split.
    Split,
    /// Pages were given back.
    Release,
}

/// Memory, the direct map, and who else has to know.
pub(crate) trait Memory {
    /// The free lists of a node.
    type Lists: Lists + Unpin;
    /// A page table, kept for a split.
    type Table: Unpin;

    /// Allocates a block of zeroed pages, of which the caller cannot do without `wanted`.
    fn allocate(&self, gfp: Gfp, nid: usize, order: u32, wanted: u32) -> Option<Run>;

    /// Frees a block that is in the direct map.
    fn free(&self, run: Run);

    /// Takes a block out of the direct map and out of all TLBs.
    ///
    /// On error a part of it may have gone.
    fn unmap(&self, run: Run) -> Result;

    /// Maps a block again. Takes `table` if an entry has to be split for that.
    fn restore(&self, run: Run, table: &mut Option<Self::Table>) -> Result;

    /// Undoes splits around a block that is mapped again.
    fn collapse(&self, run: Run);

    /// Has [`super::cache::Cache::collapse`] called soon.
    fn queue_collapse(&self);

    /// Allocates a page table.
    fn table(&self) -> Option<Self::Table>;

    /// Clears a block that is not in the direct map.
    fn clear(&self, run: Run);

    /// Whether the memory of a page is broken.
    fn is_poisoned(&self, pfn: usize) -> bool;

    /// Whether the memory of a page is about to go offline.
    fn is_leaving(&self, pfn: usize) -> bool;

    /// The order of a pageblock.
    fn pageblock_order(&self) -> u32;

    /// Says whether pages that are freed in the pageblocks of `run` may be unmapped.
    fn mark(&self, run: Run, unmapped: bool);

    /// Takes a block that was freed in a marked pageblock.
    fn next_pending(&self) -> Option<Run>;

    /// How many pages of a node were freed and not taken yet.
    fn nr_pending(&self, nid: usize) -> usize;

    /// Frees a block that was pending and is in the direct map.
    fn give_back(&self, run: Run);

    /// The node of a page.
    fn node_of(&self, pfn: usize) -> usize;

    /// Pages of a node that are in the cache or in use, and the part that is free.
    fn count(&self, nid: usize, total: isize, free: isize);

    fn event(&self, event: Event);

    /// Lets others run.
    fn relax(&self);
}

/// The memory of this machine.
pub(crate) struct Kernel;

impl Memory for Kernel {
    type Lists = PageLists;
    type Table = PageTable;

    fn allocate(&self, gfp: Gfp, nid: usize, order: u32, wanted: u32) -> Option<Run> {
        // SAFETY: The caller of `unmapped_pages_alloc()` may sleep, or this is not called. The
        // nodes are valid, by the safety requirement of `Gfp::within()`.
        let pfn = unsafe {
            bindings::unmapped_block_alloc(gfp.flags, gfp.nodes, nid as c_int, order, wanted)
        };

        found(pfn).map(|start| Run { start, order })
    }

    fn free(&self, run: Run) {
        // SAFETY: The cache frees what it allocated, and once.
        unsafe { bindings::unmapped_block_free(run.start, run.order) };
    }

    fn unmap(&self, run: Run) -> Result {
        // SAFETY: The pages are the cache's, so nobody uses them.
        to_result(unsafe { bindings::unmapped_unmap(run.start, run.order) })
    }

    fn restore(&self, run: Run, table: &mut Option<PageTable>) -> Result {
        let mut raw = table.take().map_or(ptr::null_mut(), PageTable::into_raw);
        // SAFETY: The pages are the cache's, and `raw` is null or a page table.
        let result = unsafe { bindings::unmapped_restore(run.start, run.order, &mut raw) };

        // INVARIANT: It is set to null if it was used.
        *table = NonNull::new(raw).map(PageTable);
        to_result(result)
    }

    fn collapse(&self, run: Run) {
        // SAFETY: Any mapped pages will do; called from a work item, which may sleep.
        unsafe { bindings::unmapped_collapse(run.start, run.order) };
    }

    fn queue_collapse(&self) {
        // SAFETY: May be called from anywhere once the cache is set up.
        unsafe { bindings::unmapped_queue_collapse() };
    }

    fn table(&self) -> Option<PageTable> {
        // SAFETY: Called where `allocate()` is: the caller may sleep.
        // INVARIANT: It is ours.
        NonNull::new(unsafe { bindings::unmapped_table_alloc() }).map(PageTable)
    }

    fn clear(&self, run: Run) {
        // SAFETY: The pages are the cache's; not called with a lock held.
        unsafe { bindings::unmapped_clear(run.start, run.order) };
    }

    fn is_poisoned(&self, pfn: usize) -> bool {
        // SAFETY: The page is the cache's, so it exists.
        unsafe { bindings::unmapped_is_poisoned(pfn) }
    }

    fn is_leaving(&self, pfn: usize) -> bool {
        // SAFETY: The page is the cache's, so it exists.
        unsafe { bindings::unmapped_is_leaving(pfn) }
    }

    fn pageblock_order(&self) -> u32 {
        // SAFETY: Only returns a number.
        unsafe { bindings::unmapped_pageblock_order() }
    }

    fn mark(&self, run: Run, unmapped: bool) {
        // SAFETY: The pages are the cache's, so they exist.
        unsafe { bindings::unmapped_mark(run.start, run.order, unmapped) };
    }

    fn next_pending(&self) -> Option<Run> {
        // SAFETY: Called from process context.
        let run = unsafe { bindings::unmapped_next_pending() };

        found(run.pfn).map(|start| Run {
            start,
            order: run.order,
        })
    }

    fn nr_pending(&self, nid: usize) -> usize {
        // SAFETY: Only looks at the number of an existing node.
        unsafe { bindings::unmapped_nr_pending(nid as c_int) }
    }

    fn give_back(&self, run: Run) {
        // SAFETY: It was pending, and is given back once.
        unsafe { bindings::unmapped_give_back(run.start, run.order) };
    }

    fn node_of(&self, pfn: usize) -> usize {
        // SAFETY: The page is the cache's or was pending, so it exists.
        unsafe { bindings::unmapped_nid(pfn) as usize }
    }

    fn count(&self, nid: usize, total: isize, free: isize) {
        // SAFETY: Nodes that have had pages stay.
        unsafe { bindings::unmapped_count(nid as c_int, total, free) };
    }

    fn event(&self, event: Event) {
        let event = match event {
            Event::Refill => bindings::unmapped_event_UNMAPPED_EVENT_REFILL,
            Event::RefillFail => bindings::unmapped_event_UNMAPPED_EVENT_REFILL_FAIL,
            Event::Split => bindings::unmapped_event_UNMAPPED_EVENT_SPLIT,
            Event::Release => bindings::unmapped_event_UNMAPPED_EVENT_RELEASE,
        };

        // SAFETY: It is one of the enum's values.
        unsafe { bindings::unmapped_event(event) };
    }

    fn relax(&self) {
        // SAFETY: Not called with a spinlock held.
        unsafe { bindings::unmapped_cond_resched() };
    }
}

fn found(pfn: usize) -> Option<usize> {
    (pfn != usize::MAX).then_some(pfn)
}

/// The free lists of a node, linked through `struct page`.
///
/// # Invariants
///
/// Comes from `unmapped_lists_alloc()`, and nobody else has it.
pub(crate) struct PageLists {
    raw: NonNull<bindings::unmapped_lists>,
    nid: c_int,
}

// SAFETY: Nothing about the lists belongs to a task.
unsafe impl Send for PageLists {}

impl PageLists {
    /// Allocates empty lists; they are never freed.
    pub(crate) fn new(nid: usize) -> Result<Self> {
        // SAFETY: Called from an initcall.
        let raw = unsafe { bindings::unmapped_lists_alloc(nid as c_int) };

        // INVARIANT: It was just allocated.
        Ok(Self {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
            nid: nid as c_int,
        })
    }
}

impl Lists for PageLists {
    fn add(&mut self, run: Run) {
        // SAFETY: By the type invariant, and the page is the cache's and on no list.
        unsafe { bindings::unmapped_list_add(self.raw.as_ptr(), run.start, run.order) };
    }

    fn remove(&mut self, run: Run) {
        // SAFETY: By the requirement on the caller the page is on one of these lists.
        unsafe { bindings::unmapped_list_del(run.start) };
    }

    fn first(&self, order: u32) -> Option<usize> {
        // SAFETY: By the type invariant.
        found(unsafe { bindings::unmapped_list_first(self.raw.as_ptr(), order) })
    }

    fn order_at(&self, start: usize) -> Option<u32> {
        // SAFETY: Any page frame number will do.
        let order = unsafe { bindings::unmapped_list_order(start, self.nid) };

        u32::try_from(order).ok()
    }
}

/// A page table that is not in use.
///
/// # Invariants
///
/// Comes from `unmapped_table_alloc()`, and nobody else has it.
pub(crate) struct PageTable(NonNull<bindings::pte_t>);

// SAFETY: Nothing about a page table belongs to a task.
unsafe impl Send for PageTable {}

impl PageTable {
    fn into_raw(self) -> *mut bindings::pte_t {
        let raw = self.0.as_ptr();

        core::mem::forget(self);
        raw
    }
}

impl Drop for PageTable {
    fn drop(&mut self) {
        // SAFETY: By the type invariant it is ours, and not in use.
        unsafe { bindings::unmapped_table_free(self.0.as_ptr()) };
    }
}

/// How many nodes there can be; all have a lower number.
pub(crate) fn possible_nodes() -> usize {
    // SAFETY: Only returns a number.
    unsafe { bindings::unmapped_possible_nodes() as usize }
}
