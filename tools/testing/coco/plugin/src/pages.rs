// SPDX-License-Identifier: GPL-2.0

//! The state of each 4K page of the guest's memory.
//!
//! Pages are numbered by PFN. A page of which nothing was said is private and accepted: the
//! firmware has accepted what it did not report.

use std::{
    ops::Range,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU8, Ordering},
    },
};

pub const PAGE: u64 = 4096;

/// The sizes of pages, the smallest first.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    Small,
    Medium,
    Large,
}

impl Size {
    pub fn bytes(self) -> u64 {
        match self {
            Self::Small => PAGE,
            Self::Medium => 2 << 20,
            Self::Large => 1 << 30,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "4K",
            Self::Medium => "2M",
            Self::Large => "1G",
        }
    }

    /// The page of this size that an address is in.
    pub fn around(self, address: u64) -> Range<u64> {
        let start = address / self.bytes() * self.bytes();
        start..start + self.bytes()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Accepted: the guest may use it.
    Private,
    /// The guest's, but not accepted.
    Pending,
    /// The host's and the guest's.
    Shared,
    /// An accept of it has begun and not ended.
    Accepting,
    /// The guest has not asked the hypervisor for it (SNP: unassigned in the RMP).
    Unassigned,
}

impl State {
    fn of(byte: u8) -> Self {
        match byte & !WAS_SHARED {
            0 => Self::Private,
            1 => Self::Pending,
            2 => Self::Shared,
            3 => Self::Accepting,
            _ => Self::Unassigned,
        }
    }

    /// Whether a load or store would do harm.
    pub fn untouchable(self) -> bool {
        matches!(self, Self::Pending | Self::Accepting | Self::Unassigned)
    }
}

/// Beside the state of a page: it is or was shared, so that mappings of both kinds may exist.
const WAS_SHARED: u8 = 1 << 7;

/// What hinders a change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hindrance {
    /// An accept of one of the pages is under way.
    Busy,
    /// All pages are in this state.
    All(State),
    /// The pages are in several states; the first that hinders, and its PFN.
    Mixed(State, u64),
}

/// 1 GiB of pages.
const CHUNK: u64 = 1 << 18;

/// 4 TiB: more than any guest that runs under TCG.
const CHUNKS: usize = 1 << 12;

type Chunk = Box<[AtomicU8]>;

pub struct Pages {
    chunks: Box<[OnceLock<Chunk>]>,
    /// Held while several pages are looked at and changed as one.
    change: Mutex<()>,
}

impl Pages {
    pub fn new() -> Self {
        Self {
            chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect(),
            change: Mutex::new(()),
        }
    }

    /// Whether all of the pages can be tracked.
    pub fn covers(&self, pfns: &Range<u64>) -> bool {
        pfns.end <= CHUNK * CHUNKS as u64
    }

    pub fn state(&self, pfn: u64) -> State {
        State::of(self.byte(pfn))
    }

    /// The state, and whether the page is or was shared.
    pub fn history(&self, pfn: u64) -> (State, bool) {
        let byte = self.byte(pfn);
        (State::of(byte), byte & WAS_SHARED != 0)
    }

    fn byte(&self, pfn: u64) -> u8 {
        let chunk = self.chunks.get((pfn / CHUNK) as usize);
        let chunk = chunk.and_then(OnceLock::get);
        let byte = |chunk: &Chunk| chunk[(pfn % CHUNK) as usize].load(Ordering::Acquire);
        chunk.map_or(State::Private as u8, byte)
    }

    fn set(&self, pfn: u64, state: State) {
        let Some(chunk) = self.chunks.get((pfn / CHUNK) as usize) else {
            return;
        };
        let fresh = || (0..CHUNK).map(|_| AtomicU8::new(State::Private as u8));
        let chunk = chunk.get_or_init(|| fresh().collect());
        let page = &chunk[(pfn % CHUNK) as usize];
        let was = page.load(Ordering::Relaxed) & WAS_SHARED;
        let is = if state == State::Shared {
            WAS_SHARED
        } else {
            0
        };
        // Release: who sees the page accepted sees it cleared.
        page.store(state as u8 | was | is, Ordering::Release);
    }

    /// Gives each page a state that depends on the one it has.
    pub fn update(&self, pfns: Range<u64>, mut new: impl FnMut(u64, State) -> State) {
        let _change = self
            .change
            .lock()
            .unwrap_or_else(|error| error.into_inner());
        for pfn in pfns {
            let old = self.state(pfn);
            let new = new(pfn, old);
            if new != old {
                self.set(pfn, new);
            }
        }
    }

    /// Takes all pages from one state to another, or none of them.
    pub fn change(&self, pfns: Range<u64>, from: State, to: State) -> Result<(), Hindrance> {
        let _change = self
            .change
            .lock()
            .unwrap_or_else(|error| error.into_inner());
        let mut other = None;
        let mut uniform = true;
        for pfn in pfns.clone() {
            let state = self.state(pfn);
            if state == State::Accepting && from != State::Accepting {
                return Err(Hindrance::Busy);
            }
            uniform &= state == self.state(pfns.start);
            if state != from && other.is_none() {
                other = Some((state, pfn));
            }
        }
        match other {
            None => {
                pfns.for_each(|pfn| self.set(pfn, to));
                Ok(())
            }
            Some((state, _)) if uniform => Err(Hindrance::All(state)),
            Some((state, pfn)) => Err(Hindrance::Mixed(state, pfn)),
        }
    }

    /// The state of all of the pages, if they have the same.
    pub fn uniform(&self, mut pfns: Range<u64>) -> Option<State> {
        let first = self.state(pfns.start);
        pfns.all(|pfn| self.state(pfn) == first).then_some(first)
    }

    /// The number of pages in a state.
    pub fn count(&self, state: State) -> u64 {
        let chunks = self.chunks.iter().filter_map(OnceLock::get);
        let count = |chunk: &Chunk| {
            let pages = chunk.iter().map(|page| page.load(Ordering::Relaxed));
            pages.filter(|page| State::of(*page) == state).count() as u64
        };
        chunks.map(count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_private_until_something_else_is_said() {
        let pages = Pages::new();
        assert_eq!(pages.state(12345), State::Private);
        pages.update(10..12, |_, _| State::Pending);
        let states: Vec<_> = (9..13).map(|pfn| pages.state(pfn)).collect();
        use State::*;
        assert_eq!(states, [Private, Pending, Pending, Private]);
        assert_eq!(pages.count(Pending), 2);
    }

    #[test]
    fn a_page_that_was_shared_is_remembered() {
        let pages = Pages::new();
        assert_eq!(pages.history(3), (State::Private, false));
        pages.update(3..4, |_, _| State::Shared);
        assert_eq!(pages.history(3), (State::Shared, true));
        pages.update(3..4, |_, _| State::Private);
        assert_eq!(pages.history(3), (State::Private, true));
        assert_eq!(pages.count(State::Private), CHUNK);
    }

    #[test]
    fn all_pages_change_or_none() {
        let pages = Pages::new();
        pages.update(0..512, |_, _| State::Pending);
        pages.update(7..8, |_, _| State::Shared);
        let accept = |pfns| pages.change(pfns, State::Pending, State::Private);
        assert_eq!(accept(0..512), Err(Hindrance::Mixed(State::Shared, 7)));
        assert_eq!(pages.count(State::Pending), 511);
        assert_eq!(accept(8..512), Ok(()));
        assert_eq!(accept(8..512), Err(Hindrance::All(State::Private)));
        assert_eq!(accept(7..8), Err(Hindrance::All(State::Shared)));
        assert_eq!(pages.uniform(8..512), Some(State::Private));
        assert_eq!(pages.uniform(7..9), None);
    }

    #[test]
    fn an_accept_keeps_others_out_until_it_ends() {
        let pages = Pages::new();
        pages.update(0..4, |_, _| State::Pending);
        let begin = |pfns| pages.change(pfns, State::Pending, State::Accepting);
        assert_eq!(begin(1..2), Ok(()));
        assert_eq!(begin(0..4), Err(Hindrance::Busy));
        assert!(pages.state(1).untouchable());
        pages
            .change(1..2, State::Accepting, State::Private)
            .unwrap();
        assert_eq!(begin(0..4), Err(Hindrance::Mixed(State::Private, 1)));
    }

    #[test]
    fn ranges_may_cross_chunks_and_must_end_somewhere() {
        let pages = Pages::new();
        pages.update(CHUNK - 1..CHUNK + 1, |_, _| State::Pending);
        assert_eq!(pages.count(State::Pending), 2);
        assert!(pages.covers(&(0..CHUNK * CHUNKS as u64)));
        assert!(!pages.covers(&(0..CHUNK * CHUNKS as u64 + 1)));
    }
}
