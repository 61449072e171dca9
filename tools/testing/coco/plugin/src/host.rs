// SPDX-License-Identifier: GPL-2.0

//! The host's side of the guest's memory: how large the pages are by which it maps it.
//!
//! KVM maps memory that guest_memfd backs by 4K, whatever the guest asks for. A larger mapping is
//! split as soon as the guest asks for less of it, and for good: a host puts pieces together only
//! where all of a block has changed hands.

use crate::pages::{PAGE, Size};
use std::{
    collections::HashSet,
    ops::Range,
    sync::{Mutex, MutexGuard},
};

/// The pages by which the host maps memory, as long as nothing has split them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPages {
    Small,
    Medium,
    /// No TDX module accepts 1G at once: an experiment.
    Large,
    /// So many percent of all 2M blocks are mapped by 4K, and the others by 2M.
    Mixed(u8),
}

pub struct Host {
    pages: HostPages,
    /// Blocks, by size and number, that the host would map as one, but does not.
    split: Mutex<HashSet<(Size, u64)>>,
}

impl Host {
    pub fn new(pages: HostPages) -> Self {
        Self {
            pages,
            split: Mutex::default(),
        }
    }

    /// The size of the page that an address is in.
    pub fn page(&self, address: u64) -> Size {
        let most = self.most(address);
        if most == Size::Small {
            return Size::Small;
        }
        let split = self.lock();
        let whole =
            |size: &Size| *size <= most && !split.contains(&(*size, address / size.bytes()));
        let sizes = [Size::Large, Size::Medium];
        sizes.into_iter().find(whole).unwrap_or(Size::Small)
    }

    /// Splits the page that an address is in, until it is no larger than `size`.
    pub fn split(&self, address: u64, size: Size) {
        let most = self.most(address);
        let larger = [Size::Large, Size::Medium];
        for larger in larger.into_iter().filter(|l| *l <= most && *l > size) {
            self.lock().insert((larger, address / larger.bytes()));
        }
    }

    /// All of a range has changed hands at once: what lies in it as a whole is mapped anew, and
    /// what does not is split.
    pub fn convert(&self, range: &Range<u64>) {
        let first = range.start / Size::Large.bytes();
        let largest = range.start / Size::Medium.bytes() * Size::Medium.bytes();
        for number in first..range.end.div_ceil(Size::Large.bytes()) {
            self.convert_block(range, Size::Large, number);
        }
        for address in (largest..range.end).step_by(Size::Medium.bytes() as usize) {
            self.convert_block(range, Size::Medium, address / Size::Medium.bytes());
        }
    }

    fn convert_block(&self, range: &Range<u64>, size: Size, number: u64) {
        let start = number * size.bytes();
        if size > self.most(start) {
            return;
        }
        let whole = range.start <= start && start + size.bytes() <= range.end;
        let mut split = self.lock();
        if whole {
            split.remove(&(size, number));
        } else {
            split.insert((size, number));
        }
    }

    /// The largest page by which the host would map an address.
    fn most(&self, address: u64) -> Size {
        match self.pages {
            HostPages::Small => Size::Small,
            HostPages::Medium => Size::Medium,
            HostPages::Large => Size::Large,
            HostPages::Mixed(percent) if share(address) < percent.into() => Size::Small,
            HostPages::Mixed(_) => Size::Medium,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<(Size, u64)>> {
        self.split.lock().unwrap_or_else(|error| error.into_inner())
    }
}

/// A number below 100 for each 2M block, scattered, but the same in each run.
fn share(address: u64) -> u64 {
    let block = address / PAGE / 512;
    // Fibonacci hashing: the golden ratio's fraction.
    ((block.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) * 100) >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = 2 << 20;
    const G: u64 = 1 << 30;

    #[test]
    fn a_page_is_split_until_all_of_it_changes_hands() {
        let host = Host::new(HostPages::Medium);
        assert_eq!(host.page(M + 5), Size::Medium);
        host.split(M + 5, Size::Medium);
        assert_eq!(host.page(M + 5), Size::Medium);
        host.split(M + 5, Size::Small);
        assert_eq!([0, M, 2 * M].map(|at| host.page(at)), {
            use Size::*;
            [Medium, Small, Medium]
        });
        host.convert(&(M..M + PAGE));
        assert_eq!(host.page(M), Size::Small);
        host.convert(&(PAGE..2 * M + PAGE));
        assert_eq!([0, M, 2 * M].map(|at| host.page(at)), {
            use Size::*;
            [Small, Medium, Small]
        });
    }

    #[test]
    fn a_host_of_4k_has_nothing_to_split() {
        let host = Host::new(HostPages::Small);
        host.split(M, Size::Small);
        host.convert(&(0..G));
        assert_eq!(host.page(M), Size::Small);
        assert!(host.lock().is_empty());
    }

    #[test]
    fn the_largest_pages_are_split_step_by_step() {
        let host = Host::new(HostPages::Large);
        assert_eq!(host.page(G), Size::Large);
        host.split(G, Size::Medium);
        assert_eq!(host.page(G + M), Size::Medium);
        host.split(G, Size::Small);
        assert_eq!([G, G + M, 2 * G].map(|at| host.page(at)), {
            use Size::*;
            [Small, Medium, Large]
        });
        host.convert(&(G..2 * G));
        assert_eq!(host.page(G), Size::Large);
        host.convert(&(G..G + M));
        assert_eq!([G, G + M].map(|at| host.page(at)), [Size::Medium; 2]);
    }

    #[test]
    fn pages_are_mixed_in_the_share_that_was_asked_for() {
        for percent in [0, 25, 50, 99, 100] {
            let host = Host::new(HostPages::Mixed(percent));
            let small = (0..10_000).filter(|block| host.page(block * M) == Size::Small);
            let share = small.count() as i64 / 100;
            assert!(
                (share - i64::from(percent)).abs() <= 1,
                "{percent}: {share}"
            );
        }
    }
}
