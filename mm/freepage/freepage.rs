// SPDX-License-Identifier: GPL-2.0

//! Free page treatment.
//!
//! The kernel does things to free pages in the background: it reports them to the host, and clears
//! them. Each such thing is a [`worker::Treatment`], a short policy in safe Rust. What they share
//! is written once:
//!
//! * [`zone`] is the view of zones and free lists, and of what a treatment knows about them.
//! * [`map`] knows which pages were freed since they were treated.
//! * [`worker`] takes pages off the free lists in batches, treats them without the zone lock, and
//!   puts them back.
//! * [`runner`] makes passes when somebody asks for one, and starts and stops.
//! * [`primitives`] has what these need of the kernel.
//!
//! `unsafe` is in views: [`zone`], [`primitives`], and those of the treatments. The hooks of the
//! page allocator are in `freepage.h`, the rest of the C code is in `glue.c`.
//!
//! A new treatment that wants to know what is freed is added to [`primitives::Kind`], and to
//! [`freepage_request`] and [`freepage_pass`].

#![cfg_attr(
    not(CONFIG_PAGE_REPORTING_RUST),
    allow(
        dead_code,
        reason = "only reporting uses all of it; zeroing has threads and a walk of its own"
    )
)]

use kernel::{
    bindings,
    prelude::*, //
};
use primitives::Kind;

#[deny(unsafe_code)]
mod map;
#[cfg(CONFIG_FREEPAGE_KUNIT_TEST)]
mod mock;
mod primitives;
#[deny(unsafe_code)]
mod runner;
#[deny(unsafe_code)]
mod worker;
mod zone;

#[cfg(CONFIG_PAGE_REPORTING_RUST)]
mod reporting;
#[cfg(CONFIG_FREEPAGE_TEST)]
mod test;
#[cfg(CONFIG_PAGE_ZERO)]
mod zeroing;

const __LOG_PREFIX: &[u8] = b"freepage\0";

/// Initializes what must be there before the first user.
///
/// # Safety
///
/// Called once, from an initcall before those of drivers.
#[export]
pub(crate) unsafe extern "C" fn freepage_init() {
    // SAFETY: By the safety requirement.
    unsafe { zone::init() };
    #[cfg(CONFIG_PAGE_REPORTING_RUST)]
    // SAFETY: By the safety requirement.
    unsafe {
        reporting::view::init()
    };
    #[cfg(CONFIG_FREEPAGE_TEST)]
    // SAFETY: By the safety requirement.
    unsafe {
        test::init()
    };
}

/// Asks for a pass, after a hook of the page allocator wanted one.
///
/// # Safety
///
/// Any context; no zone lock is held.
#[export]
pub(crate) unsafe extern "C" fn freepage_request(treatment: bindings::freepage_treatment) {
    match Kind::from_raw(treatment) {
        #[cfg(CONFIG_PAGE_REPORTING_RUST)]
        Some(Kind::Reporting) => reporting::view::request(),
        #[cfg(CONFIG_FREEPAGE_TEST)]
        Some(Kind::Test) => test::request(),
        _ => {}
    }
}

/// Makes a pass.
///
/// # Safety
///
/// Called as the work of the treatment.
#[export]
pub(crate) unsafe extern "C" fn freepage_pass(treatment: bindings::freepage_treatment) {
    match Kind::from_raw(treatment) {
        #[cfg(CONFIG_PAGE_REPORTING_RUST)]
        Some(Kind::Reporting) => reporting::view::pass(),
        #[cfg(CONFIG_FREEPAGE_TEST)]
        Some(Kind::Test) => test::pass(),
        _ => {}
    }
}
