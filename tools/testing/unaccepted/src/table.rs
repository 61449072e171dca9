// SPDX-License-Identifier: GPL-2.0

//! The check of the firmware's table, on a great many of headers: what passes must be harmless.

use crate::table_source::{Header, Table, UNIT};
use std::time::{Duration, Instant};

/// A generator of numbers that look random, the same in each run (xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Values at the edges are more likely than others.
    fn value(&mut self) -> u64 {
        let edge = 1_u64.checked_shl(self.next() as u32 % 65).unwrap_or(0);
        match self.next() % 6 {
            0 => edge,
            1 => edge.wrapping_sub(1),
            2 => edge.wrapping_sub(UNIT),
            3 => edge.wrapping_add(UNIT),
            4 => self.next() % 64 * UNIT,
            _ => self.next(),
        }
    }
}

#[test]
fn what_passes_is_harmless() {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let (limit, places) = (1 << 46, 1 << 32);
    let (end, mut passed) = (Instant::now() + Duration::from_secs(5), 0);

    while Instant::now() < end {
        for _ in 0..10_000 {
            let header = Header {
                version: (numbers.next() % 8).min(1) as u32,
                unit_size: if numbers.next() % 8 == 0 {
                    numbers.value() as u32
                } else {
                    UNIT as u32
                },
                phys_base: numbers.value(),
                size: numbers.value(),
            };
            let address = numbers.value();
            let Ok(table) = Table::check(&header, address, limit, places) else {
                continue;
            };
            passed += 1;
            assert_eq!((header.version, u64::from(header.unit_size)), (1, UNIT));
            assert!(address + 24 + header.size <= limit);
            assert!(0 < table.units() && table.units() <= places);
            assert_eq!(table, Table::checked(&header));
            // Each whole byte begins with a unit that can be addressed.
            assert!(table.address(table.units() - 8) + UNIT <= limit);

            let (start, size) = (numbers.value(), numbers.value());
            let units = table.units_of(start, size);
            assert!(units.end <= table.units());
            // What is in the range, and in the bitmap, is in the units.
            let first = start.max(header.phys_base);
            let last = start.saturating_add(size.max(1) - 1);
            let behind = table.address(table.units());
            if size > 0 && first <= last && first < behind {
                let last = last.min(behind - 1);
                assert!(units.contains(&((first - header.phys_base) / UNIT)));
                assert!(units.contains(&((last - header.phys_base) / UNIT)));
            }
        }
    }
    assert!(passed > 10_000, "only {passed} headers passed");
    println!("{passed} headers passed");
}
