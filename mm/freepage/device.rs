// SPDX-License-Identifier: GPL-2.0

//! The device that free pages are reported to: registration, and when passes run.
//!
//! The interface is that of `mm/page_reporting.c`: see `include/linux/page_reporting.h`. Reporting
//! runs while a device is registered and `enabled` is set.
//!
//! Lock order: [`REGISTERED`], then [`PASS`], then what [`crate::zone`] takes. A pass takes only
//! [`PASS`], so that whoever holds [`REGISTERED`] can wait for it.

use crate::{
    map::Run,
    reporting::{
        Host,
        Reporting, //
    },
    worker::{
        self,
        Batch,
        Worker, //
    },
    zone::{
        self,
        Zone, //
    },
};
use core::ptr;
use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        global_lock, //
    },
};

type RawDevice = bindings::page_reporting_dev_info;

/// The registered device, with what is needed to call it.
///
/// # Invariants
///
/// `raw` is registered, and its work is initialized.
struct Device {
    raw: *mut RawDevice,
    entries: KVec<bindings::scatterlist>,
}

// SAFETY: The driver's functions may be called from any task, and `raw` is used by one at a time.
unsafe impl Send for Device {}

impl Host for Device {
    fn report(&mut self, runs: &[Run]) -> Result {
        // The end of the list is that of the table, so that it is marked once.
        let unused = self.entries.len() - runs.len();
        let entries = &mut self.entries[unused..];
        let pages = runs.iter().map(Run::pages).sum();

        // SAFETY: `start()` initialized the entries, and there are as many as runs, which are
        // isolated from a zone.
        unsafe { bindings::freepage_set_sgs(entries.as_mut_ptr(), Run::as_raw(runs), runs.len()) };
        // SAFETY: By the type invariant the device is registered; its driver set `report` before.
        let report = unsafe { (*self.raw).report }.ok_or(ENODEV)?;
        // SAFETY: The driver gets its own device and as many entries as are initialized.
        let error = unsafe { report(self.raw, entries.as_mut_ptr(), runs.len() as u32) };
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

/// What a pass needs, allocated when reporting starts so that it never fails later.
struct Pass {
    reporting: Reporting<Device>,
    batch: Batch,
}

/// Who registered, and whether the user wants reporting.
struct Registered {
    device: *mut RawDevice,
    enabled: bool,
}

// SAFETY: The pointer may be used by any task that holds the lock.
unsafe impl Send for Registered {}

global_lock! {
    // SAFETY: Initialized by `init()`, from an initcall before those of drivers.
    unsafe(uninit) static REGISTERED: Mutex<Registered> = Registered {
        device: ptr::null_mut(),
        enabled: true,
    };
}

global_lock! {
    // SAFETY: Initialized by `init()`, from an initcall before those of drivers.
    unsafe(uninit) static PASS: Mutex<Option<Pass>> = None;
}

static WORKER: Worker = Worker::new();

/// The device whose work runs passes, null while reporting is stopped.
///
/// Set before the first request can come, and cleared after the last: the hooks request while a
/// zone is tracked, see `freepage_reporting_sync()`, everyone else with [`REGISTERED`] held.
static QUEUE: Atomic<*mut RawDevice> = Atomic::new(ptr::null_mut());

/// Whether the next pass has to look at all pages, since another order is reported.
static REVISIT: Atomic<bool> = Atomic::new(false);

/// Initializes the locks.
///
/// # Safety
///
/// Called once, before any driver registers.
pub(crate) unsafe fn init() {
    // SAFETY: By the safety requirement neither lock is initialized or used yet.
    unsafe {
        REGISTERED.init();
        PASS.init();
    }
}

fn delay_ms() -> u32 {
    // SAFETY: Reads a variable.
    unsafe { bindings::freepage_reporting_delay_ms() }
}

/// Queues the next pass with the delay that is in force.
fn queue() {
    // Acquire: pairs with `start()`, which initialized the work before.
    let device = QUEUE.load(Acquire);

    if !device.is_null() {
        // SAFETY: While `QUEUE` names it, the device is registered and its work is initialized.
        unsafe { bindings::freepage_reporting_queue(device, WORKER.delay_ms(delay_ms())) };
    }
}

fn set_enabled(enabled: bool) {
    // SAFETY: Called from process context, and no lock is held under which one must not sleep.
    unsafe { bindings::freepage_set_enabled(enabled) };
}

/// Starts to report to `device`: tracks all zones, with all free pages to be reported.
///
/// # Safety
///
/// `device` is a driver's, stays valid until [`stop`], and no reporting is started.
unsafe fn start(device: *mut RawDevice) -> Result {
    // SAFETY: By the safety requirement `device` is valid, and not in use yet.
    let (order, capacity) = unsafe {
        let capacity = match (*device).capacity {
            0 => bindings::PAGE_REPORTING_CAPACITY,
            capacity => capacity.min(bindings::PAGE_REPORTING_CAPACITY),
        };
        (*device).capacity = capacity;
        (
            bindings::freepage_reporting_order((*device).order),
            capacity as usize,
        )
    };
    // SAFETY: A zeroed `scatterlist` is valid, though not initialized.
    let mut entries = KVec::from_elem(unsafe { core::mem::zeroed() }, capacity, GFP_KERNEL)?;
    // SAFETY: There are as many elements.
    unsafe { bindings::sg_init_table(entries.as_mut_ptr(), capacity as u32) };
    // INVARIANT: The caller registers the device; its work is initialized below, before it runs.
    let host = Device {
        raw: device,
        entries,
    };
    let pass = Pass {
        reporting: Reporting { host, order },
        batch: Batch::new(capacity)?,
    };

    zone::track()?;
    // SAFETY: By the safety requirement `device` is valid, and its work is not in use.
    unsafe { bindings::freepage_reporting_init_work(device) };
    *PASS.lock() = Some(pass);
    WORKER.reset();
    // Release: pairs with `queue()`.
    QUEUE.store(device, Release);
    set_enabled(true);
    if WORKER.request() {
        queue();
    }
    Ok(())
}

/// Stops to report to `device`, and waits for a pass that runs.
///
/// # Safety
///
/// [`start`] was called for `device`.
unsafe fn stop(device: *mut RawDevice) {
    set_enabled(false);
    // No zone is tracked after this, so no hook requests a pass.
    zone::untrack();
    // SAFETY: Called from process context.
    unsafe { bindings::freepage_reporting_sync() };
    QUEUE.store(ptr::null_mut(), Relaxed);
    // SAFETY: By the safety requirement the work is initialized. It takes none of our locks but
    // `PASS`. It may queue itself no more, since `QUEUE` is null.
    unsafe { bindings::cancel_delayed_work_sync(&mut (*device).work) };
    *PASS.lock() = None;
    WORKER.reset();
}

/// Registers a device that free pages are reported to.
///
/// Returns `-EBUSY` if there is one, `-EOPNOTSUPP` in a confidential guest that cannot get a page
/// back, `-ENOMEM` if there is no memory. The first pass, over all free pages, runs after the usual
/// delay.
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

    let mut registered = REGISTERED.lock();
    if !registered.device.is_null() {
        return EBUSY.to_errno();
    }
    if registered.enabled {
        // SAFETY: By the safety requirement `device` is valid, and there is no other.
        if let Err(error) = unsafe { start(device) } {
            return error.to_errno();
        }
    }
    registered.device = device;
    pr_info!("free page reporting enabled\n");
    0
}

/// Unregisters a device, and waits for a pass that runs. Does nothing if it is not registered.
///
/// # Safety
///
/// `device` is valid. Process context; may sleep. The caller holds nothing that `report` takes.
#[export]
pub(crate) unsafe extern "C" fn page_reporting_unregister(device: *mut RawDevice) {
    let mut registered = REGISTERED.lock();

    if registered.device == device {
        if registered.enabled {
            // SAFETY: Started when it was registered, or when reporting was enabled.
            unsafe { stop(device) };
        }
        registered.device = ptr::null_mut();
    }
}

/// Asks for a pass, after a hook of the page allocator wanted one.
///
/// # Safety
///
/// Any context; no zone lock is held. Not after `freepage_reporting_sync()`.
#[export]
pub(crate) unsafe extern "C" fn freepage_reporting_request() {
    if WORKER.request() {
        queue();
    }
}

/// Makes one pass over all zones.
///
/// # Safety
///
/// Called as the work of the registered device.
#[export]
pub(crate) unsafe extern "C" fn freepage_reporting_work(_work: *mut bindings::work_struct) {
    let mut pass = PASS.lock();
    let Some(Pass { reporting, batch }) = pass.as_mut() else {
        return;
    };
    let pages = WORKER.stats.pages.load(Relaxed);

    WORKER.begin();
    // Full: before the order is read. One that is set after that requests another pass.
    let revisit = REVISIT.xchg(false, Full);

    // SAFETY: The device is registered while its work runs.
    reporting.order = unsafe { bindings::freepage_reporting_order((*reporting.host.raw).order) };
    // SAFETY: The tracepoint takes plain values.
    unsafe { trace::page_reporting_begin(reporting.order) };
    if revisit {
        Zone::all().for_each(Zone::revisit);
    }
    let outcome = worker::pass_all(Zone::all(), reporting, batch, &WORKER.stats);
    let again = WORKER.end(outcome);
    if again {
        queue();
    }
    let pages = WORKER.stats.pages.load(Relaxed) - pages;
    // SAFETY: The tracepoint takes plain values.
    unsafe { trace::page_reporting_end(pages as usize, again) };
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
    REVISIT.store(true, Release);
    if !QUEUE.load(Relaxed).is_null() {
        let _registered = REGISTERED.lock();
        if WORKER.request() {
            queue();
        }
    }
}

/// The delay was changed: applies it to a pass that is queued.
///
/// # Safety
///
/// Process context; may sleep. May be called before [`init`].
#[export]
pub(crate) unsafe extern "C" fn freepage_reporting_delay_changed() {
    if QUEUE.load(Relaxed).is_null() {
        return;
    }
    let _registered = REGISTERED.lock();
    let device = QUEUE.load(Relaxed);
    if !device.is_null() && WORKER.is_requested() {
        // SAFETY: While the lock is held the device stays registered.
        unsafe { bindings::freepage_reporting_requeue(device, WORKER.delay_ms(delay_ms())) };
    }
}

/// Whether the user wants reporting.
///
/// # Safety
///
/// Process context; may sleep.
#[export]
pub(crate) unsafe extern "C" fn freepage_reporting_is_enabled() -> bool {
    REGISTERED.lock().enabled
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
    let mut registered = REGISTERED.lock();

    if registered.enabled != enabled && !registered.device.is_null() {
        if !enabled {
            // SAFETY: Registered and enabled, so it was started.
            unsafe { stop(registered.device) };
        // SAFETY: A registered device is valid; it is stopped, since reporting was not enabled.
        } else if let Err(error) = unsafe { start(registered.device) } {
            return error.to_errno();
        }
    }
    registered.enabled = enabled;
    0
}

/// A figure for `/sys/kernel/mm/page_reporting/`.
///
/// # Safety
///
/// Any context.
#[export]
pub(crate) unsafe extern "C" fn freepage_reporting_stat(
    stat: bindings::freepage_reporting_stat,
) -> u64 {
    let stats = &WORKER.stats;

    let value = match stat {
        bindings::freepage_reporting_stat_FREEPAGE_REPORTING_BYTES => {
            stats.pages.load(Relaxed) * kernel::page::PAGE_SIZE as i64
        }
        bindings::freepage_reporting_stat_FREEPAGE_REPORTING_REPORTS => stats.batches.load(Relaxed),
        bindings::freepage_reporting_stat_FREEPAGE_REPORTING_FAILURES => {
            stats.failures.load(Relaxed)
        }
        bindings::freepage_reporting_stat_FREEPAGE_REPORTING_PASSES => stats.passes.load(Relaxed),
        bindings::freepage_reporting_stat_FREEPAGE_REPORTING_BACKOFF => {
            WORKER.backoff_ms(delay_ms()).into()
        }
        _ => zone::longest_hold_ns(),
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
    let registered = REGISTERED.lock();

    if registered.enabled && !registered.device.is_null() {
        Zone::all().for_each(Zone::forget);
        if WORKER.request() {
            queue();
        }
    }
}
