// SPDX-License-Identifier: GPL-2.0

//! How an SNP guest starts its other processors (APs).
//!
//! The guest describes the state in which an AP starts in a page, the VMSA, and has the hypervisor
//! run it (GHCB specification, "SNP AP Creation"). A plugin cannot start a vCPU in any state. But
//! what guests describe is what INIT and SIPI lead to (APM volume 2, 14.1.3 and 16.5), except that
//! the AP may start in the middle of a page. So the local APIC sends INIT and SIPI, and the AP's
//! first instruction is left for the one that the VMSA names.

use crate::{
    monitor::Monitor,
    pages::PAGE,
    rmp::Rmp,
    snp::SEV_FEATURES,
    vcpu::{Action, Vcpu},
};
use std::{collections::VecDeque, sync::Mutex};

/// The requests, SW_EXITINFO1 bits 15:0.
const CREATE_ON_INIT: u64 = 0;
const CREATE: u64 = 1;
const DESTROY: u64 = 2;

/// The local APIC's interrupt command register, and what is written to it (APM volume 2, 16.5).
const COMMAND: u64 = 0xfee0_0300;
const DESTINATION: u64 = 0xfee0_0310;
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;
/// The last APIC ID that an xAPIC can send to.
const LAST_APIC_ID: u64 = 254;

/// Real mode reaches no further.
const REAL_MODE: u64 = 1 << 20;

/// Offsets in the VMSA (APM volume 2, table B-4) and the values that INIT leaves.
const CS: usize = 0x10;
const DATA_SEGMENTS: [usize; 5] = [0x00, 0x20, 0x30, 0x40, 0x50];
const VMPL: usize = 0xca;
const EFER: usize = 0xd0;
const EFER_SVME: u64 = 1 << 12;
const CR4: usize = 0x148;
const CR4_MCE: u64 = 1 << 6;
const CR3: usize = 0x150;
const CR0: usize = 0x158;
const CR0_INIT: u64 = 0x6000_0010;
const RFLAGS: usize = 0x170;
const RFLAGS_INIT: u64 = 2;
const RIP: usize = 0x178;
const FEATURES: usize = 0x3b0;

/// Where an AP is about to start.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Start {
    /// Where SIPI lets it start: the segment's base.
    base: u64,
    /// Where it shall start: the offset in the segment.
    rip: u64,
}

pub struct Aps {
    starts: Mutex<VecDeque<Start>>,
}

impl Aps {
    pub fn new() -> Self {
        Self {
            starts: Mutex::default(),
        }
    }

    /// Does what the guest asks for, or says why not. `info_1` has the APIC ID and the request,
    /// `info_2` the VMSA's address; `features`: RAX.
    pub fn request(
        &self,
        rmp: &Rmp,
        vcpu: &dyn Vcpu,
        info_1: u64,
        info_2: u64,
        features: Option<u64>,
    ) -> Result<(), &'static str> {
        let (apic_id, request, vmpl) = (info_1 >> 32, info_1 & 0xffff, info_1 >> 16 & 0xf);
        if vmpl != 0 {
            return Err("VMPLs other than 0 are not modelled");
        }
        if apic_id > LAST_APIC_ID {
            return Err("the APIC ID is beyond what an xAPIC can send to");
        }
        match request {
            DESTROY => interrupt(vcpu, apic_id, INIT),
            CREATE => {
                let start = start(rmp, vcpu, info_2, features)?;
                interrupt(vcpu, apic_id, INIT)?;
                self.starts().push_back(start);
                interrupt(vcpu, apic_id, STARTUP | (start.base / PAGE) as u32)
            }
            CREATE_ON_INIT => Err("creation on INIT is not modelled"),
            _ => Err("there is no such request"),
        }
    }

    /// Whether an AP may start at an address.
    pub fn may_start_at(&self, address: u64) -> bool {
        address < REAL_MODE && self.starts().iter().any(|start| start.base == address)
    }

    /// The first instruction of an AP is not done, but the one that its VMSA says.
    pub fn enter(&self, monitor: &Monitor, vcpu: &dyn Vcpu) -> Action {
        let mut starts = self.starts();
        let own = starts.iter().position(|start| start.base == vcpu.pc());
        match own.and_then(|own| starts.remove(own)) {
            Some(start) if start.rip != 0 => {
                monitor.call("AP that was sent on to its entry");
                Action::Jump(start.rip)
            }
            _ => Action::Native,
        }
    }

    fn starts(&self) -> std::sync::MutexGuard<'_, VecDeque<Start>> {
        self.starts
            .lock()
            .unwrap_or_else(|error| error.into_inner())
    }
}

/// Where a VMSA lets an AP start, if that is a place that SIPI can reach.
fn start(
    rmp: &Rmp,
    vcpu: &dyn Vcpu,
    address: u64,
    features: Option<u64>,
) -> Result<Start, &'static str> {
    let mut vmsa = [0; PAGE as usize];
    if address % PAGE != 0 || !rmp.is_vmsa(address) || !vcpu.read(address, &mut vmsa) {
        return Err("the page is not a VMSA: RMPADJUST makes one");
    }
    // Hosts refuse it, because of an erratum.
    if address % (2 << 20) == 0 {
        return Err("the VMSA is aligned to 2M");
    }
    let field = |at: usize| (0..8).fold(0, |value, i| value | u64::from(vmsa[at + i]) << (8 * i));
    if features != Some(SEV_FEATURES) || field(FEATURES) != SEV_FEATURES {
        return Err("the SEV features are not those of the boot processor");
    }
    let plain = |at: &usize| field(*at) & 0xffff == 0 && field(at + 8) == 0;
    let initial = field(CR0) == CR0_INIT
        && field(CR3) == 0
        && field(CR4) & !CR4_MCE == 0
        && field(EFER) == EFER_SVME
        && field(RFLAGS) == RFLAGS_INIT
        && vmsa[VMPL] == 0
        && DATA_SEGMENTS.iter().all(plain);
    let (selector, base, rip) = (field(CS) & 0xffff, field(CS + 8), field(RIP));
    let reached = base == selector << 4 && base % PAGE == 0 && base < REAL_MODE && rip <= 0xffff;
    if !initial || !reached {
        return Err("the VMSA does not say what INIT and SIPI lead to");
    }
    Ok(Start { base, rip })
}

/// Has this vCPU's local APIC send an interrupt. To the APIC it is a write of the vCPU.
fn interrupt(vcpu: &dyn Vcpu, apic_id: u64, what: u32) -> Result<(), &'static str> {
    let destination = (apic_id as u32) << 24;
    let mut back = [0; 4];
    let sent = vcpu.write(DESTINATION, &destination.to_le_bytes())
        && vcpu.read(DESTINATION, &mut back)
        && u32::from_le_bytes(back) == destination
        && vcpu.write(COMMAND, &what.to_le_bytes());
    sent.then_some(())
        .ok_or("the local APIC is not where an xAPIC is: QEMU needs -cpu ...,-x2apic")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        options::Options,
        testing::Fake,
        vcpu::Register::{Rax, Rcx, Rdx},
    };
    use coco_protocol::Guest;

    const PAGE_OF_VMSA: u64 = 0x20_1000;

    /// A VMSA as Linux fills it in, for an AP that starts at 0x9a000 + 0x123.
    fn vmsa() -> Vec<(usize, u64)> {
        let data = DATA_SEGMENTS.map(|at| (at, 0xffff_0092_0000));
        let mut fields = vec![
            (CS, 0xffff_009a_9a00),
            (CS + 8, 0x9_a000),
            (EFER, EFER_SVME),
            (CR4, CR4_MCE),
            (CR0, CR0_INIT),
            (RFLAGS, RFLAGS_INIT),
            (RIP, 0x123),
            (FEATURES, SEV_FEATURES),
        ];
        fields.extend(data);
        fields
    }

    fn guest(fields: &[(usize, u64)]) -> (Aps, Rmp, Fake) {
        let (rmp, fake) = (Rmp::new(), Fake::new());
        for (at, value) in fields {
            fake.write_u64(PAGE_OF_VMSA + *at as u64, *value);
        }
        let registers = [(Rax, PAGE_OF_VMSA), (Rcx, 0), (Rdx, 1 << 16 | 1)];
        registers
            .iter()
            .for_each(|(register, value)| fake.set(*register, *value));
        rmp.rmpadjust(&Monitor::new(Options::of(Guest::Snp)), &fake);
        (Aps::new(), rmp, fake)
    }

    fn create(aps: &Aps, rmp: &Rmp, fake: &Fake) -> Result<(), &'static str> {
        aps.request(
            rmp,
            fake,
            3 << 32 | CREATE,
            PAGE_OF_VMSA,
            Some(SEV_FEATURES),
        )
    }

    fn sent(fake: &Fake) -> (u32, u32) {
        let word = |at| fake.word(at) as u32;
        (word(DESTINATION), word(COMMAND))
    }

    #[test]
    fn an_ap_starts_where_its_vmsa_says() {
        let (aps, rmp, fake) = guest(&vmsa());
        assert!(!aps.may_start_at(0x9_a000));
        assert_eq!(create(&aps, &rmp, &fake), Ok(()));
        assert_eq!(sent(&fake), (3 << 24, STARTUP | 0x9a));
        assert!(aps.may_start_at(0x9_a000));
        let monitor = Monitor::new(Options::of(Guest::Snp));
        fake.pc.set(0x9_a000);
        assert_eq!(aps.enter(&monitor, &fake), Action::Jump(0x123));
        // Once for each AP.
        assert_eq!(aps.enter(&monitor, &fake), Action::Native);
    }

    #[test]
    fn an_ap_is_stopped_by_init() {
        let (aps, rmp, fake) = guest(&vmsa());
        let stopped = aps.request(&rmp, &fake, 3 << 32 | DESTROY, 0, None);
        assert_eq!((stopped, sent(&fake)), (Ok(()), (3 << 24, INIT)));
    }

    #[test]
    fn a_state_that_sipi_cannot_reach_is_refused() {
        let wrong = [
            (CR0, CR0_INIT | 1),
            (CR3, 0x1000),
            (CR4, 0x20),
            (EFER, EFER_SVME | 0x500),
            (EFER, 0),
            (RFLAGS, 0x202),
            (RIP, 0x1_0000),
            (CS, 0xffff_009a_9a01),
            (CS + 8, 0x9_a010),
            (0x30 + 8, 0x1000),
            (FEATURES, 0x21),
        ];
        for (at, value) in wrong {
            let mut fields = vmsa();
            fields.push((at, value));
            let (aps, rmp, fake) = guest(&fields);
            assert!(create(&aps, &rmp, &fake).is_err(), "{at:#x}: {value:#x}");
            assert_eq!(sent(&fake), (0, 0));
        }
    }

    #[test]
    fn bad_requests_are_refused() {
        let (aps, rmp, fake) = guest(&vmsa());
        let features = Some(SEV_FEATURES);
        let refused = |info_1, info_2, features| {
            assert!(aps.request(&rmp, &fake, info_1, info_2, features).is_err());
        };
        refused(3 << 32 | CREATE, PAGE_OF_VMSA + 0x1000, features);
        refused(3 << 32 | CREATE, PAGE_OF_VMSA + 8, features);
        refused(3 << 32 | CREATE, PAGE_OF_VMSA, None);
        refused(3 << 32 | CREATE, PAGE_OF_VMSA, Some(0));
        refused(255 << 32 | CREATE, PAGE_OF_VMSA, features);
        refused(3 << 32 | 1 << 16 | CREATE, PAGE_OF_VMSA, features);
        refused(3 << 32 | CREATE_ON_INIT, PAGE_OF_VMSA, features);
        refused(3 << 32 | 3, PAGE_OF_VMSA, features);
    }
}
