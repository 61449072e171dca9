// SPDX-License-Identifier: GPL-2.0

//! What the firmware's table says: which memory its bitmap is about.
//!
//! The table comes from the firmware, which is not trusted: [`Table::check`] comes before anything
//! else. Only arithmetic is here.

use core::ops::Range;

/// The one version that there is.
const VERSION: u32 = 1;

/// Memory that a bit stands for: what the EFI stub makes it, and a large page.
pub(crate) const UNIT: u64 = 2 << 20;

/// What is touched of memory is touched by pages.
const PAGE: u64 = 4096;

/// Bytes in front of the bitmap.
const HEADER: u64 = 24;

/// A header as the firmware left it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) unit_size: u32,
    pub(crate) phys_base: u64,
    /// Of the bitmap, in bytes.
    pub(crate) size: u64,
}

/// Why a table cannot be used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Refused {
    Address(u64),
    Version(u32),
    UnitSize(u32),
    Base(u64),
    Empty,
    Length(u64),
}

impl Refused {
    /// What is wrong, and the value that is.
    pub(crate) fn why(self) -> (&'static str, u64) {
        match self {
            Self::Address(at) => ("its address is no multiple of 8:", at),
            Self::Version(version) => ("its version is not 1:", version.into()),
            Self::UnitSize(size) => ("a bit does not stand for 2 MiB:", size.into()),
            Self::Base(base) => (
                "the begin of its memory is no multiple of 2 MiB, or no address:",
                base,
            ),
            Self::Empty => ("it has no bitmap, bytes:", 0),
            Self::Length(size) => (
                "its bitmap is about more than physical addresses, bytes:",
                size,
            ),
        }
    }
}

/// Memory that a bitmap is about.
///
/// # Invariants
///
/// `base` is a multiple of [`UNIT`], and `base + units * UNIT` is a physical address, or the one
/// behind the last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Table {
    base: u64,
    units: u64,
}

impl Table {
    /// Checks a header of a table at `address`; physical addresses are below `limit`, and the
    /// protocol has places for `places` units.
    pub(crate) fn check(
        header: &Header,
        address: u64,
        limit: u64,
        places: u64,
    ) -> Result<Self, Refused> {
        let Header {
            version,
            unit_size,
            phys_base,
            size,
        } = *header;
        if version != VERSION {
            return Err(Refused::Version(version));
        }
        if u64::from(unit_size) != UNIT {
            return Err(Refused::UnitSize(unit_size));
        }
        if address % 8 != 0 {
            return Err(Refused::Address(address));
        }
        if phys_base % UNIT != 0 || phys_base >= limit {
            return Err(Refused::Base(phys_base));
        }
        if size == 0 {
            return Err(Refused::Empty);
        }
        let own_end = address
            .checked_add(HEADER)
            .and_then(|at| at.checked_add(size));
        let units = size.checked_mul(8).filter(|units| *units <= places);
        let end = units
            .and_then(|units| units.checked_mul(UNIT))
            .and_then(|bytes| bytes.checked_add(phys_base));
        match (own_end, units, end) {
            // The last byte may have bits that are about nothing.
            (Some(own_end), Some(units), Some(end))
                if own_end <= limit && end - 7 * UNIT <= limit =>
            {
                // INVARIANT: Just checked.
                Ok(Self {
                    base: phys_base,
                    units,
                })
            }
            _ => Err(Refused::Length(size)),
        }
    }

    /// A table that was checked.
    pub(crate) fn checked(header: &Header) -> Self {
        // INVARIANT: By the check.
        Self {
            base: header.phys_base,
            units: header.size * 8,
        }
    }

    /// Number of units.
    pub(crate) fn units(&self) -> u64 {
        self.units
    }

    /// Physical address of a unit.
    pub(crate) fn address(&self, unit: u64) -> u64 {
        self.base + unit * UNIT
    }

    /// The units that `size` bytes at `start` are in, if the bitmap is about all of them.
    pub(crate) fn units_in(&self, start: u64, size: u64) -> Option<Range<u64>> {
        let first = start.checked_sub(self.base)? / UNIT;
        let behind = (start - self.base).checked_add(size)?.div_ceil(UNIT);
        (first < behind && behind <= self.units).then_some(first..behind)
    }

    /// The units that `size` bytes at `start` are in, and the one behind if the range ends with a
    /// unit.
    ///
    /// `load_unaligned_zeropad()` may load from the next page, which is not to be unaccepted: that
    /// ends the guest instead of raising an exception. So the unit behind, the guard, has to be
    /// accepted before the memory in front of it is used.
    pub(crate) fn units_of(&self, start: u64, size: u64) -> Range<u64> {
        let end = start.saturating_add(size).saturating_add(PAGE - 1) / PAGE * PAGE;
        if size == 0 || end <= self.base {
            // The guard of what ends where the bitmap begins.
            let guard = u64::from(size != 0 && end == self.base);
            return 0..guard.min(self.units);
        }
        let first = start.saturating_sub(self.base) / UNIT;
        let behind = (end - self.base) / UNIT + 1;
        first.min(self.units)..behind.min(self.units)
    }
}
