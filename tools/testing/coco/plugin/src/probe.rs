// SPDX-License-Identifier: GPL-2.0

//! Page faults of instructions that QEMU does not know.
//!
//! PVALIDATE and RMPADJUST raise #PF if the address in RAX is not mapped, and Linux counts on it
//! while its direct map is not complete: the early handler maps what is missing. A plugin cannot
//! raise an exception. So the instruction makes room for one that reads at the address; when that
//! has gone well, the instruction is put back and executed again.

use crate::vcpu::{Action, Vcpu};
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering::Relaxed},
};

/// TEST %al,(%rax), and a jump back to it in the room that is left.
const PROBE: [u8; 4] = [0x84, 0x00, 0xeb, 0xfc];
/// Where the jump is.
const JUMP: u64 = 2;

/// An instruction that was replaced.
struct Replaced {
    pc: u64,
    bytes: [u8; 4],
}

pub struct Probes {
    replaced: Mutex<Vec<Replaced>>,
    /// There may be some: to spare the lock.
    any: AtomicBool,
}

impl Probes {
    pub fn new() -> Self {
        Self {
            replaced: Mutex::default(),
            any: AtomicBool::new(false),
        }
    }

    /// Where the address in RAX is; or what raises the page fault.
    pub fn translate(&self, vcpu: &dyn Vcpu, address: u64) -> Result<u64, Action> {
        vcpu.translate(address).ok_or_else(|| self.raise(vcpu))
    }

    fn raise(&self, vcpu: &dyn Vcpu) -> Action {
        let pc = vcpu.pc();
        let mut replaced = self.replaced();
        if replaced.iter().any(|other| other.pc == pc) {
            return Action::Again;
        }
        let mut bytes = [0; 4];
        if !each(vcpu, pc, |index, at| {
            vcpu.read(at, &mut bytes[index..=index])
        }) {
            return Action::Native;
        }
        replaced.push(Replaced { pc, bytes });
        self.any.store(true, Relaxed);
        each(vcpu, pc, |index, at| vcpu.write(at, &[PROBE[index]]));
        Action::Again
    }

    /// Whether what is executed at an address is a probe: no access of the guest's own.
    pub fn is_probe(&self, pc: u64) -> bool {
        self.any.load(Relaxed) && self.replaced().iter().any(|place| place.pc == pc)
    }

    /// The jump of a probe: the address is mapped by now.
    pub fn done(&self, vcpu: &dyn Vcpu) -> Action {
        let pc = vcpu.pc().wrapping_sub(JUMP);
        let mut replaced = self.replaced();
        let Some(index) = replaced.iter().position(|place| place.pc == pc) else {
            return Action::Native;
        };
        let bytes = replaced.swap_remove(index).bytes;
        each(vcpu, pc, |index, at| vcpu.write(at, &[bytes[index]]));
        Action::Jump(pc)
    }

    fn replaced(&self) -> MutexGuard<'_, Vec<Replaced>> {
        self.replaced
            .lock()
            .unwrap_or_else(|error| error.into_inner())
    }
}

/// Calls `what` for each byte of an instruction, with its place in memory.
fn each(vcpu: &dyn Vcpu, pc: u64, mut what: impl FnMut(usize, u64) -> bool) -> bool {
    (0..PROBE.len()).all(|index| {
        let address = vcpu.translate(pc + index as u64);
        address.is_some_and(|address| what(index, address))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    const PC: u64 = 0x1ffe;
    const UNMAPPED: u64 = 1 << 40;
    const PVALIDATE: [u8; 4] = [0xf2, 0x0f, 0x01, 0xff];

    fn code(fake: &Fake) -> [u8; 4] {
        [0, 1, 2, 3].map(|index| fake.byte(PC + index))
    }

    #[test]
    fn an_instruction_makes_room_until_its_address_is_mapped() {
        let (probes, fake) = (Probes::new(), Fake::new());
        fake.write(PC, &PVALIDATE);
        fake.pc.set(PC);
        assert_eq!(probes.translate(&fake, 0x5000), Ok(0x5000));
        assert_eq!(code(&fake), PVALIDATE);
        // Two vCPUs may come here at once.
        for _ in 0..2 {
            assert_eq!(probes.translate(&fake, UNMAPPED), Err(Action::Again));
            assert_eq!(code(&fake), PROBE);
        }
        assert!(probes.is_probe(PC) && !probes.is_probe(PC + 1));
        fake.pc.set(PC + JUMP);
        assert_eq!(probes.done(&fake), Action::Jump(PC));
        assert_eq!(code(&fake), PVALIDATE);
        assert!(!probes.is_probe(PC));
    }

    #[test]
    fn the_guests_own_jumps_are_left_alone() {
        let (probes, fake) = (Probes::new(), Fake::new());
        fake.pc.set(PC);
        assert_eq!(probes.done(&fake), Action::Native);
        fake.pc.set(0);
        assert_eq!(probes.done(&fake), Action::Native);
    }

    #[test]
    fn code_that_cannot_be_read_is_left_to_qemu() {
        let (probes, fake) = (Probes::new(), Fake::new());
        fake.pc.set(UNMAPPED);
        assert_eq!(probes.translate(&fake, UNMAPPED), Err(Action::Native));
    }
}
