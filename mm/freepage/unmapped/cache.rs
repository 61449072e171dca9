// SPDX-License-Identifier: GPL-2.0

//! The cache: when blocks leave the direct map, and when they return.
//!
//! Lock order: [`Node::refill`], reclaim, [`Node::release`], [`Node::inner`]. Nothing is allocated
//! with one of the latter two held, and reclaim takes no other. Nothing sleeps under `inner`.

use super::{
    buddy::{
        Buddy,
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
use core::pin::Pin;
use kernel::{
    new_mutex,
    new_spinlock,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::{
        Mutex,
        SpinLock, //
    }, //
};

/// Pages of the largest block that one entry of the direct map can map.
const BLOCK_PAGES: usize = 1 << BLOCK_ORDER;

/// Blocks that the largest order consists of.
const MAX_BLOCKS: usize = 1 << (MAX_ORDER - BLOCK_ORDER);

/// Memory that left the direct map at once.
pub(crate) struct Block<T> {
    order: u32,
    /// A bit for each page: not in the direct map, whether free or in use.
    unmapped: [u64; BLOCK_PAGES / 64],
    /// For the split that mapping a part of the block takes.
    table: Option<T>,
}

type Record<T> = RBTreeNode<usize, Block<T>>;

impl<T> Block<T> {
    /// All of the block is unmapped.
    fn new(order: u32, table: Option<T>) -> Self {
        let mut block = Self {
            order,
            unmapped: [0; BLOCK_PAGES / 64],
            table,
        };

        block.set(0..1 << order, true);
        block
    }

    fn set(&mut self, pages: core::ops::Range<usize>, unmapped: bool) {
        for page in pages {
            let bit = 1 << (page % 64);

            if unmapped {
                self.unmapped[page / 64] |= bit;
            } else {
                self.unmapped[page / 64] &= !bit;
            }
        }
    }

    fn is_unmapped(&self, page: usize) -> bool {
        self.unmapped[page / 64] & (1 << (page % 64)) != 0
    }

    /// Whether all of it is in the direct map again.
    fn is_mapped(&self) -> bool {
        self.unmapped.iter().all(|word| *word == 0)
    }
}

/// A block that has left the direct map and belongs to no node yet.
struct Fresh<T> {
    run: Run,
    records: [Option<Record<T>>; MAX_BLOCKS],
}

/// Pages that are about to be mapped again.
struct Piece<T> {
    run: Run,
    /// Where the block begins that they are a part of.
    block: usize,
    table: Option<T>,
}

/// What is protected by the lock of a node.
struct Inner<M: Memory> {
    buddy: Buddy<M::Lists>,
    /// Blocks with unmapped pages, by their first page. They do not overlap.
    blocks: RBTree<usize, Block<M::Table>>,
    /// Blocks without: the direct map can have its larger entries back.
    mapped: RBTree<usize, Block<M::Table>>,
    cached: [usize; ORDERS],
    released: [usize; ORDERS],
    /// The least number of free pages that there were since [`Cache::age`].
    least: usize,
}

impl<M: Memory> Inner<M> {
    /// The block that a page belongs to, whether or not the page is unmapped.
    fn block_of(&mut self, pfn: usize) -> Option<(usize, &mut Block<M::Table>)> {
        let page = Run {
            start: pfn,
            order: 0,
        };
        // Most blocks are of the largest order.
        let start = (0..=BLOCK_ORDER).rev().find_map(|order| {
            let start = page.grown(order).start;

            (self.blocks.get(&start)?.order >= order).then_some(start)
        })?;

        Some((start, self.blocks.get_mut(&start)?))
    }

    /// Frees the pages of `run` whose memory is sound, unless all of it is.
    ///
    /// The others are out of use for ever.
    fn sort_out(&mut self, memory: &M, run: Run) -> Option<Run> {
        if !run.singles().any(|page| memory.is_poisoned(page.start)) {
            return Some(run);
        }
        for page in run.singles() {
            if !memory.is_poisoned(page.start) {
                self.buddy.put(page);
            }
        }
        None
    }

    /// Takes the largest free piece of a block whose memory is sound.
    fn take_piece(&mut self, memory: &M) -> Option<Piece<M::Table>> {
        loop {
            let run = self.buddy.get_largest()?;
            let order = self.block_of(run.start)?.1.order;
            let run = self.buddy.trim(run, order);
            let Some(run) = self.sort_out(memory, run) else {
                continue;
            };
            let (start, block) = self.block_of(run.start)?;
            let table = if run.order < block.order {
                block.table.take()
            } else {
                None
            };

            return Some(Piece {
                run,
                block: start,
                table,
            });
        }
    }

    /// A block is in the direct map again. Returns what is left to be dropped without the lock.
    fn finish(&mut self, memory: &M, start: usize) -> Option<Record<M::Table>> {
        let order = self.blocks.get(&start)?.order;
        let record = self.blocks.remove_node(&start)?;
        let region = Run { start, order }.grown(memory.pageblock_order());
        let next = self.blocks.cursor_lower_bound(&region.start);

        if next.is_none_or(|next| *next.current().0 >= region.end()) {
            memory.mark(region, false);
        }
        self.mapped.insert(record)
    }

    fn stats(&self) -> Stats {
        Stats {
            free: *self.buddy.free(),
            cached: self.cached,
            released: self.released,
        }
    }
}

/// What debugfs shows, for each order.
#[derive(Clone, Copy)]
pub(crate) struct Stats {
    pub(crate) free: [usize; ORDERS],
    pub(crate) cached: [usize; ORDERS],
    pub(crate) released: [usize; ORDERS],
}

/// The cache of a node.
#[pin_data]
struct Node<M: Memory> {
    nid: usize,
    /// One refill at a time: others find what it brought.
    #[pin]
    refill: Mutex<()>,
    /// One release at a time: another could need the page table that it has taken out.
    #[pin]
    release: Mutex<()>,
    #[pin]
    inner: SpinLock<Inner<M>>,
}

impl<M: Memory> Node<M> {
    fn new(nid: usize, lists: M::Lists) -> impl PinInit<Self> {
        pin_init!(Self {
            nid,
            refill <- new_mutex!((), "unmapped_alloc::refill"),
            release <- new_mutex!((), "unmapped_alloc::release"),
            inner <- new_spinlock!(Inner {
                buddy: Buddy::new(lists),
                blocks: RBTree::new(),
                mapped: RBTree::new(),
                cached: [0; ORDERS],
                released: [0; ORDERS],
                least: 0,
            }, "unmapped_alloc"),
        })
    }

    fn take(&self, memory: &M, order: u32) -> Option<Run> {
        let mut inner = self.inner.lock();
        let before = inner.buddy.pages();
        let mut run = None;

        while let Some(found) = inner.buddy.get(order) {
            run = inner.sort_out(memory, found);
            if run.is_some() {
                break;
            }
        }
        let now = inner.buddy.pages();
        let taken = before - now;

        inner.least = inner.least.min(now);
        drop(inner);
        if taken > 0 {
            memory.count(self.nid, 0, -(taken as isize));
        }
        run
    }

    fn put(&self, memory: &M, run: Run) {
        let mut inner = self.inner.lock();
        let before = inner.buddy.pages();

        if let Some(run) = inner.sort_out(memory, run) {
            inner.buddy.put(run);
        }
        let freed = inner.buddy.pages() - before;

        drop(inner);
        memory.count(self.nid, 0, freed as isize);
    }

    /// Whether pages that were freed are the cache's: they are unmapped.
    fn owns(&self, run: Run) -> bool {
        let mut inner = self.inner.lock();
        let block = inner.block_of(run.start);

        block.is_some_and(|(start, block)| block.is_unmapped(run.start - start))
    }

    /// Pages of the block at `start` are in the direct map. Whether all of it is.
    fn mapped(&self, memory: &M, start: usize, run: Run) -> bool {
        let mut inner = self.inner.lock();
        let Some(block) = inner.blocks.get_mut(&start) else {
            return false;
        };

        block.set(run.start - start..run.end() - start, false);
        let whole = block.is_mapped();
        let stale = whole.then(|| inner.finish(memory, start));

        drop(inner);
        drop(stale);
        whole
    }

    /// Adds a block, except for its first pages: these go to whoever brought it.
    fn publish(&self, memory: &M, fresh: Fresh<M::Table>, order: u32) -> Run {
        let Fresh { run, records } = fresh;
        let mut spare = None;
        let mut inner = self.inner.lock();

        // Before any of the pages can be freed.
        memory.mark(run, true);
        if let Some((start, block)) = inner.block_of(run.start) {
            // That part of the block was given back, and is what the page allocator had.
            block.set(run.start - start..run.end() - start, true);
            spare = Some(records);
        } else {
            for record in records.into_iter().flatten() {
                inner.blocks.insert(record);
            }
        }
        inner.cached[run.order as usize] += 1;
        let mine = inner.buddy.trim(run, order);

        drop(inner);
        drop(spare);
        memory.count(
            self.nid,
            run.pages() as isize,
            (run.pages() - mine.pages()) as isize,
        );
        mine
    }

    /// How many pages [`Self::begin_release`] would take at most.
    fn next_release(&self) -> usize {
        let largest = self.inner.lock().buddy.largest();

        largest.map_or(0, |run| run.pages().min(BLOCK_PAGES))
    }

    /// The pages that were free all the time since this was called last.
    fn unwanted(&self) -> usize {
        let mut inner = self.inner.lock();
        let now = inner.buddy.pages();

        core::mem::replace(&mut inner.least, now).min(now)
    }

    /// Takes free pages that are to be mapped: as many as there are in one block.
    fn begin_release(&self, memory: &M) -> Option<Piece<M::Table>> {
        let mut inner = self.inner.lock();
        let before = inner.buddy.pages();
        let piece = inner.take_piece(memory);

        inner.least = inner.least.min(inner.buddy.pages());
        let taken = piece.as_ref().map_or(0, |piece| piece.run.pages());
        let broken = before - inner.buddy.pages() - taken;

        drop(inner);
        if broken > 0 {
            memory.count(self.nid, 0, -(broken as isize));
        }
        piece
    }

    /// Pages are mapped again, or not if that failed. Whether all of their block is.
    fn end_release(&self, memory: &M, piece: Piece<M::Table>, mapped: bool) -> bool {
        let Piece { run, block, table } = piece;
        let mut inner = self.inner.lock();

        if let (Some(table), Some(block)) = (table, inner.blocks.get_mut(&block)) {
            block.table = Some(table);
        }
        if !mapped {
            inner.buddy.put(run);
            return false;
        }
        inner.released[run.order as usize] += 1;
        drop(inner);
        memory.count(self.nid, -(run.pages() as isize), -(run.pages() as isize));
        self.mapped(memory, block, run)
    }
}

/// The cache of all nodes.
pub(crate) struct Cache<M: Memory> {
    nodes: KVec<Pin<KBox<Node<M>>>>,
    /// Outlives what came from it, which is in the nodes.
    memory: M,
}

impl<M: Memory> Cache<M> {
    /// Makes an empty cache for `nodes` nodes, whose free lists are `lists`.
    pub(crate) fn new(
        memory: M,
        nodes: usize,
        lists: impl Fn(usize) -> Result<M::Lists>,
    ) -> Result<Self> {
        let mut cache = Self {
            memory,
            nodes: KVec::with_capacity(nodes, GFP_KERNEL)?,
        };

        for nid in 0..nodes {
            let node = KBox::pin_init(Node::new(nid, lists(nid)?), GFP_KERNEL)?;

            cache.nodes.push_within_capacity(node)?;
        }
        Ok(cache)
    }

    fn node(&self, nid: usize) -> Option<&Node<M>> {
        self.nodes.get(nid).map(|node| &**node)
    }

    fn node_of(&self, pfn: usize) -> Option<&Node<M>> {
        self.node(self.memory.node_of(pfn))
    }

    /// Takes pages out of the cache of a node. Never sleeps.
    pub(crate) fn take(&self, nid: usize, order: u32) -> Option<Run> {
        self.node(nid)?.take(&self.memory, order)
    }

    /// Brings a block into the cache, and takes pages of it. May sleep.
    ///
    /// The block is not larger than `largest`, unless the pages are.
    pub(crate) fn refill(&self, gfp: Gfp, nid: usize, order: u32, largest: u32) -> Option<Run> {
        let node = self.node(nid)?;
        let _turn = gfp.may_wait().then(|| node.refill.lock());

        // Another refill, or pages that were freed, may do. A caller need not clear all of them.
        loop {
            if let Some(run) = node.take(&self.memory, order) {
                return Some(run);
            }
            if self.drain_some(BLOCK_PAGES) == 0 {
                break;
            }
        }
        let Some(fresh) = self.fetch(gfp, nid, order, largest) else {
            self.memory.event(Event::RefillFail);
            return None;
        };

        self.memory.event(Event::Refill);
        if fresh.run.order < BLOCK_ORDER {
            self.memory.event(Event::Split);
        }
        // The page allocator may have gone to another node.
        let node = self.node_of(fresh.run.start)?;

        Some(node.publish(&self.memory, fresh, order))
    }

    /// Takes the largest block that can be had out of the direct map.
    fn fetch(&self, gfp: Gfp, nid: usize, wanted: u32, largest: u32) -> Option<Fresh<M::Table>> {
        let largest = wanted.max(largest.min(BLOCK_ORDER));
        let run = (wanted..=largest)
            .rev()
            .find_map(|order| self.memory.allocate(gfp, nid, order, wanted))?;
        let Some(records) = self.records(run) else {
            self.memory.free(run);
            return None;
        };

        if self.memory.unmap(run).is_err() {
            self.undo(run);
            return None;
        }
        Some(Fresh { run, records })
    }

    /// What has to be remembered of `run`, and what is needed to give it back in parts.
    fn records(&self, run: Run) -> Option<[Option<Record<M::Table>>; MAX_BLOCKS]> {
        let order = run.order.min(BLOCK_ORDER);
        let blocks = run.pages() >> order;
        let mut records = [const { None }; MAX_BLOCKS];

        for (index, record) in records.iter_mut().enumerate().take(blocks) {
            let table = if order == BLOCK_ORDER {
                Some(self.memory.table()?)
            } else {
                // Its larger entry was split when it was unmapped.
                None
            };
            let start = run.start + (index << order);

            *record = Some(RBTreeNode::new(start, Block::new(order, table), GFP_KERNEL).ok()?);
        }
        Some(records)
    }

    /// A block could not be unmapped as a whole: maps the part that was.
    fn undo(&self, run: Run) {
        if self.memory.restore(run, &mut None).is_ok() {
            self.memory.free(run);
            return;
        }
        self.lost(run);
    }

    /// Nobody may get a page that has no mapping.
    fn lost(&self, run: Run) {
        pr_err!(
            "{} pages from pfn {:#x} on can neither be unmapped nor mapped again; they are lost\n",
            run.pages(),
            run.start
        );
    }

    /// Takes back what was freed. May sleep.
    pub(crate) fn drain(&self) {
        self.drain_some(usize::MAX);
    }

    /// Takes back at least `wanted` pages, or all that were freed. Returns the number of pages.
    fn drain_some(&self, wanted: usize) -> usize {
        let mut drained = 0;

        while drained < wanted {
            let Some(run) = self.memory.next_pending() else {
                break;
            };

            drained += run.pages();
            // Others are mapped, those of a block that was given back in part as well: to unmap
            // them would cost a flush, for memory that nobody asked for.
            match self.node_of(run.start).filter(|node| node.owns(run)) {
                Some(node) => self.take_back(node, run),
                None => self.give_back(run),
            }
            self.memory.relax();
        }
        drained
    }

    /// Frees pages that are not the cache's. They may have been found broken since they were freed;
    /// such a page is out of use for ever.
    fn give_back(&self, run: Run) {
        let sound = |page: &Run| !self.memory.is_poisoned(page.start);

        if run.singles().all(|page| sound(&page)) {
            self.memory.give_back(run);
        } else {
            run.singles()
                .filter(sound)
                .for_each(|page| self.memory.give_back(page));
        }
    }

    /// Clears pages before anyone can get them.
    fn take_back(&self, node: &Node<M>, run: Run) {
        if run
            .singles()
            .any(|page| self.memory.is_poisoned(page.start))
        {
            let sound = |page: &Run| !self.memory.is_poisoned(page.start);

            run.singles()
                .filter(sound)
                .for_each(|page| self.memory.clear(page));
        } else {
            self.memory.clear(run);
        }
        node.put(&self.memory, run);
        if self.memory.is_leaving(run.start) {
            self.release(node.nid, usize::MAX);
        }
    }

    /// How many pages [`Self::reclaim`] could give back.
    pub(crate) fn reclaimable(&self, nid: usize) -> usize {
        self.free_pages(nid) + self.memory.nr_pending(nid)
    }

    /// Gives back at least `wanted` pages of a node, or all that are free. Returns the number of
    /// pages.
    pub(crate) fn reclaim(&self, nid: usize, wanted: usize) -> usize {
        let released = self.release(nid, wanted);

        if released >= wanted {
            return released;
        }
        // Those that were freed have to be cleared first.
        self.drain_some(wanted - released);
        released + self.release(nid, wanted - released)
    }

    /// The number of free pages in the cache of a node.
    fn free_pages(&self, nid: usize) -> usize {
        self.node(nid)
            .map_or(0, |node| node.inner.lock().buddy.pages())
    }

    /// Gives back at least `wanted` free pages of a node, or all. Returns the number of pages.
    ///
    /// Allocates nothing; may sleep.
    fn release(&self, nid: usize, wanted: usize) -> usize {
        self.release_while(nid, |released, _| released < wanted)
    }

    /// Gives back what was free all the time since this was called last; how many pages stay free.
    ///
    /// An idle system has no reclaim that would ask for it, and what is cached is not reported to
    /// its host. Called at intervals, which is what makes an interval an age. May sleep.
    pub(crate) fn age(&self, nid: usize) -> usize {
        let Some(node) = self.node(nid) else {
            return 0;
        };
        let unwanted = node.unwanted();

        self.release_while(nid, |released, next| released + next <= unwanted);
        self.free_pages(nid)
    }

    /// Gives back free pages of a node as long as `go_on` says so, which gets the number of pages
    /// that were given back, and of those that would come next. Returns the number of pages.
    ///
    /// Whole blocks first, then the largest pieces.
    fn release_while(&self, nid: usize, go_on: impl Fn(usize, usize) -> bool) -> usize {
        let Some(node) = self.node(nid) else {
            return 0;
        };
        let _turn = node.release.lock();
        let (mut released, mut collapse) = (0, false);

        while go_on(released, node.next_release()) {
            let Some(mut piece) = node.begin_release(&self.memory) else {
                break;
            };
            let run = piece.run;
            let had_table = piece.table.is_some();
            let mapped = self.memory.restore(run, &mut piece.table).is_ok();

            if had_table && piece.table.is_none() {
                self.memory.event(Event::Split);
            }
            collapse |= node.end_release(&self.memory, piece, mapped);
            if !mapped {
                break;
            }
            self.memory.free(run);
            self.memory.event(Event::Release);
            released += run.pages();
            self.memory.relax();
        }
        if collapse {
            self.memory.queue_collapse();
        }
        released
    }

    /// Gives back all free pages of a node. May sleep.
    pub(crate) fn release_all(&self, nid: usize) {
        self.drain();
        self.release(nid, usize::MAX);
    }

    /// Gives the direct map its larger entries back. May sleep.
    pub(crate) fn collapse(&self) {
        for node in &self.nodes {
            loop {
                let mut inner = node.inner.lock();
                let Some(cursor) = inner.mapped.cursor_front_mut() else {
                    break;
                };
                let (_, record) = cursor.remove_current();

                drop(inner);
                let (start, block) = record.to_key_value();

                self.memory.collapse(Run {
                    start,
                    order: block.order,
                });
            }
        }
    }

    /// What debugfs shows of a node.
    pub(crate) fn stats(&self, nid: usize) -> Option<Stats> {
        Some(self.node(nid)?.inner.lock().stats())
    }
}

#[cfg(CONFIG_UNMAPPED_ALLOC_KUNIT_TEST)]
#[kunit_tests(unmapped_alloc_cache)]
mod tests {
    use super::*;
    use crate::{
        mock::{
            Step,
            TestLists,
            TestMemory, //
        },
        random::Random, //
    };

    /// Flags of a caller that must not wait for others; the memory does not look at them.
    const GFP: u32 = 0;

    fn cache() -> Result<Cache<TestMemory>> {
        let pages = TestMemory::PAGES * TestMemory::NODES;

        Cache::new(TestMemory::new()?, TestMemory::NODES, |_| {
            TestLists::new(pages)
        })
    }

    impl Cache<TestMemory> {
        /// Allocates as the interface does.
        fn alloc(&self, nid: usize, order: u32) -> Option<Run> {
            let run = self
                .take(nid, order)
                .or_else(|| self.refill(Gfp::new(GFP), nid, order, BLOCK_ORDER))?;

            assert_eq!(run.order, order);
            assert!(self
                .memory
                .all(run, |page| !page.free && !page.mapped && page.zero));
            Some(run)
        }

        fn free(&self, run: Run) -> Result {
            self.memory.last_put(run)
        }

        fn release_everywhere(&self) {
            for nid in 0..TestMemory::NODES {
                self.release_all(nid);
            }
            self.collapse();
        }
    }

    #[test]
    fn every_order_can_be_had() -> Result {
        for order in 0..=MAX_ORDER {
            let cache = cache()?;
            let run = cache.alloc(0, order).ok_or(ENOMEM)?;
            let block = order.max(BLOCK_ORDER);

            assert_eq!(cache.memory.unmaps.get(), 1);
            assert_eq!(cache.memory.splits.get(), 0);
            assert_eq!(cache.memory.total.get(), 1 << block);
            assert_eq!(cache.free_pages(0), (1 << block) - run.pages());
            assert_eq!(cache.stats(0).ok_or(EINVAL)?.cached[block as usize], 1);
            cache.free(run)?;
            cache.release_everywhere();
            assert!(cache.memory.is_whole());
        }
        Ok(())
    }

    #[test]
    fn one_unmap_serves_a_block() -> Result {
        let cache = cache()?;

        for count in 0..2 * BLOCK_PAGES {
            cache.alloc(0, 0).ok_or(ENOMEM)?;
            assert_eq!(cache.memory.unmaps.get(), 1 + count / BLOCK_PAGES);
        }
        assert_eq!(cache.memory.refills.get(), 2);
        assert_eq!(cache.memory.cached.get(), 0);
        Ok(())
    }

    #[test]
    fn freed_pages_are_cleared_and_used_again() -> Result {
        let cache = cache()?;

        for _ in 0..3 {
            let mut taken = KVec::new();

            for _ in 0..BLOCK_PAGES {
                taken.push(cache.alloc(0, 0).ok_or(ENOMEM)?, GFP_KERNEL)?;
            }
            for run in taken {
                cache.free(run)?;
            }
        }
        assert_eq!(cache.memory.unmaps.get(), 1);
        cache.release_everywhere();
        assert!(cache.memory.is_whole());
        Ok(())
    }

    #[test]
    fn smaller_blocks_are_taken_where_there_are_no_larger() -> Result {
        for largest in 0..BLOCK_ORDER {
            let cache = cache()?;

            cache.memory.largest.set(largest);
            let run = cache.alloc(0, 0).ok_or(ENOMEM)?;
            assert_eq!(cache.memory.total.get(), 1 << largest);
            assert_eq!(cache.memory.splits.get(), 1);
            assert_eq!(cache.alloc(0, largest + 1), None);
            assert_eq!(cache.memory.refill_fails.get(), 1);
            cache.free(run)?;
            cache.release_everywhere();
            assert!(cache.memory.is_whole());
        }
        Ok(())
    }

    #[test]
    fn a_refill_brings_no_more_than_it_may() -> Result {
        for largest in 0..=MAX_ORDER {
            let cache = cache()?;
            let run = cache.refill(Gfp::new(GFP), 0, 2, largest).ok_or(ENOMEM)?;

            assert_eq!(run.order, 2);
            assert_eq!(cache.memory.total.get(), 1 << largest.clamp(2, BLOCK_ORDER));
            cache.free(run)?;
            cache.release_everywhere();
            assert!(cache.memory.is_whole());
        }
        Ok(())
    }

    #[test]
    fn a_step_that_fails_leaves_all_as_it_was() -> Result {
        for step in [Step::Table, Step::Unmap] {
            for order in 0..=MAX_ORDER {
                let cache = cache()?;

                cache.memory.fails.set(step);
                assert_eq!(cache.alloc(0, order), None);
                assert_eq!(cache.memory.refill_fails.get(), 1);
                assert_eq!(cache.free_pages(0), 0);
                assert_eq!(cache.memory.tables.get(), 0);
                let all = Run {
                    start: 0,
                    order: MAX_ORDER,
                };
                assert!(cache.memory.all(all, |page| page.free && page.mapped));
                cache.memory.fails.set(Step::Nothing);
                assert!(cache.alloc(0, order).is_some());
            }
        }
        Ok(())
    }

    #[test]
    fn pages_that_cannot_be_mapped_stay_cached() -> Result {
        let cache = cache()?;
        let run = cache.alloc(0, 0).ok_or(ENOMEM)?;

        cache.memory.fails.set(Step::Restore);
        assert_eq!(cache.release(0, usize::MAX), 0);
        assert_eq!(cache.free_pages(0), BLOCK_PAGES - 1);
        assert_eq!(cache.memory.cached.get(), BLOCK_PAGES as isize - 1);
        cache.memory.fails.set(Step::Nothing);
        cache.free(run)?;
        cache.release_everywhere();
        assert!(cache.memory.is_whole());
        Ok(())
    }

    #[test]
    fn whole_blocks_are_released_first() -> Result {
        let cache = cache()?;
        let small = cache.alloc(0, 0).ok_or(ENOMEM)?;
        let large = cache.alloc(0, BLOCK_ORDER).ok_or(ENOMEM)?;

        cache.free(large)?;
        cache.drain();
        // The first block has 511 free pages, the other one 512.
        assert_eq!(cache.release(0, 1), BLOCK_PAGES);
        assert_eq!(cache.memory.splits.get(), 0);
        assert!(cache.memory.all(large, |page| page.free && page.mapped));
        assert!(!cache.memory.page(small.start).free);
        assert_eq!(
            cache.stats(0).ok_or(EINVAL)?.released[BLOCK_ORDER as usize],
            1
        );
        Ok(())
    }

    #[test]
    fn as_much_as_is_wanted_is_released() -> Result {
        let cache = cache()?;
        let _small = cache.alloc(0, 0).ok_or(ENOMEM)?;

        // Of 511 pages the largest piece has 256.
        assert_eq!(cache.release(0, 0), 0);
        assert_eq!(cache.release(0, 1), 256);
        assert_eq!(cache.memory.splits.get(), 1);
        assert_eq!(cache.free_pages(0), 255);
        assert_eq!(cache.release(0, 129), 128 + 64);
        assert_eq!(cache.release(0, 1000), 63);
        assert_eq!(cache.release(0, 1000), 0);
        // One split is all that it took, and the table for it was kept since the refill.
        assert_eq!(cache.memory.splits.get(), 1);
        assert_eq!(cache.memory.total.get(), 1);
        Ok(())
    }

    /// Two calls, since a page may have become free just before the first.
    #[test]
    fn what_nobody_wants_is_given_back() -> Result {
        let cache = cache()?;
        let run = cache.alloc(0, BLOCK_ORDER).ok_or(ENOMEM)?;
        let small = cache.alloc(0, 0).ok_or(ENOMEM)?;

        cache.free(run)?;
        cache.drain();
        let free = 2 * BLOCK_PAGES - 1;
        assert_eq!(cache.age(0), free);
        // One page of the smaller pieces was wanted meanwhile: a whole block was not.
        cache.free(cache.alloc(0, 0).ok_or(ENOMEM)?)?;
        cache.drain();
        assert_eq!(cache.free_pages(0), free);
        assert_eq!(cache.age(0), 1);
        assert_eq!(cache.age(0), 0);
        assert_eq!(cache.age(1), 0);
        cache.free(small)?;
        cache.drain();
        assert_eq!(cache.age(0), 1);
        assert_eq!(cache.age(0), 0);
        cache.collapse();
        assert!(cache.memory.is_whole());
        Ok(())
    }

    #[test]
    fn a_block_that_is_used_now_and_then_stays() -> Result {
        let cache = cache()?;

        for _ in 0..4 {
            cache.free(cache.alloc(0, 0).ok_or(ENOMEM)?)?;
            cache.drain();
            assert_eq!(cache.age(0), BLOCK_PAGES);
        }
        assert_eq!(cache.memory.refills.get(), 1);
        Ok(())
    }

    #[test]
    fn a_refill_clears_no_more_than_a_block() -> Result {
        let cache = cache()?;
        let mut taken = KVec::new();

        for _ in 0..4 {
            taken.push(cache.alloc(0, BLOCK_ORDER).ok_or(ENOMEM)?, GFP_KERNEL)?;
        }
        for run in taken {
            cache.free(run)?;
        }
        cache.alloc(0, 0).ok_or(ENOMEM)?;
        assert_eq!(cache.memory.nr_pending(0), 3 * BLOCK_PAGES);
        assert_eq!(cache.free_pages(0), BLOCK_PAGES - 1);
        assert_eq!(cache.memory.unmaps.get(), 4);
        Ok(())
    }

    /// Reclaim need not wait for the work item.
    #[test]
    fn pages_just_freed_are_reclaimed() -> Result {
        let cache = cache()?;
        let run = cache.alloc(0, BLOCK_ORDER).ok_or(ENOMEM)?;

        assert_eq!(cache.reclaimable(0), 0);
        cache.free(run)?;
        assert_eq!(cache.reclaimable(0), BLOCK_PAGES);
        assert_eq!(cache.reclaimable(1), 0);
        assert_eq!(cache.reclaim(0, 100), BLOCK_PAGES);
        assert!(cache
            .memory
            .all(run, |page| page.free && page.mapped && page.zero));
        assert_eq!(cache.reclaimable(0), 0);
        Ok(())
    }

    #[test]
    fn pages_of_a_block_that_was_given_back_stay_mapped() -> Result {
        let cache = cache()?;
        let small = cache.alloc(0, 0).ok_or(ENOMEM)?;
        let other = Run {
            start: small.start + 8,
            order: 1,
        };

        cache.release(0, usize::MAX);
        assert_eq!(cache.memory.total.get(), 1);
        cache.memory.use_pages(other);
        cache.free(other)?;
        cache.drain();
        assert_eq!(cache.free_pages(0), 0);
        assert_eq!(cache.memory.total.get(), 1);
        assert_eq!(cache.memory.unmaps.get(), 1);
        assert_eq!(cache.memory.given_back.get(), 2);
        assert!(cache.memory.all(other, |page| page.free && page.mapped));

        cache.free(small)?;
        cache.release_everywhere();
        assert!(cache.memory.is_whole());
        Ok(())
    }

    /// A part of a block that was given back is all that the page allocator has.
    #[test]
    fn a_refill_out_of_a_block_joins_it() -> Result {
        let cache = cache()?;
        let small = cache.alloc(0, 0).ok_or(ENOMEM)?;

        cache.release(0, usize::MAX);
        cache.memory.largest.set(4);
        let other = cache.alloc(0, 0).ok_or(ENOMEM)?;
        assert_eq!(other.start, small.start + 16);
        assert_eq!(cache.memory.total.get(), 1 + 16);
        cache.free(other)?;
        cache.drain();
        assert_eq!(cache.memory.given_back.get(), 0);
        assert_eq!(cache.free_pages(0), 16);
        cache.free(small)?;
        cache.release_everywhere();
        assert!(cache.memory.is_whole());
        Ok(())
    }

    /// The pageblock of a small block has pages of others.
    #[test]
    fn pages_of_others_are_given_back() -> Result {
        let cache = cache()?;

        cache.memory.largest.set(3);
        let small = cache.alloc(0, 0).ok_or(ENOMEM)?;
        let other = Run {
            start: small.start + 8,
            order: 0,
        };

        cache.memory.use_pages(other);
        cache.free(other)?;
        cache.drain();
        assert_eq!(cache.memory.given_back.get(), 1);
        assert_eq!(cache.free_pages(0), 7);
        cache.free(small)?;
        cache.release_everywhere();
        assert!(cache.memory.is_whole());
        Ok(())
    }

    /// They were sound when they were freed.
    #[test]
    fn poisoned_pages_of_others_are_not_given_back() -> Result {
        for released in [false, true] {
            let cache = cache()?;

            cache
                .memory
                .largest
                .set(if released { BLOCK_ORDER } else { 3 });
            let small = cache.alloc(0, 0).ok_or(ENOMEM)?;
            let other = Run {
                start: small.start + 16,
                order: 2,
            };
            let broken = Run {
                start: other.start + 1,
                order: 0,
            };

            if released {
                // They are of the block, and mapped again.
                cache.release(0, usize::MAX);
            }
            cache.memory.use_pages(other);
            cache.free(other)?;
            cache.memory.each(broken, |page| page.poisoned = true);
            cache.drain();
            assert_eq!(cache.memory.given_back.get(), 3);
            assert!(!cache.memory.page(broken.start).free);
        }
        Ok(())
    }

    /// Nobody asks again for pages that are freed while their memory goes offline.
    #[test]
    fn pages_that_leave_are_released() -> Result {
        let cache = cache()?;
        let run = cache.alloc(0, 0).ok_or(ENOMEM)?;

        cache.memory.leaving.set(true);
        cache.free(run)?;
        cache.drain();
        cache.collapse();
        assert!(cache.memory.is_whole());
        Ok(())
    }

    #[test]
    fn a_node_gets_its_own_pages() -> Result {
        let cache = cache()?;
        let runs = [0, 1].map(|nid| cache.alloc(nid, 0));

        for (nid, run) in runs.into_iter().enumerate() {
            let run = run.ok_or(ENOMEM)?;

            assert_eq!(cache.memory.node_of(run.start), nid);
            assert_eq!(cache.free_pages(nid), BLOCK_PAGES - 1);
            cache.free(run)?;
        }
        cache.drain();
        assert_eq!(cache.release(1, usize::MAX), BLOCK_PAGES);
        assert_eq!(cache.free_pages(0), BLOCK_PAGES);
        Ok(())
    }

    #[test]
    fn poisoned_pages_are_never_handed_out() -> Result {
        let cache = cache()?;
        let small = cache.alloc(0, 0).ok_or(ENOMEM)?;
        let poisoned = small.start + 300;

        let page = Run {
            start: poisoned,
            order: 0,
        };
        cache.memory.each(page, |page| page.poisoned = true);
        for _ in 1..BLOCK_PAGES - 1 {
            let run = cache.take(0, 0).ok_or(ENOMEM)?;

            assert_ne!(run.start, poisoned);
            cache.free(run)?;
        }
        assert_eq!(cache.take(0, 0), None);
        cache.free(small)?;
        cache.release_everywhere();
        assert!(!cache.memory.page(poisoned).mapped);
        assert_eq!(cache.memory.total.get(), 1);
        assert_eq!(cache.memory.cached.get(), 0);
        Ok(())
    }

    #[test]
    fn poisoned_pages_are_never_given_back() -> Result {
        let cache = cache()?;
        let small = cache.alloc(0, 0).ok_or(ENOMEM)?;
        let page = Run {
            start: small.start + 77,
            order: 0,
        };

        cache.free(small)?;
        cache.drain();
        assert_eq!(cache.memory.cached.get(), BLOCK_PAGES as isize);
        cache.memory.each(page, |page| page.poisoned = true);
        cache.release_everywhere();
        assert!(!cache.memory.page(page.start).mapped);
        assert_eq!(cache.memory.total.get(), 1);
        assert_eq!(cache.memory.cached.get(), 0);
        Ok(())
    }

    /// Random sequences: nobody gets a page that someone has, and in the end all is as it was.
    #[test]
    fn nothing_is_lost() -> Result {
        for seed in 1..=4 {
            let cache = cache()?;
            let mut random = Random::new(seed);
            let mut taken: KVec<Run> = KVec::new();

            for _ in 0..400 {
                let nid = random.below(TestMemory::NODES);
                let order = random.below(MAX_ORDER as usize + 1) as u32;

                cache
                    .memory
                    .largest
                    .set(random.below(MAX_ORDER as usize + 1) as u32);
                match random.below(8) {
                    0..3 => {
                        if let Some(run) = cache.alloc(nid, order) {
                            assert!(taken
                                .iter()
                                .all(|other| other.end() <= run.start || run.end() <= other.start));
                            taken.push(run, GFP_KERNEL)?;
                        }
                    }
                    3..6 if !taken.is_empty() => {
                        cache.free(taken.remove(random.below(taken.len()))?)?;
                    }
                    6 => drop(cache.release(nid, random.below(2 * BLOCK_PAGES))),
                    _ => cache.collapse(),
                }
                let cached = cache.free_pages(0) + cache.free_pages(1);
                assert_eq!(cache.memory.cached.get(), cached as isize);
            }
            for run in taken {
                cache.free(run)?;
            }
            cache.release_everywhere();
            assert!(cache.memory.is_whole());
        }
        Ok(())
    }
}
