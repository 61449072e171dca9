// SPDX-License-Identifier: GPL-2.0

//! Which pages of a zone were freed since their last treatment.
//!
//! Works on page offsets from the start of a zone's map, a multiple of the largest order, and knows
//! neither zones nor locks: [`super::zone`] lends the bits while it holds the zone lock.

use core::{
    mem::offset_of,
    ops::{
        Range,
        RangeInclusive, //
    }, //
};
use kernel::{
    bindings,
    prelude::*, //
};

const WORD: usize = usize::BITS as usize;

/// Pages that share a bit of [`Chunk::pending`].
pub(crate) const GROUP: usize = 1 << bindings::FREEPAGE_GROUP_ORDER;

/// Pages of a chunk.
pub(crate) const CHUNK: usize = 1 << bindings::FREEPAGE_CHUNK_ORDER;

/// Pages of the largest block.
pub(crate) const LARGEST: usize = 1 << bindings::MAX_PAGE_ORDER;

/// Groups of a chunk.
const GROUPS: usize = CHUNK / GROUP;

/// A bit for each page of a chunk.
pub(crate) type Bits = KBox<[usize; CHUNK / WORD]>;

/// What is known about some pages: C's `struct freepage_chunk`.
#[repr(C)]
pub(crate) struct Chunk {
    /// The pages that were freed and not treated since; stale for those that are allocated.
    pub(crate) freed: Option<Bits>,
    /// The groups which may hold a page that wants treatment.
    pub(crate) pending: usize,
}

static_assert!(size_of::<Chunk>() == size_of::<bindings::freepage_chunk>());
static_assert!(offset_of!(Chunk, pending) == offset_of!(bindings::freepage_chunk, pending));

/// An aligned run of `1 << order` pages: C's `struct freepage_run`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// PFN of the first page.
    pub(crate) start: usize,
    /// Order of the run.
    pub(crate) order: u32,
}

/// The same, as a map knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapRun {
    /// Offset of the first page in the map.
    pub(crate) start: usize,
    /// Order of the run.
    pub(crate) order: u32,
}

static_assert!(size_of::<Run>() == size_of::<bindings::freepage_run>());
static_assert!(offset_of!(Run, start) == offset_of!(bindings::freepage_run, pfn));
static_assert!(offset_of!(Run, order) == offset_of!(bindings::freepage_run, order));

impl Run {
    /// `runs` as C knows them.
    pub(crate) fn as_raw(runs: &[Run]) -> *const bindings::freepage_run {
        runs.as_ptr().cast()
    }

    /// Number of pages.
    pub(crate) fn pages(&self) -> usize {
        1 << self.order
    }

    /// The pages.
    pub(crate) fn range(&self) -> Range<usize> {
        self.start..self.start + self.pages()
    }

    /// The run in a map whose first page is `start_pfn`.
    pub(crate) fn in_map(self, start_pfn: usize) -> MapRun {
        MapRun {
            start: self.start - start_pfn,
            order: self.order,
        }
    }

    /// Whether all of `other` is part of this run.
    pub(crate) fn contains(self, other: Run) -> bool {
        other.order <= self.order && (self.start ^ other.start) >> self.order == 0
    }

    /// The smallest run that has this one and `other`.
    pub(crate) fn with(self, other: Run) -> Run {
        let first = self.start.min(other.start);
        let last = (self.range().end - 1).max(other.range().end - 1);
        let order = usize::BITS - (first ^ last).leading_zeros();

        Run {
            start: first >> order << order,
            order,
        }
    }
}

impl MapRun {
    /// Number of pages.
    pub(crate) fn pages(&self) -> usize {
        1 << self.order
    }

    /// Offsets of the pages.
    pub(crate) fn range(&self) -> Range<usize> {
        self.start..self.start + self.pages()
    }

    /// The run, if the first page of the map is `start_pfn`.
    pub(crate) fn at(self, start_pfn: usize) -> Run {
        Run {
            start: start_pfn + self.start,
            order: self.order,
        }
    }
}

/// The parts of `pages` of which each has a memmap, or has none: sections are of `section` pages, a
/// power of two. No part is larger than a group.
pub(crate) fn pieces(pages: Range<usize>, section: usize) -> impl Iterator<Item = Range<usize>> {
    let step = section.min(GROUP);
    let mut next = pages.start;

    core::iter::from_fn(move || {
        let start = next;
        next = pages.end.min((start / step + 1) * step);
        (start < pages.end).then_some(start..next)
    })
}

/// Moves what is known of pages from `old`, of which `new` has all, to `new`; `offset` is where the
/// first of `old` is in it. Returns the number of groups that are pending there.
pub(crate) fn take_over(new: &mut [Chunk], old: &mut [Chunk], offset: usize) -> usize {
    for (to, from) in new.iter_mut().skip(offset / CHUNK).zip(old) {
        core::mem::swap(to, from);
    }
    new.iter()
        .map(|chunk| chunk.pending.count_ones() as usize)
        .sum()
}

/// The state of the pages of one zone, borrowed for as long as the zone lock is held.
pub(crate) struct Map<'a> {
    /// What is known. Pages without bits are never free here.
    pub(crate) chunks: &'a mut [Chunk],
    /// Number of groups that are pending.
    pub(crate) nr_pending: &'a mut usize,
}

/// The bits of `range` that fall into its words, as (index, mask) pairs.
fn words(range: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
    (range.start / WORD..range.end.div_ceil(WORD)).map(move |index| {
        let low = range.start.saturating_sub(index * WORD);
        let high = WORD - WORD.min(range.end - index * WORD);
        (index, (usize::MAX << low) & (usize::MAX >> high))
    })
}

impl Map<'_> {
    /// Number of pages.
    pub(crate) fn len(&self) -> usize {
        self.chunks.len() * CHUNK
    }

    fn word(&self, index: usize) -> usize {
        let freed = &self.chunks[index / (CHUNK / WORD)].freed;
        freed
            .as_ref()
            .map_or(0, |bits| bits[index % (CHUNK / WORD)])
    }

    /// Changes the words of `range`, each together with the bits of the range in it.
    fn change(&mut self, range: Range<usize>, change: impl Fn(&mut usize, usize)) {
        let mut start = range.start;

        while start < range.end {
            let end = range.end.min((start | (WORD - 1)) + 1);
            let mask = usize::MAX >> (WORD - (end - start)) << (start % WORD);
            if let Some(bits) = &mut self.chunks[start / CHUNK].freed {
                change(&mut bits[start % CHUNK / WORD], mask);
            }
            start = end;
        }
    }

    /// The first page of `range` that was freed.
    pub(crate) fn next_freed(&self, range: Range<usize>) -> Option<usize> {
        let mut page = range.start;

        while page < range.end {
            let word = self.word(page / WORD) >> (page % WORD);
            if word != 0 {
                page += word.trailing_zeros() as usize;
                return (page < range.end).then_some(page);
            }
            page = (page / WORD + 1) * WORD;
        }
        None
    }

    /// Notes that all pages of `range` were freed.
    pub(crate) fn set_freed(&mut self, range: Range<usize>) {
        self.change(range, |word, mask| *word |= mask);
    }

    /// Notes that all pages of `range` were treated, or are not free.
    pub(crate) fn clear_freed(&mut self, range: Range<usize>) {
        self.change(range, |word, mask| *word &= !mask);
    }

    /// The same for a run. A small one, being aligned, has its bits in one word.
    fn clear_run(&mut self, run: MapRun) {
        if run.pages() >= WORD {
            return self.clear_freed(run.range());
        }
        if let Some(bits) = &mut self.chunks[run.start / CHUNK].freed {
            let mask = (1 << run.pages()) - 1;
            bits[run.start % CHUNK / WORD] &= !(mask << (run.start % WORD));
        }
    }

    /// The first pending group at or after `group`, or from the start if there is none.
    pub(crate) fn next_pending(&self, group: usize) -> Option<usize> {
        let next = |groups: Range<usize>| {
            words(groups).find_map(|(index, mask)| match self.chunks[index].pending & mask {
                0 => None,
                word => Some(index * GROUPS + word.trailing_zeros() as usize),
            })
        };
        let groups = self.chunks.len() * GROUPS;
        let group = group.min(groups);

        if *self.nr_pending == 0 {
            return None;
        }
        next(group..groups).or_else(|| next(0..group))
    }

    /// Marks the groups of the pages in `range` as pending.
    pub(crate) fn set_pending(&mut self, range: Range<usize>) {
        for group in range.start / GROUP..range.end.div_ceil(GROUP) {
            let chunk = &mut self.chunks[group / GROUPS];
            let bit = 1 << (group % GROUPS);
            if chunk.freed.is_some() && chunk.pending & bit == 0 {
                chunk.pending |= bit;
                *self.nr_pending += 1;
            }
        }
    }

    /// Takes the mark off one group.
    pub(crate) fn clear_pending(&mut self, group: usize) {
        let chunk = &mut self.chunks[group / GROUPS];
        let bit = 1 << (group % GROUPS);
        if chunk.pending & bit != 0 {
            chunk.pending &= !bit;
            *self.nr_pending -= 1;
        }
    }

    /// Forgets what is known about `range`, whose pages are gone.
    pub(crate) fn forget(&mut self, range: Range<usize>) {
        self.clear_freed(range.clone());
        for group in range.start / GROUP..range.end.div_ceil(GROUP) {
            // Others of the group may still be there.
            if self
                .next_freed(group * GROUP..(group + 1) * GROUP)
                .is_none()
            {
                self.clear_pending(group);
            }
        }
    }

    /// The end of the units of `1 << order` pages from `start` of which some page was freed.
    pub(crate) fn freed_until(&self, start: usize, end: usize, order: u32) -> usize {
        let mut page = start;

        if order > 0 {
            while page < end && self.next_freed(page..page + (1 << order)).is_some() {
                page += 1 << order;
            }
            return page;
        }
        while page < end {
            let kept = !self.word(page / WORD) >> (page % WORD);
            if kept != 0 {
                return end.min(page + kept.trailing_zeros() as usize);
            }
            page = (page / WORD + 1) * WORD;
        }
        end
    }

    /// Passes what was freed in `block` to `take`, and forgets it, until `take` refuses.
    ///
    /// A unit of aligned pages, of the first of `orders`, is passed whole if any of its pages was
    /// freed, and neighbouring units are passed as one run where alignment allows, and where it is
    /// not larger than the last of `orders`. Returns the first page that was refused, if any. The
    /// caller knows that some page of `block` was freed.
    pub(crate) fn take_runs(
        &mut self,
        block: MapRun,
        orders: RangeInclusive<u32>,
        mut take: impl FnMut(MapRun) -> bool,
    ) -> Option<usize> {
        let (order, most) = orders.into_inner();
        let end = block.range().end;
        let mut next = block.start;

        if block.order == order {
            // One unit, of which a page was freed.
            if !take(block) {
                return Some(block.start);
            }
            self.clear_run(block);
            return None;
        }
        while let Some(page) = self.next_freed(next..end) {
            let start = page & !((1 << order) - 1);
            let until = self.freed_until(start, end, order);
            next = start;
            while next < until {
                let aligned = (until - next).ilog2().min(next.trailing_zeros());
                let run = MapRun {
                    start: next,
                    order: aligned.min(most),
                };
                if !take(run) {
                    self.clear_freed(start..next);
                    return Some(next);
                }
                next = run.range().end;
            }
            self.clear_freed(start..until);
        }
        None
    }
}

#[cfg(CONFIG_FREEPAGE_KUNIT_TEST)]
#[kunit_tests(freepage_map)]
mod tests {
    use super::*;

    impl Map<'_> {
        fn any_freed(&self, range: Range<usize>) -> bool {
            self.next_freed(range).is_some()
        }

        fn all_freed(&self, range: Range<usize>) -> bool {
            self.freed_until(range.start, range.end, 0) == range.end
        }
    }

    /// Runs `test` on a map of three chunks, of which the middle one has no memory.
    fn with_map(test: impl FnOnce(&mut Map<'_>)) -> Result {
        let mut nr_pending = 0;
        let mut chunks = chunks(&[true, false, true])?;

        test(&mut Map {
            chunks: &mut chunks,
            nr_pending: &mut nr_pending,
        });
        Ok(())
    }

    /// Chunks, of which some have memory.
    fn chunks(have_memory: &[bool]) -> Result<KVec<Chunk>> {
        let mut chunks = KVec::new();

        for has_memory in have_memory.iter().copied() {
            let freed = if has_memory {
                Some(KBox::init(pin_init::init_zeroed(), GFP_KERNEL)?)
            } else {
                None
            };
            chunks.push(Chunk { freed, pending: 0 }, GFP_KERNEL)?;
        }
        Ok(chunks)
    }

    /// The runs of `block` at `order`, all of them. Leaves the map as it was.
    fn runs(map: &mut Map<'_>, block: MapRun, order: u32) -> Result<KVec<MapRun>> {
        let mut runs = KVec::new();
        let mut freed = KVec::new();
        for page in block.range() {
            freed.push(map.any_freed(page..page + 1), GFP_KERNEL)?;
        }
        let orders = order..=block.order;
        let left = map.take_runs(block, orders, |run| runs.push(run, GFP_KERNEL).is_ok());
        assert_eq!(left, None);
        assert!(!map.any_freed(block.range()));
        for page in block.range().filter(|page| freed[*page - block.start]) {
            map.set_freed(page..page + 1);
        }
        Ok(runs)
    }

    #[test]
    fn ranges_end_inside_words() -> Result {
        with_map(|map| {
            map.set_freed(60..70);
            assert_eq!(map.next_freed(0..1024), Some(60));
            assert_eq!(map.next_freed(64..1024), Some(64));
            assert_eq!(map.next_freed(70..1024), None);
            assert_eq!(map.next_freed(0..60), None);
            assert!(map.all_freed(60..70));
            assert!(!map.all_freed(59..70));
            assert!(!map.all_freed(60..71));
            map.clear_freed(61..69);
            assert_eq!(map.next_freed(61..1024), Some(69));
            assert!(!map.any_freed(61..69));
            assert!(map.any_freed(0..61));
        })
    }

    #[test]
    fn pending_is_counted_once_and_wraps() -> Result {
        with_map(|map| {
            let last = 3 * GROUPS - 1;

            map.set_pending(0..1);
            map.set_pending(0..GROUP);
            assert_eq!(*map.nr_pending, 1);
            map.set_pending(last * GROUP - 1..last * GROUP + 1);
            assert_eq!(*map.nr_pending, 3);
            assert_eq!(map.next_pending(1), Some(last - 1));
            assert_eq!(map.next_pending(last), Some(last));
            assert_eq!(map.next_pending(last + 1), Some(0));
            for group in [0, 0, last - 1, last] {
                map.clear_pending(group);
            }
            assert_eq!(*map.nr_pending, 0);
            assert_eq!(map.next_pending(0), None);
        })
    }

    #[test]
    fn a_chunk_without_memory_is_skipped() -> Result {
        with_map(|map| {
            map.set_freed(0..3 * CHUNK);
            map.set_pending(0..3 * CHUNK);
            assert_eq!(*map.nr_pending, 2 * GROUPS);
            assert_eq!(map.next_freed(CHUNK..3 * CHUNK), Some(2 * CHUNK));
            assert_eq!(map.next_pending(GROUPS), Some(2 * GROUPS));
            assert!(!map.any_freed(CHUNK..2 * CHUNK));
        })
    }

    #[test]
    fn runs_merge_where_aligned() -> Result {
        with_map(|map| {
            let block = MapRun {
                start: 0,
                order: 10,
            };

            map.set_freed(0..1024);
            assert_eq!(runs(map, block, 0).unwrap().as_slice(), [block]);
            assert_eq!(runs(map, block, 9).unwrap().as_slice(), [block]);

            // A single allocated page costs its buddies, not the block.
            map.clear_freed(512..513);
            let found = runs(map, block, 0).unwrap();
            assert_eq!(found.len(), 10);
            assert_eq!(found[0], MapRun { start: 0, order: 9 });
            assert_eq!(found.iter().map(MapRun::pages).sum::<usize>(), 1023);
            assert!(found.iter().all(|run| run.start & (run.pages() - 1) == 0));

            // At order 9 a unit is treated whole.
            map.clear_freed(0..1024);
            map.set_freed(700..701);
            let run = MapRun {
                start: 512,
                order: 9,
            };
            assert_eq!(runs(map, block, 9).unwrap().as_slice(), [run]);
            let run = MapRun {
                start: 696,
                order: 3,
            };
            assert_eq!(runs(map, block, 3).unwrap().as_slice(), [run]);
        })
    }

    #[test]
    fn runs_stop_where_told() -> Result {
        with_map(|map| {
            let block = MapRun { start: 0, order: 9 };

            for page in (0..GROUP).step_by(2) {
                map.set_freed(page..page + 1);
            }
            let mut room = 10;
            let left = map.take_runs(block, 0..=9, |_| {
                room -= 1;
                room >= 0
            });
            assert_eq!(left, Some(20));
            // What was refused is still there.
            assert_eq!(map.next_freed(0..GROUP), left);
        })
    }

    #[test]
    fn runs_are_no_larger_than_told() -> Result {
        with_map(|map| {
            let block = MapRun {
                start: 1024,
                order: 10,
            };
            let mut pages = 0;

            map.set_freed(block.range());
            let left = map.take_runs(block, 0..=3, |run| {
                assert_eq!(run.order, 3);
                assert_eq!(run.start, block.start + pages);
                pages += run.pages();
                true
            });
            assert_eq!(left, None);
            assert_eq!(pages, 1024);
        })
    }

    #[test]
    fn a_run_with_another_is_as_small_as_it_can_be() {
        let run = |start, order| Run { start, order };

        assert_eq!(run(8, 0).with(run(8, 0)), run(8, 0));
        assert_eq!(run(8, 0).with(run(9, 0)), run(8, 1));
        assert_eq!(run(9, 0).with(run(10, 0)), run(8, 2));
        assert_eq!(run(7, 0).with(run(8, 0)), run(0, 4));
        assert_eq!(run(8, 3).with(run(10, 1)), run(8, 3));
        assert_eq!(run(1024, 0).with(run(2047, 0)), run(1024, 10));
        assert!(run(8, 3).contains(run(8, 3)) && run(8, 3).contains(run(15, 0)));
        assert!(!run(8, 3).contains(run(16, 0)) && !run(8, 3).contains(run(0, 4)));
    }

    #[test]
    fn sections_may_be_smaller_than_groups() {
        let whole = |pages: Range<usize>, section| {
            let (mut next, mut count) = (pages.start, 0);
            for piece in pieces(pages.clone(), section) {
                assert_eq!(piece.start, next);
                assert!(piece.len() <= section.min(GROUP));
                assert_eq!(piece.start / section, (piece.end - 1) / section);
                (next, count) = (piece.end, count + 1);
            }
            assert_eq!(next, pages.end);
            count
        };

        assert_eq!(whole(0..4 * GROUP, CHUNK), 4);
        assert_eq!(whole(0..4 * GROUP, GROUP / 2), 8);
        // A node that begins within a group.
        assert_eq!(whole(GROUP / 2..2 * GROUP, CHUNK), 2);
        assert_eq!(whole(3..4, CHUNK), 1);
        assert_eq!(whole(3..3, CHUNK), 0);
    }

    #[test]
    fn a_part_of_a_chunk_can_go() -> Result {
        with_map(|map| {
            map.set_freed(0..CHUNK);
            map.set_pending(0..CHUNK);
            map.forget(0..CHUNK / 2);
            assert_eq!(*map.nr_pending, GROUPS / 2);
            assert_eq!(map.next_freed(0..CHUNK), Some(CHUNK / 2));
            assert_eq!(map.next_pending(0), Some(GROUPS / 2));
            // A part of a group: what is left of it is still pending.
            map.forget(CHUNK / 2..CHUNK / 2 + GROUP / 2);
            assert_eq!(*map.nr_pending, GROUPS / 2);
            map.forget(CHUNK / 2 + GROUP / 2..CHUNK);
            assert_eq!(*map.nr_pending, 0);
            assert_eq!(map.next_freed(0..CHUNK), None);
        })
    }

    #[test]
    fn a_larger_map_counts_what_it_has() -> Result {
        let mut old = chunks(&[true, true, true])?;
        let mut nr_pending = 0;
        let mut map = Map {
            chunks: &mut old,
            nr_pending: &mut nr_pending,
        };
        map.set_freed(CHUNK..CHUNK + 1);
        map.set_pending(0..GROUP + 1);
        map.set_pending(3 * CHUNK - 1..3 * CHUNK);
        assert_eq!(nr_pending, 3);

        let mut new = chunks(&[false; 5])?;
        assert_eq!(take_over(&mut new, &mut old, CHUNK), 3);
        let mut map = Map {
            chunks: &mut new,
            nr_pending: &mut nr_pending,
        };
        assert_eq!(map.next_freed(0..5 * CHUNK), Some(2 * CHUNK));
        assert_eq!(map.next_pending(0), Some(GROUPS));
        map.clear_pending(4 * GROUPS - 1);
        assert_eq!(nr_pending, 2);

        // A map that ends earlier has less, and knows it.
        let mut less = chunks(&[false; 3])?;
        assert_eq!(take_over(&mut less, &mut new[1..], CHUNK), 2);
        Ok(())
    }
}
