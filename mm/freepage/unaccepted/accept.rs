// SPDX-License-Identifier: GPL-2.0

//! How a unit is accepted: which calls are made, and what their status means.
//!
//! A TDX guest asks for 2 MiB at once where its host takes that, and else for one page after the
//! other, for as long as a section may last. In an SEV-SNP guest the architecture's code does the
//! same by itself, and ends the guest if it fails. Only decisions are here; [`Calls`] are made by
//! the view.

use super::{
    claims::STEPS,
    table::UNIT, //
};

/// Bytes in a step.
pub(crate) const STEP: u64 = UNIT / STEPS as u64;

/// How long a section may go on before it looks whether it is to end, in ns. It then ends after
/// the call that is under way: of those published the slowest took 153 µs for 4K.
pub(crate) const SECTION_NS: u64 = 500_000;

/// Answers in a row that the module is busy, after which it counts as broken: seconds, where other
/// operations of the module take microseconds.
pub(crate) const BUSY: u32 = 4_000_000;

/// Refusals in a row after which calls for 2 MiB are rare.
const REFUSALS: u32 = 8;

/// Units for which one such call is made then: the host may have changed its mind.
const RARE: u32 = 16;

/// What a call asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Level {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Large,
}

/// What came of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Status {
    Done,
    /// Another operation is under way in the module: to be tried again.
    Busy,
    /// The host maps this memory in smaller pages.
    Size,
    /// Anything else, that it was accepted before included: nobody else may have done that.
    Failed(u64),
}

impl Status {
    /// The part of a status that is not about details.
    const CLASS: u64 = 0xffff_ffff_0000_0000;
    const OPERAND_BUSY: u64 = 0x8000_0200_0000_0000;
    const PAGE_SIZE_MISMATCH: u64 = 0xc000_0b0b_0000_0000;

    /// Of the TDX module's answer.
    pub(crate) fn of_tdx(answer: u64) -> Self {
        match answer & Self::CLASS {
            0 => Self::Done,
            Self::OPERAND_BUSY => Self::Busy,
            Self::PAGE_SIZE_MISMATCH => Self::Size,
            _ => Self::Failed(answer),
        }
    }
}

/// What calls the firmware, and can tell the time.
pub(crate) trait Calls {
    /// Accepts memory at this address.
    fn call(&self, address: u64, level: Level) -> Status;

    /// Ends the guest: memory cannot be accepted.
    fn fail(&self, address: u64, level: Level, status: u64) -> !;

    /// Time in ns.
    fn now(&self) -> u64;

    /// Whether a section has to come to the end of its unit, however long that takes.
    fn must_finish(&self) -> bool;
}

/// What was learnt of the host: refusals of 2 MiB in a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Learnt(pub(crate) u32);

impl Learnt {
    /// Whether to ask for 2 MiB.
    fn ask(self) -> bool {
        self.0 < REFUSALS || self.0 % RARE == 0
    }

    /// After 2 MiB were not asked for, or were refused.
    fn another(self) -> Self {
        Self(self.0.checked_add(1).unwrap_or(REFUSALS))
    }
}

/// A section: accepts a unit at `start` from step `from` on; how far it came, and what is known
/// of the host now.
pub(crate) fn section(calls: &impl Calls, learnt: Learnt, start: u64, from: u32) -> (u32, Learnt) {
    let begin = calls.now();
    let is_over = || calls.now().wrapping_sub(begin) >= SECTION_NS && !calls.must_finish();
    let mut learnt = learnt;

    if from == 0 {
        while learnt.ask() {
            match calls.call(start, Level::Large) {
                Status::Done => return (STEPS, Learnt(0)),
                Status::Busy if is_over() => return (0, learnt),
                Status::Busy => {}
                Status::Size => {
                    learnt = learnt.another();
                    return small(calls, learnt, start, 0, is_over);
                }
                Status::Failed(status) => calls.fail(start, Level::Large, status),
            }
        }
        learnt = learnt.another();
    }
    small(calls, learnt, start, from, is_over)
}

fn small(
    calls: &impl Calls,
    learnt: Learnt,
    start: u64,
    from: u32,
    is_over: impl Fn() -> bool,
) -> (u32, Learnt) {
    let mut step = from;
    while step < STEPS {
        let address = start + u64::from(step) * STEP;
        match calls.call(address, Level::Small) {
            Status::Done => step += 1,
            Status::Busy => {}
            Status::Size => calls.fail(address, Level::Small, Status::PAGE_SIZE_MISMATCH),
            Status::Failed(status) => calls.fail(address, Level::Small, status),
        }
        if is_over() {
            break;
        }
    }
    (step, learnt)
}
