// SPDX-License-Identifier: GPL-2.0

//! What a TDX guest asks its module and hypervisor for, by TDCALL.
//!
//! Leaves, registers and status codes are those of the Intel TDX Module ABI specification (348551);
//! the sub-functions of TDG.VP.VMCALL are those of the Guest-Hypervisor Communication Interface
//! (348552). What a real guest gets as #VE (port I/O, MSRs, CPUID) QEMU does natively here.

use crate::{
    monitor::{Accept, Monitor, Size, VCPUS},
    pages::{PAGE, State},
    vcpu::{Action, Register::*, Stop, Vcpu},
};
use std::{
    sync::Mutex,
    thread,
    time::{Duration, Instant},
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
const VMCALL_INVALID_OPERAND: u64 = 0x8000_0000_0000_0000;
const VMCALL_ALIGN_ERROR: u64 = 0x8000_0000_0000_0002;
const VMCALL_SUBFUNC_UNSUPPORTED: u64 = 0x8000_0000_0000_0003;

/// A sleep of an idle vCPU. The plugin interface cannot say when an interrupt comes in, so the
/// guest looks for one after each: soon at first, seldom when it has been idle for long.
const NAP: Duration = Duration::from_micros(100);
const LONG_NAP: Duration = Duration::from_millis(2);
/// Who has run for longer than this between two HLT had something to do.
const BUSY: Duration = Duration::from_micros(300);

#[derive(Clone, Copy, Default)]
struct Idle {
    nap: Duration,
    woke: Option<Instant>,
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
    /// It runs in the lower half, outside of the kernel's image.
    pub fn cpuid(&self, monitor: &Monitor, vcpu: &dyn Vcpu) -> Action {
        let pc = vcpu.pc();
        let kernel = |image: &std::ops::Range<u64>| image.contains(&pc) || pc >> 63 == 1;
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
        vcpu.set(Rax, status);
        action
    }

    /// TDG.VP.VMCALL: R10 is 0 for what the specification defines, R11 the sub-function, R12 and up
    /// its arguments. R10 becomes the status.
    fn vmcall(&self, monitor: &Monitor, vcpu: &dyn Vcpu) -> Action {
        let mut action = Action::Done;
        let status = match (vcpu.get(R10), vcpu.get(R11)) {
            (0, 12) => {
                monitor.call("VMCALL HLT");
                self.halt(vcpu);
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
        vcpu.set(R10, status);
        action
    }

    /// Sleeps for a while. The guest has disabled interrupts; it enables them when this returns,
    /// takes what has come in, and calls again if there was nothing.
    fn halt(&self, vcpu: &dyn Vcpu) {
        let Some(own) = self.idle.get(vcpu.index()) else {
            return thread::sleep(NAP);
        };
        let mut idle = *own.lock().unwrap_or_else(|error| error.into_inner());
        let busy = idle.woke.is_none_or(|woke| woke.elapsed() > BUSY);
        idle.nap = if busy {
            NAP
        } else {
            (idle.nap * 2).min(LONG_NAP)
        };
        thread::sleep(idle.nap);
        idle.woke = Some(Instant::now());
        *own.lock().unwrap_or_else(|error| error.into_inner()) = idle;
    }
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

/// TDG.MEM.PAGE.ACCEPT: RCX is the address, and the page's size in its bits 2:0.
fn accept(monitor: &Monitor, vcpu: &dyn Vcpu) -> (u64, Action) {
    let rcx = vcpu.get(Rcx);
    let size = match rcx & 7 {
        0 => Size::Small,
        1 => Size::Medium,
        2 => Size::Large,
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
        Accept::Error | Accept::Illegal => EPT_WALK_FAILED | RCX,
        Accept::Mismatch => PAGE_SIZE_MISMATCH | RCX,
        Accept::Duplicate => PAGE_ALREADY_ACCEPTED,
    };
    let action = match outcome {
        Accept::Duplicate | Accept::Illegal => monitor.bad_accept(vcpu, outcome, address, size),
        _ => Action::Done,
    };
    (status, action)
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
    let shared = vcpu.get(R12) & SHARED != 0;
    // A page that becomes the guest's again has lost what was in it, and has to be accepted.
    monitor.update(start..end, |state| match (shared, state) {
        (true, _) => State::Shared,
        (false, State::Shared) => State::Pending,
        (false, state) => state,
    });
    VMCALL_SUCCESS
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
    use crate::testing::Fake;
    use coco_protocol::Guest;

    const BASE: u64 = 0x4000_0000;

    fn guest(change: impl FnOnce(&mut crate::options::Options)) -> (Monitor, Fake) {
        let mut options = crate::options::Options::of(Guest::Tdx);
        change(&mut options);
        let (monitor, fake) = (Monitor::new(options), Fake::new());
        monitor.unaccept(&fake, BASE..BASE + (4 << 20)).unwrap();
        monitor.start(0x10_0000..0x200_0000);
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

    #[test]
    fn only_the_kernel_finds_itself_in_tdx() {
        let (monitor, fake) = guest(|_| ());
        for (pc, action) in [
            (0x7e00_0000, Action::Native),
            (0x10_0000, Action::Done),
            (0xffff_ffff_8100_0000, Action::Done),
        ] {
            fake.set(Rax, 0x21);
            fake.pc.set(pc);
            assert_eq!(Tdx::new().cpuid(&monitor, &fake), action, "{pc:#x}");
        }
        assert_eq!(fake.get(Rbx) as u32, u32::from_le_bytes(*b"Inte"));
        fake.set(Rax, 1);
        assert_eq!(Tdx::new().cpuid(&monitor, &fake), Action::Native);
    }

    #[test]
    fn firmware_and_processes_are_left_to_qemu() {
        let (monitor, fake) = guest(|_| ());
        let early = Monitor::new(crate::options::Options::of(Guest::Tdx));
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
        let (monitor, fake) = guest(|options| options.stop = false);
        assert_eq!(
            accept_at(&monitor, &fake, BASE | 1),
            (SUCCESS, Action::Done)
        );
        let twice = (PAGE_ALREADY_ACCEPTED, Action::Done);
        assert_eq!(accept_at(&monitor, &fake, BASE + 4096), twice);
        let report = monitor.report();
        assert_eq!((report.accepts.medium, report.duplicates), (1, 1));
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
    fn a_large_accept_wants_all_of_it_pending() {
        let (monitor, fake) = guest(|_| ());
        accept_at(&monitor, &fake, BASE + (2 << 20));
        let mismatch = (PAGE_SIZE_MISMATCH | RCX, Action::Done);
        assert_eq!(accept_at(&monitor, &fake, (BASE + (2 << 20)) | 1), mismatch);
        assert_eq!(accept_at(&monitor, &fake, BASE | 2), mismatch);
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
            options.faults.busy_at = Some(BASE + 8);
            options.faults.error_at = Some(BASE + 4096);
            options.faults.refuse_2m = true;
        });
        assert_eq!(
            accept_at(&monitor, &fake, BASE | 1).0,
            PAGE_SIZE_MISMATCH | RCX
        );
        assert_eq!(accept_at(&monitor, &fake, BASE).0, OPERAND_BUSY | RCX);
        assert_eq!(accept_at(&monitor, &fake, BASE).0, SUCCESS);
        for _ in 0..2 {
            assert_eq!(
                accept_at(&monitor, &fake, BASE + 4096).0,
                EPT_WALK_FAILED | RCX
            );
        }
        let (monitor, fake) = guest(|options| options.faults.busy_every = 2);
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
        assert_eq!(monitor.access(0, 0, BASE, 8, true), Action::Native);
        assert_eq!(map(BASE, 4096), VMCALL_SUCCESS);
        assert_eq!(monitor.state(BASE), State::Pending);
        assert_eq!(accept_at(&monitor, &fake, BASE).0, SUCCESS);
        assert_eq!(map(BASE + 1, 4096), VMCALL_ALIGN_ERROR);
        assert_eq!(map(SHARED - 4096, 8192), VMCALL_INVALID_OPERAND);
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
        let action = monitor.access(3, 0x1234, BASE + 16, 8, false);
        let Action::Stop(Stop::Violation(what)) = action else {
            panic!("{action:?}");
        };
        assert!(what.contains("read of 8 bytes at 0x40000010"), "{what}");
        assert!(what.contains("vCPU 3") && what.contains("0x1234"), "{what}");
        accept_at(&monitor, &fake, BASE);
        assert_eq!(
            monitor.access(3, 0x1234, BASE + 16, 8, false),
            Action::Native
        );
    }

    #[test]
    fn what_was_kept_secret_shows_when_the_kernel_runs() {
        let (monitor, fake) = guest(|options| {
            options.faults.secretly_unaccepted = Some(0x10_0000..0x10_1000);
            options.faults.secretly_accepted = Some(BASE..BASE + 4096);
        });
        assert!(matches!(
            monitor.access(0, 0, 0x10_0800, 1, true),
            Action::Stop(_)
        ));
        assert!(matches!(
            accept_at(&monitor, &fake, BASE).1,
            Action::Stop(_)
        ));
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
