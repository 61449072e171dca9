// SPDX-License-Identifier: GPL-2.0

//! The table that tells the kernel which memory is unaccepted (struct efi_unaccepted_memory in
//! Linux' linux/efi.h): a header, and a bitmap behind it. The kernel's EFI stub makes one, unless
//! it finds one; it fills in the bitmap in any case.

use crate::{
    options::Table,
    ranges::{PAGE, Range},
};

/// How the table is called: LINUX_EFI_UNACCEPTED_MEM_TABLE_GUID of linux/efi.h.
pub const GUID: (u32, u16, u16, [u8; 8]) = (
    0xd5d1_de3c,
    0x105c,
    0x44f9,
    [0x9e, 0xa9, 0xbc, 0xef, 0x98, 0x12, 0x00, 0x31],
);

const VERSION: u32 = 1;
/// What a bit stands for.
const UNIT: u64 = 2 << 20;

/// Bytes of the header.
pub const HEADER: usize = 24;

/// An odd table begins so many bytes before a page ends: its header fits, and one word of the
/// bitmap.
const TAIL: u64 = HEADER as u64 + 8;

/// Where the header has the version and the unit, and where the size.
const VERSION_AND_UNIT: u64 = 0;
const SIZE: u64 = 16;

impl Table {
    /// Whether the kernel's stub is to find a table at all.
    pub fn wanted(&self) -> bool {
        *self != Self::default()
    }

    /// What the table begins with, for unaccepted memory within `span`.
    pub fn header(span: Range) -> [u8; HEADER] {
        let start = span.start / UNIT * UNIT;
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&VERSION.to_le_bytes());
        header[4..8].copy_from_slice(&(UNIT as u32).to_le_bytes());
        header[8..16].copy_from_slice(&start.to_le_bytes());
        header[16..].copy_from_slice(&Self::bitmap_size(span).to_le_bytes());
        header
    }

    /// Bytes of the bitmap.
    fn bitmap_size(span: Range) -> u64 {
        let start = span.start / UNIT * UNIT;
        (span.end - start).div_ceil(UNIT).div_ceil(8)
    }

    /// How many pages have room for the table, and where in them it begins.
    pub fn room(&self, span: Range) -> (u64, u64) {
        let offset = if self.odd { PAGE - TAIL } else { 0 };
        let size = HEADER as u64 + Self::bitmap_size(span);
        ((offset + size).div_ceil(PAGE), offset)
    }

    /// What is to be found in the table once the stub has done its work: offsets in it, and the
    /// eight bytes there.
    pub fn changes(&self) -> impl Iterator<Item = (u64, u64)> {
        let first = (self.version.is_some() || self.unit.is_some()).then(|| {
            let version = self.version.unwrap_or(VERSION.into());
            (VERSION_AND_UNIT, version | self.unit.unwrap_or(UNIT) << 32)
        });
        let second = self.size.map(|size| (SIZE, size));
        first.into_iter().chain(second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Range = Range {
        start: 0x4010_0000,
        end: 0x8000_0000,
    };

    #[test]
    fn the_header_covers_all_that_is_unaccepted() {
        let header = Table::header(SPAN);
        let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
        assert_eq!(word(0), 1 | (2 << 20) << 32);
        assert_eq!((word(8), word(16)), (0x4000_0000, 64));
    }

    #[test]
    fn an_odd_table_reaches_into_the_next_page() {
        let usual = Table::default();
        assert!(!usual.wanted());
        assert_eq!(usual.room(SPAN), (1, 0));
        let odd = Table {
            odd: true,
            ..Table::default()
        };
        assert!(odd.wanted());
        assert_eq!(odd.room(SPAN), (2, PAGE - 32));
    }

    #[test]
    fn changes_are_of_whole_words() {
        let table = Table {
            version: Some(7),
            size: Some(9),
            ..Table::default()
        };
        let changes: Vec<_> = table.changes().collect();
        assert_eq!(changes, [(0, 7 | (2 << 20) << 32), (16, 9)]);
        let unit = Table {
            unit: Some(4096),
            ..Table::default()
        };
        let changes: Vec<_> = unit.changes().collect();
        assert_eq!(changes, [(0, 1 | 4096 << 32)]);
    }
}
