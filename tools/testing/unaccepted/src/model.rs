// SPDX-License-Identifier: GPL-2.0

//! Every interleaving of the claim protocol for a few CPUs and units.
//!
//! The host is strict: it fails if a step is accepted twice, or by two CPUs at once. Who got what
//! it asked for touches the memory, which has to be accepted by then, whoever did it. A section
//! that ends early leaves the unit parked, for anybody. The checker also finds a CPU that waits for
//! ever.

use crate::claims_source::{Bits, Claims, Host, STEPS, Word, accept_unit};
use loom::{
    cell::UnsafeCell,
    model::Builder,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

impl Word for AtomicU64 {
    fn load(&self) -> u64 {
        self.load(Ordering::Acquire)
    }

    fn replace(&self, old: u64, new: u64) -> Result<(), u64> {
        self.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
    }
}

/// Memory of a unit: how many steps of it are accepted. loom sees to it that accesses of two
/// threads are in order.
type Memory = UnsafeCell<u32>;

struct Guest<const N: usize> {
    claims: Claims<AtomicU64, N>,
    bits: [AtomicU64; 1],
    memory: Vec<Memory>,
    /// Steps in a section.
    portion: u32,
}

impl<const N: usize> Guest<N> {
    fn new(units: usize, portion: u32) -> Arc<Self> {
        Arc::new(Self {
            claims: Claims::new(std::array::from_fn(|_| AtomicU64::new(0))),
            bits: [AtomicU64::new((1 << units) - 1)],
            memory: (0..units).map(|_| Memory::new(0)).collect(),
            portion,
        })
    }

    /// Accepts units one after the other, as `accept_memory()` does, and uses the memory.
    fn accept(&self, units: &[u64]) {
        for unit in units {
            accept_unit(&self.claims, Bits::new(&self.bits), self, *unit);
        }
        for unit in units {
            self.memory[*unit as usize].with(|steps| {
                // SAFETY: loom fails if somebody writes meanwhile.
                assert_eq!(
                    unsafe { *steps },
                    STEPS,
                    "unit {unit} is used before its accept"
                );
            });
        }
    }
}

impl<const N: usize> Host for Guest<N> {
    fn section<R>(&self, section: impl FnOnce() -> R) -> R {
        section()
    }

    fn accept(&self, unit: u64, from: u32) -> u32 {
        self.memory[unit as usize].with_mut(|steps| {
            // SAFETY: loom fails if two do this at once.
            let steps = unsafe { &mut *steps };
            assert_eq!(
                *steps, from,
                "steps of unit {unit} are accepted twice, or left out"
            );
            *steps = STEPS.min(from + self.portion);
            *steps
        })
    }

    fn relax(&self, _: u32) {
        thread::yield_now();
    }
}

/// Two or three CPUs, of which each accepts these units in this order.
fn explore<const N: usize>(units: usize, portion: u32, cpus: &'static [&'static [u64]]) {
    let mut builder = Builder::new();
    // More CPUs have more interleavings.
    builder.preemption_bound = Some(if cpus.len() > 2 { 2 } else { 3 });
    builder.check(move || {
        let guest = Guest::<N>::new(units, portion);
        let (first, others) = cpus.split_first().unwrap();
        let others: Vec<_> = others
            .iter()
            .map(|units| {
                let guest = guest.clone();
                thread::spawn(move || guest.accept(units))
            })
            .collect();
        guest.accept(first);
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(guest.bits[0].load(Ordering::Acquire), 0);
        assert_eq!(guest.claims.units().count(), 0);
    });
}

#[test]
fn one_unit_in_one_section() {
    explore::<1>(1, STEPS, &[&[0], &[0]]);
}

#[test]
fn one_unit_in_two_sections() {
    explore::<1>(1, STEPS / 2, &[&[0], &[0]]);
}

/// The guard of the lower taker is the upper taker's unit.
#[test]
fn neighbours_and_their_guards() {
    explore::<2>(3, STEPS, &[&[0, 1], &[1, 2]]);
}

#[test]
fn neighbours_in_two_sections() {
    explore::<2>(2, STEPS / 2, &[&[0, 1], &[1]]);
}

/// Each wants first what the other wants last.
#[test]
fn opposite_orders() {
    explore::<2>(2, STEPS / 2, &[&[0, 1], &[1, 0]]);
}

/// One bucket for three units: one of them has to wait, or to help.
#[test]
fn a_full_bucket() {
    explore::<1>(3, STEPS / 2, &[&[0, 2], &[1, 2]]);
}

#[test]
fn three_cpus() {
    explore::<1>(3, STEPS, &[&[0], &[1], &[2]]);
}
