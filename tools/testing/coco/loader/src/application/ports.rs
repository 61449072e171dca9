// SPDX-License-Identifier: GPL-2.0

//! The fw_cfg device at its I/O ports, which exist on every x86 machine of QEMU.

use coco_loader::fw_cfg;
use core::arch::asm;

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;

pub struct FwCfg;

impl fw_cfg::Device for FwCfg {
    fn select(&mut self, key: u16) {
        // SAFETY: The write changes which item the next read is from, and no memory. On a machine
        // without the device, nothing is at this port.
        unsafe { asm!("out dx, ax", in("dx") SELECTOR, in("ax") key, options(nomem, nostack)) }
    }

    fn read(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            // SAFETY: The read only moves the device on to the next byte.
            unsafe { asm!("in al, dx", in("dx") DATA, out("al") *byte, options(nomem, nostack)) }
        }
    }
}
