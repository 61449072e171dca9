// SPDX-License-Identifier: GPL-2.0

//! What of the loader needs no firmware, so that it can be tested on the host: what the options
//! mean, which memory becomes unaccepted, and how tables look. Nothing here is unsafe.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod device_path;
pub mod fw_cfg;
pub mod options;
pub mod ranges;
pub mod snp;
pub mod table;
