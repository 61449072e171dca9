// SPDX-License-Identifier: GPL-2.0

//! What the loader says by CPUID, before the kernel runs: see [`coco_protocol`].

use crate::{
    monitor::Monitor,
    vcpu::{Action, Register::*, Stop, Vcpu},
};
use coco_protocol::{LEAF, Request, SIGNATURE, Status, VERSION};

const GAVE_UP: &str = "the loader cannot start the kernel; it said why on the console";

pub fn cpuid(monitor: &Monitor, vcpu: &dyn Vcpu) -> Action {
    // The upper half is where the kernel is linked to.
    if vcpu.pc() >> 63 == 1 {
        monitor.kernel_proper(vcpu);
    }
    if vcpu.get(Rax) as u32 != LEAF {
        return Action::Native;
    }
    let request = Request::from_registers(vcpu.get(Rcx) as u32, vcpu.get(R8), vcpu.get(R9));
    let (eax, ecx) = match request {
        Some(Request::Hello) => (monitor.options.guest as u32, VERSION),
        Some(Request::GiveUp) => return Action::Stop(Stop::Terminated(GAVE_UP.into())),
        // A guest that knows of the protocol must not change the rules while it runs.
        Some(_) if monitor.started().is_some() => (Status::Unknown as u32, 0),
        Some(Request::Unaccepted { start, end }) => {
            let outcome = monitor.unaccept(vcpu, start..end);
            (outcome.err().unwrap_or(Status::Done) as u32, 0)
        }
        Some(Request::Change { address, value }) => {
            monitor.change_later(address, value);
            (Status::Done as u32, 0)
        }
        Some(Request::Start { start, end }) => {
            if let Err(why) = monitor.start(vcpu, start..end) {
                return Action::Stop(Stop::Terminated(why));
            }
            (Status::Done as u32, 0)
        }
        None => (Status::Unknown as u32, 0),
    };
    vcpu.set(Rax, eax.into());
    vcpu.set(Rbx, SIGNATURE.into());
    vcpu.set(Rcx, ecx.into());
    vcpu.set(Rdx, 0);
    Action::Done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{options::Options, testing::Fake};
    use coco_protocol::Guest;

    fn ask(monitor: &Monitor, fake: &Fake, request: Request) -> Option<Status> {
        let (ecx, r8, r9) = request.registers();
        let registers = [(Rax, LEAF.into()), (Rcx, ecx.into()), (R8, r8), (R9, r9)];
        registers
            .iter()
            .for_each(|(register, value)| fake.set(*register, *value));
        assert_eq!(cpuid(monitor, fake), Action::Done);
        assert_eq!(fake.get(Rbx) as u32, SIGNATURE);
        Status::from_register(fake.get(Rax) as u32)
    }

    #[test]
    fn ranges_are_taken_until_the_kernel_starts() {
        let (monitor, fake) = (Monitor::new(Options::of(Guest::Snp)), Fake::new());
        ask(&monitor, &fake, Request::Hello);
        assert_eq!(Guest::from_register(fake.get(Rax) as u32), Some(Guest::Snp));
        let take = |start, end| ask(&monitor, &fake, Request::Unaccepted { start, end });
        assert_eq!(take(0x1000, 0x3000), Some(Status::Done));
        assert_eq!(take(0x2000, 0x4000), Some(Status::AlreadyPending));
        assert_eq!(take(0x4000, 0x4000), Some(Status::Misaligned));
        assert_eq!(take(0x4001, 0x5000), Some(Status::Misaligned));
        assert_eq!(take(0x5000, 0x4000), Some(Status::Misaligned));
        assert_eq!(
            take(u64::MAX - 4095 - 4096, u64::MAX - 4095),
            Some(Status::Beyond)
        );
        assert_eq!(monitor.report().pending_bytes, 0x2000);
        assert_eq!(monitor.started(), None);
        let start = Request::Start {
            start: 0x10_0000,
            end: 0x20_0000,
        };
        assert_eq!(ask(&monitor, &fake, start), Some(Status::Done));
        assert_eq!(monitor.started(), Some(&(0x10_0000..0x20_0000)));
        let late = ask(
            &monitor,
            &fake,
            Request::Unaccepted {
                start: 0x8000,
                end: 0x9000,
            },
        );
        assert_eq!(late, Some(Status::Unknown));
    }

    #[test]
    fn changes_are_made_when_the_kernel_itself_runs() {
        let (monitor, fake) = (Monitor::new(Options::of(Guest::Tdx)), Fake::new());
        fake.pc.set(0x7e00_0000);
        let change = Request::Change {
            address: 0x5004,
            value: 7,
        };
        assert_eq!(ask(&monitor, &fake, change), Some(Status::Done));
        let run_at = |pc| {
            fake.pc.set(pc);
            fake.set(Rax, 0);
            assert_eq!(cpuid(&monitor, &fake), Action::Native);
            fake.word(0x5004)
        };
        assert_eq!(run_at(0x10_0000), 0);
        monitor.start(&fake, 0x10_0000..0x20_0000).unwrap();
        assert_eq!(run_at(0x10_0000), 0);
        assert_eq!(run_at(0xffff_ffff_8100_0000), 7);
        // Once.
        fake.write_u64(0x5004, 8);
        assert_eq!(run_at(0xffff_ffff_8100_0000), 8);
    }

    #[test]
    fn a_secret_about_memory_that_is_not_there_ends_the_guest() {
        let mut options = Options::of(Guest::Tdx);
        options.secretly_accepted = Some(4 << 30..5 << 30);
        let (monitor, fake) = (Monitor::new(options), Fake::new());
        let (ecx, r8, r9) = Request::Start { start: 0, end: 1 }.registers();
        let registers = [(Rax, LEAF.into()), (Rcx, ecx.into()), (R8, r8), (R9, r9)];
        registers.iter().for_each(|(r, value)| fake.set(*r, *value));
        let Action::Stop(Stop::Terminated(why)) = cpuid(&monitor, &fake) else {
            panic!("it goes on");
        };
        assert!(
            why.contains("no memory at 0x100000000-0x140000000"),
            "{why}"
        );
    }

    #[test]
    fn a_loader_that_gives_up_ends_the_guest() {
        let (monitor, fake) = (Monitor::new(Options::of(Guest::Tdx)), Fake::new());
        let (ecx, ..) = Request::GiveUp.registers();
        fake.set(Rax, LEAF.into());
        fake.set(Rcx, ecx.into());
        let expected = Action::Stop(Stop::Terminated(GAVE_UP.into()));
        assert_eq!(cpuid(&monitor, &fake), expected);
    }

    #[test]
    fn other_leaves_are_not_ours() {
        let (monitor, fake) = (Monitor::new(Options::of(Guest::Tdx)), Fake::new());
        fake.set(Rax, 0x4000_0000);
        assert_eq!(cpuid(&monitor, &fake), Action::Native);
    }
}
