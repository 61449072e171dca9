// SPDX-License-Identifier: GPL-2.0

//! The part of the loader that needs no firmware, so that it can be tested on the host: what the
//! options mean, and which ranges of a memory map become unaccepted.

#![cfg_attr(not(test), no_std)]
