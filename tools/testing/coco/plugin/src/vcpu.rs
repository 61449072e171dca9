// SPDX-License-Identifier: GPL-2.0

//! What a handler sees of the vCPU whose instruction it does.

/// The registers that handlers use. The first 16 are numbered as instructions encode them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Register {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
    Cs,
    Cr3,
    Cr4,
    Eflags,
    Rip,
}

impl Register {
    /// All registers, by number.
    pub const ALL: [Self; 21] = [
        Self::Rax,
        Self::Rcx,
        Self::Rdx,
        Self::Rbx,
        Self::Rsp,
        Self::Rbp,
        Self::Rsi,
        Self::Rdi,
        Self::R8,
        Self::R9,
        Self::R10,
        Self::R11,
        Self::R12,
        Self::R13,
        Self::R14,
        Self::R15,
        Self::Cs,
        Self::Cr3,
        Self::Cr4,
        Self::Eflags,
        Self::Rip,
    ];

    /// The name that QEMU's gdb stub has for it.
    pub fn name(self) -> &'static str {
        const NAMES: [&str; Register::ALL.len()] = [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11",
            "r12", "r13", "r14", "r15", "cs", "cr3", "cr4", "eflags", "rip",
        ];
        NAMES[self as usize]
    }
}

/// A vCPU that has stopped before an instruction.
///
/// Addresses in memory are guest-physical, without the bit that says shared or encrypted.
pub trait Vcpu {
    /// 0 for the boot CPU.
    fn index(&self) -> usize;

    /// How many vCPUs the guest has.
    fn count(&self) -> usize;

    /// The address of the instruction.
    fn pc(&self) -> u64;

    fn get(&self, register: Register) -> u64;

    fn set(&self, register: Register, value: u64);

    /// Reads all of `bytes`, or nothing where there is no memory (false).
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool;

    /// Writes all of `bytes`; false where there is no memory.
    fn write(&self, address: u64, bytes: &[u8]) -> bool;

    /// Where a virtual address is, by the vCPU's page tables.
    fn translate(&self, address: u64) -> Option<u64>;

    /// Whether the vCPU runs at CPL 0.
    fn privileged(&self) -> bool {
        self.get(Register::Cs) & 3 == 0
    }

    fn write_u64(&self, address: u64, value: u64) -> bool {
        self.write(address, &value.to_le_bytes())
    }

    /// Writes `size` bytes of the same value; false where there is no memory.
    fn fill(&self, address: u64, size: u64, byte: u8) -> bool {
        const STEP: u64 = 1 << 20;
        let bytes = vec![byte; size.min(STEP) as usize];
        (0..size.div_ceil(STEP)).all(|step| {
            let done = step * STEP;
            self.write(address + done, &bytes[..STEP.min(size - done) as usize])
        })
    }
}

/// What becomes of the instruction, and of the guest.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// The instruction is none of ours: QEMU executes it.
    Native,
    /// The instruction is done: the guest goes on behind it.
    Done,
    /// QEMU translates the instruction anew: its bytes have changed.
    Again,
    /// The guest goes on at this offset in its code segment.
    Jump(u64),
    /// The guest ends here.
    Stop(Stop),
}

/// Why a guest ends before its time. QEMU's exit status tells which.
#[derive(Clone, Debug, PartialEq)]
pub enum Stop {
    /// The guest did what no guest may do.
    Violation(String),
    /// The guest gave up by itself.
    Terminated(String),
}

impl Stop {
    pub fn status(&self) -> i32 {
        match self {
            Self::Violation(_) => 70,
            Self::Terminated(_) => 71,
        }
    }

    pub fn message(&self) -> String {
        match self {
            Self::Violation(what) => format!("coco: violation: {what}"),
            Self::Terminated(why) => format!("coco: guest terminated: {why}"),
        }
    }
}
