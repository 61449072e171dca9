// SPDX-License-Identifier: GPL-2.0

//! What `/sys/kernel/mm/unaccepted/` shows: counters, updated without a lock.

use super::accept::{
    Level,
    Status,
    STEP, //
};
use core::array;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// On whose behalf memory is accepted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Why {
    /// Boot: memblock, what is smaller than a block, and everything else before init.
    Boot,
    /// An allocation that found its zone short.
    Allocation,
    /// The background.
    Background,
    /// The file `accept`, and `accept_memory=eager`.
    Request,
}

/// Stalls of 2^n to 2^(n+1) µs; the first also has shorter ones, the last longer ones.
pub(crate) const BUCKETS: usize = 20;

/// All counters.
pub(crate) struct Stats {
    bytes: [Atomic<u64>; 4],
    calls: [Atomic<u64>; 2],
    in_vain: Atomic<u64>,
    waits: Atomic<u64>,
    longest_stall: Atomic<u64>,
    longest_section: Atomic<u64>,
    stalls: [Atomic<u64>; BUCKETS],
}

impl Stats {
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [const { Atomic::new(0) }; 4],
            calls: [const { Atomic::new(0) }; 2],
            in_vain: Atomic::new(0),
            waits: Atomic::new(0),
            longest_stall: Atomic::new(0),
            longest_section: Atomic::new(0),
            stalls: [const { Atomic::new(0) }; BUCKETS],
        }
    }

    /// A call has ended.
    pub(crate) fn called(&self, level: Level, status: Status) {
        let counter = match status {
            Status::Done => &self.calls[level as usize],
            _ => &self.in_vain,
        };
        counter.fetch_add(1, Relaxed);
    }

    /// A section has ended, which took so many ns.
    pub(crate) fn section(&self, why: Why, steps: u32, took: u64) {
        self.bytes[why as usize].fetch_add(u64::from(steps) * STEP, Relaxed);
        raise(&self.longest_section, took);
    }

    /// Another CPU had to be waited for.
    pub(crate) fn waited(&self) {
        self.waits.fetch_add(1, Relaxed);
    }

    /// An allocation got on after so many ns.
    pub(crate) fn stalled(&self, took: u64) {
        let bucket = (took / 1000).checked_ilog2().unwrap_or(0) as usize;
        self.stalls[bucket.min(BUCKETS - 1)].fetch_add(1, Relaxed);
        raise(&self.longest_stall, took);
    }

    /// Bytes that were accepted on behalf of this.
    pub(crate) fn bytes(&self, why: Why) -> u64 {
        self.bytes[why as usize].load(Relaxed)
    }

    /// Calls that succeeded.
    pub(crate) fn calls(&self, level: Level) -> u64 {
        self.calls[level as usize].load(Relaxed)
    }

    /// Calls that did not.
    pub(crate) fn in_vain(&self) -> u64 {
        self.in_vain.load(Relaxed)
    }

    pub(crate) fn waits(&self) -> u64 {
        self.waits.load(Relaxed)
    }

    /// In ns.
    pub(crate) fn longest_stall(&self) -> u64 {
        self.longest_stall.load(Relaxed)
    }

    /// In ns.
    pub(crate) fn longest_section(&self) -> u64 {
        self.longest_section.load(Relaxed)
    }

    pub(crate) fn stalls(&self) -> [u64; BUCKETS] {
        array::from_fn(|bucket| self.stalls[bucket].load(Relaxed))
    }
}

fn raise(most: &Atomic<u64>, value: u64) {
    let mut old = most.load(Relaxed);
    while old < value {
        match most.cmpxchg(old, value, Relaxed) {
            Ok(_) => return,
            Err(now) => old = now,
        }
    }
}
