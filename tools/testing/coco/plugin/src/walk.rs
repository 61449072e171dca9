// SPDX-License-Identifier: GPL-2.0

//! The guest's page tables (Intel SDM, volume 3, "4-Level Paging and 5-Level Paging"), for the one
//! bit of a leaf that QEMU ignores: the one that says shared (TDX) or encrypted (SEV-SNP).

/// In CR4: there is a fifth level.
const LA57: u64 = 1 << 12;
const PRESENT: u64 = 1;
/// In an entry that could name a table: it maps memory itself.
const PAGE_SIZE: u64 = 1 << 7;
/// Where an address is in an entry. The bit above it is [`SPECIAL`].
const ADDRESS: u64 = (1 << 52) - (1 << 12);
/// Shared, or encrypted.
const SPECIAL: u64 = 1 << 52;

/// The tables that a vCPU uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    root: u64,
    levels: u32,
}

impl Tables {
    pub fn new(cr3: u64, cr4: u64) -> Self {
        Self {
            root: cr3 & ADDRESS,
            levels: if cr4 & LA57 == 0 { 4 } else { 5 },
        }
    }

    /// As one number, which is never 0.
    pub fn to_bits(self) -> u64 {
        self.root | u64::from(self.levels)
    }

    /// The tables of this number; none of 0.
    pub fn from_bits(bits: u64) -> Option<Self> {
        let levels = (bits & !ADDRESS) as u32;
        (levels != 0).then_some(Self {
            root: bits & ADDRESS,
            levels,
        })
    }

    /// Where the first table is.
    pub fn root(self) -> u64 {
        self.root
    }

    /// Where an address is mapped to, by tables that `read` reads. `None`: nowhere.
    pub fn walk(self, address: u64, read: impl Fn(u64) -> Option<u64>) -> Option<Leaf> {
        let mut table = self.root;
        for level in (0..self.levels).rev() {
            let shift = 12 + 9 * level;
            let entry = read(table + (address >> shift & 511) * 8)?;
            if entry & PRESENT == 0 {
                return None;
            }
            if level == 0 || level < 3 && entry & PAGE_SIZE != 0 {
                let inside = (1 << shift) - 1;
                return Some(Leaf {
                    physical: entry & ADDRESS & !inside | address & inside,
                    special: entry & SPECIAL != 0,
                });
            }
            table = entry & ADDRESS;
        }
        None
    }
}

/// What an entry says of the address that it maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub physical: u64,
    /// Shared (TDX), or encrypted (SEV-SNP).
    pub special: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const ADDRESS: u64 = 0xffff_8880_4020_3456;

    /// Entries of tables at 0x1000, 0x2000, and so on, on the way to ADDRESS.
    fn tables(entries: &[u64]) -> HashMap<u64, u64> {
        let shifts = (0..entries.len()).rev().map(|level| 12 + 9 * level);
        let at = (1..)
            .zip(shifts)
            .map(|(table, shift)| table * 0x1000 + (ADDRESS >> shift & 511) * 8);
        at.zip(entries.iter().copied()).collect()
    }

    fn walk(map: &HashMap<u64, u64>, tables: Tables) -> Option<(u64, bool)> {
        let leaf = tables.walk(ADDRESS, |at| map.get(&at).copied())?;
        Some((leaf.physical, leaf.special))
    }

    #[test]
    fn leaves_of_all_sizes_are_found() {
        let four = Tables::new(0x1fff, 0);
        let small = [0x2001, 0x3001, 0x4001, SPECIAL | 0x7_7001];
        assert_eq!(walk(&tables(&small), four), Some((0x7_7456, true)));
        let medium = tables(&[0x2001, SPECIAL | 0x3001, 0x60_0081, 0]);
        assert_eq!(walk(&medium, four), Some((0x60_3456, false)));
        let large = tables(&[0x2001, 0x8000_0081, 0, 0]);
        assert_eq!(walk(&large, four), Some((0x8020_3456, false)));
        let five = Tables::new(0x1000, LA57);
        let deep = tables(&[0x2001, 0x3001, 0x4001, 0x5001, 0x7_7001]);
        assert_eq!(walk(&deep, five), Some((0x7_7456, false)));
    }

    #[test]
    fn what_is_not_mapped_is_nowhere() {
        let four = Tables::new(0x1000, 0);
        assert_eq!(
            walk(&tables(&[0x2001, 0x3001, 0x4001, 0x7_7000]), four),
            None
        );
        assert_eq!(walk(&tables(&[0x2001, 0]), four), None);
        assert_eq!(walk(&HashMap::new(), four), None);
    }

    #[test]
    fn tables_are_one_number() {
        for tables in [Tables::new(0x5018, LA57), Tables::new(0x5000, 0)] {
            assert_eq!(Tables::from_bits(tables.to_bits()), Some(tables));
            assert_eq!(tables.root(), 0x5000);
        }
        assert_eq!(Tables::from_bits(0), None);
    }
}
