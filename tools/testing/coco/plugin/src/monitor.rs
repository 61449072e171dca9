// SPDX-License-Identifier: GPL-2.0

//! The book of pages, and of everything that happened to them. TDX and SNP differ in how a guest
//! asks for a page to be accepted; what may be asked for is decided here.

use crate::{
    options::Options,
    pages::{Hindrance, PAGE, Pages, State},
    report::{BySize, PerVcpu, Report, Violation},
    rmp::MOMENT,
    vcpu::{Action, Stop, Vcpu},
};
use coco_protocol::{Guest, Status};
use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

/// How much one accept asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

    fn name(self) -> &'static str {
        match self {
            Self::Small => "4K",
            Self::Medium => "2M",
            Self::Large => "1G",
        }
    }
}

/// How an accept ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    Done,
    Busy,
    /// An error that was asked for on QEMU's command line.
    Error,
    /// The pages cannot be accepted in this size; smaller ones may.
    Mismatch,
    /// All of the pages are accepted already.
    Duplicate,
    /// All of the pages are in a state in which they cannot be accepted.
    Illegal,
}

/// More vCPUs than a guest under TCG has.
pub const VCPUS: usize = 256;

#[derive(Default)]
struct Counters {
    small: AtomicU64,
    medium: AtomicU64,
    large: AtomicU64,
    /// All accepts that were begun: what "every so-manieth" counts.
    begun: AtomicU64,
    duplicates: AtomicU64,
    illegal: AtomicU64,
    mismatches: AtomicU64,
    busy: AtomicU64,
    errors: AtomicU64,
    accept_ns: AtomicU64,
    in_flight: AtomicU64,
    most_in_flight: AtomicU64,
    violations: AtomicU64,
    stale_breakpoints: AtomicU64,
}

/// What one vCPU did. Loads and stores are counted by the billion, so each vCPU has a cache line
/// of its own.
#[derive(Default)]
#[repr(align(64))]
struct OfVcpu {
    accepts: AtomicU64,
    bytes: AtomicU64,
    checked: AtomicU64,
}

pub struct Monitor {
    pub options: Options,
    pages: Pages,
    /// The kernel runs: its image, by address.
    started: OnceLock<Range<u64>>,
    busy_once: AtomicBool,
    counters: Counters,
    vcpus: Vec<OfVcpu>,
    list: Mutex<Vec<Violation>>,
    calls: Mutex<BTreeMap<String, u64>>,
}

impl Monitor {
    pub fn new(options: Options) -> Self {
        Self {
            options,
            pages: Pages::new(),
            started: OnceLock::new(),
            busy_once: AtomicBool::new(false),
            counters: Counters::default(),
            vcpus: (0..VCPUS).map(|_| OfVcpu::default()).collect(),
            list: Mutex::new(Vec::new()),
            calls: Mutex::new(BTreeMap::new()),
        }
    }

    /// The kernel's image, once the loader has started it.
    pub fn started(&self) -> Option<&Range<u64>> {
        self.started.get()
    }

    /// From now on the guest is a confidential one.
    pub fn start(&self, image: Range<u64>) {
        if self.started.set(image).is_err() {
            return;
        }
        if let Some(range) = &self.options.faults.secretly_unaccepted {
            self.pages.update(pfns(range), |_, _| State::Pending);
        }
        if let Some(range) = &self.options.faults.secretly_accepted {
            self.pages.update(pfns(range), |_, _| State::Private);
        }
    }

    /// Makes a range of memory unaccepted, as the firmware's map says.
    pub fn unaccept(&self, vcpu: &dyn Vcpu, range: Range<u64>) -> Result<(), Status> {
        if range.start % PAGE != 0 || range.end % PAGE != 0 || range.is_empty() {
            return Err(Status::Misaligned);
        }
        let state = match self.options.guest {
            Guest::Tdx => State::Pending,
            Guest::Snp => State::Unassigned,
        };
        let pfns = pfns(&range);
        if !self.pages.covers(&pfns) {
            return Err(Status::Beyond);
        }
        self.pages
            .change(pfns, State::Private, state)
            .map_err(|_| Status::AlreadyPending)?;
        let size = range.end - range.start;
        match self.options.poison {
            Some(poison) if !vcpu.fill(range.start, size, poison) => Err(Status::Unwritable),
            _ => Ok(()),
        }
    }

    /// The state of the page at an address.
    pub fn state(&self, address: u64) -> State {
        self.pages.state(address / PAGE)
    }

    /// Gives each page of a range of bytes a state that depends on the one it has.
    pub fn update(&self, range: Range<u64>, mut new: impl FnMut(State) -> State) {
        self.pages.update(pfns(&range), |_, old| new(old));
    }

    /// Takes pages from one state to another, or none of them.
    pub fn change(&self, range: &Range<u64>, from: State, to: State) -> Result<(), Hindrance> {
        self.pages.change(pfns(range), from, to)
    }

    /// Accepts `size` bytes at an address that is aligned to it. `clear`: what was in them is lost.
    pub fn accept(&self, vcpu: &dyn Vcpu, address: u64, size: Size, clear: bool) -> Accept {
        let start = Instant::now();
        let counters = &self.counters;
        let flying = counters.in_flight.fetch_add(1, Relaxed) + 1;
        counters.most_in_flight.fetch_max(flying, Relaxed);
        let outcome = self.try_accept(vcpu, address, size, clear);
        counters.in_flight.fetch_sub(1, Relaxed);
        counters
            .accept_ns
            .fetch_add(start.elapsed().as_nanos() as u64, Relaxed);
        let counter = match (outcome, size) {
            (Accept::Done, Size::Small) => &counters.small,
            (Accept::Done, Size::Medium) => &counters.medium,
            (Accept::Done, Size::Large) => &counters.large,
            (Accept::Busy, _) => &counters.busy,
            (Accept::Error, _) => &counters.errors,
            (Accept::Mismatch, _) => &counters.mismatches,
            (Accept::Duplicate, _) => &counters.duplicates,
            (Accept::Illegal, _) => &counters.illegal,
        };
        counter.fetch_add(1, Relaxed);
        if let (Accept::Done, Some(own)) = (outcome, self.vcpus.get(vcpu.index())) {
            own.accepts.fetch_add(1, Relaxed);
            own.bytes.fetch_add(size.bytes(), Relaxed);
        }
        outcome
    }

    fn try_accept(&self, vcpu: &dyn Vcpu, address: u64, size: Size, clear: bool) -> Accept {
        let range = address..address.saturating_add(size.bytes());
        if let Some(fault) = self.fault(&range, size) {
            return fault;
        }
        let mut begun = self.change(&range, State::Pending, State::Accepting);
        // PVALIDATE has no answer that says busy: one processor waits for the other.
        while begun == Err(Hindrance::Busy) && self.options.guest == Guest::Snp {
            thread::sleep(MOMENT);
            begun = self.change(&range, State::Pending, State::Accepting);
        }
        match begun {
            Ok(()) => (),
            Err(Hindrance::Busy) => return Accept::Busy,
            Err(Hindrance::Mixed(..)) => return Accept::Mismatch,
            Err(Hindrance::All(State::Private)) => return Accept::Duplicate,
            Err(Hindrance::All(_)) => return Accept::Illegal,
        }
        if !self.options.cost.is_zero() {
            let pages = (size.bytes() / PAGE) as u32;
            thread::sleep(self.options.cost * pages);
        }
        if clear {
            // Nobody else changes a page that is being accepted, and where no memory is, none of
            // it is pending.
            vcpu.fill(address, size.bytes(), 0);
        }
        self.pages.update(pfns(&range), |_, _| State::Private);
        Accept::Done
    }

    /// What was asked for on QEMU's command line.
    fn fault(&self, range: &Range<u64>, size: Size) -> Option<Accept> {
        let faults = &self.options.faults;
        let number = self.counters.begun.fetch_add(1, Relaxed) + 1;
        let covers = |address: &u64| range.contains(address);
        let turn = |every: u64| every != 0 && number % every == 0;
        if size == Size::Medium && faults.refuse_2m || size == Size::Large && faults.refuse_1g {
            Some(Accept::Mismatch)
        } else if faults.error_at.as_ref().is_some_and(covers) || turn(faults.error_every) {
            Some(Accept::Error)
        } else if turn(faults.busy_every)
            || faults.busy_at.as_ref().is_some_and(covers) && !self.busy_once.swap(true, Relaxed)
        {
            Some(Accept::Busy)
        } else {
            None
        }
    }

    /// Notes that a size was refused without a look at the pages.
    pub fn mismatch(&self) {
        self.counters.mismatches.fetch_add(1, Relaxed);
    }

    /// Notes an accept that no guest may ask for.
    pub fn bad_accept(&self, vcpu: &dyn Vcpu, how: Accept, address: u64, size: Size) -> Action {
        let (kind, why) = match how {
            Accept::Duplicate => ("duplicate", "was accepted before"),
            _ => ("illegal", "is not the guest's to accept"),
        };
        let what = format!("{} at {address:#x} {why}", size.name());
        self.violation(vcpu.index(), vcpu.pc(), kind, address, size.bytes(), what)
    }

    /// Notes a change of state that no guest may ask for.
    pub fn illegal(&self, vcpu: &dyn Vcpu, address: u64, size: u64, what: String) -> Action {
        self.counters.illegal.fetch_add(1, Relaxed);
        self.violation(vcpu.index(), vcpu.pc(), "illegal", address, size, what)
    }

    /// Looks at a load or store.
    pub fn access(&self, vcpu: usize, pc: u64, address: u64, size: u64, store: bool) -> Action {
        if let Some(own) = self.vcpus.get(vcpu) {
            // No other thread writes to it.
            own.checked.store(own.checked.load(Relaxed) + 1, Relaxed);
        }
        let state = self.state(address);
        if !state.untouchable() {
            return Action::Native;
        }
        let kind = if store { "write" } else { "read" };
        let what = format!("{kind} of {size} bytes at {address:#x}, which is {state:?}");
        match self.violation(vcpu, pc, kind, address, size, what) {
            Action::Done => Action::Native,
            other => other,
        }
    }

    fn violation(
        &self,
        vcpu: usize,
        pc: u64,
        kind: &'static str,
        address: u64,
        size: u64,
        what: String,
    ) -> Action {
        let number = self.counters.violations.fetch_add(1, Relaxed) as usize;
        let message = format!("{what}, by vCPU {vcpu} at PC {pc:#x}");
        if number < self.options.list {
            let (address, pc) = (format!("{address:#x}"), format!("{pc:#x}"));
            let violation = Violation {
                kind,
                address,
                size,
                pc,
                vcpu,
                what,
            };
            self.list
                .lock()
                .unwrap_or_else(|error| error.into_inner())
                .push(violation);
        }
        if self.options.stop {
            return Action::Stop(Stop::Violation(message));
        }
        if number < self.options.list {
            eprintln!("{}", Stop::Violation(message).message());
        }
        Action::Done
    }

    /// Counts a call, by the name of what is called for.
    pub fn call(&self, name: impl Into<String>) {
        let mut calls = self.calls.lock().unwrap_or_else(|error| error.into_inner());
        *calls.entry(name.into()).or_default() += 1;
    }

    pub fn stale_breakpoint(&self) {
        self.counters.stale_breakpoints.fetch_add(1, Relaxed);
    }

    pub fn report(&self) -> Report {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let counters = &self.counters;
        let vcpus: Vec<_> = self
            .vcpus
            .iter()
            .map(|own| PerVcpu {
                accepts: get(&own.accepts),
                accepted_bytes: get(&own.bytes),
            })
            .collect();
        let active = vcpus
            .iter()
            .rposition(|own| own.accepts > 0)
            .map_or(0, |last| last + 1);
        let bytes = |state| self.pages.count(state) * PAGE;
        Report {
            guest: match self.options.guest {
                Guest::Tdx => "tdx",
                Guest::Snp => "snp",
            },
            accepts: BySize {
                small: get(&counters.small),
                medium: get(&counters.medium),
                large: get(&counters.large),
            },
            accepted_bytes: vcpus.iter().map(|own| own.accepted_bytes).sum(),
            pending_bytes: bytes(State::Pending) + bytes(State::Unassigned),
            shared_bytes: bytes(State::Shared),
            duplicates: get(&counters.duplicates),
            illegal: get(&counters.illegal),
            mismatches: get(&counters.mismatches),
            busy: get(&counters.busy),
            errors: get(&counters.errors),
            accept_ns: get(&counters.accept_ns),
            most_in_flight: get(&counters.most_in_flight),
            vcpus: vcpus[..active].to_vec(),
            violation_count: get(&counters.violations),
            violations: self
                .list
                .lock()
                .unwrap_or_else(|error| error.into_inner())
                .clone(),
            checked_accesses: self.vcpus.iter().map(|own| get(&own.checked)).sum(),
            stale_breakpoints: get(&counters.stale_breakpoints),
            calls: self
                .calls
                .lock()
                .unwrap_or_else(|error| error.into_inner())
                .clone(),
        }
    }
}

fn pfns(range: &Range<u64>) -> Range<u64> {
    range.start / PAGE..range.end.div_ceil(PAGE)
}
