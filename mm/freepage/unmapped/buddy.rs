// SPDX-License-Identifier: GPL-2.0

//! A buddy allocator: which free block is handed out, split and merged.
//!
//! It knows nothing of memory. Where the free lists are is up to [`Lists`].

use crate::pages::{
    MAX_ORDER,
    ORDERS, //
};
use kernel::prelude::*;

/// A block of `1 << order` pages, aligned to its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: usize,
    pub(crate) order: u32,
}

impl Run {
    pub(crate) fn pages(self) -> usize {
        1 << self.order
    }

    pub(crate) fn end(self) -> usize {
        self.start + self.pages()
    }

    /// The block that it merges with.
    fn buddy(self) -> Self {
        Self {
            start: self.start ^ self.pages(),
            ..self
        }
    }

    /// The aligned block of `order` that it is part of.
    pub(crate) fn grown(self, order: u32) -> Self {
        let order = order.max(self.order);

        Self {
            start: self.start >> order << order,
            order,
        }
    }

    pub(crate) fn halves(self) -> (Self, Self) {
        let order = self.order - 1;
        let start = self.start;

        (
            Self { start, order },
            Self {
                start: start + (1 << order),
                order,
            },
        )
    }

    /// Its pages, one by one.
    pub(crate) fn singles(self) -> impl Iterator<Item = Self> {
        (self.start..self.end()).map(|start| Self { start, order: 0 })
    }
}

/// Free lists, one for each order, and what order a free block has.
pub(crate) trait Lists {
    /// Adds a block that is on no list.
    fn add(&mut self, run: Run);

    /// Removes a block that is on a list.
    fn remove(&mut self, run: Run);

    /// Where some block of `order` begins.
    fn first(&self, order: u32) -> Option<usize>;

    /// The order of the block that is on a list and begins at `start`.
    fn order_at(&self, start: usize) -> Option<u32>;
}

/// The allocator.
///
/// # Invariants
///
/// No block is on a list together with its buddy, and `free` counts the blocks on each list.
pub(crate) struct Buddy<L> {
    lists: L,
    free: [usize; ORDERS],
}

impl<L: Lists> Buddy<L> {
    /// `lists` are empty.
    pub(crate) fn new(lists: L) -> Self {
        Self {
            lists,
            free: [0; ORDERS],
        }
    }

    fn add(&mut self, run: Run) {
        self.lists.add(run);
        self.free[run.order as usize] += 1;
    }

    fn remove(&mut self, run: Run) {
        self.lists.remove(run);
        self.free[run.order as usize] -= 1;
    }

    /// Frees a block, and merges it as far as possible.
    pub(crate) fn put(&mut self, run: Run) {
        let mut run = run;

        while run.order < MAX_ORDER {
            let buddy = run.buddy();

            if self.lists.order_at(buddy.start) != Some(run.order) {
                break;
            }
            self.remove(buddy);
            run = run.grown(run.order + 1);
        }
        self.add(run);
    }

    /// Takes a block of `order`, out of the smallest one that is large enough.
    pub(crate) fn get(&mut self, order: u32) -> Option<Run> {
        let found = (order..=MAX_ORDER).find_map(|order| self.first(order))?;

        self.remove(found);
        Some(self.trim(found, order))
    }

    /// Takes the largest block.
    pub(crate) fn get_largest(&mut self) -> Option<Run> {
        let found = self.largest()?;

        self.remove(found);
        Some(found)
    }

    /// The largest block; it stays free.
    pub(crate) fn largest(&self) -> Option<Run> {
        (0..=MAX_ORDER).rev().find_map(|order| self.first(order))
    }

    fn first(&self, order: u32) -> Option<Run> {
        let start = self.lists.first(order)?;

        Some(Run { start, order })
    }

    /// Frees all of a block that was taken but the first part, which is of `order`.
    pub(crate) fn trim(&mut self, run: Run, order: u32) -> Run {
        let mut run = run;

        while run.order > order {
            let (low, high) = run.halves();

            // Its buddy is not free: nothing to merge with.
            self.add(high);
            run = low;
        }
        run
    }

    /// The number of free blocks of each order.
    pub(crate) fn free(&self) -> &[usize; ORDERS] {
        &self.free
    }

    /// The number of free pages.
    pub(crate) fn pages(&self) -> usize {
        let blocks = self.free.iter().enumerate();

        blocks.map(|(order, blocks)| blocks << order).sum()
    }
}

#[cfg(CONFIG_UNMAPPED_ALLOC_KUNIT_TEST)]
#[kunit_tests(unmapped_alloc_buddy)]
mod tests {
    use super::*;
    use crate::{
        mock::TestLists,
        random::Random, //
    };

    /// Blocks of the largest order.
    const BLOCKS: usize = 2;
    const PAGES: usize = BLOCKS << MAX_ORDER;

    fn buddy() -> Result<Buddy<TestLists>> {
        let mut buddy = Buddy::new(TestLists::new(PAGES)?);

        for block in 0..BLOCKS {
            let run = Run {
                start: block << MAX_ORDER,
                order: MAX_ORDER,
            };
            // Not by put(): nothing is merged beyond that order.
            buddy.add(run);
        }
        Ok(buddy)
    }

    fn is_whole(buddy: &Buddy<TestLists>) -> bool {
        buddy.free[MAX_ORDER as usize] == BLOCKS && buddy.pages() == PAGES
    }

    #[test]
    fn every_order_splits_and_merges() -> Result {
        for order in 0..=MAX_ORDER {
            let mut buddy = buddy()?;
            let run = buddy.get(order).ok_or(ENOMEM)?;

            assert_eq!(run.order, order);
            assert_eq!(run.start % run.pages(), 0);
            assert_eq!(buddy.pages(), PAGES - run.pages());
            for smaller in order..MAX_ORDER {
                assert_eq!(buddy.free[smaller as usize], 1);
            }
            buddy.put(run);
            assert!(is_whole(&buddy));
        }
        Ok(())
    }

    #[test]
    fn exhaustion_is_exact() -> Result {
        for order in 0..=MAX_ORDER {
            let mut buddy = buddy()?;
            let mut taken = KVec::new();

            while let Some(run) = buddy.get(order) {
                taken.push(run, GFP_KERNEL)?;
            }
            assert_eq!(taken.len(), PAGES >> order);
            assert_eq!(buddy.pages(), 0);
            // Every other one first: these have nothing to merge with.
            for run in taken.iter().step_by(2) {
                buddy.put(*run);
            }
            assert_eq!(buddy.pages(), PAGES / 2);
            for run in taken.iter().skip(1).step_by(2) {
                buddy.put(*run);
            }
            assert!(is_whole(&buddy));
        }
        Ok(())
    }

    #[test]
    fn the_smallest_block_that_fits_is_split() -> Result {
        let mut buddy = buddy()?;
        let small = buddy.get(3).ok_or(ENOMEM)?;

        // The blocks that were split off are taken before another large one is split.
        for order in (3..MAX_ORDER).rev() {
            assert_eq!(
                buddy.get(order).ok_or(ENOMEM)?.start,
                small.start + (1 << order)
            );
        }
        assert_eq!(buddy.free[MAX_ORDER as usize], BLOCKS - 1);
        assert_eq!(small.order, 3);
        Ok(())
    }

    #[test]
    fn the_largest_block_is_found() -> Result {
        let mut buddy = buddy()?;

        for _ in 0..BLOCKS {
            assert_eq!(buddy.get_largest().ok_or(ENOMEM)?.order, MAX_ORDER);
        }
        assert_eq!(buddy.get_largest(), None);
        buddy.put(Run { start: 7, order: 0 });
        buddy.put(Run { start: 8, order: 3 });
        assert_eq!(buddy.get_largest(), Some(Run { start: 8, order: 3 }));
        Ok(())
    }

    /// Random sequences, against a map of pages that says who has which.
    #[test]
    fn pages_have_one_owner() -> Result {
        for seed in 1..=8 {
            let mut random = Random::new(seed);
            let mut buddy = buddy()?;
            let mut owned = KVec::from_elem(false, PAGES, GFP_KERNEL)?;
            let mut taken: KVec<Run> = KVec::new();

            for _ in 0..2000 {
                let order = random.below(MAX_ORDER as usize + 1) as u32;

                if random.below(2) == 0 {
                    let Some(run) = buddy.get(order) else {
                        continue;
                    };
                    for page in &mut owned[run.start..run.end()] {
                        assert!(!*page);
                        *page = true;
                    }
                    taken.push(run, GFP_KERNEL)?;
                } else if !taken.is_empty() {
                    let run = taken.remove(random.below(taken.len()))?;

                    owned[run.start..run.end()].fill(false);
                    buddy.put(run);
                }
            }
            let free = owned.iter().filter(|owned| !**owned).count();

            assert_eq!(buddy.pages(), free);
            taken.iter().for_each(|run| buddy.put(*run));
            assert!(is_whole(&buddy));
        }
        Ok(())
    }
}
