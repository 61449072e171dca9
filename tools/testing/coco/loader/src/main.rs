// SPDX-License-Identifier: GPL-2.0

//! A UEFI application that makes memory unaccepted and starts Linux.
//!
//! QEMU starts it before the kernel (`-shim coco-loader.efi -kernel bzImage`), in a guest whose
//! processor coco's plugin plays. It takes free memory out of the firmware's hands, tells the
//! plugin, and has the firmware's memory map call it unaccepted (type 15), as the firmware of a
//! real TDX or SEV-SNP guest does.

#![cfg_attr(target_os = "uefi", no_std, no_main)]

#[cfg(target_os = "uefi")]
mod application;

#[cfg(not(target_os = "uefi"))]
fn main() -> std::process::ExitCode {
    eprintln!("coco-loader runs in a guest's firmware: build it for x86_64-unknown-uefi");
    std::process::ExitCode::FAILURE
}
