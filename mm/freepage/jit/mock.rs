// SPDX-License-Identifier: GPL-2.0

//! Text for tests: it has content, and fails on demand.

use crate::text::Text;
use core::cell::Cell;
use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};

/// What traps.
pub(crate) const TRAP: u8 = 0xcc;

/// What is where nothing was taken.
const NOTHING: u8 = 0;

/// The text: [`TestText::PAGES`] pages.
pub(crate) struct TestText {
    content: Cell<KVVec<u8>>,
    /// What was taken: where it begins, and how many pages it has.
    taken: Cell<KVec<(usize, usize)>>,
    /// No more pages than this can be had at once.
    pub(crate) largest: Cell<usize>,
    pub(crate) poke_fails: Cell<bool>,
    pub(crate) trap_fails: Cell<bool>,
}

impl TestText {
    pub(crate) const PAGES: usize = 768;
    const BASE: usize = 16 * PAGE_SIZE;

    pub(crate) fn new() -> Result<Self> {
        let content = KVVec::from_elem(NOTHING, Self::PAGES * PAGE_SIZE, GFP_KERNEL)?;

        Ok(Self {
            content: Cell::new(content),
            taken: Cell::new(KVec::new()),
            largest: Cell::new(Self::PAGES),
            poke_fails: Cell::new(false),
            trap_fails: Cell::new(false),
        })
    }

    fn with_content<R>(&self, f: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut content = self.content.replace(KVVec::new());
        let result = f(&mut content);

        self.content.set(content);
        result
    }

    fn with_taken<R>(&self, f: impl FnOnce(&mut KVec<(usize, usize)>) -> R) -> R {
        let mut taken = self.taken.replace(KVec::new());
        let result = f(&mut taken);

        self.taken.set(taken);
        result
    }

    /// Whether all `len` bytes from `start` on are `byte`.
    pub(crate) fn holds(&self, start: usize, len: usize, byte: u8) -> bool {
        let offset = start - Self::BASE;

        self.with_content(|content| {
            content[offset..offset + len]
                .iter()
                .all(|other| *other == byte)
        })
    }

    /// Bytes that were taken and do not trap.
    pub(crate) fn live(&self) -> usize {
        let live = |start: usize, pages: usize| {
            let offset = start - Self::BASE;
            let end = offset + pages * PAGE_SIZE;

            self.with_content(|content| {
                let live = content[offset..end].iter().filter(|byte| **byte != TRAP);

                live.count()
            })
        };

        self.with_taken(|taken| {
            taken
                .iter()
                .map(|(start, pages)| live(*start, *pages))
                .sum()
        })
    }

    /// Pages that are taken.
    pub(crate) fn pages(&self) -> usize {
        self.with_taken(|taken| taken.iter().map(|(_, pages)| pages).sum())
    }

    fn change(&self, start: usize, len: usize, change: impl FnOnce(&mut [u8])) {
        let offset = start - Self::BASE;

        assert!(self.with_taken(|taken| taken
            .iter()
            .any(|(begin, pages)| *begin <= start && start + len <= begin + pages * PAGE_SIZE)));
        self.with_content(|content| change(&mut content[offset..offset + len]));
    }
}

impl Text for TestText {
    fn take(&self, pages: usize) -> Result<usize> {
        if pages > self.largest.get() {
            return Err(ENOMEM);
        }
        let is_free = |start: usize, pages: usize| {
            self.holds(Self::BASE + start * PAGE_SIZE, pages * PAGE_SIZE, NOTHING)
        };
        let page = (0..=Self::PAGES - pages.min(Self::PAGES))
            .find(|start| start + pages <= Self::PAGES && is_free(*start, pages))
            .ok_or(ENOMEM)?;
        let start = Self::BASE + page * PAGE_SIZE;

        self.with_taken(|taken| taken.push((start, pages), GFP_KERNEL))?;
        self.change(start, pages * PAGE_SIZE, |content| content.fill(TRAP));
        Ok(start)
    }

    fn give(&self, start: usize) {
        let pages = self.with_taken(|taken| {
            let pages = taken.iter().find(|(begin, _)| *begin == start);

            pages.map_or(0, |(_, pages)| *pages)
        });

        assert!(pages > 0, "this was not taken");
        self.change(start, pages * PAGE_SIZE, |content| content.fill(NOTHING));
        self.with_taken(|taken| taken.retain(|(begin, _)| *begin != start));
    }

    fn trap(&self, start: usize, len: usize) -> Result {
        if self.trap_fails.get() {
            return Err(EINVAL);
        }
        self.change(start, len, |content| content.fill(TRAP));
        Ok(())
    }

    fn poke(&self, start: usize, src: &[u8]) -> Result {
        if self.poke_fails.get() {
            return Err(EINVAL);
        }
        self.change(start, src.len(), |content| content.copy_from_slice(src));
        Ok(())
    }
}
