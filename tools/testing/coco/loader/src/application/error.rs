// SPDX-License-Identifier: GPL-2.0

//! Why the kernel cannot be started, in words.

use coco_loader::{fw_cfg, options, ranges::Range};
use coco_protocol::{self as protocol, VERSION};
use core::fmt;
use r_efi::efi;

#[derive(Debug)]
pub enum Error {
    NoPlugin,
    PluginVersion(u32),
    /// An answer of the plugin that the protocol does not know.
    PluginAnswer(u32),
    Plugin(Range, protocol::Status),
    NoFwCfg,
    OptionsTooLong(u32),
    NotText,
    /// The options are wrong; it has been said in which way.
    Options,
    TooManyFree,
    NothingFree,
    NothingLeft {
        kept: u64,
        free: u64,
    },
    Take(Range, efi::Status),
    /// What the firmware refused.
    Firmware(&'static str, efi::Status),
    PathTooLong,
    Kernel(efi::Status),
    Returned(efi::Status),
}

impl From<fw_cfg::Error> for Error {
    fn from(error: fw_cfg::Error) -> Self {
        match error {
            fw_cfg::Error::Absent => Self::NoFwCfg,
            fw_cfg::Error::TooLong(size) => Self::OptionsTooLong(size),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = options::FILE;
        match self {
            Self::NoPlugin => out.write_str(
                "nobody answers CPUID 0x4fffc0c0: start QEMU with -plugin libcoco.so,guest=...",
            ),
            Self::PluginVersion(other) => write!(
                out,
                "the plugin has version {other} of the protocol, and this loader version \
                 {VERSION}: build both from the same source"
            ),
            Self::PluginAnswer(answer) => write!(
                out,
                "the plugin answers {answer:#x}, which this loader does not know: build both from \
                 the same source"
            ),
            Self::Plugin(range, status) => write!(out, "the plugin refuses {range}: {status}"),
            Self::NoFwCfg => out.write_str("there is no fw_cfg device: this is not QEMU's q35"),
            Self::OptionsTooLong(size) => {
                write!(out, "fw_cfg file {file} has {size} bytes: that is too long")
            }
            Self::NotText => write!(out, "fw_cfg file {file} is not text"),
            Self::Options => write!(
                out,
                "change fw_cfg file {file} (-fw_cfg name=...,string=...)"
            ),
            Self::TooManyFree => out.write_str("the firmware's map has too many free ranges"),
            Self::NothingFree => out.write_str("no memory of any range= is free"),
            Self::NothingLeft { kept, free } => write!(
                out,
                "all-but={}M leaves nothing of the {} MiB of free memory to make unaccepted: give \
                 the guest more memory, or choose a smaller all-but=",
                kept >> 20,
                free >> 20
            ),
            Self::Take(range, status) => {
                write!(out, "cannot take {range} out of the memory map: {status}")
            }
            Self::Firmware(what, status) => write!(out, "cannot {what}: {status}"),
            Self::PathTooLong => out.write_str("the path of this application is too long"),
            Self::Kernel(status) => write!(
                out,
                "cannot load the file 'kernel' from where this application came from: {status}; \
                 it has to be a kernel with an EFI stub, and to fit into what stays accepted"
            ),
            Self::Returned(status) => write!(out, "the kernel returned to the firmware: {status}"),
        }
    }
}
