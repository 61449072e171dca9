// SPDX-License-Identifier: GPL-2.0

//! Memory for tests: pages that remember what was done to them, and steps that fail on demand.

use crate::{
    buddy::{
        Lists,
        Run, //
    },
    pages::{
        Event,
        Gfp,
        Memory,
        BLOCK_ORDER,
        MAX_ORDER,
        ORDERS, //
    },
};
use core::{
    cell::Cell,
    ptr::NonNull, //
};
use kernel::prelude::*;

/// Free lists. Nothing is allocated after `new()`: they are used with a spinlock held.
pub(crate) struct TestLists {
    lists: KVec<KVec<usize>>,
    /// The order of the free block that begins with a page.
    orders: KVec<Option<u32>>,
}

impl TestLists {
    pub(crate) fn new(pages: usize) -> Result<Self> {
        let mut lists = KVec::with_capacity(ORDERS, GFP_KERNEL)?;

        for order in 0..ORDERS {
            lists.push(KVec::with_capacity(pages >> order, GFP_KERNEL)?, GFP_KERNEL)?;
        }
        Ok(Self {
            lists,
            orders: KVec::from_elem(None, pages, GFP_KERNEL)?,
        })
    }
}

impl Lists for TestLists {
    fn add(&mut self, run: Run) {
        assert_eq!(run.start % run.pages(), 0);
        assert_eq!(self.orders[run.start].replace(run.order), None);
        assert!(self.lists[run.order as usize]
            .push_within_capacity(run.start)
            .is_ok());
    }

    fn remove(&mut self, run: Run) {
        assert_eq!(self.orders[run.start].take(), Some(run.order));
        self.lists[run.order as usize].retain(|start| *start != run.start);
    }

    fn first(&self, order: u32) -> Option<usize> {
        self.lists[order as usize].last().copied()
    }

    fn order_at(&self, start: usize) -> Option<u32> {
        self.orders.get(start).copied().flatten()
    }
}

/// A page.
#[derive(Clone, Copy)]
pub(crate) struct TestPage {
    /// Whether the page allocator has it.
    pub(crate) free: bool,
    /// Whether it is in the direct map.
    pub(crate) mapped: bool,
    /// Whether its content is zero.
    pub(crate) zero: bool,
    pub(crate) poisoned: bool,
    /// Whether its pageblock is marked.
    marked: bool,
}

/// What can fail.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Nothing,
    Table,
    /// After a part of the block was unmapped.
    Unmap,
    Restore,
}

/// The memory: two nodes of `TestMemory::PAGES` pages each.
pub(crate) struct TestMemory {
    pages: Shared<TestPage>,
    /// For each block, whether its entry in the direct map is split.
    split: Shared<bool>,
    pending: Shared<Run>,
    /// The largest order that the page allocator has.
    pub(crate) largest: Cell<u32>,
    pub(crate) fails: Cell<Step>,
    /// Whether memory is about to go offline.
    pub(crate) leaving: Cell<bool>,
    pub(crate) unmaps: Cell<usize>,
    pub(crate) splits: Cell<usize>,
    pub(crate) tables: Cell<usize>,
    /// The counters of [`Memory::count`].
    pub(crate) total: Cell<isize>,
    pub(crate) cached: Cell<isize>,
    pub(crate) given_back: Cell<usize>,
    pub(crate) refills: Cell<usize>,
    pub(crate) refill_fails: Cell<usize>,
}

/// What can be changed through a shared reference, by one at a time.
struct Shared<T>(Cell<KVec<T>>);

impl<T> Shared<T> {
    fn new(items: KVec<T>) -> Self {
        Self(Cell::new(items))
    }

    fn take(&self) -> KVec<T> {
        self.0.replace(KVec::new())
    }

    fn with<R>(&self, f: impl FnOnce(&mut KVec<T>) -> R) -> R {
        let mut items = self.take();
        let result = f(&mut items);

        self.0.set(items);
        result
    }
}

fn add<T: Copy + core::ops::Add<Output = T>>(cell: &Cell<T>, value: T) {
    cell.set(cell.get() + value);
}

impl TestMemory {
    /// Pages of a node.
    pub(crate) const PAGES: usize = 4 << MAX_ORDER;
    pub(crate) const NODES: usize = 2;

    pub(crate) fn new() -> Result<Self> {
        let page = TestPage {
            free: true,
            mapped: true,
            zero: false,
            poisoned: false,
            marked: false,
        };
        let pages = Self::PAGES * Self::NODES;

        Ok(Self {
            pages: Shared::new(KVec::from_elem(page, pages, GFP_KERNEL)?),
            split: Shared::new(KVec::from_elem(false, pages >> BLOCK_ORDER, GFP_KERNEL)?),
            pending: Shared::new(KVec::new()),
            largest: Cell::new(MAX_ORDER),
            fails: Cell::new(Step::Nothing),
            leaving: Cell::new(false),
            unmaps: Cell::new(0),
            splits: Cell::new(0),
            tables: Cell::new(0),
            total: Cell::new(0),
            cached: Cell::new(0),
            given_back: Cell::new(0),
            refills: Cell::new(0),
            refill_fails: Cell::new(0),
        })
    }

    pub(crate) fn page(&self, pfn: usize) -> TestPage {
        self.pages.with(|pages| pages[pfn])
    }

    pub(crate) fn each(&self, run: Run, change: impl Fn(&mut TestPage)) {
        self.pages
            .with(|pages| pages[run.start..run.end()].iter_mut().for_each(change));
    }

    pub(crate) fn all(&self, run: Run, is: impl Fn(&TestPage) -> bool) -> bool {
        self.pages
            .with(|pages| pages[run.start..run.end()].iter().all(is))
    }

    /// Whether all is as it was at first.
    pub(crate) fn is_whole(&self) -> bool {
        let untouched = |page: &TestPage| page.free && page.mapped && !page.marked;

        self.pages.with(|pages| pages.iter().all(untouched))
            && self.split.with(|split| split.iter().all(|split| !split))
            && self.total.get() == 0
            && self.cached.get() == 0
            && self.tables.get() == 0
    }

    fn set_split(&self, block: usize, value: bool) {
        self.split.with(|split| split[block] = value);
    }

    /// What the hook of the page allocator does with pages whose owner wrote to them.
    pub(crate) fn last_put(&self, run: Run) -> Result {
        self.each(run, |page| page.zero = false);
        if self.page(run.start).marked {
            self.pending.with(|pending| pending.push(run, GFP_KERNEL))?;
        } else {
            self.free(run);
        }
        Ok(())
    }

    /// Takes pages as any user of the page allocator does.
    pub(crate) fn use_pages(&self, run: Run) {
        assert!(self.all(run, |page| page.free && page.mapped));
        self.each(run, |page| page.free = false);
    }

    fn find(&self, nid: usize, order: u32) -> Option<Run> {
        let pages = nid * Self::PAGES..(nid + 1) * Self::PAGES;
        let runs = pages.step_by(1 << order).map(|start| Run { start, order });

        runs.into_iter()
            .find(|run| self.all(*run, |page| page.free))
    }
}

/// A page table; the test's memory counts them.
pub(crate) struct TestTable(NonNull<Cell<usize>>);

impl Drop for TestTable {
    fn drop(&mut self) {
        // SAFETY: The memory that made the table outlives the cache that has it.
        let tables = unsafe { self.0.as_ref() };

        tables.set(tables.get() - 1);
    }
}

impl Memory for TestMemory {
    type Lists = TestLists;
    type Table = TestTable;

    fn allocate(&self, _gfp: Gfp, nid: usize, order: u32, wanted: u32) -> Option<Run> {
        if order > self.largest.get() {
            return None;
        }
        // Only what cannot be done without comes from another node.
        let other = (order == wanted).then_some(1 - nid);
        let run = self.find(nid, order).or_else(|| self.find(other?, order))?;

        assert!(self.all(run, |page| page.mapped));
        self.each(run, |page| {
            page.free = false;
            page.zero = true;
        });
        Some(run)
    }

    fn free(&self, run: Run) {
        assert!(self.all(run, |page| !page.free && page.mapped && !page.poisoned));
        self.each(run, |page| page.free = true);
    }

    fn unmap(&self, run: Run) -> Result {
        let part = if self.fails.get() == Step::Unmap {
            Run {
                order: run.order.saturating_sub(1),
                ..run
            }
        } else {
            run
        };

        add(&self.unmaps, 1);
        assert!(self.all(run, |page| page.mapped));
        if part.order < BLOCK_ORDER {
            self.set_split(run.start >> BLOCK_ORDER, true);
        }
        self.each(part, |page| page.mapped = false);
        if part == run {
            Ok(())
        } else {
            Err(ENOMEM)
        }
    }

    fn restore(&self, run: Run, table: &mut Option<TestTable>) -> Result {
        if self.fails.get() == Step::Restore {
            return Err(ENOMEM);
        }
        let block = run.start >> BLOCK_ORDER;

        if run.order < BLOCK_ORDER && !self.split.with(|split| split[block]) {
            let table = table.take();

            assert!(table.is_some(), "nothing must be allocated here");
            self.set_split(block, true);
        }
        self.each(run, |page| page.mapped = true);
        Ok(())
    }

    fn collapse(&self, run: Run) {
        let block = run.grown(BLOCK_ORDER);

        if self.all(block, |page| page.mapped) {
            self.set_split(block.start >> BLOCK_ORDER, false);
        }
    }

    fn queue_collapse(&self) {}

    fn table(&self) -> Option<TestTable> {
        if self.fails.get() == Step::Table {
            return None;
        }
        add(&self.tables, 1);
        Some(TestTable(NonNull::from(&self.tables)))
    }

    fn clear(&self, run: Run) {
        assert!(self.all(run, |page| !page.mapped && !page.poisoned));
        self.each(run, |page| page.zero = true);
    }

    fn is_poisoned(&self, pfn: usize) -> bool {
        self.page(pfn).poisoned
    }

    fn is_leaving(&self, _pfn: usize) -> bool {
        self.leaving.get()
    }

    fn pageblock_order(&self) -> u32 {
        BLOCK_ORDER
    }

    fn mark(&self, run: Run, unmapped: bool) {
        self.each(run.grown(BLOCK_ORDER), |page| page.marked = unmapped);
    }

    fn next_pending(&self) -> Option<Run> {
        self.pending.with(|pending| pending.pop())
    }

    fn nr_pending(&self, nid: usize) -> usize {
        let here = |run: &&Run| self.node_of(run.start) == nid;

        self.pending
            .with(|pending| pending.iter().filter(here).map(|run| run.pages()).sum())
    }

    fn give_back(&self, run: Run) {
        add(&self.given_back, run.pages());
        self.free(run);
    }

    fn node_of(&self, pfn: usize) -> usize {
        pfn / Self::PAGES
    }

    fn count(&self, _nid: usize, total: isize, free: isize) {
        add(&self.total, total);
        add(&self.cached, free);
    }

    fn event(&self, event: Event) {
        match event {
            Event::Refill => add(&self.refills, 1),
            Event::RefillFail => add(&self.refill_fails, 1),
            Event::Split => add(&self.splits, 1),
            Event::Release => {}
        }
    }

    fn relax(&self) {}
}
