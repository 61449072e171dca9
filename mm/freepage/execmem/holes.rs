// SPDX-License-Identifier: GPL-2.0

//! Free ranges: the smallest that is large enough is found in logarithmic time, and neighbours
//! merge.
//!
//! Nothing is allocated here: whoever takes a range brings what is needed to put it back.

use kernel::{
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
};

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: usize,
    pub(crate) size: usize,
}

impl Run {
    pub(crate) fn end(&self) -> usize {
        self.start + self.size
    }
}

/// Size and start.
type Key = (usize, usize);

/// Memory for the records of a hole.
pub(crate) struct Spare {
    by_start: RBTreeNodeReservation<usize, usize>,
    by_size: RBTreeNodeReservation<Key, ()>,
}

impl Spare {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            by_start: RBTreeNodeReservation::new(GFP_KERNEL)?,
            by_size: RBTreeNodeReservation::new(GFP_KERNEL)?,
        })
    }
}

/// What is free. No two holes touch each other.
pub(crate) struct Holes {
    by_start: RBTree<usize, usize>,
    by_size: RBTree<Key, ()>,
}

impl Holes {
    pub(crate) fn new() -> Self {
        Self {
            by_start: RBTree::new(),
            by_size: RBTree::new(),
        }
    }

    fn insert(&mut self, run: Run, spare: Spare) {
        self.by_start
            .insert(spare.by_start.into_node(run.start, run.size));
        self.by_size
            .insert(spare.by_size.into_node((run.size, run.start), ()));
    }

    /// Takes a hole out.
    pub(crate) fn remove(&mut self, run: Run) -> Option<Spare> {
        let by_start = self.by_start.remove_node(&run.start)?;
        let by_size = self.by_size.remove_node(&(run.size, run.start))?;

        Some(Spare {
            by_start: by_start.into_reservation(),
            by_size: by_size.into_reservation(),
        })
    }

    /// The hole that ends at `end`.
    fn ending_at(&self, end: usize) -> Option<Run> {
        let before = match self.by_start.cursor_lower_bound(&end) {
            Some(cursor) => cursor.peek_prev().map(|(start, size)| (*start, *size)),
            None => self.by_start.cursor_back().map(|cursor| {
                let (start, size) = cursor.current();

                (*start, *size)
            }),
        };
        let (start, size) = before?;

        (start + size == end).then_some(Run { start, size })
    }

    /// The hole that starts at `start`.
    fn starting_at(&self, start: usize) -> Option<Run> {
        let size = *self.by_start.get(&start)?;

        Some(Run { start, size })
    }

    /// Frees a range. Returns the hole that it is a part of.
    pub(crate) fn put(&mut self, mut run: Run, spare: Spare) -> Run {
        if let Some(before) = self.ending_at(run.start) {
            self.remove(before);
            run.start = before.start;
            run.size += before.size;
        }
        if let Some(after) = self.starting_at(run.end()) {
            self.remove(after);
            run.size += after.size;
        }
        self.insert(run, spare);
        run
    }

    /// The smallest hole that has `size` bytes where they are allowed.
    pub(crate) fn find(&mut self, size: usize, allowed: impl Fn(usize) -> bool) -> Option<Run> {
        let mut cursor = self.by_size.cursor_lower_bound_mut(&(size, 0))?;

        loop {
            let (size, start) = *cursor.current().0;

            if allowed(start) {
                return Some(Run { start, size });
            }
            cursor = cursor.move_next()?;
        }
    }

    /// Takes the first `size` bytes of a hole. Returns what putting them back takes.
    pub(crate) fn take(&mut self, hole: Run, size: usize, spare: Spare) -> Option<Spare> {
        let old = self.remove(hole)?;

        if hole.size > size {
            let rest = Run {
                start: hole.start + size,
                size: hole.size - size,
            };

            self.insert(rest, old);
            return Some(spare);
        }
        Some(old)
    }

    /// The largest hole that is wanted.
    pub(crate) fn largest(&mut self, wanted: impl Fn(Run) -> bool) -> Option<Run> {
        let mut cursor = self.by_size.cursor_back_mut()?;

        loop {
            let (size, start) = *cursor.current().0;
            let run = Run { start, size };

            if wanted(run) {
                return Some(run);
            }
            cursor = cursor.move_prev()?;
        }
    }
}
