// SPDX-License-Identifier: GPL-2.0

//! The view of the device that free pages are reported to, and what C calls.
//!
//! The interface is that of `mm/page_reporting.c`: see `include/linux/page_reporting.h`. Decisions
//! are in [`super::policy`], [`super::device`] and [`crate::runner`].
//!
//! Lock order: [`REGISTERED`], then [`JOB`], then what [`crate::zone`] takes. A pass takes only
//! [`JOB`], so that whoever holds [`REGISTERED`] can wait for it.

use super::{
    device::{
        Passes,
        Registered, //
    },
    policy::{
        Host,
        Reporting, //
    },
};
use crate::{
    map::Run,
    primitives::Kind,
    runner::{
        Delay,
        Job,
        Runner, //
    },
    zone,
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    sync::{
        atomic::Relaxed,
        global_lock, //
    },
};

type RawDevice = bindings::page_reporting_dev_info;

/// A driver's device.
///
/// # Invariants
///
/// It is valid, with `report` set, until it is unregistered.
#[derive(Clone, Copy, PartialEq)]
struct Device(NonNull<RawDevice>);

// SAFETY: The driver's functions may be called from any task.
unsafe impl Send for Device {}

impl Device {
    /// The most entries that a report to it has.
    fn capacity(self) -> usize {
        // SAFETY: By the type invariant; only whoever starts to report to it gets here.
        let capacity = unsafe { &mut (*self.0.as_ptr()).capacity };

        *capacity = match *capacity {
            0 => bindings::PAGE_REPORTING_CAPACITY,
            capacity => capacity.min(bindings::PAGE_REPORTING_CAPACITY),
        };
        *capacity as usize
    }

    /// The order that is reported: what the user has chosen, or else the device.
    fn order(self) -> u32 {
        // SAFETY: By the type invariant.
        let preferred = unsafe { (*self.0.as_ptr()).order };
        // SAFETY: Process context.
        unsafe { bindings::freepage_reporting_order(preferred) }
    }
}

/// A device with what is needed to call it.
///
/// # Invariants
///
/// `device` is registered, and `entries` are an initialized table.
struct Reporter {
    device: Device,
    entries: KVec<bindings::scatterlist>,
}

impl Reporter {
    fn new(device: Device) -> Result<Self> {
        let capacity = device.capacity();
        // SAFETY: A zeroed `scatterlist` is valid, though not initialized.
        let mut entries = KVec::from_elem(unsafe { core::mem::zeroed() }, capacity, GFP_KERNEL)?;
        // SAFETY: There are as many elements.
        unsafe { bindings::sg_init_table(entries.as_mut_ptr(), capacity as u32) };
        // INVARIANT: Just initialized; the caller registers the device.
        Ok(Self { device, entries })
    }
}

impl Host for Reporter {
    fn report(&mut self, runs: &[Run]) -> Result {
        // The end of the list is that of the table, so that it is marked once.
        let unused = self.entries.len() - runs.len();
        let entries = &mut self.entries[unused..];
        let pages = runs.iter().map(Run::pages).sum();
        let device = self.device.0.as_ptr();

        // SAFETY: By the type invariant the entries are initialized, and there are as many as runs,
        // which are isolated from a zone.
        unsafe { bindings::freepage_set_sgs(entries.as_mut_ptr(), Run::as_raw(runs), runs.len()) };
        // SAFETY: By the type invariants the device is valid.
        let report = unsafe { (*device).report }.ok_or(ENODEV)?;
        // SAFETY: The driver gets its own device and as many entries as are initialized.
        let error = unsafe { report(device, entries.as_mut_ptr(), runs.len() as u32) };
        // SAFETY: The tracepoint takes plain values.
        unsafe { trace::page_reporting_report(runs.len() as u32, pages, error) };
        to_result(error)
    }
}

mod trace {
    kernel::tracepoint::declare_trace! {
        /// # Safety
        ///
        /// Always safe to call.
        pub(super) unsafe fn page_reporting_begin(order: u32);
        /// # Safety
        ///
        /// Always safe to call.
        pub(super) unsafe fn page_reporting_end(pages: usize, again: bool);
        /// # Safety
        ///
        /// Always safe to call.
        pub(super) unsafe fn page_reporting_report(entries: u32, pages: usize, error: i32);
    }
}

global_lock! {
    // SAFETY: Initialized by `init()`, from an initcall before those of drivers.
    unsafe(uninit) static REGISTERED: Mutex<Registered<Device>> = Registered::new();
}

global_lock! {
    // SAFETY: Initialized by `init()`, from an initcall before those of drivers.
    unsafe(uninit) static JOB: Mutex<Option<Job<Reporting<Reporter>>>> = None;
}

static RUNNER: Runner = Runner::new(Kind::Reporting, delay);

fn delay() -> Delay {
    Delay {
        // SAFETY: Reads a variable.
        ms: unsafe { bindings::freepage_reporting_delay_ms() },
        // SAFETY: Reads a variable.
        adapts: unsafe { bindings::freepage_reporting_adapts() },
    }
}

/// Initializes the locks.
///
/// # Safety
///
/// Called once, before any driver registers.
pub(crate) unsafe fn init() {
    // SAFETY: By the safety requirement neither lock is initialized or used yet.
    unsafe {
        REGISTERED.init();
        JOB.init();
    }
}

/// The passes that are made by [`RUNNER`].
struct Reports;

impl Passes<Device> for Reports {
    fn start(&self, device: &Device) -> Result {
        let order = device.order();
        let host = Reporter::new(*device)?;
        let capacity = host.entries.len();

        *JOB.lock() = Some(Job::new(Reporting { host, order }, capacity)?);
        // SAFETY: The device is valid, and its work is not in use: nothing is started.
        unsafe {
            let work = &raw mut (*device.0.as_ptr()).work;
            bindings::freepage_init_work(Kind::Reporting.as_raw(), work);
        }
        RUNNER.start(order).inspect_err(|_| *JOB.lock() = None)
    }

    fn stop(&self) {
        RUNNER.stop();
        *JOB.lock() = None;
    }

    fn forget(&self) {
        RUNNER.forget();
    }
}

/// A hook of the page allocator wants a pass. Any context; no zone lock is held.
pub(crate) fn request() {
    RUNNER.request();
}

/// Makes a pass over all zones, as work.
pub(crate) fn pass() {
    let mut job = JOB.lock();
    let Some(job) = job.as_mut() else {
        return;
    };
    let pages = RUNNER.stats().pages.load(Relaxed);

    let again = RUNNER.pass(job, |reporting| {
        reporting.order = reporting.host.device.order();
        RUNNER.set_order(reporting.order);
        // SAFETY: The tracepoint takes plain values.
        unsafe { trace::page_reporting_begin(reporting.order) };
    });
    let Some(again) = again else {
        return;
    };
    let pages = RUNNER.stats().pages.load(Relaxed) - pages;
    // SAFETY: The tracepoint takes plain values.
    unsafe { trace::page_reporting_end(pages as usize, again) };
}

/// Registers a device that free pages are reported to.
///
/// Returns `-EBUSY` if there is one, `-EOPNOTSUPP` in a confidential guest that cannot get a page
/// back as it needs it, `-ENOMEM` if there is no memory. The first pass, over all free pages, runs
/// after the usual delay.
///
/// # Safety
///
/// `device` is valid until it is unregistered, with `report` set. Process context; may sleep.
#[export]
pub(crate) unsafe extern "C" fn page_reporting_register(device: *mut RawDevice) -> c_int {
    // SAFETY: Asks for a property of the guest.
    if unsafe { bindings::freepage_reporting_refused() } {
        pr_warn!(
            "free page reporting refused: this confidential guest cannot use reported pages again\n"
        );
        return EOPNOTSUPP.to_errno();
    }
    let Some(device) = NonNull::new(device) else {
        return EINVAL.to_errno();
    };

    // INVARIANT: By the safety requirement.
    match REGISTERED.lock().register(Device(device), &Reports) {
        Ok(()) => {
            pr_info!("free page reporting enabled\n");
            0
        }
        Err(error) => error.to_errno(),
    }
}

/// Unregisters a device, and waits for a pass that runs. Does nothing if it is not registered.
///
/// # Safety
///
/// `device` is valid. Process context; may sleep. The caller holds nothing that `report` takes.
#[export]
pub(crate) unsafe extern "C" fn page_reporting_unregister(device: *mut RawDevice) {
    if let Some(device) = NonNull::new(device) {
        // INVARIANT: By the safety requirement.
        REGISTERED.lock().unregister(&Device(device), &Reports);
    }
}

/// Another order is to be reported: makes the next pass look at all pages.
///
/// What is reported stays so. Of a lower order, free blocks that were too small are reported; of
/// a higher one, units of which only a part is.
///
/// # Safety
///
/// Process context; may sleep. May be called before [`init`].
#[export]
pub(crate) unsafe extern "C" fn freepage_reporting_order_changed() {
    RUNNER.revisit(|| REGISTERED.lock());
}

/// The delay was changed: applies it to a pass that is queued.
///
/// # Safety
///
/// Process context; may sleep. May be called before [`init`].
#[export]
pub(crate) unsafe extern "C" fn freepage_reporting_delay_changed() {
    RUNNER.delay_changed(|| REGISTERED.lock());
}

/// Whether the user wants reporting.
///
/// # Safety
///
/// Process context; may sleep.
#[export]
pub(crate) unsafe extern "C" fn freepage_reporting_is_enabled() -> bool {
    REGISTERED.lock().is_enabled()
}

/// Starts or stops reporting to the device, now or when one registers.
///
/// Returns `-ENOMEM` if there is no memory to start.
///
/// # Safety
///
/// Process context; may sleep.
#[export]
pub(crate) unsafe extern "C" fn freepage_reporting_set_enabled(enabled: bool) -> c_int {
    match REGISTERED.lock().set_enabled(enabled, &Reports) {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}

/// Reports what is free now, up to so many pages.
///
/// Returns 0 when that is done, or nothing is left; `-ENODEV` if nobody takes reports, `-EINTR` on
/// a signal, or the device's error. What was reported by then stays so.
///
/// # Safety
///
/// Process context; may sleep.
#[export]
pub(crate) unsafe extern "C" fn freepage_reporting_flush(pages: usize) -> c_int {
    let mut job = JOB.lock();

    let result = match job.as_mut() {
        Some(job) => RUNNER.flush(job, pages),
        None => Err(ENODEV),
    };
    result.map_or_else(|error| error.to_errno(), |()| 0)
}

/// A figure for `/sys/kernel/mm/page_reporting/`.
///
/// # Safety
///
/// Process context; may sleep.
#[export]
pub(crate) unsafe extern "C" fn freepage_reporting_stat(
    stat: bindings::freepage_reporting_stat,
) -> u64 {
    let stats = RUNNER.stats();

    let value = match stat {
        bindings::freepage_reporting_stat_FREEPAGE_REPORTING_BYTES => {
            stats.pages.load(Relaxed) * kernel::page::PAGE_SIZE as i64
        }
        bindings::freepage_reporting_stat_FREEPAGE_REPORTING_REPORTS => stats.batches.load(Relaxed),
        bindings::freepage_reporting_stat_FREEPAGE_REPORTING_FAILURES => {
            stats.failures.load(Relaxed)
        }
        bindings::freepage_reporting_stat_FREEPAGE_REPORTING_PASSES => stats.passes.load(Relaxed),
        bindings::freepage_reporting_stat_FREEPAGE_REPORTING_BACKOFF => RUNNER.backoff_ms().into(),
        _ => zone::longest_hold_ns(Kind::Reporting),
    };
    value as u64
}

/// Nothing is known about the host's memory any more: reports all free pages anew.
///
/// # Safety
///
/// Process context; may sleep.
#[export]
pub(crate) unsafe extern "C" fn freepage_reporting_forget() {
    REGISTERED.lock().forget(&Reports);
}
