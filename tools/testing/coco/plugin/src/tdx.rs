// SPDX-License-Identifier: GPL-2.0

//! What a TDX guest asks its module and hypervisor for, by TDCALL.
//!
//! Leaves, registers and status codes are those of the Intel TDX Module ABI specification (348551);
//! the sub-functions of TDG.VP.VMCALL are those of the Guest-Hypervisor Communication Interface
//! (348552). What a real guest gets as #VE (port I/O, MSRs, CPUID) QEMU does natively here.

use crate::{
    faults::{Answer, Call},
    host::HostPages,
    monitor::{Accept, Monitor, VCPUS},
    pages::{PAGE, Size, State},
    vcpu::{Action, Register::*, Stop, Vcpu},
};
use std::{
    ops::Range,
    sync::{Mutex, MutexGuard},
    thread,
    time::Duration,
};

/// The guest's addresses have 53 bits, of which the last says shared. QEMU's page walk ignores
/// bit 52, so that a shared and a private address reach the same memory.
const WIDTH: u64 = 53;
const SHARED: u64 = 1 << (WIDTH - 1);

const SUCCESS: u64 = 0;
const PAGE_ALREADY_ACCEPTED: u64 = 0x0000_0b0a_0000_0000;
const OPERAND_BUSY: u64 = 0x8000_0200_0000_0000;
const OPERAND_INVALID: u64 = 0xc000_0100_0000_0000;
const PAGE_SIZE_MISMATCH: u64 = 0xc000_0b0b_0000_0000;
/// What an error that was asked for is answered with: the page is not in the guest's page tables.
const EPT_WALK_FAILED: u64 = 0xc000_0b00_0000_0000;
const METADATA_FIELD_ID_INCORRECT: u64 = 0xc000_0c00_0000_0000;
/// The operand that a status speaks of, in its low half: RCX.
const RCX: u64 = 1;

/// TD attribute: a touch of a pending page does not raise #VE.
const SEPT_VE_DISABLE: u64 = 1 << 28;

/// Fields of the guest's metadata (TDCS).
const CONFIG_FLAGS: u64 = 0x1110_0003_0000_0016;
const TD_CTLS: u64 = 0x1110_0003_0000_0017;
const NOTIFY_ENABLES: u64 = 0x9100_0000_0000_0010;
const TOPOLOGY_ENUM_CONFIGURED: u64 = 0x9100_0000_0000_0019;

const VMCALL_SUCCESS: u64 = 0;
const VMCALL_RETRY: u64 = 1;
const VMCALL_GPA_INUSE: u64 = 0x8000_0000_0000_0001;
const VMCALL_INVALID_OPERAND: u64 = 0x8000_0000_0000_0000;
const VMCALL_ALIGN_ERROR: u64 = 0x8000_0000_0000_0002;
const VMCALL_SUBFUNC_UNSUPPORTED: u64 = 0x8000_0000_0000_0003;

/// A sleep of a vCPU that is halted. The plugin interface cannot say when an interrupt comes in, so
/// QEMU looks for one after each: soon at first, seldom when it has been halted for long.
const NAP: Duration = Duration::from_micros(100);
const LONG_NAP: Duration = Duration::from_millis(2);

/// The interrupt flag in EFLAGS.
const IF: u64 = 1 << 9;

#[derive(Clone, Copy, Default)]
struct Idle {
    /// It is to execute the same TDCALL again until an interrupt has come.
    halted: bool,
    nap: Duration,
    /// An interrupt has ended.
    interrupted: bool,
}

pub struct Tdx {
    idle: Vec<Mutex<Idle>>,
}

impl Tdx {
    pub fn new() -> Self {
        Self {
            idle: (0..VCPUS).map(|_| Mutex::default()).collect(),
        }
    }

    /// CPUID leaf 0x21: "IntelTDX    ".
    ///
    /// Only for the kernel: firmware that finds itself in a TDX guest would want more than is here.
    /// It runs in the lower half, outside of the kernel's image. Once the kernel runs in the upper
    /// half there is no firmware that asks, but perhaps a second kernel, wherever it was put.
    pub fn cpuid(&self, monitor: &Monitor, vcpu: &dyn Vcpu) -> Action {
        let pc = vcpu.pc();
        let kernel = |image: &Range<u64>| image.contains(&pc) || monitor.kernel_runs();
        if vcpu.get(Rax) as u32 != 0x21 || !monitor.started().is_some_and(kernel) {
            return Action::Native;
        }
        monitor.call("CPUID 0x21");
        let word = |text: &[u8; 4]| u64::from(u32::from_le_bytes(*text));
        vcpu.set(Rax, 0);
        vcpu.set(Rbx, word(b"Inte"));
        vcpu.set(Rdx, word(b"lTDX"));
        vcpu.set(Rcx, word(b"    "));
        Action::Done
    }

    pub fn tdcall(&self, monitor: &Monitor, vcpu: &dyn Vcpu) -> Action {
        if monitor.started().is_none() || !vcpu.privileged() {
            return Action::Native;
        }
        let (status, action) = match vcpu.get(Rax) & 0xffff {
            0 => (SUCCESS, self.vmcall(monitor, vcpu)),
            1 => (SUCCESS, info(monitor, vcpu)),
            6 => accept(monitor, vcpu),
            7 => (read_field(monitor, vcpu), Action::Done),
            8 => (write_field(monitor, vcpu), Action::Done),
            leaf => {
                monitor.call(format!("TDCALL leaf {leaf}, which is not modelled"));
                (OPERAND_INVALID, Action::Done)
            }
        };
        if action != Action::Again {
            vcpu.set(Rax, status);
        }
        action
    }

    /// TDG.VP.VMCALL: R10 is 0 for what the specification defines, R11 the sub-function, R12 and up
    /// its arguments. R10 becomes the status.
    fn vmcall(&self, monitor: &Monitor, vcpu: &dyn Vcpu) -> Action {
        let mut action = Action::Done;
        let status = match (vcpu.get(R10), vcpu.get(R11)) {
            (0, 12) => {
                action = self.halt(monitor, vcpu);
                VMCALL_SUCCESS
            }
            (0, 0x10000) => {
                monitor.call("VMCALL GetTdVmCallInfo");
                // No sub-function beyond those that every hypervisor has.
                [R11, R12, R13, R14]
                    .iter()
                    .for_each(|register| vcpu.set(*register, 0));
                VMCALL_SUCCESS
            }
            (0, 0x10001) => map_gpa(monitor, vcpu),
            (0, 0x10003) => {
                action = Action::Stop(Stop::Terminated(fatal_error(vcpu)));
                VMCALL_SUCCESS
            }
            (0, function) => {
                monitor.call(format!("VMCALL {function:#x}, which is not modelled"));
                VMCALL_SUBFUNC_UNSUPPORTED
            }
            (vendor, _) => {
                monitor.call(format!(
                    "VMCALL of vendor {vendor:#x}, which is not modelled"
                ));
                VMCALL_INVALID_OPERAND
            }
        };
        if action != Action::Again {
            vcpu.set(R10, status);
        }
        action
    }

    /// HLT: R12 says whether interrupts stay blocked. If not, the next one ends it.
    ///
    /// The guest has disabled interrupts, and would take one behind TDCALL. QEMU looks for
    /// interrupts only where they are enabled, so they are for as long as the vCPU is halted: the
    /// guest takes them at TDCALL, and comes back to it. Going on behind it to look for them would
    /// keep the host busy with idle vCPUs.
    fn halt(&self, monitor: &Monitor, vcpu: &dyn Vcpu) -> Action {
        let blocked = vcpu.get(R12) & 1 == 1;
        let Some(own) = self.idle.get(vcpu.index()).filter(|_| !blocked) else {
            monitor.call("VMCALL HLT");
            monitor.idle(|| thread::sleep(LONG_NAP));
            return Action::Done;
        };
        let mut idle = *lock(own);
        let flags = vcpu.get(Eflags);
        if !idle.halted {
            monitor.call("VMCALL HLT");
            vcpu.set(Eflags, flags | IF);
            idle = Idle {
                halted: true,
                nap: NAP,
                interrupted: false,
            };
        } else if idle.interrupted {
            vcpu.set(Eflags, flags & !IF);
            idle.halted = false;
        } else {
            monitor.idle(|| thread::sleep(idle.nap));
            idle.nap = (idle.nap * 2).min(LONG_NAP);
        }
        *lock(own) = idle;
        if idle.halted {
            Action::Again
        } else {
            Action::Done
        }
    }

    /// IRETQ: if the vCPU was halted, it has taken an interrupt.
    pub fn iret(&self, vcpu: &dyn Vcpu) -> Action {
        if let Some(own) = self.idle.get(vcpu.index()) {
            lock(own).interrupted = true;
        }
        Action::Native
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|error| error.into_inner())
}

/// TDG.VP.INFO.
fn info(monitor: &Monitor, vcpu: &dyn Vcpu) -> Action {
    monitor.call("TDG.VP.INFO");
    let vcpus = vcpu.count() as u64;
    vcpu.set(Rcx, WIDTH);
    vcpu.set(Rdx, SEPT_VE_DISABLE);
    vcpu.set(R8, vcpus | vcpus << 32);
    vcpu.set(R9, vcpu.index() as u64);
    vcpu.set(R10, 0);
    vcpu.set(R11, 0);
    Action::Done
}

/// TDG.MEM.PAGE.ACCEPT: RCX is the address, and the level of the page in its bits 2:0: 0 for 4K, 1
/// for 2M. As `tdg_mem_page_accept.c` of the module has it: a page of the host that is smaller is a
/// mismatch, whatever became of its pieces; one that is larger was accepted, or the host splits it.
fn accept(monitor: &Monitor, vcpu: &dyn Vcpu) -> (u64, Action) {
    let rcx = vcpu.get(Rcx);
    let size = match rcx & 7 {
        0 => Size::Small,
        1 => Size::Medium,
        2 if monitor.options.host_pages == HostPages::Large => Size::Large,
        _ => return (OPERAND_INVALID | RCX, Action::Done),
    };
    let address = rcx & !7;
    if address % size.bytes() != 0 || address >= SHARED {
        return (OPERAND_INVALID | RCX, Action::Done);
    }
    let outcome = monitor.accept(vcpu, address, size, true);
    let status = match outcome {
        Accept::Done => SUCCESS,
        Accept::Busy => OPERAND_BUSY | RCX,
        Accept::Error(Some(status)) => status,
        Accept::Error(None) | Accept::Illegal => EPT_WALK_FAILED | RCX,
        Accept::Mismatch => PAGE_SIZE_MISMATCH | level(size),
        Accept::Duplicate(page) => PAGE_ALREADY_ACCEPTED | level(page),
        // The module leaves all registers as they are, and the guest executes TDCALL again.
        Accept::Interrupted => return (SUCCESS, Action::Again),
    };
    let action = match outcome {
        Accept::Duplicate(_) | Accept::Illegal => monitor.bad_accept(vcpu, outcome, address, size),
        _ => Action::Done,
    };
    (status, action)
}

/// The level of a page in the host's tables, which is the detail of a status.
fn level(size: Size) -> u64 {
    size as u64
}

/// TDG.VM.RD: RDX is the field, R8 becomes its value.
fn read_field(monitor: &Monitor, vcpu: &dyn Vcpu) -> u64 {
    monitor.call("TDG.VM.RD");
    let value = match vcpu.get(Rdx) {
        CONFIG_FLAGS | TD_CTLS | NOTIFY_ENABLES => 0,
        TOPOLOGY_ENUM_CONFIGURED => 1,
        _ => return METADATA_FIELD_ID_INCORRECT,
    };
    vcpu.set(R8, value);
    SUCCESS
}

/// TDG.VM.WR: RDX is the field, R8 the value, R9 the bits of it that are meant. What can be set
/// only turns #VEs off that do not exist here.
fn write_field(monitor: &Monitor, vcpu: &dyn Vcpu) -> u64 {
    monitor.call("TDG.VM.WR");
    match vcpu.get(Rdx) {
        TD_CTLS | NOTIFY_ENABLES => SUCCESS,
        _ => METADATA_FIELD_ID_INCORRECT,
    }
}

/// MapGPA: R12 is the first byte, with the shared bit or without, R13 the size. R11 becomes the
/// address where it failed.
fn map_gpa(monitor: &Monitor, vcpu: &dyn Vcpu) -> u64 {
    monitor.call("VMCALL MapGPA");
    let (start, size) = (vcpu.get(R12) & !SHARED, vcpu.get(R13));
    if start % PAGE != 0 || size % PAGE != 0 {
        vcpu.set(R11, vcpu.get(R12));
        return VMCALL_ALIGN_ERROR;
    }
    let Some(end) = start.checked_add(size).filter(|end| *end <= SHARED) else {
        vcpu.set(R11, vcpu.get(R12));
        return VMCALL_INVALID_OPERAND;
    };
    let (mut reached, mut answer) = (end, VMCALL_SUCCESS);
    let fault = monitor.fault(Call::MapGpa, &(start..end));
    match fault {
        None => (),
        // It stops in the middle.
        Some(Answer::Retry) => {
            reached = start + (size / PAGE).div_ceil(2) * PAGE;
            answer = if reached == end {
                VMCALL_SUCCESS
            } else {
                VMCALL_RETRY
            };
        }
        Some(Answer::Busy) => (reached, answer) = (start, VMCALL_GPA_INUSE),
        Some(Answer::Error) => (reached, answer) = (start, VMCALL_INVALID_OPERAND),
        Some(Answer::Status(status)) => (reached, answer) = (start, status),
    }
    convert(monitor, start..reached, vcpu.get(R12) & SHARED != 0);
    monitor.pay_conversion(vcpu, reached - start);
    if answer != VMCALL_SUCCESS {
        vcpu.set(R11, reached | vcpu.get(R12) & SHARED);
    }
    answer
}

fn convert(monitor: &Monitor, range: Range<u64>, shared: bool) {
    monitor.host.convert(&range);
    // A page that becomes the guest's again has lost what was in it, and has to be accepted.
    monitor.update(range, |state| match (shared, state) {
        (true, _) => State::Shared,
        (false, State::Shared) => State::Pending,
        (false, state) => state,
    });
}

/// ReportFatalError: R12 is a code, and a text of up to 64 bytes stands in the other registers.
fn fatal_error(vcpu: &dyn Vcpu) -> String {
    let text = [R14, R15, Rbx, Rdi, Rsi, R8, R9, Rdx].map(|register| vcpu.get(register));
    let text: Vec<u8> = text.iter().flat_map(|word| word.to_le_bytes()).collect();
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    let code = vcpu.get(R12);
    format!(
        "ReportFatalError {code:#x}: {}",
        String::from_utf8_lossy(text)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        faults::Fault,
        monitor::{Access, Kind},
        options::Options,
        testing::Fake,
        walk::Tables,
    };
    use coco_protocol::Guest;

    const BASE: u64 = 0x4000_0000;

    fn guest(change: impl FnOnce(&mut Options)) -> (Monitor, Fake) {
        let mut options = Options::of(Guest::Tdx);
        change(&mut options);
        let (monitor, fake) = (Monitor::new(options), Fake::new());
        monitor.unaccept(&fake, BASE..BASE + (4 << 20)).unwrap();
        monitor.start(&fake, 0x10_0000..0x200_0000).unwrap();
        (monitor, fake)
    }

    fn call(monitor: &Monitor, fake: &Fake, registers: &[(crate::vcpu::Register, u64)]) -> Action {
        registers
            .iter()
            .for_each(|(register, value)| fake.set(*register, *value));
        Tdx::new().tdcall(monitor, fake)
    }

    fn accept_at(monitor: &Monitor, fake: &Fake, rcx: u64) -> (u64, Action) {
        let action = call(monitor, fake, &[(Rax, 6), (Rcx, rcx)]);
        (fake.get(Rax), action)
    }

    fn touch(monitor: &Monitor, address: u64, kind: Kind, special: Option<bool>) -> Action {
        let access = Access {
            pc: 0x1234,
            address,
            size: 8,
            kind,
        };
        monitor.access(Some(3), &access, || special)
    }

    #[test]
    fn only_the_kernel_finds_itself_in_tdx() {
        let (monitor, fake) = guest(|_| ());
        for (pc, action) in [
            (0x7e00_0000, Action::Native),
            (0x10_0000, Action::Done),
            (0xffff_ffff_8100_0000, Action::Done),
            // A second kernel, which the first has started.
            (0x7e00_0000, Action::Done),
        ] {
            fake.set(Rax, 0x21);
            fake.pc.set(pc);
            if pc >> 63 == 1 {
                monitor.kernel_proper(&fake);
            }
            assert_eq!(Tdx::new().cpuid(&monitor, &fake), action, "{pc:#x}");
        }
        assert_eq!(fake.get(Rbx) as u32, u32::from_le_bytes(*b"Inte"));
        fake.set(Rax, 1);
        assert_eq!(Tdx::new().cpuid(&monitor, &fake), Action::Native);
    }

    #[test]
    fn firmware_and_processes_are_left_to_qemu() {
        let (monitor, fake) = guest(|_| ());
        let early = Monitor::new(Options::of(Guest::Tdx));
        assert_eq!(call(&early, &fake, &[(Rax, 1)]), Action::Native);
        assert_eq!(
            call(&monitor, &fake, &[(Rax, 1), (Cs, 0x33)]),
            Action::Native
        );
    }

    #[test]
    fn poison_before_and_zeroes_after() {
        let (monitor, fake) = guest(|options| options.poison = Some(0xaa));
        assert_eq!(fake.byte(BASE + 4095), 0xaa);
        assert_eq!(accept_at(&monitor, &fake, BASE), (SUCCESS, Action::Done));
        assert_eq!((fake.byte(BASE + 4095), fake.byte(BASE + 4096)), (0, 0xaa));
        let report = monitor.report();
        assert_eq!((report.accepts.small, report.accepted_bytes), (1, 4096));
        assert_eq!(report.pending_bytes, (4 << 20) - 4096);
    }

    #[test]
    fn a_page_is_accepted_once() {
        let (monitor, fake) = guest(|options| {
            options.stop = false;
            options.host_pages = HostPages::Medium;
        });
        assert_eq!(
            accept_at(&monitor, &fake, BASE | 1),
            (SUCCESS, Action::Done)
        );
        // The status says how large the page is that was accepted.
        let twice = (PAGE_ALREADY_ACCEPTED | 1, Action::Done);
        assert_eq!(accept_at(&monitor, &fake, BASE | 1), twice);
        assert_eq!(accept_at(&monitor, &fake, BASE + 4096), twice);
        let report = monitor.report();
        assert_eq!((report.accepts.medium, report.duplicates), (1, 2));
        assert_eq!(report.violations[0].kind, "duplicate");
        let (monitor, fake) = guest(|_| ());
        accept_at(&monitor, &fake, BASE);
        let (status, action) = accept_at(&monitor, &fake, BASE);
        assert_eq!(status, PAGE_ALREADY_ACCEPTED);
        assert!(
            matches!(action, Action::Stop(Stop::Violation(_))),
            "{action:?}"
        );
    }

    #[test]
    fn a_large_accept_wants_a_large_page_of_the_host() {
        let mismatch = (PAGE_SIZE_MISMATCH | 1, Action::Done);
        let second = BASE + (2 << 20);
        let (monitor, fake) = guest(|_| ());
        assert_eq!(accept_at(&monitor, &fake, BASE | 1), mismatch);
        for page in 0..512 {
            assert_eq!(accept_at(&monitor, &fake, BASE + page * PAGE).0, SUCCESS);
        }
        // The module looks at the size first.
        assert_eq!(accept_at(&monitor, &fake, BASE | 1), mismatch);
        assert_eq!(monitor.report().mismatches, 2);
        let (monitor, fake) = guest(|options| options.host_pages = HostPages::Medium);
        assert_eq!(accept_at(&monitor, &fake, BASE | 1).0, SUCCESS);
        // What is accepted by 4K, the host has split for it.
        assert_eq!(accept_at(&monitor, &fake, second).0, SUCCESS);
        assert_eq!(accept_at(&monitor, &fake, second | 1), mismatch);
    }

    #[test]
    fn a_block_with_something_accepted_is_no_page_of_the_host() {
        let (monitor, fake) = guest(|options| options.host_pages = HostPages::Medium);
        monitor.update(BASE + PAGE..BASE + 2 * PAGE, |_| State::Private);
        let mismatch = (PAGE_SIZE_MISMATCH | 1, Action::Done);
        assert_eq!(accept_at(&monitor, &fake, BASE | 1), mismatch);
        assert_eq!(accept_at(&monitor, &fake, BASE).0, SUCCESS);
        assert_eq!(
            accept_at(&monitor, &fake, BASE + PAGE).0,
            PAGE_ALREADY_ACCEPTED
        );
    }

    #[test]
    fn a_gigabyte_is_for_experiments() {
        const GIB: u64 = 2 * BASE;
        for pages in [HostPages::Small, HostPages::Medium] {
            let (monitor, fake) = guest(|options| options.host_pages = pages);
            let refused = (OPERAND_INVALID | RCX, Action::Done);
            assert_eq!(accept_at(&monitor, &fake, BASE | 2), refused);
        }
        let (monitor, fake) = guest(|options| options.host_pages = HostPages::Large);
        monitor.unaccept(&fake, GIB..GIB + (1 << 30)).unwrap();
        assert_eq!(accept_at(&monitor, &fake, GIB | 2).0, SUCCESS);
        // Only some of it is pending.
        assert_eq!(
            accept_at(&monitor, &fake, BASE | 2).0,
            PAGE_SIZE_MISMATCH | 2
        );
        assert_eq!(accept_at(&monitor, &fake, BASE).0, SUCCESS);
    }

    #[test]
    fn an_accept_gives_way_to_interrupts_and_goes_on() {
        let (monitor, fake) = guest(|options| {
            options.host_pages = HostPages::Medium;
            options.poison = Some(0xaa);
            options.costs.accept = Duration::from_micros(200);
        });
        let rounds = (0..512).take_while(|_| {
            let (rax, action) = accept_at(&monitor, &fake, BASE | 1);
            // The instruction is executed again with the same registers.
            let again = action == Action::Again;
            assert_eq!((rax, fake.get(Rcx)), (if again { 6 } else { 0 }, BASE | 1));
            let state = if again {
                State::Pending
            } else {
                State::Private
            };
            assert_eq!(monitor.state(BASE), state);
            again
        });
        let rounds = rounds.count() as u64;
        assert!((2..512).contains(&rounds), "{rounds}");
        assert_eq!((fake.byte(BASE), fake.byte(BASE + (2 << 20) - 1)), (0, 0));
        let report = monitor.report();
        assert_eq!((report.interrupted, report.accepts.medium), (rounds, 1));
        assert_eq!(report.accepted_bytes, 2 << 20);
    }

    #[test]
    fn pages_that_change_hands_are_split_or_mapped_anew() {
        let (monitor, fake) = guest(|options| options.host_pages = HostPages::Medium);
        let map = |address, size| {
            let registers = [
                (Rax, 0),
                (R10, 0),
                (R11, 0x10001),
                (R12, address),
                (R13, size),
            ];
            call(&monitor, &fake, &registers);
            fake.get(R10)
        };
        assert_eq!(accept_at(&monitor, &fake, BASE | 1).0, SUCCESS);
        assert_eq!(map(SHARED | BASE, PAGE), VMCALL_SUCCESS);
        assert_eq!(map(BASE, PAGE), VMCALL_SUCCESS);
        assert_eq!(
            accept_at(&monitor, &fake, BASE | 1).0,
            PAGE_SIZE_MISMATCH | 1
        );
        assert_eq!(accept_at(&monitor, &fake, BASE).0, SUCCESS);
        assert_eq!(map(SHARED | BASE, 2 << 20), VMCALL_SUCCESS);
        assert_eq!(map(BASE, 2 << 20), VMCALL_SUCCESS);
        assert_eq!(accept_at(&monitor, &fake, BASE | 1).0, SUCCESS);
    }

    #[test]
    fn bad_operands_are_refused() {
        let (monitor, fake) = guest(|_| ());
        let refused = (OPERAND_INVALID | RCX, Action::Done);
        for rcx in [BASE | 3, (BASE + 4096) | 1, BASE | 8, SHARED | BASE] {
            assert_eq!(accept_at(&monitor, &fake, rcx), refused, "{rcx:#x}");
        }
        call(&monitor, &fake, &[(Rax, 99)]);
        assert_eq!(fake.get(Rax), OPERAND_INVALID);
        assert_eq!(monitor.report().accepted_bytes, 0);
    }

    #[test]
    fn faults_come_where_they_were_asked_for() {
        let (monitor, fake) = guest(|options| {
            options.faults = vec![
                Fault::at(Answer::Busy, BASE + 8, 1),
                Fault::at(Answer::Error, BASE + 4096, u64::MAX),
                Fault::at(Answer::Status(77), BASE + 8192, 2),
            ];
        });
        assert_eq!(accept_at(&monitor, &fake, BASE).0, OPERAND_BUSY | RCX);
        assert_eq!(accept_at(&monitor, &fake, BASE).0, SUCCESS);
        for _ in 0..2 {
            assert_eq!(
                accept_at(&monitor, &fake, BASE + 4096).0,
                EPT_WALK_FAILED | RCX
            );
        }
        let statuses = [8192; 3].map(|offset| accept_at(&monitor, &fake, BASE + offset).0);
        assert_eq!(statuses, [77, 77, SUCCESS]);
        assert_eq!(monitor.report().in_vain, 5);
        let every = |options: &mut Options| options.faults = vec![Fault::every(Answer::Busy, 2)];
        let (monitor, fake) = guest(every);
        let statuses = [0, 4096, 4096].map(|offset| accept_at(&monitor, &fake, BASE + offset).0);
        assert_eq!(statuses, [SUCCESS, OPERAND_BUSY | RCX, SUCCESS]);
        assert_eq!(monitor.report().busy, 1);
    }

    #[test]
    fn shared_memory_has_to_be_accepted_again() {
        let (monitor, fake) = guest(|_| ());
        let map = |address, size| {
            let action = call(
                &monitor,
                &fake,
                &[
                    (Rax, 0),
                    (R10, 0),
                    (R11, 0x10001),
                    (R12, address),
                    (R13, size),
                ],
            );
            assert_eq!(action, Action::Done);
            fake.get(R10)
        };
        accept_at(&monitor, &fake, BASE);
        assert_eq!(map(BASE, 4096), VMCALL_SUCCESS);
        assert_eq!(monitor.state(BASE), State::Private);
        assert_eq!(map(SHARED | BASE, 4096), VMCALL_SUCCESS);
        assert_eq!(monitor.state(BASE), State::Shared);
        assert_eq!(
            touch(&monitor, BASE, Kind::Write, Some(true)),
            Action::Native
        );
        assert_eq!(map(BASE, 4096), VMCALL_SUCCESS);
        assert_eq!(monitor.state(BASE), State::Pending);
        assert_eq!(accept_at(&monitor, &fake, BASE).0, SUCCESS);
        assert_eq!(map(BASE + 1, 4096), VMCALL_ALIGN_ERROR);
        assert_eq!(map(SHARED - 4096, 8192), VMCALL_INVALID_OPERAND);
    }

    #[test]
    fn a_conversion_may_end_before_its_end() {
        let fault = |answer, at| Fault {
            call: Call::MapGpa,
            ..Fault::at(answer, at, 1)
        };
        let (monitor, fake) = guest(|options| {
            options.faults = vec![
                fault(Answer::Retry, BASE),
                fault(Answer::Busy, BASE + 4 * PAGE),
                fault(Answer::Error, BASE + 5 * PAGE),
                fault(Answer::Status(9), BASE + 6 * PAGE),
            ];
            options.costs.call = Duration::from_nanos(100);
            options.costs.convert = Duration::from_nanos(10);
        });
        let map = |start: u64, pages: u64| {
            let registers = [
                (R10, 0),
                (R11, 0x10001),
                (R12, SHARED | start),
                (R13, pages * PAGE),
            ];
            call(&monitor, &fake, &registers);
            (fake.get(R10), fake.get(R11) & !SHARED)
        };
        assert_eq!(map(BASE, 3), (VMCALL_RETRY, BASE + 2 * PAGE));
        assert_eq!(fake.get(R11) & SHARED, SHARED);
        assert_eq!(monitor.report().shared_bytes, 2 * PAGE);
        assert_eq!(map(BASE + 2 * PAGE, 1).0, VMCALL_SUCCESS);
        let at = |page: u64| BASE + page * PAGE;
        assert_eq!(map(at(4), 1), (VMCALL_GPA_INUSE, at(4)));
        assert_eq!(map(at(5), 1), (VMCALL_INVALID_OPERAND, at(5)));
        assert_eq!(map(at(6), 1), (9, at(6)));
        let report = monitor.report();
        assert_eq!((report.shared_bytes, report.errors), (3 * PAGE, 4));
        assert_eq!(report.cost_ns, 5 * 100 + 3 * 10);
    }

    #[test]
    fn costs_are_of_calls_and_of_pages_and_grow_with_idle_cpus() {
        let (monitor, fake) = guest(|options| {
            options.costs.accept = Duration::from_nanos(10);
            options.costs.call = Duration::from_nanos(100);
            options.costs.idle = Duration::from_nanos(1);
        });
        // Refused, too.
        accept_at(&monitor, &fake, BASE | 1);
        accept_at(&monitor, &fake, BASE);
        monitor.idle(|| monitor.idle(|| drop(accept_at(&monitor, &fake, BASE + PAGE))));
        let own = &monitor.report().vcpus[0];
        assert_eq!((own.cost_ns, own.in_vain, own.accepts), (322, 1, 2));
        assert_eq!(own.latencies.iter().sum::<u64>(), 3);
    }

    #[test]
    fn a_shared_page_cannot_be_accepted() {
        let (monitor, fake) = guest(|options| options.stop = false);
        monitor.update(BASE..BASE + 4096, |_| State::Shared);
        assert_eq!(
            accept_at(&monitor, &fake, BASE),
            (EPT_WALK_FAILED | RCX, Action::Done)
        );
        assert_eq!(monitor.report().violations[0].kind, "illegal");
    }

    #[test]
    fn a_touch_before_the_accept_is_a_violation() {
        let (monitor, fake) = guest(|_| ());
        let read = || touch(&monitor, BASE + 16, Kind::Read, None);
        let action = read();
        let Action::Stop(Stop::Violation(what)) = action else {
            panic!("{action:?}");
        };
        assert!(what.contains("read of 8 bytes at 0x40000010"), "{what}");
        assert!(what.contains("vCPU 3") && what.contains("0x1234"), "{what}");
        accept_at(&monitor, &fake, BASE);
        assert_eq!(read(), Action::Native);
    }

    #[test]
    fn mappings_say_what_pages_are() {
        let (monitor, _) = guest(|options| options.stop = false);
        let kinds = |what: &str| {
            let report = monitor.report();
            report
                .violations
                .iter()
                .filter(|v| v.what.contains(what))
                .count()
        };
        let page = 0x30_0000;
        // A page that was never shared is not looked up in the page tables.
        touch(&monitor, page, Kind::Read, Some(true));
        monitor.update(page..page + PAGE, |_| State::Shared);
        touch(&monitor, page, Kind::Read, Some(true));
        assert_eq!(monitor.report().violation_count, 0);
        touch(&monitor, page, Kind::Read, Some(false));
        assert_eq!(kinds("is shared, by a mapping that says private"), 1);
        monitor.update(page..page + PAGE, |_| State::Private);
        touch(&monitor, page, Kind::Write, Some(false));
        assert_eq!(monitor.report().violation_count, 1);
        touch(&monitor, page, Kind::Write, Some(true));
        assert_eq!(kinds("is private, by a mapping that says shared"), 1);
        touch(&monitor, page, Kind::Write, None);
        assert_eq!(monitor.report().failed_lookups, 1);
    }

    #[test]
    fn page_tables_are_accepted_before_they_are_used() {
        let (monitor, fake) = guest(|options| options.check = true);
        assert_eq!(monitor.tables(0), None);
        assert_eq!(monitor.use_tables(&fake, 0x5000), Action::Native);
        assert_eq!(monitor.tables(0), Some(Tables::new(0x5000, 0)));
        let action = monitor.use_tables(&fake, BASE);
        let Action::Stop(Stop::Violation(what)) = action else {
            panic!("{action:?}");
        };
        assert!(
            what.contains("page table of 4096 bytes at 0x40000000"),
            "{what}"
        );
        fake.set(Cs, 0x33);
        assert_eq!(monitor.use_tables(&fake, BASE), Action::Native);
    }

    #[test]
    fn what_was_kept_secret_shows_when_the_kernel_runs() {
        let (monitor, fake) = guest(|options| {
            options.secretly_unaccepted = Some(0x10_0000..0x10_1000);
            options.secretly_accepted = Some(BASE..BASE + 4096);
        });
        assert!(matches!(
            touch(&monitor, 0x10_0800, Kind::Write, None),
            Action::Stop(_)
        ));
        assert!(matches!(
            accept_at(&monitor, &fake, BASE).1,
            Action::Stop(_)
        ));
    }

    #[test]
    fn a_halted_vcpu_waits_for_an_interrupt() {
        let (monitor, fake) = guest(|_| ());
        let tdx = Tdx::new();
        let halt = |blocked| {
            let registers = [(Rax, 0), (R10, 0), (R11, 12), (R12, blocked)];
            registers.iter().for_each(|(r, value)| fake.set(*r, *value));
            (tdx.tdcall(&monitor, &fake), fake.get(Eflags) & IF != 0)
        };
        // QEMU looks for interrupts before the vCPU sleeps, and after.
        for _ in 0..3 {
            assert_eq!(halt(0), (Action::Again, true));
            assert_eq!((fake.get(Rax), fake.get(R11)), (0, 12));
        }
        assert_eq!(tdx.iret(&fake), Action::Native);
        assert_eq!(halt(0), (Action::Done, false));
        // An interrupt before HLT does not end it.
        tdx.iret(&fake);
        assert_eq!(halt(0), (Action::Again, true));
        tdx.iret(&fake);
        assert_eq!(halt(0), (Action::Done, false));
        assert_eq!(halt(1), (Action::Done, false));
        assert_eq!(monitor.report().calls["VMCALL HLT"], 3);
    }

    #[test]
    fn a_guest_that_gives_up_says_why() {
        let (monitor, fake) = guest(|_| ());
        let text = *b"no reason";
        let word = |at: usize| {
            let mut bytes = [0; 8];
            let rest = &text[at..];
            bytes[..rest.len().min(8)].copy_from_slice(&rest[..rest.len().min(8)]);
            u64::from_le_bytes(bytes)
        };
        let action = call(
            &monitor,
            &fake,
            &[
                (Rax, 0),
                (R10, 0),
                (R11, 0x10003),
                (R12, 0),
                (R14, word(0)),
                (R15, word(8)),
            ],
        );
        let why = "ReportFatalError 0x0: no reason";
        assert_eq!(action, Action::Stop(Stop::Terminated(why.into())));
    }

    #[test]
    fn metadata_that_the_guest_asks_for_is_there() {
        let (monitor, fake) = guest(|_| ());
        call(&monitor, &fake, &[(Rax, 1)]);
        assert_eq!((fake.get(Rcx), fake.get(Rdx)), (53, SEPT_VE_DISABLE));
        call(
            &monitor,
            &fake,
            &[(Rax, 7), (Rdx, TOPOLOGY_ENUM_CONFIGURED)],
        );
        assert_eq!((fake.get(Rax), fake.get(R8)), (SUCCESS, 1));
        call(&monitor, &fake, &[(Rax, 8), (Rdx, 0x77)]);
        assert_eq!(fake.get(Rax), METADATA_FIELD_ID_INCORRECT);
        call(&monitor, &fake, &[(Rax, 0), (R10, 0), (R11, 0x7777)]);
        assert_eq!(fake.get(R10), VMCALL_SUBFUNC_UNSUPPORTED);
        call(&monitor, &fake, &[(Rax, 0), (R10, 1), (R11, 12)]);
        assert_eq!(fake.get(R10), VMCALL_INVALID_OPERAND);
    }
}
