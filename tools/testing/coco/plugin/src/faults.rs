// SPDX-License-Identifier: GPL-2.0

//! Answers that are given on purpose, though nothing is wrong: which, and when.

use coco_protocol::Guest;
use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// What the guest asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// TDG.MEM.PAGE.ACCEPT, or PVALIDATE that validates.
    Accept,
    /// TDG.VP.VMCALL MapGPA.
    MapGpa,
    /// An entry of a list of page state changes.
    PscEntry,
    /// The list as a whole.
    PscList,
    /// A page state change by the GHCB MSR.
    PscMsr,
}

impl Call {
    const ALL: [(&str, Self); 5] = [
        ("accept", Self::Accept),
        ("map-gpa", Self::MapGpa),
        ("psc", Self::PscEntry),
        ("psc-list", Self::PscList),
        ("psc-msr", Self::PscMsr),
    ];

    fn of(self, guest: Guest) -> bool {
        match self {
            Self::Accept => true,
            Self::MapGpa => guest == Guest::Tdx,
            _ => guest == Guest::Snp,
        }
    }
}

/// What the guest is answered. Each call has its own status for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Somebody else has the page in their hands.
    Busy,
    /// Only a part was done: the guest has to ask for the rest.
    Retry,
    Error,
    Status(u64),
}

impl Answer {
    fn of(self, call: Call, guest: Guest) -> bool {
        match (self, call) {
            (Self::Error, _) => true,
            // A hypervisor answers lists and MapGPA; its MSR protocol has no room for a status.
            (Self::Status(_), _) => call != Call::PscMsr,
            (Self::Busy, Call::Accept) => guest == Guest::Tdx,
            (Self::Busy, _) => call == Call::MapGpa,
            (Self::Retry, _) => matches!(call, Call::MapGpa | Call::PscEntry),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Each so-manieth call.
    Every(u64),
    /// Calls that cover this address.
    At(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub call: Call,
    pub answer: Answer,
    pub when: When,
    /// How many calls in a row are answered so: each time, or, at an address, in all.
    pub times: u64,
}

impl Fault {
    /// Each so-manieth accept.
    pub fn every(answer: Answer, number: u64) -> Self {
        Self {
            call: Call::Accept,
            answer,
            when: When::Every(number),
            times: 1,
        }
    }

    /// So many accepts that cover an address.
    pub fn at(answer: Answer, address: u64, times: u64) -> Self {
        Self {
            call: Call::Accept,
            answer,
            when: When::At(address),
            times,
        }
    }

    /// CALL:ANSWER:every=N, or :at=ADDRESS, and perhaps :times=N.
    pub fn parse(text: &str, number: impl Fn(&str) -> Option<u64>) -> Option<Self> {
        let mut words = text.split(':');
        let name = words.next()?;
        let call = Call::ALL.iter().find(|call| call.0 == name)?.1;
        let answer = match words.next()? {
            "busy" => Answer::Busy,
            "retry" => Answer::Retry,
            "error" => Answer::Error,
            status => Answer::Status(number(status)?),
        };
        let (mut when, mut times) = (None, None);
        for word in words {
            let (key, value) = word.split_once('=')?;
            let value = number(value)?;
            let place = match key {
                "every" if value > 0 => Some(When::Every(value)),
                "at" => Some(When::At(value)),
                "times" if value > 0 && times.is_none() => {
                    times = Some(value);
                    continue;
                }
                _ => None,
            };
            if place.is_none() || when.replace(place?).is_some() {
                return None;
            }
        }
        let when = when?;
        let usual = match when {
            When::Every(_) => 1,
            When::At(_) => u64::MAX,
        };
        Some(Self {
            call,
            answer,
            when,
            times: times.unwrap_or(usual),
        })
    }

    /// Whether a guest of this kind can be answered so.
    pub fn suits(&self, guest: Guest) -> bool {
        self.call.of(guest) && self.answer.of(self.call, guest)
    }
}

/// Decides which calls are answered with a fault.
pub struct Injector {
    /// With the calls of its kind, or that cover its address, so far.
    faults: Vec<(Fault, AtomicU64)>,
}

impl Injector {
    pub fn new(faults: &[Fault]) -> Self {
        let counted = |fault: &Fault| (*fault, AtomicU64::new(0));
        Self {
            faults: faults.iter().map(counted).collect(),
        }
    }

    /// The answer that this call shall get; the first of several.
    pub fn answer(&self, call: Call, range: &Range<u64>) -> Option<Answer> {
        let mut answer = None;
        for (fault, count) in self.faults.iter().filter(|(fault, _)| fault.call == call) {
            let due = match fault.when {
                When::Every(every) => {
                    let number = count.fetch_add(1, Relaxed) + 1;
                    number >= every && number % every < fault.times
                }
                When::At(address) => {
                    range.contains(&address) && count.fetch_add(1, Relaxed) < fault.times
                }
            };
            if due && answer.is_none() {
                answer = Some(fault.answer);
            }
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Fault> {
        Fault::parse(text, |text| text.parse().ok())
    }

    fn answers(text: &str, starts: &[u64]) -> Vec<bool> {
        let fault = parse(text).unwrap();
        let injector = Injector::new(&[fault]);
        let answer = |start: &u64| injector.answer(fault.call, &(*start..start + 4)).is_some();
        starts.iter().map(answer).collect()
    }

    #[test]
    fn calls_are_answered_by_rate_and_by_address() {
        let (y, n) = (true, false);
        assert_eq!(
            answers("accept:busy:every=3", &[0; 7]),
            [n, n, y, n, n, y, n]
        );
        assert_eq!(
            answers("accept:busy:every=3:times=2", &[0; 7]),
            [n, n, y, y, n, y, y]
        );
        assert_eq!(answers("accept:busy:every=1", &[0; 3]), [y; 3]);
        assert_eq!(answers("map-gpa:retry:at=6", &[0, 4, 8, 4]), [n, y, n, y]);
        assert_eq!(
            answers("accept:7:at=5:times=2", &[4, 0, 4, 4]),
            [y, n, y, n]
        );
    }

    #[test]
    fn only_the_call_that_was_named_is_answered() {
        let injector = Injector::new(&[parse("psc:retry:every=1").unwrap()]);
        assert_eq!(injector.answer(Call::Accept, &(0..1)), None);
        assert_eq!(
            injector.answer(Call::PscEntry, &(0..1)),
            Some(Answer::Retry)
        );
    }

    #[test]
    fn what_is_no_fault_is_refused() {
        for text in [
            "",
            "accept",
            "accept:busy",
            "accept:maybe:every=1",
            "adopt:busy:every=1",
            "accept:busy:every=0",
            "accept:busy:every=1:at=2",
            "accept:busy:at=1:times=0",
            "accept:busy:at=1:times=1:times=1",
            "accept:busy:sometimes=1",
            "accept:busy:every",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn guests_get_only_answers_that_exist() {
        let suits = |text, guest| parse(text).unwrap().suits(guest);
        for (text, tdx, snp) in [
            ("accept:busy:every=2", true, false),
            ("accept:error:every=2", true, true),
            ("accept:retry:every=2", false, false),
            ("accept:6:every=2", true, true),
            ("map-gpa:retry:every=2", true, false),
            ("map-gpa:busy:every=2", true, false),
            ("psc:retry:every=2", false, true),
            ("psc:busy:every=2", false, false),
            ("psc-list:error:every=2", false, true),
            ("psc-msr:error:every=2", false, true),
            ("psc-msr:5:every=2", false, false),
        ] {
            let is = (suits(text, Guest::Tdx), suits(text, Guest::Snp));
            assert_eq!(is, (tdx, snp), "{text}");
        }
    }
}
