// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of what is decided here: on a table, calls and zones that are made up.
//!
//! How CPUs get on with each other is tested by a model checker, in `tools/testing/unaccepted`.

use super::{
    accept::{
        self,
        Calls,
        Learnt,
        Level,
        Status,
        SECTION_NS, //
    },
    claims::{
        accept_unit,
        Bits,
        Claims,
        Host,
        Take,
        STEPS, //
    },
    demand::{
        advance,
        replenish,
        Demand,
        Limits,
        Source, //
    },
    stats::Why,
    table::{
        Header,
        Refused,
        Table,
        UNIT, //
    },
};
use core::cell::{
    Cell,
    RefCell, //
};
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

const LIMIT: u64 = 1 << 40;
const PLACES: u64 = 1 << 30;
const BASE: u64 = 1 << 30;

const HEADER: Header = Header {
    version: 1,
    unit_size: 2 << 20,
    phys_base: BASE,
    size: 16,
};

/// Calls that take some time each, and are answered as told.
struct Mock<F> {
    answer: F,
    cost: u64,
    clock: Cell<u64>,
    large: Cell<u32>,
    small: Cell<u32>,
    finish: bool,
}

impl<F: Fn(u64, Level) -> Status> Mock<F> {
    fn new(cost: u64, answer: F) -> Self {
        Self {
            answer,
            cost,
            clock: Cell::new(0),
            large: Cell::new(0),
            small: Cell::new(0),
            finish: false,
        }
    }
}

impl<F: Fn(u64, Level) -> Status> Calls for Mock<F> {
    fn call(&self, address: u64, level: Level) -> Status {
        self.clock.set(self.clock.get() + self.cost);
        let counter = match level {
            Level::Small => &self.small,
            Level::Large => &self.large,
        };
        counter.set(counter.get() + 1);
        (self.answer)(address, level)
    }

    fn fail(&self, _: u64, _: Level, _: u64) -> ! {
        panic!("the mock does not fail");
    }

    fn now(&self) -> u64 {
        self.clock.get()
    }

    fn must_finish(&self) -> bool {
        self.finish
    }
}

fn by_4k(_: u64, level: Level) -> Status {
    match level {
        Level::Small => Status::Done,
        Level::Large => Status::Size,
    }
}

/// Accepts in portions, and writes down in which.
struct Portions<'a> {
    done: &'a RefCell<KVec<(u64, u32)>>,
    portion: u32,
}

impl Host for Portions<'_> {
    fn section<R>(&self, section: impl FnOnce() -> R) -> R {
        section()
    }

    fn accept(&self, unit: u64, from: u32) -> u32 {
        let mut done = self.done.borrow_mut();
        done.push((unit, from), GFP_KERNEL).unwrap();
        STEPS.min(from + self.portion)
    }

    fn relax(&self, _: u32) {
        panic!("nobody else is there");
    }
}

/// A zone with blocks that are numbers.
struct Blocks {
    left: Cell<u32>,
    in_flight: Cell<i64>,
    /// Whether what is in flight lands as somebody looks for a block, once.
    lands: Cell<bool>,
    landed: Cell<u32>,
    waits: Cell<u32>,
}

impl Blocks {
    fn new(left: u32, in_flight: i64) -> Self {
        Self {
            left: Cell::new(left),
            in_flight: Cell::new(in_flight),
            lands: Cell::new(false),
            landed: Cell::new(0),
            waits: Cell::new(0),
        }
    }
}

impl Source for Blocks {
    type Block = u32;

    const PAGES: i64 = 512;

    fn take(&self) -> Option<u32> {
        if self.lands.replace(false) {
            self.landed.set(self.landed.get() + 1);
            self.in_flight.set(0);
        }
        let left = self.left.get().checked_sub(1)?;
        self.left.set(left);
        Some(left)
    }

    fn accept(&self, _: u32, _: Why) {
        self.landed.set(self.landed.get() + 1);
    }

    fn in_flight(&self) -> i64 {
        self.in_flight.get()
    }

    fn landed(&self) -> u32 {
        self.landed.get()
    }

    fn wait(&self, before: u32) {
        assert_eq!(before, self.landed.get());
        self.waits.set(self.waits.get() + 1);
    }
}

#[kunit_tests(rust_unaccepted_memory)]
mod cases {
    use super::*;

    fn check(change: impl FnOnce(&mut Header)) -> Result<Table, Refused> {
        let mut header = HEADER;
        change(&mut header);
        Table::check(&header, 0x7000, LIMIT, PLACES)
    }

    #[test]
    fn a_table_that_cannot_be_true_is_refused() {
        assert_eq!(check(|_| {}).unwrap().units(), 128);
        assert_eq!(check(|h| h.version = 2), Err(Refused::Version(2)));
        for size in [0, 4096, 3 << 20, 1 << 30] {
            assert_eq!(check(|h| h.unit_size = size), Err(Refused::UnitSize(size)));
        }
        for base in [BASE + 4096, LIMIT, u64::MAX - UNIT + 1] {
            assert_eq!(check(|h| h.phys_base = base), Err(Refused::Base(base)));
        }
        assert_eq!(check(|h| h.size = 0), Err(Refused::Empty));
        for size in [LIMIT / UNIT / 8, PLACES, 1 << 61, u64::MAX] {
            assert_eq!(check(|h| h.size = size), Err(Refused::Length(size)));
        }
        let at = |address| Table::check(&HEADER, address, LIMIT, PLACES);
        assert_eq!(at(0x7004), Err(Refused::Address(0x7004)));
        assert_eq!(at(LIMIT - 32), Err(Refused::Length(16)));
        // All of what can be addressed, and bits behind it that fill the last byte.
        assert!(check(|h| (h.phys_base, h.size) = (0, LIMIT / UNIT / 8)).is_ok());
        assert!(check(|h| (h.phys_base, h.size) = (LIMIT - UNIT, 1)).is_ok());
    }

    #[test]
    fn a_range_ends_with_its_guard() {
        let table = check(|_| {}).unwrap();
        let end = BASE + 128 * UNIT;

        assert_eq!(table.units_in(BASE, UNIT), Some(0..1));
        assert_eq!(table.units_in(BASE + UNIT - 1, 2), Some(0..2));
        assert_eq!(table.units_in(end - UNIT, UNIT), Some(127..128));
        assert_eq!(table.units_in(end - UNIT, UNIT + 1), None);
        assert_eq!(table.units_in(BASE - 1, 2), None);
        assert_eq!(table.units_in(BASE, 0), None);
        assert_eq!(table.units_in(BASE, u64::MAX), None);
        assert_eq!(table.units_of(BASE, UNIT), 0..2);
        assert_eq!(table.units_of(BASE, UNIT - 4096), 0..1);
        assert_eq!(table.units_of(BASE, UNIT - 1), 0..2);
        assert_eq!(table.units_of(BASE + 3 * UNIT - 1, 2), 2..4);
        assert_eq!(table.units_of(BASE + 4096, 4096), 0..1);
        // What begins before the bitmap, ends there, or is before it.
        assert_eq!(table.units_of(0, BASE + 1), 0..1);
        assert_eq!(table.units_of(0, BASE), 0..1);
        assert_eq!(table.units_of(0, BASE - 4096), 0..0);
        // The end of it, and what is behind.
        assert_eq!(table.units_of(end - UNIT, UNIT), 127..128);
        assert_eq!(table.units_of(end, UNIT), 128..128);
        assert_eq!(table.units_of(0, u64::MAX), 0..128);
        assert_eq!(table.units_of(BASE, 0), 0..0);
        assert_eq!(table.address(3), BASE + 3 * UNIT);
    }

    #[test]
    fn a_claim_is_taken_once() {
        let claims: Claims<Atomic<u64>, 2> = Claims::new([const { Atomic::new(0) }; 2]);

        assert_eq!(claims.take(5), Take::Taken(0));
        assert_eq!(claims.take(5), Take::Busy);
        claims.park(5, 100);
        assert_eq!(claims.take(5), Take::Taken(100));
        claims.remove(5);
        assert_eq!(claims.take(5), Take::Taken(0));
        claims.remove(5);
        assert_eq!(claims.units().count(), 0);
    }

    #[test]
    fn a_full_bucket_names_what_can_be_done() {
        let claims: Claims<Atomic<u64>, 1> = Claims::new([const { Atomic::new(0) }; 1]);

        assert_eq!(claims.take(7), Take::Taken(0));
        assert_eq!(claims.take(8), Take::Taken(0));
        assert_eq!(claims.take(9), Take::Busy);
        claims.park(8, 1);
        assert_eq!(claims.take(9), Take::Full(8));
        claims.park(7, 511);
        assert!(claims.units().eq([7, 8]));
        assert_eq!(claims.take(7), Take::Taken(511));
        claims.remove(7);
        assert_eq!(claims.take(9), Take::Taken(0));
    }

    #[test]
    fn each_unit_is_found_again() {
        let claims: Claims<Atomic<u64>, 4> = Claims::new([const { Atomic::new(0) }; 4]);

        for unit in [0, 3, 4, 1000, 123_456, (4 << 21) - 1] {
            assert_eq!(claims.take(unit), Take::Taken(0));
            assert!(claims.units().eq([unit]));
            claims.remove(unit);
        }
    }

    #[test]
    fn a_unit_is_accepted_in_portions() {
        let claims: Claims<Atomic<u64>, 1> = Claims::new([const { Atomic::new(0) }; 1]);
        let words = [const { Atomic::new(u64::MAX) }; 1];
        let bits = Bits::new(&words);
        let done = RefCell::new(KVec::new());
        let host = Portions {
            done: &done,
            portion: 200,
        };

        assert!(!accept_unit(&claims, bits, &host, 3));
        assert!(done.borrow().iter().eq(&[(3, 0), (3, 200), (3, 400)]));
        assert_eq!(words[0].load(Relaxed), !(1 << 3));
        assert_eq!(claims.units().count(), 0);
        // It is accepted.
        assert!(!accept_unit(&claims, bits, &host, 3));
        assert_eq!(done.borrow().len(), 3);

        // Where two are parked, they come first.
        assert_eq!(
            (claims.take(5), claims.take(6)),
            (Take::Taken(0), Take::Taken(0))
        );
        claims.park(5, 400);
        claims.park(6, 400);
        assert!(!accept_unit(&claims, bits, &host, 9));
        assert!(!bits.test(5) && !bits.test(9) && bits.test(6));
        // Nothing is done of what is no unit.
        assert!(!accept_unit(&claims, bits, &host, 64));
    }

    #[test]
    fn large_pages_are_tried_first() {
        let mock = Mock::new(0, |_, _| Status::Done);

        assert_eq!(
            accept::section(&mock, Learnt(3), BASE, 0),
            (STEPS, Learnt(0))
        );
        assert_eq!((mock.large.get(), mock.small.get()), (1, 0));
    }

    #[test]
    fn refusals_are_learnt() {
        let mock = Mock::new(0, by_4k);
        let mut learnt = Learnt(0);

        for _ in 0..1000 {
            let (step, now) = accept::section(&mock, learnt, BASE, 0);
            assert_eq!(step, STEPS);
            learnt = now;
        }
        // 8, and each 16th of the others.
        assert_eq!((mock.large.get(), mock.small.get()), (8 + 62, 512_000));
        assert_eq!(
            accept::section(&mock, Learnt(u32::MAX), BASE, 0).1,
            Learnt(8)
        );
    }

    #[test]
    fn a_section_ends_in_time() {
        let mock = Mock::new(40_000, by_4k);
        let (step, _) = accept::section(&mock, Learnt(9), BASE, 0);

        assert_eq!(step, 13);
        assert!(mock.clock.get() < SECTION_NS + 40_000);
        // It goes on where it was, and does not ask for 2 MiB again.
        let (step, _) = accept::section(&mock, Learnt(0), BASE, step);
        assert_eq!((step, mock.large.get()), (26, 0));

        let mut mock = Mock::new(40_000, by_4k);
        mock.finish = true;
        assert_eq!(accept::section(&mock, Learnt(0), BASE, 0).0, STEPS);
    }

    #[test]
    fn busy_is_tried_again() {
        let calls = Cell::new(0);
        let mock = Mock::new(1000, |_, level| {
            calls.set(calls.get() + 1);
            match calls.get() % 3 {
                0 => by_4k(0, level),
                _ => Status::Busy,
            }
        });
        let (mut step, mut learnt) = (0, Learnt(0));

        while step < STEPS {
            (step, learnt) = accept::section(&mock, learnt, BASE, step);
        }
        assert_eq!((mock.large.get(), mock.small.get()), (3, 3 * STEPS));
    }

    #[test]
    fn a_status_is_understood() {
        assert_eq!(Status::of_tdx(0), Status::Done);
        assert_eq!(Status::of_tdx(0x8000_0200_0000_0001), Status::Busy);
        assert_eq!(Status::of_tdx(0xc000_0b0b_0000_0001), Status::Size);
        for other in [0x0000_0b0a_0000_0000, 0xc000_0100_0000_0001, u64::MAX] {
            assert_eq!(Status::of_tdx(other), Status::Failed(other));
        }
    }

    fn demand(shortage: i64, must: bool, may_sleep: bool) -> Demand {
        Demand {
            shortage,
            must,
            may_sleep,
        }
    }

    #[test]
    fn an_allocation_accepts_a_block() {
        let zone = Blocks::new(2, 0);

        assert!(!replenish(&zone, demand(0, false, true)));
        assert!(!replenish(&zone, demand(5000, false, false)));
        assert_eq!(zone.landed.get(), 0);
        assert!(replenish(&zone, demand(5000, false, true)));
        assert!(replenish(&zone, demand(0, true, false)));
        assert_eq!(zone.landed.get(), 2);
        assert!(!replenish(&zone, demand(5000, true, true)));
    }

    #[test]
    fn what_is_in_flight_counts() {
        let zone = Blocks::new(3, 2);

        assert!(!replenish(&zone, demand(1024, false, true)));
        assert!(replenish(&zone, demand(1025, false, true)));
        assert!(replenish(&zone, demand(0, true, true)));
        assert_eq!((zone.left.get(), zone.waits.get()), (1, 0));

        // The last ones are waited for, where that is allowed.
        let zone = Blocks::new(0, 1);
        assert!(replenish(&zone, demand(0, true, true)));
        assert_eq!(zone.waits.get(), 1);
        assert!(!replenish(&zone, demand(0, true, false)));
        assert!(!replenish(&zone, demand(9999, false, true)));
        assert_eq!(zone.waits.get(), 1);

        // The last one landed in between, and may have been taken in between: the zone is worth
        // another look, once.
        for in_flight in [0, 1] {
            let zone = Blocks::new(0, in_flight);

            zone.lands.set(true);
            assert!(replenish(&zone, demand(0, true, true)));
            assert!(!replenish(&zone, demand(0, true, true)));
            assert_eq!(zone.waits.get(), 0);
        }
    }

    #[test]
    fn the_background_keeps_to_its_limits() {
        let pause = |share, rate| Limits { share, rate }.pause(2 << 20, 4_000_000);

        assert_eq!(pause(100, 0), 0);
        assert_eq!(pause(50, 0), 4_000_000);
        assert_eq!(pause(25, 0), 12_000_000);
        assert_eq!(pause(0, 0), 99 * 4_000_000);
        // 2 MiB at 20 MiB in a second are 100 ms.
        assert!((95_900_000..=96_000_000).contains(&pause(100, 20)));
        assert_eq!(pause(1, 1_000_000), 99 * 4_000_000);

        let zone = Blocks::new(1, 0);
        assert!(advance(&zone, Why::Background));
        assert!(!advance(&zone, Why::Background));
        assert_eq!(zone.landed.get(), 1);
    }
}
