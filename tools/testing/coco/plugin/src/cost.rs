// SPDX-License-Identifier: GPL-2.0

//! What calls cost: time in which the vCPU does nothing else.
//!
//! It is slept, so that vCPUs spend it in parallel, however few CPUs the host has. A sleep of a few
//! microseconds takes ten times as long, so a vCPU sleeps once it owes enough, and what it slept
//! too long is kept in its favour.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

/// What a vCPU may owe before it sleeps.
const SLICE: Duration = Duration::from_micros(100);

/// What each vCPU owes, in nanoseconds; less than nothing after it slept too long.
pub struct Debts(Vec<Mutex<i64>>);

impl Debts {
    pub fn new(vcpus: usize) -> Self {
        Self((0..vcpus).map(|_| Mutex::new(0)).collect())
    }

    /// How many times this cost is a slice of time; at least one.
    pub fn slice(cost: Duration) -> u64 {
        (SLICE.as_nanos() / cost.as_nanos().max(1)).max(1) as u64
    }

    /// Adds to what a vCPU owes, and lets it sleep if that is enough. Whether it slept.
    pub fn pay(&self, vcpu: usize, cost: Duration) -> bool {
        let Some(owed) = self.0.get(vcpu).filter(|_| !cost.is_zero()) else {
            return false;
        };
        // Only this vCPU's thread takes it.
        let mut owed = owed.lock().unwrap_or_else(|error| error.into_inner());
        *owed = owed.saturating_add_unsigned(cost.as_nanos() as u64);
        let due = Duration::from_nanos((*owed).max(0) as u64);
        if due < SLICE {
            return false;
        }
        let start = Instant::now();
        thread::sleep(due);
        *owed -= start.elapsed().as_nanos() as i64;
        true
    }
}

/// How long calls took, in powers of two.
#[derive(Default)]
pub struct Latencies {
    /// By the number of bits of the microseconds.
    counts: [AtomicU64; Self::BUCKETS],
    longest_ns: AtomicU64,
}

impl Latencies {
    /// The last one is for all that takes longer than half a minute.
    const BUCKETS: usize = 26;

    pub fn note(&self, took: Duration) {
        let bits = (u64::BITS - (took.as_micros() as u64).leading_zeros()) as usize;
        self.counts[bits.min(Self::BUCKETS - 1)].fetch_add(1, Relaxed);
        self.longest_ns.fetch_max(took.as_nanos() as u64, Relaxed);
    }

    pub fn longest_ns(&self) -> u64 {
        self.longest_ns.load(Relaxed)
    }

    /// How many took less than 1, 2, 4 ... µs, each without those before it.
    pub fn histogram(&self) -> Vec<u64> {
        let counts = self.counts.iter().map(|count| count.load(Relaxed));
        let counts: Vec<_> = counts.collect();
        let end = counts
            .iter()
            .rposition(|count| *count > 0)
            .map_or(0, |last| last + 1);
        counts[..end].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_costs_add_up_to_what_they_are() {
        let debts = Debts::new(1);
        let (start, cost) = (Instant::now(), Duration::from_micros(5));
        let slept = (0..10_000).filter(|_| debts.pay(0, cost)).count();
        let took = start.elapsed();
        assert!(slept <= 500, "{slept}");
        let owed = debts.0[0].lock().unwrap();
        let paid = took.as_nanos() as i64 + *owed;
        // All of 50 ms was slept, or is owed; a debt is small.
        assert!(paid >= 50_000_000, "{paid}");
        assert!(*owed < SLICE.as_nanos() as i64, "{owed}");
    }

    #[test]
    fn what_costs_nothing_does_not_sleep() {
        let debts = Debts::new(1);
        assert!(!debts.pay(0, Duration::ZERO));
        assert!(!debts.pay(1, Duration::from_secs(1)));
        assert_eq!(Debts::slice(Duration::from_micros(8)), 12);
        assert_eq!(Debts::slice(Duration::from_secs(1)), 1);
    }

    #[test]
    fn latencies_are_counted_by_powers_of_two() {
        let latencies = Latencies::default();
        assert!(latencies.histogram().is_empty());
        for nanos in [500, 1_000, 3_999, 4_000, 3_600_000_000_000] {
            latencies.note(Duration::from_nanos(nanos));
        }
        let mut want = vec![0; Latencies::BUCKETS];
        (want[0], want[1], want[2], want[3], want[25]) = (1, 1, 1, 1, 1);
        assert_eq!(latencies.histogram(), want);
        assert_eq!(latencies.longest_ns(), 3_600_000_000_000);
    }
}
