// SPDX-License-Identifier: GPL-2.0

//! The instructions that are looked at before QEMU executes them, by their encoding (Intel SDM
//! volume 2, AMD APM volume 3).

use crate::{patch::CARRY_FROM_RAX, vcpu::Register};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    Int3,
    Cpuid,
    Tdcall,
    /// IRETQ: the end of an interrupt.
    Iret,
    Rdmsr,
    Wrmsr,
    /// VMMCALL with a REP prefix.
    Vmgexit,
    Pvalidate,
    /// What PVALIDATE has become.
    PatchedPvalidate,
    Rmpadjust,
    /// MOV from CR3 to a register.
    ReadCr3(Register),
    /// MOV to CR3 from a register.
    WriteCr3(Register),
    /// JMP to the two bytes before it: perhaps the end of a probe.
    Probed,
    /// Whatever an AP does first: known by its place, not by its encoding.
    ApStart,
}

/// How many bytes [`Instruction::decode`] looks at.
pub const LONGEST: usize = 4;

impl Instruction {
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xcc] => Some(Self::Int3),
            [0x0f, 0xa2] => Some(Self::Cpuid),
            [0x48, 0xcf] => Some(Self::Iret),
            [0x0f, 0x32] => Some(Self::Rdmsr),
            [0x0f, 0x30] => Some(Self::Wrmsr),
            [0x66, 0x0f, 0x01, 0xcc] => Some(Self::Tdcall),
            [0xf3, 0x0f, 0x01, 0xd9] => Some(Self::Vmgexit),
            [0xf2, 0x0f, 0x01, 0xff] => Some(Self::Pvalidate),
            _ if bytes == CARRY_FROM_RAX => Some(Self::PatchedPvalidate),
            [0xf3, 0x0f, 0x01, 0xfe] => Some(Self::Rmpadjust),
            [0xeb, 0xfc] => Some(Self::Probed),
            [0x0f, 0x20, modrm] => cr3(0, *modrm).map(Self::ReadCr3),
            [0x0f, 0x22, modrm] => cr3(0, *modrm).map(Self::WriteCr3),
            [rex @ 0x40..=0x4f, 0x0f, 0x20, modrm] => cr3(rex & 1, *modrm).map(Self::ReadCr3),
            [rex @ 0x40..=0x4f, 0x0f, 0x22, modrm] => cr3(rex & 1, *modrm).map(Self::WriteCr3),
            _ => None,
        }
    }
}

/// The register that is moved from or to CR3. `high` is REX.B, the fourth bit of its number; ModRM
/// names CR3 in its middle.
fn cr3(high: u8, modrm: u8) -> Option<Register> {
    let number = high << 3 | modrm & 7;
    (modrm >> 3 & 7 == 3).then_some(Register::ALL[number as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_known_by_their_bytes() {
        use Instruction::*;
        for (bytes, instruction) in [
            (&[0xcc][..], Some(Int3)),
            (&[0x0f, 0xa2], Some(Cpuid)),
            (&[0x48, 0xcf], Some(Iret)),
            (&[0x66, 0x0f, 0x01, 0xcc], Some(Tdcall)),
            (&[0x0f, 0x32], Some(Rdmsr)),
            (&[0x0f, 0x30], Some(Wrmsr)),
            (&[0xf3, 0x0f, 0x01, 0xd9], Some(Vmgexit)),
            (&[0xf2, 0x0f, 0x01, 0xff], Some(Pvalidate)),
            (&[0xf3, 0x0f, 0x01, 0xfe], Some(Rmpadjust)),
            (&[0x0f, 0x22, 0xd8], Some(WriteCr3(Register::Rax))),
            (&[0x0f, 0x22, 0xdf], Some(WriteCr3(Register::Rdi))),
            (&[0x41, 0x0f, 0x22, 0xdc], Some(WriteCr3(Register::R12))),
            (&[0x0f, 0x22, 0xc0], None), // CR0
            (&[0x40, 0xc1, 0xe8, 0x01], Some(PatchedPvalidate)),
            (&[0xc1, 0xe8, 0x01], None),
            (&[0xeb, 0xfc], Some(Probed)),
            (&[0xeb, 0xfe], None),
            (&[0x0f, 0x20, 0xd8], Some(ReadCr3(Register::Rax))),
            (&[0x41, 0x0f, 0x20, 0xdc], Some(ReadCr3(Register::R12))),
            (&[0x0f, 0x20, 0xe0], None), // CR4
            (&[0x0f, 0x01, 0xd9], None), // VMMCALL
            (&[0x90], None),
            (&[], None),
        ] {
            assert_eq!(Instruction::decode(bytes), instruction, "{bytes:x?}");
        }
    }
}
