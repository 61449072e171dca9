// SPDX-License-Identifier: GPL-2.0

//! The allocator: where text comes from, and where it goes.
//!
//! Text is taken in blocks, whose pages become slabs, whose objects are handed out. What is larger
//! than a page is cut from areas.
//!
//! Locks: that of a class, that of the blocks, and that of large text; all are spinlocks, and none
//! is taken with another held. Text is taken, given back and changed without any. The mutex of
//! [`Flushes`] is held over a flush, and no other lock is taken under it here.

use super::{
    block::{
        self,
        Blocks,
        Pages,
        BLOCK_PAGES, //
    },
    class::Class,
    large::{
        self,
        Areas,
        AREA_PAGES, //
    },
    slab::{
        self,
        Problem,
        Slabs,
        Taken, //
    },
    text::Text,
};
use core::pin::Pin;
use kernel::{
    new_mutex,
    new_spinlock,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Mutex,
        SpinLock, //
    }, //
};

/// The longest text: as much as a near call reaches.
const MAX_LEN: usize = 1 << 31;

/// Flushes of branch predictors, which may remember text that is gone.
///
/// Text that was freed needs a flush that began after that. Flushes are numbered from 1 on.
#[pin_data]
struct Flushes {
    /// The last flush that began.
    begun: Atomic<u64>,
    /// The last flush that ended.
    ended: Atomic<u64>,
    #[pin]
    turn: Mutex<()>,
}

impl Flushes {
    fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            begun: Atomic::new(0),
            ended: Atomic::new(0),
            turn <- new_mutex!((), "jitalloc::flush"),
        })
    }

    /// The last flush that began. The lock of a class orders this after all use of its text.
    fn begun(&self) -> u64 {
        self.begun.load(Relaxed)
    }

    /// The last flush that ended. Acquire: what it is compared with was read before.
    fn ended(&self) -> u64 {
        self.ended.load(Acquire)
    }

    /// Flushes, unless a flush after number `dirtied` has ended.
    fn flush(&self, dirtied: u64, flush: &dyn Fn()) {
        if dirtied < self.ended() {
            return;
        }
        let _turn = self.turn.lock();

        if dirtied < self.ended() {
            return;
        }
        // Full: whoever reads the old number frees before the flush begins.
        let number = self.begun.fetch_add(1, Full) + 1;

        flush();
        // Release: whoever reads it does not run text that the flush was for before.
        self.ended.store(number, Release);
    }
}

/// Numbers for debugfs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) blocks: block::Stats,
    pub(crate) large: large::Stats,
    pub(crate) flushes: u64,
}

/// The allocator.
#[pin_data]
pub(crate) struct Jit<T: Text> {
    text: T,
    classes: KVec<Pin<KBox<SpinLock<Slabs>>>>,
    #[pin]
    blocks: SpinLock<Blocks>,
    #[pin]
    large: SpinLock<Areas>,
    #[pin]
    flushes: Flushes,
}

impl<T: Text> Jit<T> {
    /// Makes an allocator that has nothing yet.
    pub(crate) fn new(text: T) -> Result<impl PinInit<Self>> {
        let mut classes = KVec::with_capacity(Class::COUNT, GFP_KERNEL)?;

        for class in (0..Class::COUNT).filter_map(Class::nth) {
            let slabs = new_spinlock!(Slabs::new(class), "jitalloc_class");

            classes.push(KBox::pin_init(slabs, GFP_KERNEL)?, GFP_KERNEL)?;
        }
        Ok(pin_init!(Self {
            text,
            classes,
            blocks <- new_spinlock!(Blocks::new(), "jitalloc_blocks"),
            large <- new_spinlock!(Areas::new(), "jitalloc_large"),
            flushes <- Flushes::new(),
        }))
    }

    fn slabs(&self, class: Class) -> &SpinLock<Slabs> {
        &self.classes[class.index()]
    }

    /// Allocates text: `len` bytes, which are `src` if that is given, and else traps.
    ///
    /// With `flush`, branch predictors know nothing of what was there before: it is called unless
    /// it has been since. May sleep.
    pub(crate) fn alloc(
        &self,
        src: Option<&[u8]>,
        len: usize,
        flush: Option<&dyn Fn()>,
    ) -> Option<usize> {
        let taken = match Class::of(len) {
            Some(class) => self.take(class, len, flush.is_some())?,
            None => self.take_large(len)?,
        };

        if let Some(flush) = flush {
            self.flushes.flush(taken.dirtied, flush);
        }
        if src.is_some_and(|src| self.text.poke(taken.start, src).is_err()) {
            // It was ours until here.
            let _ = self.free(taken.start);
            return None;
        }
        Some(taken.start)
    }

    fn take(&self, class: Class, len: usize, clean: bool) -> Option<Taken> {
        let flushed = self.flushes.ended();
        let taken = self.slabs(class).lock().take(len, clean, flushed);

        if taken.is_some() {
            return taken;
        }
        let record = slab::Record::new(class).ok()?;
        let pages = self.pages(class)?;

        self.slabs(class)
            .lock()
            .add(record, pages.start, pages.dirtied, len)
    }

    /// Takes the pages of a slab.
    fn pages(&self, class: Class) -> Option<Pages> {
        let taken = self.blocks.lock().take(class);

        if taken.is_some() {
            return taken;
        }
        let record = block::Record::new().ok()?;
        let fetch = |pages| Some((self.text.take(pages).ok()?, pages));
        let (start, pages) = fetch(BLOCK_PAGES).or_else(|| fetch(class.pages()))?;
        // Others had it before.
        let dirtied = self.flushes.begun();

        self.blocks.lock().add(record, start, pages, dirtied, class)
    }

    fn take_large(&self, len: usize) -> Option<Taken> {
        if len == 0 || len > MAX_LEN {
            return None;
        }
        let record = large::Record::new().ok()?;
        let record = match self.large.lock().take(record, len) {
            Ok(taken) => return Some(taken),
            Err(record) => record,
        };
        let fetch = |pages| {
            let area = large::AreaRecord::new(pages).ok()?;

            Some((self.text.take(pages).ok()?, area))
        };
        let pages = len.div_ceil(PAGE_SIZE);
        let (start, area) = fetch(pages.max(AREA_PAGES)).or_else(|| fetch(pages))?;
        // Others had it before.
        let dirtied = self.flushes.begun();

        self.large.lock().add(area, start, dirtied, record, len)
    }

    /// Frees text. May sleep.
    pub(crate) fn free(&self, start: usize) -> Result<(), Problem> {
        let found = self.blocks.lock().find(start);
        let Some((class, slab)) = found else {
            return self.free_large(start);
        };

        self.slabs(class).lock().begin_free(slab, start)?;
        // Nobody can have it before it traps; if it does not, nobody ever will.
        self.text
            .trap(start, class.size())
            .map_err(|_| Problem::Unpoked)?;
        let begun = self.flushes.begun();
        let remains = self.slabs(class).lock().end_free(slab, start, begun);

        if let Some(remains) = remains {
            self.give_pages(slab, class, remains.dirtied);
        }
        Ok(())
    }

    /// Gives back the pages of a slab.
    fn give_pages(&self, slab: usize, class: Class, dirtied: u64) {
        let spare = self.blocks.lock().put(slab, class, dirtied);

        if let Some(spare) = spare {
            self.text.give(spare.into_start());
        }
    }

    fn free_large(&self, start: usize) -> Result<(), Problem> {
        let freed = self.large.lock().begin_free(start)?;

        // As above.
        self.text
            .trap(start, freed.len)
            .map_err(|_| Problem::Unpoked)?;
        let begun = self.flushes.begun();
        let spare = self.large.lock().end_free(start, &freed, begun);

        if let Some(spare) = spare {
            self.text.give(spare.into_start());
        }
        Ok(())
    }

    /// Changes text. May sleep.
    pub(crate) fn update(&self, start: usize, src: &[u8]) -> Result<(), Problem> {
        let found = self.blocks.lock().find(start);

        if let Some((class, slab)) = found {
            self.slabs(class).lock().check(slab, start, src.len())?;
        } else {
            self.large.lock().check(start, src.len())?;
        }
        self.text.poke(start, src).map_err(|_| Problem::Unpoked)
    }

    /// How many pages [`Jit::trim`] would give back.
    pub(crate) fn spare(&self) -> usize {
        let blocks = self.blocks.lock().spare();

        blocks + self.large.lock().spare()
    }

    /// Gives back blocks and areas that hold nothing. May sleep.
    pub(crate) fn trim(&self) {
        loop {
            let spare = self.blocks.lock().trim().map(|spare| spare.into_start());
            let spare = spare.or_else(|| self.large.lock().trim().map(|spare| spare.into_start()));
            let Some(start) = spare else {
                break;
            };

            self.text.give(start);
        }
    }

    pub(crate) fn class_stats(&self, class: Class) -> slab::Stats {
        self.slabs(class).lock().stats()
    }

    pub(crate) fn totals(&self) -> Totals {
        Totals {
            blocks: self.blocks.lock().stats(),
            large: self.large.lock().stats(),
            flushes: self.flushes.ended(),
        }
    }
}

#[cfg(CONFIG_JITALLOC_KUNIT_TEST)]
#[kunit_tests(jitalloc)]
mod tests {
    use super::*;
    use crate::{
        mock::{
            TestText,
            TRAP, //
        },
        random::Random, //
    };
    use core::cell::Cell;
    use kernel::sync::Arc;

    fn jit() -> Result<Arc<Jit<TestText>>> {
        Arc::pin_init(Jit::new(TestText::new()?)?, GFP_KERNEL)
    }

    impl Jit<TestText> {
        fn get(&self, len: usize) -> Result<usize> {
            self.alloc(None, len, None).ok_or(ENOMEM)
        }

        fn fill(&self, len: usize, byte: u8) -> Result<usize> {
            let src = KVec::from_elem(byte, len, GFP_KERNEL)?;

            self.alloc(Some(&src), len, None).ok_or(ENOMEM)
        }

        fn used(&self) -> usize {
            (0..Class::COUNT)
                .filter_map(Class::nth)
                .map(|class| self.class_stats(class).used)
                .sum()
        }

        /// Whether nothing is in use, or kept.
        fn is_whole(&self) -> bool {
            let in_use = (0..Class::COUNT)
                .filter_map(Class::nth)
                .any(|class| self.class_stats(class) != slab::Stats::default());
            let totals = Totals {
                flushes: 0,
                ..self.totals()
            };

            !in_use && totals == Totals::default() && self.spare() == 0 && self.text.pages() == 0
        }
    }

    /// Lengths around those where something changes.
    fn lengths() -> impl Iterator<Item = usize> {
        let around = |size| [size - 1, size, size + 1];

        let small = (0..Class::COUNT)
            .filter_map(Class::nth)
            .flat_map(move |class| around(class.size()));

        Iterator::chain(small, [2 * PAGE_SIZE, 2 * PAGE_SIZE + 1, 65 * PAGE_SIZE])
    }

    #[test]
    fn every_length_can_be_had_changed_and_freed() -> Result {
        let jit = jit()?;

        for len in lengths() {
            let start = jit.fill(len, 1)?;

            assert_eq!(start % 16, 0);
            assert_eq!(start % (1 << len.trailing_zeros().min(12)), 0);
            assert!(jit.text.holds(start, len, 1));
            assert_eq!(jit.update(start + len - 1, &[2]), Ok(()));
            assert!(jit.text.holds(start + len - 1, 1, 2));
            assert_eq!(jit.text.live(), len);
            assert_eq!(jit.free(start), Ok(()));
            assert_eq!(jit.text.live(), 0);
        }
        assert_eq!(jit.text.pages(), BLOCK_PAGES + AREA_PAGES);
        assert_eq!(jit.spare(), BLOCK_PAGES + AREA_PAGES);
        jit.trim();
        assert!(jit.is_whole());
        Ok(())
    }

    #[test]
    fn large_text_shares_an_area() -> Result {
        let jit = jit()?;
        let lengths = [5000, 20_000, 64 << 10, PAGE_SIZE + 1];
        let mut pieces = KVec::new();

        for (len, byte) in lengths.iter().zip(1..) {
            pieces.push(jit.fill(*len, byte)?, GFP_KERNEL)?;
        }
        assert_eq!(jit.text.pages(), AREA_PAGES);
        // No more than 64 bytes are rounded up to.
        assert_eq!(pieces[1] - pieces[0], 5056);
        let large = jit.totals().large;
        assert_eq!(large.pieces, lengths.len());
        assert_eq!(large.asked, lengths.iter().sum());
        assert!(large.used - large.asked < 64 * lengths.len());
        assert_eq!(jit.free(pieces[1]), Ok(()));
        assert_eq!(jit.fill(20_000, 9)?, pieces[1]);
        for ((start, len), byte) in pieces.iter().zip(lengths).zip([1, 9, 3, 4]) {
            assert!(jit.text.holds(*start, len, byte));
            assert_eq!(jit.free(*start), Ok(()));
        }
        assert_eq!(jit.text.pages(), AREA_PAGES);
        jit.trim();
        assert!(jit.is_whole());
        Ok(())
    }

    #[test]
    fn all_of_an_area_can_be_used() -> Result {
        let jit = jit()?;
        let mut pieces = KVec::new();

        // 65 units each, so that most begin and end within a page.
        while jit.totals().large.pages <= AREA_PAGES {
            pieces.push(jit.get(PAGE_SIZE + 64)?, GFP_KERNEL)?;
        }
        assert_eq!(pieces.len(), AREA_PAGES * 64 / 65 + 1);
        for start in pieces.iter().step_by(2) {
            assert_eq!(jit.free(*start), Ok(()));
        }
        for _ in pieces.iter().step_by(2) {
            jit.get(PAGE_SIZE + 64)?;
        }
        for start in pieces {
            assert_eq!(jit.free(start), Ok(()));
        }
        jit.trim();
        assert!(jit.is_whole());
        Ok(())
    }

    #[test]
    fn a_flush_does_for_all_of_an_area() -> Result {
        let jit = jit()?;
        let count = Cell::new(0);
        let flush: &dyn Fn() = &|| count.set(count.get() + 1);
        let get = || jit.alloc(None, 5000, Some(flush)).ok_or(ENOMEM);
        let first = get()?;

        for _ in 0..10 {
            get()?;
        }
        assert_eq!(count.get(), 1);
        assert_eq!(jit.free(first), Ok(()));
        assert_eq!(get()?, first);
        get()?;
        assert_eq!(count.get(), 2);
        Ok(())
    }

    #[test]
    fn fresh_text_traps() -> Result {
        let jit = jit()?;
        let start = jit.get(100)?;

        assert!(jit.text.holds(start, 100, TRAP));
        assert_eq!(jit.alloc(None, 0, None), None);
        assert_eq!(jit.alloc(None, MAX_LEN + 1, None), None);
        assert_eq!(jit.alloc(None, usize::MAX, None), None);
        Ok(())
    }

    #[test]
    fn mistakes_are_named_and_change_nothing() -> Result {
        let jit = jit()?;
        let (small, other) = (jit.fill(100, 1)?, jit.fill(100, 2)?);
        let large = jit.fill(3 * PAGE_SIZE - 8, 3)?;
        let live = jit.text.live();
        let totals = jit.totals();

        assert_eq!(jit.free(small + 16), Err(Problem::Inside));
        assert_eq!(jit.free(large + PAGE_SIZE), Err(Problem::Inside));
        assert_eq!(jit.free(large + 3 * PAGE_SIZE), Err(Problem::Foreign));
        assert_eq!(jit.free(0), Err(Problem::Foreign));
        assert_eq!(jit.free(usize::MAX), Err(Problem::Foreign));
        assert_eq!(jit.free(small + 32 * PAGE_SIZE), Err(Problem::Foreign));
        assert_eq!(jit.free(small + 2 * (other - small)), Err(Problem::Freed));
        assert_eq!(jit.update(small, &[9; 101]), Err(Problem::Beyond));
        assert_eq!(jit.update(small + 100, &[9]), Err(Problem::Beyond));
        assert_eq!(
            jit.update(large + 3 * PAGE_SIZE - 9, &[9; 2]),
            Err(Problem::Beyond)
        );
        assert_eq!(jit.update(0, &[9]), Err(Problem::Foreign));
        assert_eq!(jit.text.live(), live);
        assert_eq!(jit.totals(), totals);

        assert_eq!(jit.free(small), Ok(()));
        assert_eq!(jit.free(small), Err(Problem::Freed));
        assert_eq!(jit.update(small, &[9]), Err(Problem::Freed));
        assert_eq!(jit.free(large), Ok(()));
        assert_eq!(jit.free(large), Err(Problem::Foreign));
        assert!(jit.text.holds(other, 100, 2));
        assert_eq!(jit.text.live(), 100);
        assert_eq!(jit.free(other), Ok(()));
        assert_eq!(jit.free(other), Err(Problem::Foreign));
        jit.trim();
        assert!(jit.is_whole());
        Ok(())
    }

    struct Piece {
        start: usize,
        len: usize,
        byte: u8,
    }

    #[test]
    fn random_sequences_behave_as_a_simple_model() -> Result {
        let jit = jit()?;
        let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
        let mut pieces: KVec<Piece> = KVec::new();
        let mut failed = 0;

        for step in 0..3000 {
            // It grows and shrinks by turns.
            let grows = random.below(100) < if step / 300 % 2 == 0 { 70 } else { 30 };

            if grows {
                let longest = [64, 512, PAGE_SIZE, 5 * PAGE_SIZE][random.below(4)];
                let (len, byte) = (1 + random.below(longest), 1 + random.below(200) as u8);

                match jit.fill(len, byte) {
                    Ok(start) => pieces.push(Piece { start, len, byte }, GFP_KERNEL)?,
                    Err(_) => failed += 1,
                }
            } else if !pieces.is_empty() {
                let piece = pieces
                    .remove(random.below(pieces.len()))
                    .map_err(|_| EINVAL)?;

                // Whoever overlapped would have changed it.
                assert!(jit.text.holds(piece.start, piece.len, piece.byte));
                assert_eq!(jit.free(piece.start), Ok(()));
                assert!(jit.free(piece.start).is_err());
            }
            if step % 100 == 0 {
                let small = pieces.iter().filter(|piece| piece.len <= PAGE_SIZE);

                assert_eq!(jit.used(), small.count());
                assert_eq!(jit.text.live(), pieces.iter().map(|piece| piece.len).sum());
            }
        }
        // There is room for all of them.
        assert_eq!(failed, 0);
        for piece in pieces {
            assert!(jit.text.holds(piece.start, piece.len, piece.byte));
            assert_eq!(jit.free(piece.start), Ok(()));
        }
        jit.trim();
        assert!(jit.is_whole());
        Ok(())
    }

    #[test]
    fn all_pages_can_be_used_and_come_back() -> Result {
        for len in [16, 48, 112, 896, 3584, PAGE_SIZE] {
            let jit = jit()?;
            let class = Class::of(len).ok_or(EINVAL)?;
            let mut pieces = KVec::new();

            while let Some(start) = jit.alloc(None, len, None) {
                pieces.push(start, GFP_KERNEL)?;
            }
            // What is left of a block is less than a slab.
            let slabs = TestText::PAGES / BLOCK_PAGES * (BLOCK_PAGES / class.pages());

            assert_eq!(pieces.len(), slabs * class.objects());
            for start in pieces.iter().step_by(2) {
                assert_eq!(jit.free(*start), Ok(()));
            }
            for _ in pieces.iter().step_by(2) {
                jit.get(len)?;
            }
            assert_eq!(jit.alloc(None, len, None), None);
            for start in pieces {
                assert_eq!(jit.free(start), Ok(()));
            }
            jit.trim();
            assert!(jit.is_whole());
        }
        Ok(())
    }

    #[test]
    fn without_blocks_slabs_are_taken_alone() -> Result {
        for len in [16, 112, PAGE_SIZE] {
            let jit = jit()?;
            let class = Class::of(len).ok_or(EINVAL)?;

            jit.text.largest.set(class.pages());
            let start = jit.get(len)?;
            assert_eq!(jit.text.pages(), class.pages());
            assert_eq!(jit.free(start), Ok(()));
            assert!(jit.is_whole());
            jit.text.largest.set(class.pages() - 1);
            assert_eq!(jit.alloc(None, len, None), None);
            assert!(jit.is_whole());
        }
        Ok(())
    }

    #[test]
    fn text_that_cannot_be_written_is_freed() -> Result {
        let jit = jit()?;

        for len in [100, 2 * PAGE_SIZE] {
            let src = KVec::from_elem(1, len, GFP_KERNEL)?;

            jit.text.poke_fails.set(true);
            assert_eq!(jit.alloc(Some(&src), len, None), None);
            let start = jit.get(len)?;
            assert_eq!(jit.update(start, &src), Err(Problem::Unpoked));
            jit.text.poke_fails.set(false);
            assert_eq!(jit.free(start), Ok(()));
        }
        jit.trim();
        assert!(jit.is_whole());
        Ok(())
    }

    #[test]
    fn text_that_does_not_trap_is_never_handed_out() -> Result {
        let jit = jit()?;
        let (lost, other) = (jit.fill(PAGE_SIZE / 2, 1)?, jit.fill(PAGE_SIZE / 2, 2)?);

        jit.text.trap_fails.set(true);
        assert_eq!(jit.free(lost), Err(Problem::Unpoked));
        jit.text.trap_fails.set(false);
        assert_eq!(jit.free(lost), Err(Problem::Freed));
        assert_eq!(jit.free(other), Ok(()));
        let large = jit.fill(2 * PAGE_SIZE, 1)?;
        jit.text.trap_fails.set(true);
        assert_eq!(jit.free(large), Err(Problem::Unpoked));
        jit.text.trap_fails.set(false);
        assert_eq!(jit.free(large), Err(Problem::Foreign));
        assert_ne!(jit.fill(2 * PAGE_SIZE, 3)?, large);
        for _ in 0..8 {
            let start = jit.fill(PAGE_SIZE / 2, 3)?;

            assert!(start >= lost + PAGE_SIZE / 2 || start < lost);
        }
        assert!(jit.text.holds(lost, PAGE_SIZE / 2, 1));
        Ok(())
    }

    #[test]
    fn one_block_is_kept() -> Result {
        let jit = jit()?;
        let mut pieces = KVec::new();

        for _ in 0..3 * BLOCK_PAGES {
            pieces.push(jit.get(PAGE_SIZE)?, GFP_KERNEL)?;
        }
        assert_eq!(jit.spare(), 0);
        for start in pieces {
            assert_eq!(jit.free(start), Ok(()));
        }
        assert_eq!(jit.spare(), BLOCK_PAGES);
        assert_eq!(jit.text.pages(), BLOCK_PAGES);
        let start = jit.get(16)?;
        assert_eq!(jit.text.pages(), BLOCK_PAGES);
        assert_eq!(jit.spare(), 0);
        jit.trim();
        assert_eq!(jit.update(start, &[1]), Ok(()));
        assert_eq!(jit.free(start), Ok(()));
        jit.trim();
        assert!(jit.is_whole());
        Ok(())
    }

    #[test]
    fn used_blocks_are_preferred() -> Result {
        let jit = jit()?;
        let first = jit.get(PAGE_SIZE)?;
        let mut others = KVec::new();

        for _ in 0..BLOCK_PAGES {
            others.push(jit.get(PAGE_SIZE)?, GFP_KERNEL)?;
        }
        // The second block has one page in use, and stays the one with more room.
        assert_eq!(jit.totals().blocks.blocks, 2);
        assert_eq!(jit.free(first), Ok(()));
        assert_eq!(jit.get(PAGE_SIZE)?, first);
        Ok(())
    }

    #[test]
    fn what_was_freed_is_flushed_once() -> Result {
        let jit = jit()?;
        let count = Cell::new(0);
        let flush: &dyn Fn() = &|| count.set(count.get() + 1);
        let get = |len| jit.alloc(None, len, Some(flush)).ok_or(ENOMEM);

        // Nobody knows what was executed there.
        let first = get(64)?;
        assert_eq!(count.get(), 1);
        let second = get(64)?;
        assert_eq!(count.get(), 1);
        // Who is trusted flushes nothing.
        let third = jit.get(64)?;
        assert_eq!(jit.free(third), Ok(()));
        jit.get(64)?;
        assert_eq!(count.get(), 1);
        assert_eq!(jit.free(first), Ok(()));
        get(64)?;
        assert_eq!(count.get(), 2);
        assert_eq!(jit.free(second), Ok(()));
        get(64)?;
        get(64)?;
        assert_eq!(count.get(), 3);
        get(2 * PAGE_SIZE)?;
        assert_eq!(count.get(), 4);
        assert_eq!(jit.totals().flushes, 4);
        Ok(())
    }

    #[test]
    fn clean_slabs_are_preferred_for_those_who_flush() -> Result {
        let jit = jit()?;
        let count = Cell::new(0);
        let flush: &dyn Fn() = &|| count.set(count.get() + 1);
        let objects = Class::of(1024).ok_or(EINVAL)?.objects();
        let mut pieces = KVec::new();

        for _ in 0..2 * objects {
            pieces.push(jit.get(1024)?, GFP_KERNEL)?;
        }
        assert_eq!(jit.free(pieces[objects]), Ok(()));
        jit.alloc(None, 16, Some(flush)).ok_or(ENOMEM)?;
        assert_eq!(jit.free(pieces[0]), Ok(()));
        // The first slab is dirty, the second one was flushed.
        assert_eq!(jit.alloc(None, 1024, Some(flush)), Some(pieces[objects]));
        assert_eq!(count.get(), 1);
        assert_eq!(jit.free(pieces[objects + 1]), Ok(()));
        jit.alloc(None, 2 * PAGE_SIZE, Some(flush)).ok_or(ENOMEM)?;
        assert_eq!(jit.free(pieces[objects + 2]), Ok(()));
        assert_eq!(jit.get(1024)?, pieces[objects + 1]);
        Ok(())
    }

    #[test]
    fn a_flush_does_for_all_of_a_block() -> Result {
        let jit = jit()?;
        let count = Cell::new(0);
        let flush: &dyn Fn() = &|| count.set(count.get() + 1);
        let get = |len| jit.alloc(None, len, Some(flush)).ok_or(ENOMEM);
        let first = get(PAGE_SIZE)?;

        assert_eq!(count.get(), 1);
        get(64)?;
        get(1024)?;
        let second = get(PAGE_SIZE)?;
        assert_eq!(count.get(), 1);
        // Their slabs are gone, but pages of the block remember.
        assert_eq!(jit.free(first), Ok(()));
        get(256)?;
        assert_eq!(count.get(), 2);
        get(2048)?;
        assert_eq!(count.get(), 2);
        assert_eq!(jit.free(second), Ok(()));
        get(512)?;
        assert_eq!(count.get(), 3);
        Ok(())
    }

    #[test]
    fn what_is_freed_during_a_flush_needs_another() -> Result {
        let jit = jit()?;
        let piece = jit.get(64)?;
        let count = Cell::new(0);
        let flush: &dyn Fn() = &|| {
            if count.replace(count.get() + 1) == 0 {
                assert_eq!(jit.free(piece), Ok(()));
            }
        };

        jit.alloc(None, 64, Some(flush)).ok_or(ENOMEM)?;
        assert_eq!(count.get(), 1);
        jit.alloc(None, 64, Some(flush)).ok_or(ENOMEM)?;
        assert_eq!(count.get(), 2);
        Ok(())
    }
}
