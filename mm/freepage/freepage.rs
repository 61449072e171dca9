// SPDX-License-Identifier: GPL-2.0

//! Free page treatment.
//!
//! The kernel does things to free pages in the background: it reports them to the host. Each such
//! thing is a [`worker::Treatment`], a short policy in safe Rust. What they share is written once:
//!
//! * [`zone`] is the view of zones and free lists; `unsafe` is there and in [`device`], the view of
//!   the device that pages are reported to.
//! * [`map`] knows which pages were freed since they were treated.
//! * [`worker`] takes pages off the free lists in batches, treats them without the zone lock, and
//!   puts them back.
//!
//! The hooks of the page allocator are in `freepage.h`, the rest of the C code is in `glue.c`.

use kernel::prelude::*;

mod map;
#[cfg(CONFIG_FREEPAGE_KUNIT_TEST)]
mod mock;
mod worker;
mod zone;

#[cfg(CONFIG_PAGE_REPORTING_RUST)]
mod device;
#[cfg(CONFIG_PAGE_REPORTING_RUST)]
mod reporting;

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
        device::init()
    };
}
