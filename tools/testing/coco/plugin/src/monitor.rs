// SPDX-License-Identifier: GPL-2.0

//! The book of pages, and of everything that happened to them. TDX and SNP differ in how a guest
//! asks for a page to be accepted; what may be asked for is decided here.

use crate::{
    cost::{Debts, Latencies},
    faults::{Answer, Call, Injector},
    host::Host,
    options::Options,
    pages::{Hindrance, PAGE, Pages, Size, State},
    report::{BySize, PerVcpu, Report, Violation},
    rmp::MOMENT,
    vcpu::{Action, Register, Stop, Vcpu},
    walk::Tables,
};
use coco_protocol::{Guest, Status};
use std::{
    collections::{BTreeMap, HashMap},
    io::{Write, stderr},
    ops::Range,
    sync::{
        Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

/// What the guest does with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Execute,
    /// The processor takes it for a page table.
    PageTable,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Execute => "execute",
            Self::PageTable => "page table",
        }
    }
}

/// What an instruction does with bytes of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub pc: u64,
    /// Guest-physical.
    pub address: u64,
    pub size: u64,
    pub kind: Kind,
}

/// How an accept ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    Done,
    Busy,
    /// An error that was asked for on QEMU's command line, perhaps with its status.
    Error(Option<u64>),
    /// The pages cannot be accepted in this size; smaller ones may.
    Mismatch,
    /// All of the pages are accepted already; the size of the host's page that they are in.
    Duplicate(Size),
    /// All of the pages are in a state in which they cannot be accepted.
    Illegal,
    /// Some of the pages are done. The guest has to ask again, and goes on behind them.
    Interrupted,
}

/// More vCPUs than a guest under TCG has.
pub const VCPUS: usize = 256;

#[derive(Default)]
struct Counters {
    small: AtomicU64,
    medium: AtomicU64,
    large: AtomicU64,
    duplicates: AtomicU64,
    illegal: AtomicU64,
    interrupted: AtomicU64,
    mismatches: AtomicU64,
    busy: AtomicU64,
    errors: AtomicU64,
    accept_ns: AtomicU64,
    in_flight: AtomicU64,
    most_in_flight: AtomicU64,
    violations: AtomicU64,
    failed_lookups: AtomicU64,
    stale_breakpoints: AtomicU64,
}

/// What one vCPU did. Loads and stores are counted by the billion, so each vCPU has a cache line
/// of its own.
#[derive(Default)]
#[repr(align(64))]
struct OfVcpu {
    accepts: AtomicU64,
    bytes: AtomicU64,
    in_vain: AtomicU64,
    cost_ns: AtomicU64,
    latencies: Latencies,
    checked: AtomicU64,
    /// Its page tables: [`Tables::to_bits`].
    tables: AtomicU64,
}

pub struct Monitor {
    pub options: Options,
    pages: Pages,
    pub host: Host,
    debts: Debts,
    /// How much of an accept that was interrupted is done, by its address.
    progress: Mutex<HashMap<u64, u64>>,
    /// The kernel runs: its image, by address.
    started: OnceLock<Range<u64>>,
    injector: Injector,
    /// vCPUs that are idle at the moment.
    idle: AtomicU64,
    counters: Counters,
    vcpus: Vec<OfVcpu>,
    list: Mutex<Vec<Violation>>,
    changes: Mutex<Vec<(u64, u64)>>,
    kernel_runs: AtomicBool,
    calls: Mutex<BTreeMap<String, u64>>,
}

impl Monitor {
    pub fn new(options: Options) -> Self {
        Self {
            host: Host::new(options.host_pages),
            debts: Debts::new(VCPUS),
            injector: Injector::new(&options.faults),
            progress: Mutex::default(),
            options,
            pages: Pages::new(),
            started: OnceLock::new(),
            idle: AtomicU64::new(0),
            counters: Counters::default(),
            vcpus: (0..VCPUS).map(|_| OfVcpu::default()).collect(),
            list: Mutex::new(Vec::new()),
            changes: Mutex::default(),
            kernel_runs: AtomicBool::new(false),
            calls: Mutex::new(BTreeMap::new()),
        }
    }

    /// The kernel's image, once the loader has started it.
    pub fn started(&self) -> Option<&Range<u64>> {
        self.started.get()
    }

    /// From now on the guest is a confidential one.
    ///
    /// # Errors
    ///
    /// An option that is about memory which is not there: nothing would ever come of it.
    pub fn start(&self, vcpu: &dyn Vcpu, image: Range<u64>) -> Result<(), String> {
        let options = &self.options;
        let secret = [&options.secretly_unaccepted, &options.secretly_accepted];
        for range in secret.into_iter().flatten() {
            let ends = [range.start, range.end - 1];
            if !ends.iter().all(|at| vcpu.read(*at, &mut [0])) || !self.pages.covers(&pfns(range)) {
                let Range { start, end } = range;
                return Err(format!(
                    "secretly-unaccepted= or secretly-accepted=: there is no memory at \
                     {start:#x}-{end:#x}"
                ));
            }
        }
        if self.started.set(image).is_err() {
            return Ok(());
        }
        if let Some(range) = &options.secretly_unaccepted {
            self.pages.update(pfns(range), |_, _| State::Pending);
        }
        if let Some(range) = &options.secretly_accepted {
            self.pages.update(pfns(range), |_, _| State::Private);
        }
        Ok(())
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

    /// Has eight bytes of memory changed once the kernel itself runs.
    pub fn change_later(&self, address: u64, value: u64) {
        lock(&self.changes).push((address, value));
    }

    /// The kernel itself runs, where it is linked to: its stub has done its work.
    pub fn kernel_proper(&self, vcpu: &dyn Vcpu) {
        if self.started().is_none() {
            return;
        }
        self.kernel_runs.store(true, Relaxed);
        for (address, value) in lock(&self.changes).drain(..) {
            // The loader has written there.
            vcpu.write_u64(address, value);
        }
    }

    /// Whether it does.
    pub fn kernel_runs(&self) -> bool {
        self.kernel_runs.load(Relaxed)
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
            (Accept::Error(_), _) => &counters.errors,
            (Accept::Mismatch, _) => &counters.mismatches,
            (Accept::Duplicate(_), _) => &counters.duplicates,
            (Accept::Illegal, _) => &counters.illegal,
            (Accept::Interrupted, _) => &counters.interrupted,
        };
        counter.fetch_add(1, Relaxed);
        if let Some(own) = self.vcpus.get(vcpu.index()) {
            match outcome {
                Accept::Done => {
                    own.accepts.fetch_add(1, Relaxed);
                    own.bytes.fetch_add(size.bytes(), Relaxed);
                }
                Accept::Interrupted => (),
                _ => {
                    own.in_vain.fetch_add(1, Relaxed);
                }
            }
            own.latencies.note(start.elapsed());
        }
        outcome
    }

    fn try_accept(&self, vcpu: &dyn Vcpu, address: u64, size: Size, clear: bool) -> Accept {
        let range = size.around(address);
        let resumed = self.take_progress(address);
        if resumed == 0 {
            self.pay(vcpu, self.options.costs.call);
            match self.fault(Call::Accept, &range) {
                None => (),
                Some(Answer::Busy) => return Accept::Busy,
                Some(Answer::Status(status)) => return Accept::Error(Some(status)),
                Some(Answer::Error | Answer::Retry) => return Accept::Error(None),
            }
        }
        let page = self.host.page(address);
        if page < size {
            return Accept::Mismatch;
        }
        if page > size {
            if self.pages.uniform(pfns(&page.around(address))) == Some(State::Private) {
                return Accept::Duplicate(page);
            }
            self.host.split(address, size);
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
            Err(Hindrance::Mixed(..)) => {
                // Pages of several states cannot be in one of the host's.
                self.host.split(address, Size::Small);
                return Accept::Mismatch;
            }
            Err(Hindrance::All(State::Private)) => return Accept::Duplicate(size),
            Err(Hindrance::All(_)) => return Accept::Illegal,
        }
        let done = self.work(vcpu, address + resumed, range.end, clear);
        if done < range.end {
            self.pages.update(pfns(&range), |_, _| State::Pending);
            lock(&self.progress).insert(address, done - address);
            return Accept::Interrupted;
        }
        self.pages.update(pfns(&range), |_, _| State::Private);
        Accept::Done
    }

    /// Does what takes time, up to `end`, or to where a TDX module would look for interrupts; how
    /// far it came.
    fn work(&self, vcpu: &dyn Vcpu, start: u64, end: u64, clear: bool) -> u64 {
        let interruptible = self.options.guest == Guest::Tdx;
        let cost = self.cost_of_page();
        let mut step = end - start;
        if interruptible && !cost.is_zero() {
            step = step.min(Debts::slice(cost) * PAGE);
        }
        let mut done = start;
        while done < end {
            let next = (done + step).min(end);
            if clear {
                // Nobody else changes a page that is being accepted, and where no memory is, none
                // of it is pending.
                vcpu.fill(done, next - done, 0);
            }
            let pages = (next - done) / PAGE;
            done = next;
            let slept = self.pay(vcpu, cost * pages as u32);
            if slept && interruptible {
                break;
            }
        }
        done
    }

    /// What is done of an accept that was interrupted, in bytes.
    fn take_progress(&self, address: u64) -> u64 {
        lock(&self.progress).remove(&address).unwrap_or(0)
    }

    /// The answer that this call shall get on purpose.
    pub fn fault(&self, call: Call, range: &Range<u64>) -> Option<Answer> {
        let answer = self.injector.answer(call, range)?;
        if call != Call::Accept {
            self.counters.errors.fetch_add(1, Relaxed);
        }
        Some(answer)
    }

    /// Lets a vCPU pay for a call that converts so many bytes.
    pub fn pay_conversion(&self, vcpu: &dyn Vcpu, bytes: u64) {
        self.pay(vcpu, self.options.costs.call);
        self.pay_pages(vcpu, bytes / PAGE);
    }

    /// Lets a vCPU pay for pages that are converted.
    pub fn pay_pages(&self, vcpu: &dyn Vcpu, pages: u64) {
        self.pay(vcpu, self.options.costs.convert * pages as u32);
    }

    /// Lets a vCPU pay; whether it slept.
    fn pay(&self, vcpu: &dyn Vcpu, cost: Duration) -> bool {
        if let Some(own) = self.vcpus.get(vcpu.index()) {
            own.cost_ns.fetch_add(cost.as_nanos() as u64, Relaxed);
        }
        self.debts.pay(vcpu.index(), cost)
    }

    /// What it costs now to accept 4K.
    fn cost_of_page(&self) -> Duration {
        let costs = &self.options.costs;
        costs.accept + costs.idle * self.idle.load(Relaxed) as u32
    }

    /// A vCPU has nothing to do while `sleep` runs.
    pub fn idle(&self, sleep: impl FnOnce()) {
        self.idle.fetch_add(1, Relaxed);
        sleep();
        self.idle.fetch_sub(1, Relaxed);
    }

    /// Notes that a size was refused without a look at the pages.
    pub fn mismatch(&self, vcpu: &dyn Vcpu) {
        self.counters.mismatches.fetch_add(1, Relaxed);
        self.pay(vcpu, self.options.costs.call);
        if let Some(own) = self.vcpus.get(vcpu.index()) {
            own.in_vain.fetch_add(1, Relaxed);
        }
    }

    /// Notes an accept that no guest may ask for.
    pub fn bad_accept(&self, vcpu: &dyn Vcpu, how: Accept, address: u64, size: Size) -> Action {
        let (kind, why) = match how {
            Accept::Duplicate(_) => ("duplicate", "was accepted before"),
            _ => ("illegal", "is not the guest's to accept"),
        };
        let what = format!("{} at {address:#x} {why}", size.name());
        self.violation(
            Some(vcpu.index()),
            vcpu.pc(),
            kind,
            address,
            size.bytes(),
            what,
        )
    }

    /// Notes a change of state that no guest may ask for.
    pub fn illegal(&self, vcpu: &dyn Vcpu, address: u64, size: u64, what: String) -> Action {
        self.counters.illegal.fetch_add(1, Relaxed);
        self.violation(
            Some(vcpu.index()),
            vcpu.pc(),
            "illegal",
            address,
            size,
            what,
        )
    }

    /// Looks at a load or store of a vCPU, if it is known which. `special`: the bit of the page
    /// table entry that says shared or encrypted, where it can be found out.
    pub fn access(
        &self,
        vcpu: Option<usize>,
        access: &Access,
        special: impl FnOnce() -> Option<bool>,
    ) -> Action {
        if let Some(own) = vcpu.and_then(|vcpu| self.vcpus.get(vcpu)) {
            // No other thread writes to it.
            own.checked.store(own.checked.load(Relaxed) + 1, Relaxed);
        }
        let (state, was_shared) = self.pages.history(access.address / PAGE);
        if !state.untouchable() && !was_shared {
            return Action::Native;
        }
        let Access {
            pc,
            address,
            size,
            kind,
        } = *access;
        let why = if state.untouchable() {
            format!("is {state:?}")
        } else {
            let Some(special) = special() else {
                self.failed_lookup();
                return Action::Native;
            };
            let shared = special == (self.options.guest == Guest::Tdx);
            match (shared, state == State::Shared) {
                (true, false) => "is private, by a mapping that says shared".into(),
                (false, true) => "is shared, by a mapping that says private".into(),
                _ => return Action::Native,
            }
        };
        let what = format!(
            "{} of {size} bytes at {address:#x}, which {why}",
            kind.name()
        );
        match self.violation(vcpu, pc, kind.name(), address, size, what) {
            Action::Done => Action::Native,
            other => other,
        }
    }

    /// Counts a load or store of which nobody knows where it went.
    pub fn failed_lookup(&self) {
        self.counters.failed_lookups.fetch_add(1, Relaxed);
    }

    /// Notes which page tables a vCPU is about to use. Their first page has to be the guest's.
    pub fn use_tables(&self, vcpu: &dyn Vcpu, cr3: u64) -> Action {
        if self.started().is_none() || !vcpu.privileged() {
            return Action::Native;
        }
        let tables = Tables::new(cr3, vcpu.get(Register::Cr4));
        if let Some(own) = self.vcpus.get(vcpu.index()) {
            own.tables.store(tables.to_bits(), Relaxed);
        }
        if !self.options.check || !self.state(tables.root()).untouchable() {
            return Action::Native;
        }
        let access = Access {
            pc: vcpu.pc(),
            address: tables.root(),
            size: PAGE,
            kind: Kind::PageTable,
        };
        self.access(Some(vcpu.index()), &access, || None)
    }

    /// The page tables of a vCPU, once they are known.
    pub fn tables(&self, vcpu: usize) -> Option<Tables> {
        let own = self.vcpus.get(vcpu)?;
        Tables::from_bits(own.tables.load(Relaxed))
    }

    fn violation(
        &self,
        vcpu: Option<usize>,
        pc: u64,
        kind: &'static str,
        address: u64,
        size: u64,
        what: String,
    ) -> Action {
        let number = self.counters.violations.fetch_add(1, Relaxed) as usize;
        let who = vcpu.map_or("a vCPU".into(), |vcpu| format!("vCPU {vcpu}"));
        let message = format!("{what}, by {who} at PC {pc:#x}");
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
            lock(&self.list).push(violation);
        }
        if self.options.stop {
            return Action::Stop(Stop::Violation(message));
        }
        if number < self.options.list {
            say(&Stop::Violation(message).message());
        }
        Action::Done
    }

    /// Counts a call, by the name of what is called for.
    pub fn call(&self, name: impl Into<String>) {
        *lock(&self.calls).entry(name.into()).or_default() += 1;
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
                in_vain: get(&own.in_vain),
                cost_ns: get(&own.cost_ns),
                longest_ns: own.latencies.longest_ns(),
                latencies: own.latencies.histogram(),
            })
            .collect();
        let active = vcpus
            .iter()
            .rposition(|own| own.accepts + own.in_vain + own.cost_ns > 0)
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
            interrupted: get(&counters.interrupted),
            in_vain: vcpus.iter().map(|own| own.in_vain).sum(),
            cost_ns: vcpus.iter().map(|own| own.cost_ns).sum(),
            mismatches: get(&counters.mismatches),
            busy: get(&counters.busy),
            errors: get(&counters.errors),
            accept_ns: get(&counters.accept_ns),
            most_in_flight: get(&counters.most_in_flight),
            vcpus: vcpus[..active].to_vec(),
            violation_count: get(&counters.violations),
            violations: lock(&self.list).clone(),
            checked_accesses: self.vcpus.iter().map(|own| get(&own.checked)).sum(),
            failed_lookups: get(&counters.failed_lookups),
            stale_breakpoints: get(&counters.stale_breakpoints),
            calls: lock(&self.calls).clone(),
        }
    }
}

/// To stderr, which may be gone: no reason to panic.
pub fn say(text: &str) {
    let _ = writeln!(stderr(), "{text}");
}

fn pfns(range: &Range<u64>) -> Range<u64> {
    range.start / PAGE..range.end.div_ceil(PAGE)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|error| error.into_inner())
}
