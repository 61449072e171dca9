// SPDX-License-Identifier: GPL-2.0

//! What [`super::worker`] and [`super::runner`] need of the kernel, and safe Rust does not have: to
//! let others run, to queue work, a state that can be an atomic, a proof that a lock is held.
//! Nothing is decided here.

use crate::map::Run;
use kernel::{
    bindings,
    prelude::*,
    sync::atomic::AtomicType, //
};

/// Whoever has a value of such a type holds the lock of a source of free pages.
///
/// # Safety
///
/// No such value outlives the lock being held.
pub(crate) unsafe trait Held {
    /// Whether all pages of `block`, which is on a free list of the source, are known to be zero.
    fn is_zeroed(&self, block: Run) -> bool;
}

/// What is done to free pages: C's `enum freepage_treatment`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    /// They are reported to the host.
    Reporting = bindings::freepage_treatment_FREEPAGE_REPORTING,
    /// Nothing, for tests.
    #[cfg(CONFIG_FREEPAGE_TEST)]
    Test = bindings::freepage_treatment_FREEPAGE_TEST,
}

impl Kind {
    /// How many there are.
    pub(crate) const COUNT: usize = bindings::freepage_treatment_NR_FREEPAGE_TREATMENTS as usize;

    /// All of them.
    pub(crate) const ALL: [Self; Self::COUNT] = [
        Self::Reporting,
        #[cfg(CONFIG_FREEPAGE_TEST)]
        Self::Test,
    ];

    /// As C knows it.
    pub(crate) fn as_raw(self) -> bindings::freepage_treatment {
        self as bindings::freepage_treatment
    }

    /// Of what C says.
    pub(crate) fn from_raw(raw: bindings::freepage_treatment) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_raw() == raw)
    }
}

/// Lets others run. Process context, no lock held under which one must not sleep.
pub(crate) fn cond_resched() {
    // SAFETY: Callers are in process context.
    unsafe { bindings::freepage_cond_resched() };
}

/// Whether passes have to come to an end, for the system is about to be suspended.
pub(crate) fn freezing() -> bool {
    // SAFETY: Reads a variable.
    unsafe { bindings::freepage_freezing() }
}

/// Pages that were allocated since boot, if the kernel counts them.
pub(crate) fn allocated() -> Option<u64> {
    let mut pages: c_ulong = 0;
    // SAFETY: Callers are in process context; the pointer is valid.
    unsafe { bindings::freepage_nr_allocated(&mut pages) }.then_some(pages as u64)
}

/// Whether the task is to end what it does, for it got a signal.
pub(crate) fn is_interrupted() -> bool {
    kernel::current!().signal_pending()
}

/// Time in ms, for differences.
pub(crate) fn now_ms() -> u64 {
    // SAFETY: Callers are in process context. The clock begins at boot, and is never negative.
    let ns = unsafe { bindings::ktime_get() };
    ns as u64 / 1_000_000
}

/// Has the hooks of the page allocator called, or no longer. Each call with true has one with
/// false. May sleep.
pub(crate) fn track(kind: Kind, track: bool) {
    // SAFETY: Callers are in process context, and hold no lock under which one must not sleep.
    unsafe { bindings::freepage_track(kind.as_raw(), track) };
}

/// Has the hooks ask for a pass when a block of at least `order` is freed; `None`: never.
pub(crate) fn set_order(kind: Kind, order: Option<u32>) {
    let order = order.unwrap_or(bindings::NR_PAGE_ORDERS);
    // SAFETY: Callers are in process context.
    unsafe { bindings::freepage_set_order(kind.as_raw(), order) };
}

/// Queues a pass, unless one is queued; with `again` in its place. Any context without a zone lock.
pub(crate) fn queue(kind: Kind, delay_ms: u32, again: bool) {
    // SAFETY: Callers do not hold a zone lock.
    unsafe { bindings::freepage_queue(kind.as_raw(), delay_ms, again) };
}

/// Waits for the hooks, of which some may be about to request a pass. May sleep.
pub(crate) fn sync(kind: Kind) {
    // SAFETY: Callers are in process context.
    unsafe { bindings::freepage_sync(kind.as_raw()) };
}

/// Waits for a pass that runs, and drops one that is queued. May sleep. Not called by a pass.
pub(crate) fn cancel(kind: Kind) {
    // SAFETY: Callers are in process context.
    unsafe { bindings::freepage_cancel(kind.as_raw()) };
}

/// Whether a pass is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum State {
    /// No pass is queued.
    Idle = 0,
    /// A pass is queued, or wanted after the one that runs.
    Requested = 1,
    /// A pass runs, and nothing was requested since it began.
    Active = 2,
}

// SAFETY: `State` has the size and alignment of `i32`, and every `State` is a valid `i32`.
unsafe impl AtomicType for State {
    type Repr = i32;
}
