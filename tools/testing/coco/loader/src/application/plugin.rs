// SPDX-License-Identifier: GPL-2.0

//! Requests to the plugin.

use super::error::Error;
use coco_loader::{ranges::Range, snp::Registers};
use coco_protocol::{Guest, LEAF, Request, SIGNATURE, Status, VERSION};
use core::arch::asm;

/// Finds out whether there is a plugin that speaks this protocol, and what it plays.
pub fn hello() -> Result<Guest, Error> {
    let [eax, ebx, version, _] = ask(&Request::Hello);
    if ebx != SIGNATURE {
        return Err(Error::NoPlugin);
    }
    if version != VERSION {
        return Err(Error::PluginVersion(version));
    }
    Guest::from_register(eax).ok_or(Error::PluginAnswer(eax))
}

/// Makes the plugin treat the range as not accepted.
pub fn unaccepted(range: Range) -> Result<(), Error> {
    let Range { start, end } = range;
    done(range, &Request::Unaccepted { start, end })
}

/// Makes the guest a confidential one. Nothing may touch unaccepted memory from now on.
pub fn start(image: Range) -> Result<(), Error> {
    let Range { start, end } = image;
    done(image, &Request::Start { start, end })
}

/// Has eight bytes changed as soon as the kernel itself runs, after its stub.
pub fn change(address: u64, value: u64) -> Result<(), Error> {
    let range = Range {
        start: address,
        end: address + 8,
    };
    done(range, &Request::Change { address, value })
}

/// Makes QEMU end, with an exit code that says so. Without a plugin, nothing happens.
pub fn give_up() {
    ask(&Request::GiveUp);
}

fn done(range: Range, request: &Request) -> Result<(), Error> {
    let [eax, ..] = ask(request);
    match Status::from_register(eax) {
        Some(Status::Done) => Ok(()),
        Some(status) => Err(Error::Plugin(range, status)),
        None => Err(Error::PluginAnswer(eax)),
    }
}

/// The first sub-leaf of a leaf of CPUID.
pub fn cpuid(leaf: u32) -> Registers {
    execute(leaf, 0, 0, 0)
}

fn ask(request: &Request) -> Registers {
    let (number, first, second) = request.registers();
    execute(LEAF, number, first, second)
}

fn execute(leaf: u32, subleaf: u32, r8: u64, r9: u64) -> Registers {
    let (eax, ebx, ecx, edx): (u32, u64, u32, u32);
    // SAFETY: CPUID changes EAX, EBX, ECX and EDX. RBX, which the compiler keeps to itself, is put
    // back. What the plugin writes to memory on behalf of it is free memory that `take()` took.
    unsafe {
        asm!(
            "mov {rbx}, rbx",
            "cpuid",
            "xchg {rbx}, rbx",
            rbx = out(reg) ebx,
            inout("eax") leaf => eax,
            inout("ecx") subleaf => ecx,
            out("edx") edx,
            in("r8") r8,
            in("r9") r9,
            options(nostack),
        );
    }
    [eax, ebx as u32, ecx, edx]
}
