// SPDX-License-Identifier: GPL-2.0

//! Ranges of guest-physical memory, and which of the free ones become unaccepted.

use crate::options::{Options, Selection};
use core::fmt;

pub const PAGE: u64 = 4096;

/// What one bit of Linux' map of unaccepted memory stands for.
const UNIT: u64 = 2 << 20;

/// Linux accepts anything smaller at once, so that it is of no use unless it was asked for.
const LEAST: u64 = 2 * UNIT;

/// How far `unaligned` moves edges off multiples of [`UNIT`]: not by the same amount, and odd
/// numbers of pages, so that nothing larger than 4K fits there.
const START_OFF: u64 = 5 * PAGE;
const END_OFF: u64 = 3 * PAGE;

const WHOLE: &[Range] = &[Range {
    start: 0,
    end: u64::MAX,
}];

/// More than a firmware's map has in practice.
const MAX_FREE: usize = 128;

/// The bytes from `start` up to, but without, `end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    pub start: u64,
    pub end: u64,
}

impl Range {
    /// `pages` pages from `start` on; what is beyond the end of the address space is cut off.
    pub fn of_pages(start: u64, pages: u64) -> Self {
        Self {
            start,
            end: start.saturating_add(pages.saturating_mul(PAGE)),
        }
    }

    /// In bytes; 0 if it is empty.
    pub fn size(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    pub fn pages(&self) -> u64 {
        self.size() / PAGE
    }

    pub fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(Self { start, end })
    }

    /// The part of it whose edges are multiples of [`UNIT`]; it may be empty.
    fn aligned(self) -> Self {
        Self {
            start: self
                .start
                .checked_next_multiple_of(UNIT)
                .unwrap_or(self.end),
            end: self.end - self.end % UNIT,
        }
    }

    /// The part of it whose edges are no multiples of [`UNIT`]; it may be empty.
    fn unaligned(self) -> Self {
        let Self { start, end } = self.aligned();
        Self {
            start: start.saturating_add(START_OFF),
            end: end.saturating_sub(END_OFF),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:#x}-{:#x}", self.start, self.end)
    }
}

/// There are more free ranges than this can hold.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// The free ranges of a memory map, in the order of their addresses.
pub struct Free {
    ranges: [Range; MAX_FREE],
    count: usize,
}

impl Default for Free {
    fn default() -> Self {
        Self {
            ranges: [Range::default(); MAX_FREE],
            count: 0,
        }
    }
}

impl Free {
    /// Adds a range that overlaps none of the others; a map has no order that one can rely on.
    ///
    /// # Errors
    ///
    /// If there is no room for it.
    pub fn add(&mut self, new: Range) -> Result<(), Full> {
        if self.count == MAX_FREE {
            return Err(Full);
        }
        let place = self.all().partition_point(|old| old.start < new.start);
        self.ranges.copy_within(place..self.count, place + 1);
        self.ranges[place] = new;
        self.count += 1;
        Ok(())
    }

    pub fn all(&self) -> &[Range] {
        &self.ranges[..self.count]
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        self.all().iter().map(Range::size).sum()
    }

    /// The ranges that `options` make unaccepted; each lies in one of the free ones.
    pub fn select(&self, options: &Options) -> impl Iterator<Item = Range> {
        let mut keep = match options.selection {
            Selection::AllBut(size) => size,
            Selection::Ranges => 0,
        };
        let explicit = options.selection == Selection::Ranges;
        let unaligned = options.unaligned;
        self.all()
            .iter()
            .map(move |free| {
                let kept = keep.min(free.size());
                keep -= kept;
                Range {
                    start: free.start + kept,
                    end: free.end,
                }
            })
            .flat_map(move |free| {
                let wanted = if explicit { options.ranges() } else { WHOLE };
                wanted.iter().filter_map(move |one| one.intersection(free))
            })
            .map(move |piece| match (unaligned, explicit) {
                (true, _) => piece.unaligned(),
                (false, true) => piece,
                (false, false) => piece.aligned(),
            })
            .filter(move |piece| piece.size() >= if explicit { PAGE } else { LEAST })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = 1 << 20;

    fn free(ranges: &[(u64, u64)]) -> Free {
        let mut free = Free::default();
        for &(start, end) in ranges {
            free.add(Range { start, end }).unwrap();
        }
        free
    }

    fn select(free: &Free, options: &str) -> Vec<(u64, u64)> {
        let options = Options::parse(options).unwrap();
        free.select(&options).map(|r| (r.start, r.end)).collect()
    }

    #[test]
    fn free_ranges_are_sorted() {
        let free = free(&[(8, 9), (2, 3), (4, 6)]);
        assert_eq!(
            free.all().iter().map(|r| r.start).collect::<Vec<_>>(),
            [2, 4, 8]
        );
        assert_eq!(free.size(), 4);
    }

    #[test]
    fn there_is_an_end_to_free_ranges() {
        let mut free = Free::default();
        for start in 0..MAX_FREE as u64 {
            assert_eq!(free.add(Range::of_pages(start, 0)), Ok(()));
        }
        assert_eq!(free.add(Range::default()), Err(Full));
    }

    #[test]
    fn the_lowest_memory_is_kept() {
        let free = free(&[(1024 * M, 4096 * M), (0, 640 << 10), (M, 512 * M)]);
        // 640K and 511M are below; so 384K of the last range are kept as well.
        assert_eq!(select(&free, "all-but=512M"), [(1026 * M, 4096 * M)]);
        assert_eq!(
            select(&free, "all-but=256M"),
            [(258 * M, 512 * M), (1024 * M, 4096 * M)]
        );
        assert_eq!(select(&free, "all-but=1T"), []);
        assert_eq!(select(&free, "all-but=0")[0], (2 * M, 512 * M));
    }

    #[test]
    fn small_pieces_stay_accepted() {
        // Less than two units, or no more than that once the edges are aligned.
        let small = free(&[(16 * M, 20 * M - PAGE), (33 * M, 38 * M - PAGE)]);
        assert_eq!(select(&small, "all-but=0"), []);
        let enough = free(&[(16 * M, 20 * M)]);
        assert_eq!(select(&enough, "all-but=0"), [(16 * M, 20 * M)]);
        assert_eq!(select(&enough, "all-but=0 unaligned"), []);
    }

    #[test]
    fn unaligned_edges_are_odd_pages() {
        let free = free(&[(15 * M, 33 * M)]);
        let (start, end) = (16 * M + 0x5000, 32 * M - 0x3000);
        assert_eq!(select(&free, "all-but=0 unaligned"), [(start, end)]);
        assert_eq!(select(&free, "range=16M+16M unaligned"), [(start, end)]);
    }

    #[test]
    fn explicit_ranges_are_taken_as_they_are() {
        let free = free(&[(16 * M, 64 * M), (96 * M, 128 * M)]);
        assert_eq!(
            select(&free, "range=0x1001000+4K"),
            [(16 * M + PAGE, 16 * M + 2 * PAGE)]
        );
        assert_eq!(
            select(&free, "range=32M+80M range=120M+1G"),
            [(32 * M, 64 * M), (96 * M, 112 * M), (120 * M, 128 * M)]
        );
        assert_eq!(select(&free, "range=64M+32M"), []);
    }

    #[test]
    fn nothing_overflows_at_the_end_of_the_address_space() {
        let end = u64::MAX - u64::MAX % PAGE;
        assert_eq!(Range::of_pages(end, 2).end, u64::MAX);
        let free = free(&[(end - PAGE, end)]);
        assert_eq!(select(&free, "all-but=0"), []);
        assert_eq!(select(&free, "all-but=0 unaligned"), []);
    }
}
