// SPDX-License-Identifier: GPL-2.0

//! A QEMU TCG plugin that makes a guest a TDX or SEV-SNP guest, without the hardware, and that
//! knows of every page whether the guest may touch it.
//!
//! QEMU hands over the instructions by which such a guest talks to its firmware and hypervisor
//! (CPUID, TDCALL, PVALIDATE, ...) before it would raise #UD for them. [`tdx`] and [`snp`] do what
//! they ask for. Both keep the book of pages in [`monitor`], which is where a page that is
//! touched before it was accepted, or accepted twice, is noticed.
//!
//! [`qemu`] is all that knows of QEMU's C interface; the rest is plain Rust and runs in tests.

#![cfg_attr(test, expect(dead_code, reason = "some of it is used by qemu.rs only"))]

mod aps;
mod breakpoint;
mod control;
mod cost;
mod faults;
mod ghcb;
mod host;
mod insn;
mod monitor;
mod options;
mod pages;
mod patch;
#[cfg(not(test))] // its symbols are QEMU's
mod qemu;
mod report;
mod rmp;
mod snp;
mod tdx;
#[cfg(test)]
mod testing;
mod vcpu;
mod walk;
