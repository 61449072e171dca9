// SPDX-License-Identifier: GPL-2.0

//! Slabs: pages that hold objects of one size, and what is known of each of these.

use super::class::{
    Class,
    MAX_OBJECTS, //
};
use kernel::{
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode,
        RBTreeNodeReservation, //
    },
};

/// What is wrong with an address that text is to be freed or changed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// No text of ours is there.
    Foreign,
    /// Text is there, but does not begin there.
    Inside,
    /// The text was freed.
    Freed,
    /// The text ends before.
    Beyond,
    /// The text could not be changed.
    Unpoked,
}

/// How many slabs are looked at for one whose history suits.
const CHOICE: usize = 8;

struct Slab {
    /// A bit for each object that is not free.
    used: [u64; MAX_OBJECTS / 64],
    free: usize,
    /// How many bytes were asked for, for each object; 0 if it is free, or about to be.
    asked: KVec<u16>,
    /// The last flush of branch predictors that began before something here was freed.
    dirtied: u64,
}

impl Slab {
    fn take(&mut self, len: usize) -> Option<usize> {
        let (word, bits) = self
            .used
            .iter_mut()
            .enumerate()
            .find(|(_, bits)| **bits != u64::MAX)?;
        let bit = bits.trailing_ones() as usize;
        let index = word * 64 + bit;

        *self.asked.get_mut(index)? = len as u16;
        *bits |= 1 << bit;
        self.free -= 1;
        Some(index)
    }

    fn put(&mut self, index: usize) {
        self.used[index / 64] &= !(1 << (index % 64));
        self.free += 1;
    }
}

/// What a new slab is written down in.
pub(crate) struct Record {
    node: RBTreeNodeReservation<usize, Slab>,
    asked: KVec<u16>,
}

impl Record {
    pub(crate) fn new(class: Class) -> Result<Self> {
        Ok(Self {
            node: RBTreeNodeReservation::new(GFP_KERNEL)?,
            asked: KVec::from_elem(0, class.objects(), GFP_KERNEL)?,
        })
    }
}

/// What is left of a slab; to be dropped without a lock.
pub(crate) struct Remains {
    _node: RBTreeNode<usize, Slab>,
    /// As [`Slab::dirtied`].
    pub(crate) dirtied: u64,
}

/// An object that was taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub(crate) start: usize,
    /// The last flush of branch predictors that began before the memory was free.
    pub(crate) dirtied: u64,
}

/// Numbers for debugfs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    pub(crate) slabs: usize,
    pub(crate) used: usize,
    pub(crate) asked: usize,
}

/// The slabs of a class. Nothing here allocates, sleeps or frees.
pub(crate) struct Slabs {
    class: Class,
    /// Those with free objects, by where they begin: what has a low address is used first, so that
    /// the others become empty.
    partial: RBTree<usize, Slab>,
    /// Those without.
    full: RBTree<usize, Slab>,
    stats: Stats,
}

impl Slabs {
    pub(crate) fn new(class: Class) -> Self {
        Self {
            class,
            partial: RBTree::new(),
            full: RBTree::new(),
            stats: Stats::default(),
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        self.stats
    }

    /// Takes an object. If it can be chosen, one that was (`clean`) or was not freed before the
    /// last flush, which is number `flushed`.
    pub(crate) fn take(&mut self, len: usize, clean: bool, flushed: u64) -> Option<Taken> {
        let start = self
            .partial
            .iter()
            .take(CHOICE)
            .find(|(_, slab)| (slab.dirtied < flushed) == clean)
            .or_else(|| self.partial.iter().next())
            .map(|(start, _)| *start)?;

        self.take_from(start, len)
    }

    fn take_from(&mut self, start: usize, len: usize) -> Option<Taken> {
        let slab = self.partial.get_mut(&start)?;
        let index = slab.take(len)?;
        let (is_full, dirtied) = (slab.free == 0, slab.dirtied);

        if is_full {
            let node = self.partial.remove_node(&start)?;

            self.full.insert(node);
        }
        self.stats.used += 1;
        self.stats.asked += len;
        Some(Taken {
            start: start + index * self.class.size(),
            dirtied,
        })
    }

    /// Adds a slab, and takes an object from it before anyone else can.
    pub(crate) fn add(
        &mut self,
        record: Record,
        start: usize,
        dirtied: u64,
        len: usize,
    ) -> Option<Taken> {
        // Bits of objects that there are not stay clear: take() finds no place for their length.
        let slab = Slab {
            used: [0; MAX_OBJECTS / 64],
            free: record.asked.len(),
            asked: record.asked,
            dirtied,
        };

        self.partial.insert(record.node.into_node(start, slab));
        self.stats.slabs += 1;
        self.take_from(start, len)
    }

    fn slab(&mut self, start: usize) -> Option<&mut Slab> {
        match self.partial.find_mut(&start) {
            Some(entry) => Some(entry.into_mut()),
            None => self.full.get_mut(&start),
        }
    }

    /// The object around an address: its slab, its number, and how far into it the address is.
    fn object(
        &mut self,
        slab: usize,
        address: usize,
    ) -> Result<(&mut Slab, usize, usize), Problem> {
        let size = self.class.size();
        let (index, offset) = ((address - slab) / size, (address - slab) % size);
        let slab = self.slab(slab).ok_or(Problem::Foreign)?;

        if slab.asked[index] == 0 {
            return Err(Problem::Freed);
        }
        Ok((slab, index, offset))
    }

    /// The object at `start` is about to be free: from here on nobody else can free it, and nobody
    /// can have it yet.
    pub(crate) fn begin_free(&mut self, slab: usize, start: usize) -> Result<(), Problem> {
        let (slab, index, offset) = self.object(slab, start)?;

        if offset != 0 {
            return Err(Problem::Inside);
        }
        let asked = core::mem::take(&mut slab.asked[index]);

        self.stats.asked -= usize::from(asked);
        Ok(())
    }

    /// The object is free. What is left of its slab, if nothing else was in it.
    pub(crate) fn end_free(&mut self, slab: usize, start: usize, dirtied: u64) -> Option<Remains> {
        let index = (start - slab) / self.class.size();
        let state = self.slab(slab)?;
        let was_full = state.free == 0;

        state.put(index);
        // Whoever read an older number may be the later one here.
        state.dirtied = state.dirtied.max(dirtied);
        let (is_empty, dirtied) = (state.free == state.asked.len(), state.dirtied);

        self.stats.used -= 1;
        if was_full {
            let node = self.full.remove_node(&slab)?;

            self.partial.insert(node);
        }
        if !is_empty {
            return None;
        }
        self.stats.slabs -= 1;
        Some(Remains {
            _node: self.partial.remove_node(&slab)?,
            dirtied,
        })
    }

    /// Whether `len` bytes from `start` on are text of one object.
    pub(crate) fn check(&mut self, slab: usize, start: usize, len: usize) -> Result<(), Problem> {
        let (slab, index, offset) = self.object(slab, start)?;
        let asked = usize::from(slab.asked[index]);

        match offset.checked_add(len) {
            Some(end) if end <= asked => Ok(()),
            _ => Err(Problem::Beyond),
        }
    }
}
