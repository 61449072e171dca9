// SPDX-License-Identifier: GPL-2.0

//! Memory for tests: pages that remember what was done to them, and steps that fail on demand.

use crate::{
    area::{
        Area,
        Kind,
        Memory, //
    },
    holes::Run, //
};
use core::cell::Cell;
use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// It is not mapped.
    Absent,
    /// Trapping instructions; executable.
    Trap,
    /// Text of an owner, or of a former one.
    Text,
    /// The same, while it is writable.
    WritableText,
    /// Data, writable.
    Data,
    ReadOnlyData,
}

/// What can fail.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Nothing,
    /// There are no pages outside the direct map.
    Unmapped,
    /// There are no pages at all.
    Allocate,
    /// Somebody else writes to text.
    Trap,
    Protect,
    MakeWritable,
}

pub(crate) struct TestArea {
    run: Run,
    kind: Kind,
}

impl Area for TestArea {
    fn start(&self) -> usize {
        self.run.start
    }

    fn size(&self) -> usize {
        self.run.size
    }

    fn large(&self) -> usize {
        0
    }

    fn kind(&self) -> Kind {
        self.kind
    }
}

pub(crate) struct TestMemory {
    pages: Cell<KVec<Page>>,
    pub(crate) fails: Cell<Step>,
    pub(crate) ready: Cell<bool>,
    pub(crate) node: Cell<usize>,
    /// Areas that are mapped.
    pub(crate) areas: Cell<usize>,
    /// The counter of [`Memory::count_idle`].
    pub(crate) idle: Cell<isize>,
    pub(crate) retries: Cell<usize>,
}

impl TestMemory {
    pub(crate) const NODES: usize = 2;
    /// What an area is a multiple of.
    pub(crate) const BLOCK: usize = 16 * PAGE_SIZE;
    /// Where allocations may be.
    pub(crate) const ANYWHERE: (usize, usize) = (0, Self::PAGES * PAGE_SIZE);
    const PAGES: usize = 8192;

    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            pages: Cell::new(KVec::from_elem(Page::Absent, Self::PAGES, GFP_KERNEL)?),
            fails: Cell::new(Step::Nothing),
            ready: Cell::new(true),
            node: Cell::new(0),
            areas: Cell::new(0),
            idle: Cell::new(0),
            retries: Cell::new(0),
        })
    }

    fn with<R>(&self, f: impl FnOnce(&mut KVec<Page>) -> R) -> R {
        let mut pages = self.pages.replace(KVec::new());
        let result = f(&mut pages);

        self.pages.set(pages);
        result
    }

    /// Changes all pages, each of which has to be one of `from`.
    pub(crate) fn change(&self, start: usize, size: usize, from: &[Page], to: Page) {
        assert_eq!((start % PAGE_SIZE, size % PAGE_SIZE), (0, 0));
        self.with(|pages| {
            for page in &mut pages[start / PAGE_SIZE..(start + size) / PAGE_SIZE] {
                assert!(from.contains(page));
                *page = to;
            }
        });
    }

    /// Finds absent pages with a gap on either side.
    fn find(&self, (from, end): (usize, usize), pages: usize) -> Option<usize> {
        let mut absent = 0;

        self.with(|all| {
            (from / PAGE_SIZE..end / PAGE_SIZE).find_map(|index| {
                absent = if all[index] == Page::Absent {
                    absent + 1
                } else {
                    0
                };
                (absent == pages + 2).then(|| index - pages)
            })
        })
    }
}

impl Memory for TestMemory {
    type Area = TestArea;
    type Place = (usize, usize);

    fn allocate(&self, place: Self::Place, size: usize, kind: Kind) -> Option<TestArea> {
        match self.fails.get() {
            Step::Unmapped if kind != Kind::Aliased => return None,
            Step::Allocate => return None,
            _ => {}
        }
        let size = size.next_multiple_of(Self::BLOCK);
        let start = self.find(place, size / PAGE_SIZE)? * PAGE_SIZE;
        let page = match kind {
            Kind::Rodata => Page::Data,
            _ => Page::Trap,
        };

        self.change(start, size, &[Page::Absent], page);
        self.areas.set(self.areas.get() + 1);
        Some(TestArea {
            run: Run { start, size },
            kind,
        })
    }

    fn release(&self, area: TestArea) {
        let free = match area.kind {
            Kind::Rodata => Page::Data,
            _ => Page::Trap,
        };

        self.change(area.run.start, area.run.size, &[free], Page::Absent);
        self.areas.set(self.areas.get() - 1);
    }

    fn allows(&self, place: Self::Place, start: usize, size: usize) -> bool {
        start >= place.0 && start + size <= place.1
    }

    fn is_ready(&self) -> bool {
        self.ready.get()
    }

    fn trap(&self, start: usize, size: usize, wait: bool) -> Result {
        if self.fails.get() == Step::Trap && !wait {
            return Err(EBUSY);
        }
        // Pokes get at what is writable as well, and leave it so.
        self.with(|pages| {
            for page in &mut pages[start / PAGE_SIZE..(start + size) / PAGE_SIZE] {
                match page {
                    Page::Text => *page = Page::Trap,
                    Page::WritableText | Page::Trap => {}
                    other => panic!("{other:?} is not text that was in use"),
                }
            }
        });
        Ok(())
    }

    fn protect(&self, start: usize, size: usize, _kind: Kind) -> Result {
        if self.fails.get() == Step::Protect {
            return Err(ENOMEM);
        }
        let text = [Page::Trap, Page::WritableText];

        self.change(start, size, &text, Page::Trap);
        Ok(())
    }

    fn make_writable(&self, start: usize, size: usize) -> Result {
        if self.fails.get() == Step::MakeWritable {
            return Err(ENOMEM);
        }
        let data = [Page::Data, Page::ReadOnlyData];

        self.change(start, size, &data, Page::Data);
        Ok(())
    }

    fn retry_later(&self) {
        self.retries.set(self.retries.get() + 1);
    }

    fn count_idle(&self, _nid: usize, bytes: isize) {
        self.idle.set(self.idle.get() + bytes);
    }

    fn this_node(&self) -> usize {
        self.node.get()
    }

    fn relax(&self) {}
}
