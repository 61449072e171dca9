// SPDX-License-Identifier: GPL-2.0

//! A vCPU for unit tests: registers, and memory where something was written.

use crate::{
    pages::PAGE,
    vcpu::{Register, Vcpu},
};
use std::{cell::Cell, cell::RefCell, collections::BTreeMap};

/// Bytes of memory.
const MEMORY: u64 = 4 << 30;

pub struct Fake {
    pub pc: Cell<u64>,
    registers: RefCell<[u64; Register::ALL.len()]>,
    memory: RefCell<BTreeMap<u64, Vec<u8>>>,
}

impl Fake {
    pub fn new() -> Self {
        Self {
            pc: Cell::new(0xffff_ffff_8100_0000),
            registers: RefCell::new([0; Register::ALL.len()]),
            memory: RefCell::new(BTreeMap::new()),
        }
    }

    pub fn byte(&self, address: u64) -> u8 {
        let memory = self.memory.borrow();
        memory
            .get(&(address / PAGE))
            .map_or(0, |page| page[(address % PAGE) as usize])
    }

    pub fn word(&self, address: u64) -> u64 {
        (0..8).fold(0, |word, i| {
            word | u64::from(self.byte(address + i)) << (8 * i)
        })
    }
}

impl Vcpu for Fake {
    fn index(&self) -> usize {
        0
    }

    fn count(&self) -> usize {
        1
    }

    fn pc(&self) -> u64 {
        self.pc.get()
    }

    fn get(&self, register: Register) -> u64 {
        self.registers.borrow()[register as usize]
    }

    fn set(&self, register: Register, value: u64) {
        self.registers.borrow_mut()[register as usize] = value;
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        if address >= MEMORY {
            return false;
        }
        for (offset, byte) in (0..).zip(bytes) {
            *byte = self.byte(address + offset);
        }
        true
    }

    fn write(&self, address: u64, bytes: &[u8]) -> bool {
        if address >= MEMORY {
            return false;
        }
        let mut memory = self.memory.borrow_mut();
        let (mut address, mut rest) = (address, bytes);
        while !rest.is_empty() {
            let offset = (address % PAGE) as usize;
            let (now, later) = rest.split_at(rest.len().min(PAGE as usize - offset));
            let page = memory
                .entry(address / PAGE)
                .or_insert_with(|| vec![0; PAGE as usize]);
            page[offset..offset + now.len()].copy_from_slice(now);
            (address, rest) = (address + now.len() as u64, later);
        }
        true
    }

    /// All memory is mapped one to one.
    fn translate(&self, address: u64) -> Option<u64> {
        (address < MEMORY).then_some(address)
    }
}
