// SPDX-License-Identifier: GPL-2.0

//! Blocks: executable memory as it was taken, whose pages become slabs.

use super::class::{
    Class,
    MAX_PAGES, //
};
use core::cmp::Reverse;
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode,
        RBTreeNodeReservation, //
    },
};

/// Pages of a block, unless there was less to be had: 256 KiB are shared by many programs, and
/// eight of them by what else is in 2 MiB of text.
pub(crate) const BLOCK_PAGES: usize = u64::BITS as usize;

/// Blocks without a slab that are kept for the next one.
const KEPT: usize = 1;

/// The room of a block without a slab: others are preferred to it.
const EMPTY: usize = MAX_PAGES + 1;

/// What a page belongs to, unless it is free.
#[derive(Clone, Copy)]
struct Page {
    class: Class,
    /// Which page of the slab it is.
    index: u8,
}

struct Block {
    pages: usize,
    /// A bit for each page that belongs to no slab.
    free: u64,
    owners: [Option<Page>; BLOCK_PAGES],
    /// The last flush of branch predictors that began before one of its pages was free.
    dirtied: u64,
}

/// The pages of a slab.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pages {
    pub(crate) start: usize,
    /// The last flush of branch predictors that began before they were free.
    pub(crate) dirtied: u64,
}

/// The bits of the first `pages` pages.
fn mask(pages: usize) -> u64 {
    match pages {
        BLOCK_PAGES => u64::MAX,
        _ => (1 << pages) - 1,
    }
}

/// A bit wherever a run of at least `pages` free pages starts.
fn runs(free: u64, pages: usize) -> u64 {
    (1..pages).fold(free, |runs, page| runs & (free >> page))
}

impl Block {
    fn new(pages: usize, dirtied: u64) -> Self {
        Self {
            dirtied,
            pages,
            free: mask(pages),
            owners: [None; BLOCK_PAGES],
        }
    }

    fn is_empty(&self) -> bool {
        self.free == mask(self.pages)
    }

    /// How large a slab could be, or [`EMPTY`].
    fn room(&self) -> usize {
        if self.is_empty() {
            return EMPTY;
        }
        (1..=MAX_PAGES)
            .take_while(|pages| runs(self.free, *pages) != 0)
            .count()
    }

    /// Takes the pages of a slab; the first of them.
    fn take(&mut self, class: Class) -> Option<usize> {
        let runs = runs(self.free, class.pages());

        if runs == 0 {
            return None;
        }
        let first = runs.trailing_zeros() as usize;

        self.free &= !(mask(class.pages()) << first);
        for index in 0..class.pages() {
            self.owners[first + index] = Some(Page {
                class,
                index: index as u8,
            });
        }
        Some(first)
    }

    /// Takes back the pages of a slab.
    fn put(&mut self, first: usize, class: Class, dirtied: u64) {
        self.dirtied = self.dirtied.max(dirtied);
        self.free |= mask(class.pages()) << first;
        self.owners[first..first + class.pages()].fill(None);
    }
}

type Node = RBTreeNode<Reverse<usize>, Block>;
type Room = RBTreeNode<(usize, usize), ()>;

/// What a new block is written down in.
pub(crate) struct Record {
    node: RBTreeNodeReservation<Reverse<usize>, Block>,
    room: RBTreeNodeReservation<(usize, usize), ()>,
}

impl Record {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            node: RBTreeNodeReservation::new(GFP_KERNEL)?,
            room: RBTreeNodeReservation::new(GFP_KERNEL)?,
        })
    }
}

/// A block that is to be given back.
pub(crate) struct Spare {
    node: Node,
    _room: Option<Room>,
}

impl Spare {
    /// Where the block begins.
    pub(crate) fn into_start(self) -> usize {
        let (Reverse(start), _) = self.node.to_key_value();

        start
    }
}

/// Numbers for debugfs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    pub(crate) blocks: usize,
    pub(crate) pages: usize,
    pub(crate) free: usize,
}

/// All blocks. Nothing here allocates, sleeps or frees.
pub(crate) struct Blocks {
    /// By where they begin, the last first, so that a lookup finds the block around an address.
    by_start: RBTree<Reverse<usize>, Block>,
    /// The same blocks by their room, and where they begin.
    by_room: RBTree<(usize, usize), ()>,
    empty: usize,
    stats: Stats,
}

impl Blocks {
    pub(crate) fn new() -> Self {
        Self {
            by_start: RBTree::new(),
            by_room: RBTree::new(),
            empty: 0,
            stats: Stats::default(),
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        self.stats
    }

    /// How many pages could be given back.
    pub(crate) fn spare(&self) -> usize {
        self.empty * BLOCK_PAGES
    }

    /// Changes a block, and what is known of its room.
    fn change<R>(&mut self, start: usize, change: impl FnOnce(&mut Block) -> R) -> Option<R> {
        let block = self.by_start.get_mut(&Reverse(start))?;
        let (room, was_empty) = (block.room(), block.is_empty());
        let free = block.free.count_ones() as usize;
        let result = change(block);

        self.empty = self.empty + usize::from(block.is_empty()) - usize::from(was_empty);
        self.stats.free = self.stats.free + block.free.count_ones() as usize - free;
        if let Some(node) = self.by_room.remove_node(&(room, start)) {
            let node = node.into_reservation().into_node((block.room(), start), ());

            self.by_room.insert(node);
        }
        Some(result)
    }

    fn take_from(&mut self, start: usize, class: Class) -> Option<Pages> {
        self.change(start, |block| {
            Some(Pages {
                start: start + block.take(class)? * PAGE_SIZE,
                dirtied: block.dirtied,
            })
        })?
    }

    /// Takes the pages of a slab from the block with the least room that will do.
    pub(crate) fn take(&mut self, class: Class) -> Option<Pages> {
        let (_, start) = *self
            .by_room
            .cursor_lower_bound(&(class.pages(), 0))?
            .current()
            .0;

        self.take_from(start, class)
    }

    /// Adds a block, and takes the pages of a slab from it before anyone else can.
    pub(crate) fn add(
        &mut self,
        record: Record,
        start: usize,
        pages: usize,
        dirtied: u64,
        class: Class,
    ) -> Option<Pages> {
        let block = Block::new(pages, dirtied);

        self.by_room
            .insert(record.room.into_node((block.room(), start), ()));
        self.by_start
            .insert(record.node.into_node(Reverse(start), block));
        self.empty += 1;
        self.stats.blocks += 1;
        self.stats.pages += pages;
        self.stats.free += pages;
        self.take_from(start, class)
    }

    /// The block around an address, and where it begins.
    fn block_of(&self, address: usize) -> Option<(usize, &Block)> {
        let cursor = self.by_start.cursor_lower_bound(&Reverse(address))?;
        let (start, pages) = (cursor.current().0 .0, cursor.current().1.pages);

        if address - start >= pages * PAGE_SIZE {
            return None;
        }
        Some((start, self.by_start.get(&Reverse(start))?))
    }

    /// The slab around an address: its class, and where it begins.
    pub(crate) fn find(&self, address: usize) -> Option<(Class, usize)> {
        let (start, block) = self.block_of(address)?;
        let index = (address - start) / PAGE_SIZE;
        let page = block.owners[index]?;

        Some((
            page.class,
            start + (index - usize::from(page.index)) * PAGE_SIZE,
        ))
    }

    /// Takes back the pages of a slab. A block that is to be given back, if that made one.
    pub(crate) fn put(&mut self, slab: usize, class: Class, dirtied: u64) -> Option<Spare> {
        let (start, block) = self.block_of(slab)?;
        let whole = block.pages == BLOCK_PAGES;

        self.change(start, |block| {
            block.put((slab - start) / PAGE_SIZE, class, dirtied)
        })?;
        let is_empty = self.by_start.get(&Reverse(start))?.is_empty();

        // A small one is of use to nobody else.
        if is_empty && (!whole || self.empty > KEPT) {
            self.remove(start)
        } else {
            None
        }
    }

    /// Takes a block without a slab out, if there is one.
    pub(crate) fn trim(&mut self) -> Option<Spare> {
        let (_, start) = *self.by_room.cursor_lower_bound(&(EMPTY, 0))?.current().0;

        self.remove(start)
    }

    fn remove(&mut self, start: usize) -> Option<Spare> {
        let pages = self.by_start.get(&Reverse(start))?.pages;
        let node = self.by_start.remove_node(&Reverse(start))?;
        let _room = self.by_room.remove_node(&(EMPTY, start));
        let spare = Spare { node, _room };

        self.empty -= 1;
        self.stats.blocks -= 1;
        self.stats.pages -= pages;
        self.stats.free -= pages;
        Some(spare)
    }
}
