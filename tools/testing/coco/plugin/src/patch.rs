// SPDX-License-Identifier: GPL-2.0

//! What PVALIDATE and RMPADJUST do and a plugin cannot: change flags, and raise exceptions. The
//! guest's code is patched here, so that an instruction that QEMU knows does it.
//!
//! *Flags*: the flags that plugins may write are not those that QEMU computes with. So PVALIDATE
//! becomes SHR $1,%eax, which moves the lowest bit to the carry flag. It is written with a prefix
//! that says nothing, which makes it as long, and which no compiler uses: code may be copied after
//! it was patched, as a kernel does that decompresses itself, and is still known for what it was.
//!
//! *Page faults*: both instructions raise #PF if the address in RAX is not mapped, and Linux counts
//! on it while its direct map is not complete: the early handler maps what is missing. So the
//! instruction makes room for one that reads at the address; when that has gone well, it is put
//! back and executed again.

use crate::{
    pages::PAGE,
    vcpu::{Action, Vcpu},
};
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering::Relaxed},
};

type Code = [u8; 4];

/// SHR $1,%eax, with an empty REX prefix.
pub const CARRY_FROM_RAX: Code = [0x40, 0xc1, 0xe8, 0x01];

/// What RAX has to be for this to become EAX and the carry flag.
pub fn with_carry(eax: u64, carry: bool) -> u64 {
    eax << 1 & 0xffff_ffff | u64::from(carry)
}

/// TEST %al,(%rax), and a jump back to it in the room that is left.
const PROBE: Code = [0x84, 0x00, 0xeb, 0xfc];
/// Where the jump is.
const JUMP: usize = 2;

/// An instruction that makes room for a probe.
struct Replaced {
    pc: u64,
    code: Code,
}

pub struct Patches {
    probes: Mutex<Vec<Replaced>>,
    /// There may be probes: to spare the lock.
    any_probe: AtomicBool,
}

impl Patches {
    pub fn new() -> Self {
        Self {
            probes: Mutex::default(),
            any_probe: AtomicBool::new(false),
        }
    }

    /// PVALIDATE as the guest has it: makes it an instruction that can change the carry flag.
    pub fn pvalidate(&self, vcpu: &dyn Vcpu) -> Action {
        if vcpu.translate(vcpu.pc()).is_none() {
            return Action::Native;
        }
        write(vcpu, vcpu.pc(), CARRY_FROM_RAX);
        Action::Again
    }

    /// Where an address is; or what raises the page fault. It is the address in RAX, or in the same
    /// page.
    pub fn translate(&self, vcpu: &dyn Vcpu, address: u64) -> Result<u64, Action> {
        vcpu.translate(address).ok_or_else(|| self.probe(vcpu))
    }

    fn probe(&self, vcpu: &dyn Vcpu) -> Action {
        let pc = vcpu.pc();
        let mut probes = lock(&self.probes);
        if probes.iter().any(|other| other.pc == pc) {
            return Action::Again;
        }
        let Some(code) = read(vcpu, pc) else {
            return Action::Native;
        };
        probes.push(Replaced { pc, code });
        self.any_probe.store(true, Relaxed);
        write(vcpu, pc, PROBE);
        Action::Again
    }

    /// Whether what is executed at an address is a probe: no access of the guest's own.
    pub fn is_probe(&self, pc: u64) -> bool {
        self.any_probe.load(Relaxed) && lock(&self.probes).iter().any(|probe| probe.pc == pc)
    }

    /// The jump of a probe: the address is mapped by now.
    ///
    /// Or another vCPU has put the instruction back, and QEMU kept what it had translated while the
    /// probe was there: a translation between invalidation and write goes unnoticed.
    pub fn probed(&self, vcpu: &dyn Vcpu) -> Action {
        let pc = vcpu.pc().wrapping_sub(JUMP as u64);
        let mut probes = lock(&self.probes);
        let own = probes.iter().position(|probe| probe.pc == pc);
        let code = match own {
            Some(own) => Some(probes.swap_remove(own).code),
            None => read(vcpu, pc).filter(|code| code[JUMP..] != PROBE[JUMP..]),
        };
        let Some(code) = code else {
            return Action::Native;
        };
        write(vcpu, pc, code);
        Action::Jump(pc)
    }
}

fn read(vcpu: &dyn Vcpu, pc: u64) -> Option<Code> {
    let mut code = Code::default();
    let (first, second) = code.split_at_mut(in_first_page(pc));
    let part = |pc: u64, part: &mut [u8]| {
        part.is_empty() || vcpu.translate(pc).is_some_and(|at| vcpu.read(at, part))
    };
    (part(pc, first) && part(pc + first.len() as u64, second)).then_some(code)
}

/// Replaces an instruction that has been read, or executed. In one go where that is possible:
/// another vCPU may be about to execute it.
fn write(vcpu: &dyn Vcpu, pc: u64, code: Code) {
    let (first, second) = code.split_at(in_first_page(pc));
    for (pc, part) in [(pc, first), (pc + first.len() as u64, second)] {
        if let Some(at) = vcpu.translate(pc).filter(|_| !part.is_empty()) {
            vcpu.write(at, part);
        }
    }
}

/// How many bytes of an instruction are in the page where it begins.
fn in_first_page(pc: u64) -> usize {
    (PAGE - pc % PAGE).min(size_of::<Code>() as u64) as usize
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|error| error.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    /// Across two pages.
    const PC: u64 = 0x1fff;
    const UNMAPPED: u64 = 1 << 40;
    const PVALIDATE: Code = [0xf2, 0x0f, 0x01, 0xff];

    fn code(fake: &Fake) -> Code {
        [0, 1, 2, 3].map(|index| fake.byte(PC + index))
    }

    fn guest() -> (Patches, Fake) {
        let fake = Fake::new();
        fake.write(PC, &PVALIDATE);
        fake.pc.set(PC);
        (Patches::new(), fake)
    }

    #[test]
    fn pvalidate_becomes_an_instruction_that_qemu_knows() {
        let (patches, fake) = guest();
        assert_eq!(patches.pvalidate(&fake), Action::Again);
        assert_eq!(code(&fake), CARRY_FROM_RAX);
        for (eax, carry) in [(0, false), (0, true), (1, true), (6, false)] {
            let rax = with_carry(eax, carry);
            assert_eq!((rax >> 1, rax & 1 == 1), (eax, carry));
        }
        fake.pc.set(UNMAPPED);
        assert_eq!(patches.pvalidate(&fake), Action::Native);
    }

    #[test]
    fn an_instruction_makes_room_until_its_address_is_mapped() {
        let (patches, fake) = guest();
        assert_eq!(patches.translate(&fake, 0x5000), Ok(0x5000));
        assert_eq!(code(&fake), PVALIDATE);
        // Two vCPUs may come here at once.
        for _ in 0..2 {
            assert_eq!(patches.translate(&fake, UNMAPPED), Err(Action::Again));
            assert_eq!(code(&fake), PROBE);
        }
        assert!(patches.is_probe(PC) && !patches.is_probe(PC + 1));
        fake.pc.set(PC + JUMP as u64);
        assert_eq!(patches.probed(&fake), Action::Jump(PC));
        assert_eq!(code(&fake), PVALIDATE);
        assert!(!patches.is_probe(PC));
    }

    #[test]
    fn a_probe_that_is_gone_is_left_behind() {
        let (patches, fake) = guest();
        fake.pc.set(PC + JUMP as u64);
        assert_eq!(patches.probed(&fake), Action::Jump(PC));
        assert_eq!(code(&fake), PVALIDATE);
    }

    #[test]
    fn the_guests_own_jumps_are_left_alone() {
        let (patches, fake) = guest();
        fake.write(PC, &[0xf3, 0x90, 0xeb, 0xfc]);
        fake.pc.set(PC + JUMP as u64);
        assert_eq!(patches.probed(&fake), Action::Native);
        fake.pc.set(UNMAPPED);
        assert_eq!(patches.probed(&fake), Action::Native);
    }

    #[test]
    fn code_that_cannot_be_read_is_left_to_qemu() {
        let (patches, fake) = guest();
        fake.pc.set(UNMAPPED);
        assert_eq!(patches.translate(&fake, UNMAPPED), Err(Action::Native));
    }
}
