// SPDX-License-Identifier: GPL-2.0

//! A treatment that leaves pages as they are, for tests: it shows that two of them do not disturb
//! each other. `test.c` says what it does to a batch, and has the files that control it.

use crate::{
    map::LARGEST,
    primitives::Kind,
    runner::{
        Delay,
        Job,
        Runner, //
    },
    worker::{
        FreePage,
        IsolatedPages,
        Source,
        Treated,
        Treatment, //
    },
};
use kernel::{
    bindings,
    prelude::*,
    sync::{
        atomic::Relaxed,
        global_lock, //
    },
};

/// Runs of a batch.
const CAPACITY: usize = 32;

struct Test {
    order: u32,
}

fn setting(field: impl FnOnce(*const bindings::freepage_test_settings) -> *const u32) -> u32 {
    let field = field(&raw const bindings::freepage_test_settings);
    // SAFETY: A field of a static of C, written without tearing.
    unsafe { field.read_volatile() }
}

fn order() -> u32 {
    // SAFETY: Only the address of a field of a static is taken.
    setting(|settings| unsafe { &raw const (*settings).order })
}

fn delay() -> Delay {
    Delay {
        // SAFETY: As above.
        ms: setting(|settings| unsafe { &raw const (*settings).delay_ms }),
        adapts: false,
    }
}

impl Treatment for Test {
    const PAGES_MAX: usize = LARGEST;

    fn order(&self) -> u32 {
        self.order
    }

    fn wants(&self, page: &FreePage<'_>) -> bool {
        page.order() >= self.order
    }

    fn treat<S: Source>(&mut self, batch: &mut IsolatedPages<'_, S>) -> Treated {
        // SAFETY: Process context, in which it may sleep.
        let runs = unsafe { bindings::freepage_test_batch(batch.runs().len() as u32) };
        Treated {
            runs: usize::try_from(runs).unwrap_or(0),
            result: kernel::error::to_result(runs.min(0)),
        }
    }
}

global_lock! {
    // SAFETY: Initialized by `init()`, from an initcall.
    unsafe(uninit) static STARTED: Mutex<bool> = false;
}

global_lock! {
    // SAFETY: Initialized by `init()`, from an initcall.
    unsafe(uninit) static JOB: Mutex<Option<Job<Test>>> = None;
}

static RUNNER: Runner = Runner::new(Kind::Test, delay);

/// Initializes the locks.
///
/// # Safety
///
/// Called once, before all else.
pub(crate) unsafe fn init() {
    // SAFETY: By the safety requirement neither lock is initialized or used yet.
    unsafe {
        STARTED.init();
        JOB.init();
    }
}

pub(crate) fn request() {
    RUNNER.request();
}

pub(crate) fn pass() {
    if let Some(job) = JOB.lock().as_mut() {
        RUNNER.pass(job, |test| {
            test.order = order();
            RUNNER.set_order(test.order);
        });
    }
}

fn start() -> Result {
    let order = order();

    *JOB.lock() = Some(Job::new(Test { order }, CAPACITY)?);
    RUNNER.start(order).inspect_err(|_| *JOB.lock() = None)
}

/// Starts or stops the treatment. Returns 0 or an error.
///
/// # Safety
///
/// Process context; may sleep.
#[export]
pub(crate) unsafe extern "C" fn freepage_test_set_enabled(enabled: bool) -> c_int {
    let mut started = STARTED.lock();

    if enabled && !*started {
        if let Err(error) = start() {
            return error.to_errno();
        }
    } else if !enabled && *started {
        RUNNER.stop();
        *JOB.lock() = None;
    }
    *started = enabled;
    0
}

/// What it has done.
///
/// # Safety
///
/// Any context.
#[export]
pub(crate) unsafe extern "C" fn freepage_test_stat(stat: bindings::freepage_test_stat) -> u64 {
    let stats = RUNNER.stats();

    let value = match stat {
        bindings::freepage_test_stat_FREEPAGE_TEST_PASSES => &stats.passes,
        bindings::freepage_test_stat_FREEPAGE_TEST_BATCHES => &stats.batches,
        bindings::freepage_test_stat_FREEPAGE_TEST_FAILURES => &stats.failures,
        _ => &stats.pages,
    };
    value.load(Relaxed) as u64
}
