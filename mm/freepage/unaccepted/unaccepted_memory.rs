// SPDX-License-Identifier: GPL-2.0

//! Unaccepted memory: what a confidential guest has to accept before it may touch it.
//!
//! * [`table`] is what the firmware says, and whether that can be true.
//! * [`claims`] is the protocol: who accepts which unit, and when it counts as accepted.
//! * [`accept`] decides which calls accept a unit.
//! * [`demand`] decides how much is accepted, and when.
//! * [`stats`] counts.
//! * [`view`] is where `unsafe` is, and what C calls.
//!
//! Blocks of zones, modes, sysfs and whatever else has to be in C are in `glue.c`.

#[deny(unsafe_code)]
mod accept;
#[deny(unsafe_code)]
mod claims;
#[deny(unsafe_code)]
mod demand;
#[deny(unsafe_code)]
mod stats;
#[deny(unsafe_code)]
mod table;
#[cfg(CONFIG_UNACCEPTED_MEMORY_KUNIT_TEST)]
mod tests;
mod view;

const __LOG_PREFIX: &[u8] = b"unaccepted_memory\0";
