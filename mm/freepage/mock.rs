// SPDX-License-Identifier: GPL-2.0

//! A source of free pages for tests: a list of blocks that remembers who was treated.

use crate::{
    map::Run,
    primitives::Held,
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
    cell::Cell,
    ops::Range, //
};
use kernel::prelude::*;

/// Groups visited during one hold of a lock that the mock does not have.
const GROUPS_PER_HOLD: usize = 4;

/// The lock that the mock does not have.
struct NoLock;

// SAFETY: There is no lock.
unsafe impl Held for NoLock {
    fn is_zeroed(&self, _: Run) -> bool {
        false
    }
}

/// A block, which is also a group.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    pub(crate) run: Run,
    /// How often it was treated.
    pub(crate) treated: usize,
    /// Whether a pass should visit it.
    pub(crate) pending: bool,
    /// Whether it is on the free list.
    pub(crate) free: bool,
}

/// The source.
pub(crate) struct Mock {
    blocks: Cell<KVec<Block>>,
    cursor: Cell<usize>,
    /// Whether the source is short of memory.
    pub(crate) short: Cell<bool>,
    /// So many blocks, the first ones, cannot be taken.
    pub(crate) isolated: Cell<usize>,
    /// Whether somebody freed memory.
    pub(crate) requested: Cell<bool>,
    /// What the next pass finds in addition to what is pending.
    pub(crate) hidden: Cell<bool>,
    rest: Cell<Rest>,
    /// The largest number of pages that were off the free list at once.
    pub(crate) most_isolated: Cell<usize>,
}

impl Mock {
    /// Makes `count` pending blocks of each of `orders`.
    pub(crate) fn new(count: usize, orders: impl Iterator<Item = u32>) -> Result<Self> {
        let mut blocks = KVec::new();
        let mut start = 0;

        for order in orders {
            for _ in 0..count {
                let run = Run { start, order };
                start = run.range().end;
                blocks.push(
                    Block {
                        run,
                        treated: 0,
                        pending: true,
                        free: true,
                    },
                    GFP_KERNEL,
                )?;
            }
        }
        Ok(Self {
            blocks: Cell::new(blocks),
            cursor: Cell::new(0),
            short: Cell::new(false),
            isolated: Cell::new(0),
            requested: Cell::new(false),
            hidden: Cell::new(false),
            rest: Cell::new(Rest::NONE),
            most_isolated: Cell::new(0),
        })
    }

    /// Calls `f` with all blocks.
    fn with_blocks<R>(&self, f: impl FnOnce(&mut [Block]) -> R) -> R {
        let mut blocks = self.blocks.replace(KVec::new());
        let result = f(&mut blocks);

        self.blocks.set(blocks);
        result
    }

    /// How many blocks satisfy `test`.
    pub(crate) fn count(&self, test: impl Fn(&Block) -> bool) -> usize {
        self.with_blocks(|blocks| blocks.iter().filter(|block| test(block)).count())
    }

    /// Whether every block is on the free list.
    pub(crate) fn is_whole(&self) -> bool {
        self.count(|block| !block.free) == 0
    }

    /// Takes a block at the cursor, see [`Source::isolate`].
    fn isolate_next<T: Treatment>(
        &self,
        blocks: &mut [Block],
        treatment: &T,
        batch: &mut Batch,
        budget: &mut Budget,
    ) -> Step {
        if budget.is_spent() {
            return Step::Done;
        }
        if self.short.get() {
            return Step::Short;
        }
        let cursor = self.cursor.get();
        let find = |mut range: Range<usize>| range.find(|at| blocks[*at].pending);
        let Some(next) = find(cursor..blocks.len()).or_else(|| find(0..cursor)) else {
            return Step::Done;
        };
        let block = &mut blocks[next];
        let fits = batch.blocks.is_empty() || block.run.pages() <= batch.room();
        if batch.is_full() || !fits {
            return Step::Full;
        }
        self.cursor.set(next + 1);
        block.pending = next < self.isolated.get();
        budget.visited(!block.pending);
        if block.pending {
            return Step::More;
        }
        if block.free && treatment.wants(&FreePage::new(&NoLock, block.run, false)) {
            block.free = false;
            batch.push_block(block.run);
            batch.push(block.run);
        }
        Step::More
    }
}

impl Source for Mock {
    fn begin(&self) -> usize {
        self.requested.set(false);
        self.pending()
    }

    fn pending(&self) -> usize {
        self.count(|block| block.pending)
    }

    fn hides_some(&self) -> bool {
        self.hidden.get()
    }

    fn isolate<T: Treatment>(&self, treatment: &T, batch: &mut Batch, budget: &mut Budget) -> Step {
        self.with_blocks(|blocks| {
            for _ in 0..GROUPS_PER_HOLD {
                let step = self.isolate_next(blocks, treatment, batch, budget);
                if step != Step::More {
                    return step;
                }
            }
            Step::More
        })
    }

    fn put_back(&self, batch: &mut Batch, treated: usize) {
        let isolated = batch.blocks.iter().map(Run::pages).sum();
        self.most_isolated
            .set(self.most_isolated.get().max(isolated));

        self.with_blocks(|blocks| {
            for block in blocks.iter_mut() {
                // Each block is a run.
                let at = batch.runs.iter().position(|run| *run == block.run);
                if let Some(at) = at {
                    block.free = true;
                    block.treated += usize::from(at < treated);
                    block.pending = at >= treated;
                }
            }
        });
        batch.clear();
    }
}

impl Source for &Mock {
    fn begin(&self) -> usize {
        (*self).begin()
    }

    fn pending(&self) -> usize {
        (*self).pending()
    }

    fn hides_some(&self) -> bool {
        (*self).hides_some()
    }

    fn isolate<T: Treatment>(&self, treatment: &T, batch: &mut Batch, budget: &mut Budget) -> Step {
        (*self).isolate(treatment, batch, budget)
    }

    fn put_back(&self, batch: &mut Batch, treated: usize) {
        (*self).put_back(batch, treated);
    }
}

impl Resting for &Mock {
    fn rest<R>(&self, access: impl FnOnce(&mut Rest) -> R) -> R {
        let mut rest = self.rest.get();
        let result = access(&mut rest);

        self.rest.set(rest);
        result
    }

    fn is_requested(&self) -> bool {
        self.requested.get()
    }
}
