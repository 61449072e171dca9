// SPDX-License-Identifier: GPL-2.0

//! Clears free pages in advance: [`policy`] decides, [`clear`] does it. What a zeroed page is, and
//! who profits, is in `zeroing/page_zero.h`.

mod clear;
#[deny(unsafe_code)]
mod policy;
