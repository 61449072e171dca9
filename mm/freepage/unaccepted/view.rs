// SPDX-License-Identifier: GPL-2.0

//! The view of the firmware's table, of its calls, and of the blocks of zones: the only place with
//! `unsafe`. What C calls is here, too.
//!
//! All of it may run before there is a slab, and where an allocation may be made: nothing here
//! allocates, and what is locked is locked in `glue.c`, for a few instructions.

use super::{
    accept::{
        self,
        Calls,
        Learnt,
        Level,
        Status, //
    },
    claims::{
        accept_unit,
        Bits,
        Claims,
        Host,
        Word, //
    },
    demand::{
        self,
        Demand,
        Limits,
        Source, //
    },
    stats::{
        Stats,
        Why, //
    },
    table::{
        Header,
        Table,
        UNIT, //
    },
};
use core::{
    cell::Cell,
    ptr::{
        self,
        NonNull, //
    },
    slice,
};
use kernel::{
    bindings,
    ffi::{
        c_int,
        c_long,
        c_uint,
        c_ulong, //
    },
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed, //
        },
        barrier::smp_mb, //
    },
};

impl Word for Atomic<u64> {
    fn load(&self) -> u64 {
        self.load(Acquire)
    }

    fn replace(&self, old: u64, new: u64) -> Result<(), u64> {
        self.cmpxchg(old, new, Full).map(drop)
    }
}

/// Buckets of the table of claims: 16 KiB. Units of 8 PiB have a place.
const BUCKETS: usize = 2048;

static CLAIMS: Claims<Atomic<u64>, BUCKETS> = Claims::new([const { Atomic::new(0) }; BUCKETS]);

static STATS: Stats = Stats::new();

/// Refusals of 2 MiB in a row, see [`Learnt`]. A count that is lost to a race costs one call.
static REFUSALS: Atomic<u32> = Atomic::new(0);

/// Another kernel is about to be started: no unit may stay parked.
static FINISH: Atomic<bool> = Atomic::new(false);

/// The table, after its header has been checked.
struct Firmware {
    table: Table,
    bits: Bits<'static, Atomic<u64>>,
    tdx: bool,
    why: Why,
    may_sleep: bool,
    /// When the section began.
    begin: Cell<u64>,
    /// Answers in a row that the module is busy.
    busy: Cell<u32>,
}

impl Firmware {
    /// The table, if there is one.
    fn get(why: Why, may_sleep: bool) -> Option<Self> {
        // SAFETY: Only looks at whether there is a table.
        let raw = NonNull::new(unsafe { bindings::unaccepted_table() })?;
        // SAFETY: The table is mapped, was checked by `unaccepted_check()`, and its header does not
        // change.
        let header = unsafe { header(raw.as_ptr()) };
        let table = Table::checked(&header);
        // SAFETY: The bitmap follows the header in the same allocation.
        let words = unsafe { ptr::addr_of!((*raw.as_ptr()).bitmap) }.cast::<Atomic<u64>>();
        let len = table.units().div_ceil(64) as usize;
        // SAFETY: The table is reserved and mapped up to the end of its last page, which the last
        // word is in since it is aligned, as `unaccepted_check()` saw. `Atomic<u64>` is
        // transparent, and from boot on nobody changes the words by other means.
        let words = unsafe { slice::from_raw_parts(words, len) };
        Some(Self {
            table,
            bits: Bits::new(words),
            // SAFETY: Only looks at a feature of the CPU.
            tdx: unsafe { bindings::unaccepted_is_tdx() },
            why,
            may_sleep,
            begin: Cell::new(0),
            busy: Cell::new(0),
        })
    }

    /// Accepts memory that is the caller's alone; whether all of it is zero now.
    ///
    /// The TDX module clears what it accepts. That tells nothing of a unit that was accepted
    /// before, as a guard or by the firmware: somebody may have written to it. PVALIDATE does not
    /// clear.
    fn accept_own(&self, start: u64, size: u64) -> bool {
        let units = self.table.units_in(start, size);
        let unaccepted = units.is_some_and(|mut units| units.all(|unit| self.bits.test(unit)));
        self.accept(start, size);
        self.tdx && unaccepted
    }

    /// The node of a unit that is online; negative if it is not.
    fn node(&self, unit: u64) -> i32 {
        // SAFETY: Any address can be asked for.
        unsafe { bindings::unaccepted_node(self.table.address(unit)) }
    }

    /// The node that a unit is needed by: its own, or, as it is a guard, that of the unit before;
    /// negative if neither is online.
    fn needed_by(&self, unit: u64) -> i32 {
        match self.node(unit) {
            own if own < 0 => unit.checked_sub(1).map_or(own, |before| self.node(before)),
            own => own,
        }
    }

    /// Whether anything of this memory, or its guard, is unaccepted.
    fn has_unaccepted(&self, start: u64, size: u64) -> bool {
        let mut units = self.table.units_of(start, size);
        units.any(|unit| self.bits.test(unit))
    }

    fn accept(&self, start: u64, size: u64) {
        for unit in self.table.units_of(start, size) {
            if !self.bits.test(unit) {
                continue;
            }
            if accept_unit(&CLAIMS, self.bits, self, unit) {
                STATS.waited();
            }
        }
    }
}

/// Reads a header.
///
/// # Safety
///
/// `raw` is valid for reads of the header.
unsafe fn header(raw: *const bindings::efi_unaccepted_memory) -> Header {
    // SAFETY: By the safety requirement; it may be at any address.
    unsafe {
        Header {
            version: ptr::addr_of!((*raw).version).read_unaligned(),
            unit_size: ptr::addr_of!((*raw).unit_size).read_unaligned(),
            phys_base: ptr::addr_of!((*raw).phys_base).read_unaligned(),
            size: ptr::addr_of!((*raw).size).read_unaligned(),
        }
    }
}

impl Calls for Firmware {
    fn call(&self, address: u64, level: Level) -> Status {
        // SAFETY: The caller has the claim of a unit that this memory is in, so that nobody uses
        // the memory, or accepts it.
        let answer = unsafe { bindings::unaccepted_call(address, level == Level::Large) };
        let status = Status::of_tdx(answer);
        STATS.called(level, status);
        if status != Status::Busy {
            self.busy.set(0);
            return status;
        }
        let busy = self.busy.get() + 1;
        self.busy.set(busy);
        core::hint::spin_loop();
        match busy < accept::BUSY {
            true => status,
            false => Status::Failed(answer),
        }
    }

    fn fail(&self, address: u64, level: Level, status: u64) -> ! {
        // SAFETY: Always safe to call; it panics.
        unsafe { bindings::unaccepted_fail(address, level == Level::Large, status) };
        loop {
            core::hint::spin_loop();
        }
    }

    fn now(&self) -> u64 {
        clock()
    }

    fn must_finish(&self) -> bool {
        FINISH.load(Relaxed)
    }
}

impl Host for Firmware {
    fn section<R>(&self, section: impl FnOnce() -> R) -> R {
        // SAFETY: Restored below, on the same CPU.
        let flags = unsafe { bindings::unaccepted_irq_save() };
        let result = section();
        // SAFETY: These flags were saved above.
        unsafe { bindings::unaccepted_irq_restore(flags) };
        // SAFETY: Allowed in this context, as `may_sleep` says.
        unsafe { bindings::unaccepted_breathe(self.may_sleep) };
        result
    }

    fn accept(&self, unit: u64, from: u32) -> u32 {
        let start = self.table.address(unit);
        self.begin.set(clock());
        let step = if self.tdx {
            let learnt = Learnt(REFUSALS.load(Relaxed));
            let (step, now) = accept::section(self, learnt, start, from);
            if now != learnt {
                REFUSALS.store(now.0, Relaxed);
            }
            step
        } else {
            // In one go: the architecture's code knows no other way.
            match self.call(start, Level::Large) {
                Status::Failed(status) => self.fail(start, Level::Large, status),
                _ => super::claims::STEPS,
            }
        };
        let took = clock().wrapping_sub(self.begin.get());
        STATS.section(self.why, step - from, took);
        // SAFETY: The tracepoint takes plain values.
        unsafe { trace::unaccepted_accept(start, from, step, took) };
        step
    }

    fn done(&self) {
        // SAFETY: Allowed in a section.
        unsafe { bindings::unaccepted_unit_done() };
    }

    fn relax(&self, time: u32) {
        // SAFETY: Allowed in this context, as `may_sleep` says.
        unsafe { bindings::unaccepted_relax(time, self.may_sleep) };
    }
}

/// Time in ns, for differences.
fn clock() -> u64 {
    // SAFETY: Allowed in every context.
    unsafe { bindings::unaccepted_clock() }
}

fn may_sleep() -> bool {
    // SAFETY: Only looks at the context.
    unsafe { bindings::unaccepted_may_sleep() }
}

mod trace {
    kernel::tracepoint::declare_trace! {
        /// # Safety
        ///
        /// Always safe to call.
        pub(super) unsafe fn unaccepted_accept(start: u64, from: u32, to: u32, took: u64);
        /// # Safety
        ///
        /// Always safe to call.
        pub(super) unsafe fn unaccepted_stall(took: u64, must: bool);
    }
}

/// A block that is in flight, and the caller's.
struct Block(NonNull<bindings::page>);

/// Accepts a block, and gives it to the free lists.
fn land(block: Block, why: Why, may_sleep: bool) {
    let mut size: c_ulong = 0;
    // SAFETY: The page is the first one of a block.
    let start = unsafe { bindings::unaccepted_block(block.0.as_ptr(), &mut size) };
    let firmware = Firmware::get(why, may_sleep);
    let zeroed = firmware.is_some_and(|firmware| firmware.accept_own(start, size as u64));
    // SAFETY: The block is in flight and the caller's, who gives it up; it has been accepted.
    unsafe { bindings::unaccepted_landed(block.0.as_ptr(), zeroed) };
}

struct Zone {
    raw: *mut bindings::zone,
    may_sleep: bool,
}

impl Source for Zone {
    type Block = Block;

    const PAGES: i64 = 1 << bindings::UNACCEPTED_BLOCK_ORDER;

    fn take(&self) -> Option<Block> {
        // SAFETY: By construction this is a zone.
        NonNull::new(unsafe { bindings::unaccepted_take(self.raw) }).map(Block)
    }

    fn accept(&self, block: Block, why: Why) {
        land(block, why, self.may_sleep);
    }

    fn in_flight(&self) -> i64 {
        // SAFETY: By construction this is a zone.
        i64::from(unsafe { bindings::unaccepted_in_flight(self.raw) })
    }

    fn landed(&self) -> u32 {
        // SAFETY: By construction this is a zone.
        unsafe { bindings::unaccepted_nr_landed(self.raw) }
    }

    fn wait(&self, before: u32) {
        // SAFETY: By construction this is a zone; the caller may sleep.
        unsafe { bindings::unaccepted_wait(self.raw, before) };
    }
}

/// The zones of a node, for those that may sleep and want all that there is.
struct Node(i32);

impl Source for Node {
    type Block = Block;

    const PAGES: i64 = Zone::PAGES;

    fn take(&self) -> Option<Block> {
        // SAFETY: By construction this is a node that is online.
        NonNull::new(unsafe { bindings::unaccepted_take_node(self.0) }).map(Block)
    }

    fn accept(&self, block: Block, why: Why) {
        land(block, why, true);
    }

    fn in_flight(&self) -> i64 {
        0
    }

    fn landed(&self) -> u32 {
        0
    }

    fn wait(&self, _: u32) {}
}

/// A search for the units of a node, which several go on with. It counts on where the units end,
/// and begins anew there.
struct Search {
    /// What is looked at next.
    next: Atomic<u64>,
    /// Where one was found last, or where the search began.
    found: Atomic<u64>,
}

static SEARCHES: [Search; bindings::MAX_NUMNODES as usize] = [const {
    Search {
        next: Atomic::new(0),
        found: Atomic::new(0),
    }
}; bindings::MAX_NUMNODES as usize];

/// The units of a node that are unaccepted and in the free lists, for those that may sleep and want
/// all that there are. Whoever allocates from a unit accepts it, too.
struct Units {
    node: i32,
    firmware: Firmware,
}

impl Source for Units {
    type Block = u64;

    const PAGES: i64 = Zone::PAGES;

    fn take(&self) -> Option<u64> {
        let search = SEARCHES.get(usize::try_from(self.node).ok()?)?;
        let units = self.firmware.table.units();

        loop {
            let at = search.next.fetch_add(1, Relaxed);
            // Each unit is looked at once since, by whomever.
            if at.wrapping_sub(search.found.load(Relaxed)) > units {
                return None;
            }
            let unit = at.checked_rem(units)?;
            if self.firmware.bits.test(unit) && self.firmware.needed_by(unit) == self.node {
                search.found.store(at, Relaxed);
                return Some(unit);
            }
        }
    }

    fn accept(&self, unit: u64, _: Why) {
        // With its guard, as of all memory that may be used from then on.
        self.firmware
            .accept(self.firmware.table.address(unit), UNIT);
    }

    fn in_flight(&self) -> i64 {
        0
    }

    fn landed(&self) -> u32 {
        0
    }

    fn wait(&self, _: u32) {}
}

fn why(why: bindings::unaccepted_why) -> Why {
    match why {
        bindings::unaccepted_why_UNACCEPTED_BOOT => Why::Boot,
        bindings::unaccepted_why_UNACCEPTED_ALLOCATION => Why::Allocation,
        bindings::unaccepted_why_UNACCEPTED_BACKGROUND => Why::Background,
        _ => Why::Request,
    }
}

/// On whose behalf memory is accepted that is no block.
fn why_now() -> Why {
    // SAFETY: Only looks at how far the system has come.
    match unsafe { bindings::unaccepted_booting() } {
        true => Why::Boot,
        false => Why::Request,
    }
}

/// Checks the table that the firmware left, and says what is wrong with it.
///
/// Returns whether it can be used.
///
/// # Safety
///
/// Called at boot, once, before anything of the table is used. `raw` points to a copy or a mapping
/// of its header.
#[export]
pub(crate) unsafe extern "C" fn unaccepted_check(
    address: u64,
    raw: *const bindings::efi_unaccepted_memory,
) -> bool {
    // SAFETY: By the safety requirement.
    let header = unsafe { header(raw) };
    // SAFETY: Only looks at a property of the CPU.
    let limit = unsafe { bindings::unaccepted_phys_limit() };
    let places = Claims::<Atomic<u64>, BUCKETS>::UNITS;
    match Table::check(&header, address, limit, places) {
        Ok(_) => true,
        Err(refused) => {
            let (what, value) = refused.why();
            pr_err!("refused the firmware's table of unaccepted memory: {what} {value:#x}\n");
            pr_err!(
                "memory that was not accepted before cannot be used: expect the guest to die\n"
            );
            false
        }
    }
}

/// Makes sure that memory is accepted, and its guard: what is not is accepted now.
///
/// `start` and `size` are in bytes. Memory that the bitmap is not about is accepted already.
///
/// # Safety
///
/// Not called from NMI. Nobody uses memory of the range.
#[export]
pub(crate) unsafe extern "C" fn accept_memory(start: bindings::phys_addr_t, size: c_ulong) {
    if let Some(firmware) = Firmware::get(why_now(), may_sleep()) {
        firmware.accept(start, size as u64);
    }
}

/// Whether anything of this memory, or its guard, is unaccepted. Takes no lock.
///
/// # Safety
///
/// Always safe to call.
#[export]
pub(crate) unsafe extern "C" fn range_contains_unaccepted_memory(
    start: bindings::phys_addr_t,
    size: c_ulong,
) -> bool {
    Firmware::get(Why::Boot, false)
        .is_some_and(|firmware| firmware.has_unaccepted(start, size as u64))
}

/// Accepts a block of `zone` for an allocation, if there is need; whether to try the zone again.
///
/// # Safety
///
/// `zone` is a zone that is populated; its lock is not held. With `may_sleep` the caller may sleep.
#[export]
pub(crate) unsafe extern "C" fn unaccepted_replenish(
    zone: *mut bindings::zone,
    shortage: c_long,
    must: bool,
    may_sleep: bool,
) -> bool {
    let begin = clock();
    let zone = Zone {
        raw: zone,
        may_sleep,
    };
    let demand = Demand {
        shortage: shortage as i64,
        must,
        may_sleep,
    };
    let again = demand::replenish(&zone, demand);
    if again {
        let took = clock().wrapping_sub(begin);
        STATS.stalled(took);
        // SAFETY: The tracepoint takes plain values.
        unsafe { trace::unaccepted_stall(took, must) };
    }
    again
}

/// Accepts a block that was taken, and gives it to the free lists.
///
/// # Safety
///
/// `page` came from a function that takes blocks, and the caller gives it up. May sleep.
#[export]
pub(crate) unsafe extern "C" fn unaccepted_accept_block(
    page: *mut bindings::page,
    on_behalf: bindings::unaccepted_why,
) {
    if let Some(page) = NonNull::new(page) {
        land(Block(page), why(on_behalf), true);
    }
}

/// Accepts memory that was just allocated, where it was in the free lists unaccepted; whether all
/// of it is zero now.
///
/// # Safety
///
/// Not called from NMI. The memory is the caller's; with `blocking` the caller may sleep, as far as
/// it knows.
#[export]
pub(crate) unsafe extern "C" fn unaccepted_accept_allocated(
    start: bindings::phys_addr_t,
    size: c_ulong,
    blocking: bool,
) -> bool {
    let Some(mut firmware) = Firmware::get(Why::Allocation, false) else {
        return false;
    };
    if !firmware.has_unaccepted(start, size as u64) {
        return false;
    }
    let begin = clock();
    firmware.may_sleep = blocking && may_sleep();
    let zeroed = firmware.accept_own(start, size as u64);
    let took = clock().wrapping_sub(begin);
    STATS.stalled(took);
    // SAFETY: The tracepoint takes plain values.
    unsafe { trace::unaccepted_stall(took, true) };
    zeroed
}

/// How many units are unaccepted, of those that are online, or guards of such.
///
/// # Safety
///
/// Nothing goes offline meanwhile.
#[export]
pub(crate) unsafe extern "C" fn unaccepted_count() -> c_ulong {
    let Some(firmware) = Firmware::get(Why::Request, false) else {
        return 0;
    };
    let left = |unit: &u64| firmware.bits.test(*unit) && firmware.needed_by(*unit) >= 0;
    (0..firmware.table.units()).filter(left).count()
}

/// Accepts a block or unit of a node; false if none is left.
///
/// # Safety
///
/// The node is online, and nothing goes offline meanwhile. May sleep.
#[export]
pub(crate) unsafe extern "C" fn unaccepted_advance(
    nid: c_int,
    on_behalf: bindings::unaccepted_why,
) -> bool {
    let why = why(on_behalf);
    // SAFETY: Only looks at the mode.
    if !unsafe { bindings::unaccepted_is_free() } {
        return demand::advance(&Node(nid), why);
    }
    Firmware::get(why, true).is_some_and(|firmware| {
        let units = Units {
            node: nid,
            firmware,
        };
        demand::advance(&units, why)
    })
}

/// Units are to be searched for: what was not found before may be there now.
///
/// # Safety
///
/// Always safe to call.
#[export]
pub(crate) unsafe extern "C" fn unaccepted_search_anew() {
    for search in &SEARCHES {
        search.found.store(search.next.load(Relaxed), Relaxed);
    }
}

/// How long the background pauses after `bytes` were accepted in `took` ns; in ns.
///
/// # Safety
///
/// Always safe to call.
#[export]
pub(crate) unsafe extern "C" fn unaccepted_pause(
    bytes: u64,
    took: u64,
    share: c_uint,
    rate: c_uint,
) -> u64 {
    Limits { share, rate }.pause(bytes, took)
}

/// Sees to it that no unit is accepted in part, from now on: another kernel is to be started, which
/// gets to know whole units only.
///
/// # Safety
///
/// Called where the system is shut down, in task context.
#[export]
pub(crate) unsafe extern "C" fn unaccepted_finish() {
    FINISH.store(true, Relaxed);
    // Pairs with the exchange that takes a claim: either that is seen below, or its section sees
    // what was just stored.
    smp_mb(Full);
    if let Some(firmware) = Firmware::get(Why::Request, false) {
        for unit in CLAIMS.units() {
            accept_unit(&CLAIMS, firmware.bits, &firmware, unit);
        }
    }
}

/// A statistic, see `enum unaccepted_stat`.
///
/// # Safety
///
/// Always safe to call.
#[export]
pub(crate) unsafe extern "C" fn unaccepted_stat(stat: c_uint) -> u64 {
    match stat {
        bindings::unaccepted_stat_UNACCEPTED_CALLS_4K => STATS.calls(Level::Small),
        bindings::unaccepted_stat_UNACCEPTED_CALLS_2M => STATS.calls(Level::Large),
        bindings::unaccepted_stat_UNACCEPTED_IN_VAIN => STATS.in_vain(),
        bindings::unaccepted_stat_UNACCEPTED_WAITS => STATS.waits(),
        bindings::unaccepted_stat_UNACCEPTED_STALL => STATS.longest_stall(),
        bindings::unaccepted_stat_UNACCEPTED_SECTION => STATS.longest_section(),
        stat if stat < bindings::unaccepted_stat_UNACCEPTED_CALLS_4K => STATS.bytes(why(stat)),
        stat => {
            let bucket = stat - bindings::unaccepted_stat_UNACCEPTED_STALLS;
            STATS.stalls().get(bucket as usize).copied().unwrap_or(0)
        }
    }
}
