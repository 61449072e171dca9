// SPDX-License-Identifier: GPL-2.0

//! What an SEV-SNP guest sees of its processor, and asks its hypervisor for by VMGEXIT.
//!
//! CPUID, MSRs and instructions are those of the APM (volume 2, 15.34 to 15.36, and volume 3), the
//! calls those of the GHCB specification (AMD 56421), "GHCB MSR Protocol"; those in a page are in
//! [`ghcb`], what becomes of pages is in [`Rmp`]. The guest runs at VMPL0.
//!
//! QEMU knows nothing of encryption: an address in a page table is the same with and without the
//! bit that says encrypted, and here that bit is kept out of CR3.

use crate::{
    aps::Aps,
    faults::Call,
    ghcb,
    monitor::{Monitor, VCPUS},
    pages::{PAGE, Size},
    rmp::Rmp,
    vcpu::{Action, Register, Register::*, Stop, Vcpu},
};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// CPUID 0x8000001f, EAX: SEV, SEV-ES, SEV-SNP.
const CPUID_SEV: u64 = 1 << 1 | 1 << 3 | 1 << 4;
/// The bit of a page table entry that says encrypted.
const C_BIT: u32 = 52;
/// CPUID 0x8000001f, EBX: four VMPLs, and caches need no flush when a page changes hands.
const CPUID_EBX: u64 = C_BIT as u64 | 4 << 12 | 1 << 31;

const MSR_GHCB: u32 = 0xc001_0130;
const MSR_SEV_STATUS: u32 = 0xc001_0131;
/// SEV_STATUS: SEV, SEV-ES, SEV-SNP.
const SEV_STATUS: u64 = 7;
/// The same as a VMSA has it: SEV_FEATURES begins with SEV-SNP.
pub const SEV_FEATURES: u64 = SEV_STATUS >> 2;

/// What the hypervisor can do: SEV-SNP, AP creation.
pub const FEATURES: u64 = 1 << 0 | 1 << 1;

/// Version 2 of the GHCB protocol is the one with SEV-SNP.
const PROTOCOL: u64 = 2;
const NO_PREFERENCE: u64 = (1 << 52) - 1;
const FAILED: u64 = 1 << 63;

/// What is kept of a vCPU.
struct PerVcpu {
    /// The GHCB MSR.
    ghcb: AtomicU64,
    /// The GHCB that the guest said it would use.
    registered: AtomicU64,
    /// CR3 was written with the bit that says encrypted.
    encrypted: AtomicBool,
}

pub struct Snp {
    vcpus: Vec<PerVcpu>,
    pub rmp: Rmp,
    pub aps: Aps,
}

impl Snp {
    pub fn new() -> Self {
        let fresh = |_| PerVcpu {
            ghcb: AtomicU64::new(0),
            registered: AtomicU64::new(u64::MAX),
            encrypted: AtomicBool::new(false),
        };
        Self {
            vcpus: (0..VCPUS).map(fresh).collect(),
            rmp: Rmp::new(),
            aps: Aps::new(),
        }
    }

    /// What is kept of this vCPU, if there is a guest.
    fn own(&self, monitor: &Monitor, vcpu: &dyn Vcpu) -> Option<&PerVcpu> {
        self.vcpus
            .get(vcpu.index())
            .filter(|_| monitor.started().is_some())
    }

    /// CPUID 0x8000001f. Firmware asked before the kernel was started, and found nothing.
    pub fn cpuid(&self, monitor: &Monitor, vcpu: &dyn Vcpu) -> Action {
        if vcpu.get(Rax) as u32 != 0x8000_001f || self.own(monitor, vcpu).is_none() {
            return Action::Native;
        }
        monitor.call("CPUID 0x8000001f");
        vcpu.set(Rax, CPUID_SEV);
        vcpu.set(Rbx, CPUID_EBX);
        vcpu.set(Rcx, 0);
        vcpu.set(Rdx, 0);
        Action::Done
    }

    pub fn rdmsr(&self, monitor: &Monitor, vcpu: &dyn Vcpu) -> Action {
        let Some(own) = self.own(monitor, vcpu) else {
            return Action::Native;
        };
        let value = match vcpu.get(Rcx) as u32 {
            MSR_GHCB => own.ghcb.load(Relaxed),
            MSR_SEV_STATUS => SEV_STATUS,
            _ => return Action::Native,
        };
        if !vcpu.privileged() {
            return Action::Native;
        }
        vcpu.set(Rax, value & 0xffff_ffff);
        vcpu.set(Rdx, value >> 32);
        Action::Done
    }

    pub fn wrmsr(&self, monitor: &Monitor, vcpu: &dyn Vcpu) -> Action {
        let Some(own) = self.own(monitor, vcpu) else {
            return Action::Native;
        };
        if vcpu.get(Rcx) as u32 != MSR_GHCB || !vcpu.privileged() {
            return Action::Native;
        }
        let value = vcpu.get(Rax) & 0xffff_ffff | vcpu.get(Rdx) << 32;
        own.ghcb.store(value, Relaxed);
        Action::Done
    }

    pub fn write_cr3(&self, monitor: &Monitor, vcpu: &dyn Vcpu, from: Register) -> Action {
        let Some(own) = self.own(monitor, vcpu).filter(|_| vcpu.privileged()) else {
            return Action::Native;
        };
        let value = vcpu.get(from);
        let encrypted = value >> C_BIT & 1 == 1;
        own.encrypted.store(encrypted, Relaxed);
        if !encrypted {
            return Action::Native;
        }
        vcpu.set(Cr3, value & !(1 << C_BIT));
        Action::Done
    }

    pub fn read_cr3(&self, monitor: &Monitor, vcpu: &dyn Vcpu, to: Register) -> Action {
        let own = self.own(monitor, vcpu);
        if !own.is_some_and(|own| own.encrypted.load(Relaxed)) || !vcpu.privileged() {
            return Action::Native;
        }
        vcpu.set(to, vcpu.get(Cr3) | 1 << C_BIT);
        Action::Done
    }

    pub fn pvalidate(&self, monitor: &Monitor, vcpu: &dyn Vcpu) -> Action {
        match self.own(monitor, vcpu).filter(|_| vcpu.privileged()) {
            Some(_) => self.rmp.patches.pvalidate(vcpu),
            None => Action::Native,
        }
    }

    pub fn patched_pvalidate(&self, monitor: &Monitor, vcpu: &dyn Vcpu) -> Action {
        match self.own(monitor, vcpu).filter(|_| vcpu.privileged()) {
            Some(_) => self.rmp.pvalidate(monitor, vcpu),
            None => Action::Native,
        }
    }

    pub fn rmpadjust(&self, monitor: &Monitor, vcpu: &dyn Vcpu) -> Action {
        match self.own(monitor, vcpu).filter(|_| vcpu.privileged()) {
            Some(_) => self.rmp.rmpadjust(monitor, vcpu),
            None => Action::Native,
        }
    }

    /// VMGEXIT: what the guest wants is in the GHCB MSR, or in the page that this names.
    pub fn vmgexit(&self, monitor: &Monitor, vcpu: &dyn Vcpu) -> Action {
        let Some(own) = self.own(monitor, vcpu) else {
            return Action::Native;
        };
        let msr = own.ghcb.load(Relaxed);
        if msr % PAGE == 0 {
            let registered = own.registered.load(Relaxed) == msr;
            return ghcb::event(self, monitor, vcpu, msr, registered);
        }
        let mut action = Action::Done;
        let answer = match msr % PAGE {
            0x002 => {
                monitor.call("GHCB MSR SEV information");
                0x001 | u64::from(C_BIT) << 24 | PROTOCOL << 32 | PROTOCOL << 48
            }
            0x006 => {
                monitor.call("GHCB MSR AP reset hold");
                ghcb::hold();
                0x007
            }
            0x010 => {
                monitor.call("GHCB MSR preferred GHCB");
                0x011 | NO_PREFERENCE << 12
            }
            0x012 => {
                monitor.call("GHCB MSR register GHCB");
                own.registered.store(msr & !(PAGE - 1), Relaxed);
                0x013 | msr & !(PAGE - 1)
            }
            0x014 => {
                monitor.call("GHCB MSR page state change");
                let (address, operation) = (msr & ((1 << 52) - PAGE), msr >> 52 & 0xf);
                let known = operation == ghcb::PRIVATE || operation == ghcb::SHARED;
                monitor.pay_conversion(vcpu, PAGE);
                let range = Size::Small.around(address);
                if known && monitor.fault(Call::PscMsr, &range).is_none() {
                    let private = operation == ghcb::PRIVATE;
                    let size = Size::Small;
                    action = self.rmp.assign(monitor, vcpu, address, size, private);
                    0x015
                } else {
                    0x015 | FAILED
                }
            }
            0x080 => {
                monitor.call("GHCB MSR hypervisor features");
                0x081 | FEATURES << 12
            }
            0x100 => {
                let why = termination(msr >> 12 & 0xf, msr >> 16 & 0xff);
                return Action::Stop(Stop::Terminated(why));
            }
            request => {
                // CPUID (0x004) too: a guest without #VC has no need of it. The MSR is left as it
                // is, which no guest takes for an answer.
                monitor.call(format!("GHCB MSR {request:#05x}, which is not modelled"));
                msr
            }
        };
        own.ghcb.store(answer, Relaxed);
        action
    }
}

/// Why a guest asks to be ended, in words: reason set 0 is of the GHCB specification ("GHCB MSR
/// Protocol", termination request), set 1 is Linux' own (`arch/x86/include/asm/sev-common.h`).
pub fn termination(set: u64, code: u64) -> String {
    const GENERAL: [&str; 3] = [
        "no reason given",
        "it needs another version of the GHCB protocol",
        "it needs SEV-SNP features that are not there",
    ];
    const LINUX: [&str; 13] = [
        "its GHCB could not be registered",
        "a page state change failed",
        "PVALIDATE failed",
        "it does not run at VMPL0",
        "there is no CPUID table, or it is wrong",
        "the hypervisor did not answer for CPUID",
        "there is no secrets page",
        "there is no SVSM",
        "the SVSM has left it VMPL0",
        "the SVSM's calling area is not aligned",
        "secure TSC does not work",
        "the SVSM's calling area could not be moved",
        "secure AVIC does not work",
    ];
    let words = match set {
        0 => GENERAL.get(code as usize),
        1 => LINUX.get(code as usize),
        _ => None,
    };
    let words = words.copied().unwrap_or("an unknown reason");
    format!("{words} (reason set {set}, code {code})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        faults::{Answer, Fault},
        options::Options,
        pages::State,
        testing::Fake,
    };
    use coco_protocol::Guest;

    const BASE: u64 = 0x4000_0000;
    const C: u64 = 1 << C_BIT;

    fn guest() -> (Snp, Monitor, Fake) {
        let (monitor, fake) = (Monitor::new(Options::of(Guest::Snp)), Fake::new());
        monitor.unaccept(&fake, BASE..BASE + (4 << 20)).unwrap();
        monitor.start(&fake, 0x10_0000..0x200_0000).unwrap();
        (Snp::new(), monitor, fake)
    }

    fn set_msr(snp: &Snp, monitor: &Monitor, fake: &Fake, value: u64) {
        fake.set(Rcx, MSR_GHCB.into());
        fake.set(Rax, value & 0xffff_ffff);
        fake.set(Rdx, value >> 32);
        assert_eq!(snp.wrmsr(monitor, fake), Action::Done);
    }

    fn msr(snp: &Snp, monitor: &Monitor, fake: &Fake) -> u64 {
        fake.set(Rcx, MSR_GHCB.into());
        assert_eq!(snp.rdmsr(monitor, fake), Action::Done);
        fake.get(Rax) | fake.get(Rdx) << 32
    }

    /// The answer to a request by the MSR.
    fn ask(snp: &Snp, monitor: &Monitor, fake: &Fake, request: u64) -> u64 {
        set_msr(snp, monitor, fake, request);
        assert_eq!(snp.vmgexit(monitor, fake), Action::Done);
        msr(snp, monitor, fake)
    }

    #[test]
    fn the_kernel_finds_itself_in_snp() {
        let (snp, monitor, fake) = guest();
        fake.set(Rax, 0x8000_001f);
        assert_eq!(snp.cpuid(&monitor, &fake), Action::Done);
        assert_eq!((fake.get(Rax), fake.get(Rbx) & 0x3f), (0x1a, 52));
        fake.set(Rax, 0x8000_001e);
        assert_eq!(snp.cpuid(&monitor, &fake), Action::Native);
        fake.set(Rcx, MSR_SEV_STATUS.into());
        assert_eq!(snp.rdmsr(&monitor, &fake), Action::Done);
        assert_eq!((fake.get(Rax), fake.get(Rdx)), (7, 0));
        fake.set(Rcx, 0xc000_0080);
        assert_eq!(snp.rdmsr(&monitor, &fake), Action::Native);
        assert_eq!(snp.wrmsr(&monitor, &fake), Action::Native);
    }

    #[test]
    fn firmware_finds_nothing() {
        let monitor = Monitor::new(Options::of(Guest::Snp));
        let (snp, fake) = (Snp::new(), Fake::new());
        fake.set(Rax, 0x8000_001f);
        fake.set(Rcx, MSR_GHCB.into());
        let actions = [
            snp.cpuid(&monitor, &fake),
            snp.rdmsr(&monitor, &fake),
            snp.wrmsr(&monitor, &fake),
            snp.vmgexit(&monitor, &fake),
            snp.pvalidate(&monitor, &fake),
            snp.rmpadjust(&monitor, &fake),
            snp.write_cr3(&monitor, &fake, Rax),
            snp.read_cr3(&monitor, &fake, Rax),
        ];
        assert_eq!(actions, [const { Action::Native }; 8]);
    }

    #[test]
    fn processes_are_left_to_qemu() {
        let (snp, monitor, fake) = guest();
        fake.set(Cs, 0x33);
        fake.set(Rcx, MSR_GHCB.into());
        fake.set(Rax, C);
        let actions = [
            snp.rdmsr(&monitor, &fake),
            snp.wrmsr(&monitor, &fake),
            snp.pvalidate(&monitor, &fake),
            snp.rmpadjust(&monitor, &fake),
            snp.write_cr3(&monitor, &fake, Rax),
        ];
        assert_eq!(actions, [const { Action::Native }; 5]);
    }

    #[test]
    fn the_encryption_bit_is_kept_out_of_cr3() {
        let (snp, monitor, fake) = guest();
        fake.set(Rdi, C | 0x5000);
        assert_eq!(snp.write_cr3(&monitor, &fake, Rdi), Action::Done);
        assert_eq!(fake.get(Cr3), 0x5000);
        assert_eq!(snp.read_cr3(&monitor, &fake, Rsi), Action::Done);
        assert_eq!(fake.get(Rsi), C | 0x5000);
        fake.set(Rdi, 0x6000);
        assert_eq!(snp.write_cr3(&monitor, &fake, Rdi), Action::Native);
        assert_eq!(snp.read_cr3(&monitor, &fake, Rsi), Action::Native);
    }

    #[test]
    fn the_msr_protocol_is_answered() {
        let (snp, monitor, fake) = guest();
        for (request, answer) in [
            (0x002, 0x0002_0002_3400_0001),
            (0x006, 0x007),
            (0x010, 0xffff_ffff_ffff_f011),
            (0x12_3012, 0x12_3013),
            (0x080, 0x3081),
            (1 << 63 | 0x004, 1 << 63 | 0x004),
            (0xfff, 0xfff),
            // Page state changes: neither private nor shared.
            (3 << 52 | 0x1000_0014, FAILED | 0x015),
            (0x1000_0014, FAILED | 0x015),
        ] {
            assert_eq!(ask(&snp, &monitor, &fake, request), answer, "{request:#x}");
        }
    }

    #[test]
    fn a_page_changes_state_by_the_msr() {
        let (snp, monitor, fake) = guest();
        let change = |operation: u64| ask(&snp, &monitor, &fake, operation << 52 | BASE | 0x014);
        assert_eq!(change(1), 0x015);
        assert_eq!(monitor.state(BASE), State::Pending);
        assert_eq!(change(2), 0x015);
        assert_eq!(monitor.state(BASE), State::Shared);
        assert_eq!(monitor.state(BASE + PAGE), State::Unassigned);
    }

    #[test]
    fn the_msr_protocol_may_refuse_a_page() {
        let mut options = Options::of(Guest::Snp);
        options.faults = vec![Fault {
            call: Call::PscMsr,
            ..Fault::at(Answer::Error, BASE, 1)
        }];
        let (snp, monitor, fake) = (Snp::new(), Monitor::new(options), Fake::new());
        monitor.unaccept(&fake, BASE..BASE + PAGE).unwrap();
        monitor.start(&fake, 0x10_0000..0x200_0000).unwrap();
        let change = || ask(&snp, &monitor, &fake, 1 << 52 | BASE | 0x014);
        assert_eq!(change(), FAILED | 0x015);
        assert_eq!(monitor.state(BASE), State::Unassigned);
        assert_eq!(change(), 0x015);
    }

    #[test]
    fn a_guest_that_gives_up_says_why() {
        let (snp, monitor, fake) = guest();
        let end = |set: u64, code: u64| {
            set_msr(&snp, &monitor, &fake, code << 16 | set << 12 | 0x100);
            match snp.vmgexit(&monitor, &fake) {
                Action::Stop(Stop::Terminated(why)) => why,
                action => panic!("{action:?}"),
            }
        };
        assert_eq!(end(1, 2), "PVALIDATE failed (reason set 1, code 2)");
        assert!(end(0, 0).starts_with("no reason given"));
        assert!(end(1, 200).starts_with("an unknown reason"));
        assert!(end(15, 0).starts_with("an unknown reason"));
    }
}
