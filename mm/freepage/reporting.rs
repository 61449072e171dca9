// SPDX-License-Identifier: GPL-2.0

//! Free page reporting: tells the host which pages it may take back, until they are used again.
//!
//! * [`policy`] says what is reported.
//! * [`device`] knows who registered, and whether the user wants reporting.
//! * [`view`] is the view of the device, and what C calls; `unsafe` is there only.
//!
//! Parameters and files in sysfs are in `reporting/sysfs.c`.

#[deny(unsafe_code)]
mod device;
#[deny(unsafe_code)]
mod policy;
pub(crate) mod view;
