// SPDX-License-Identifier: GPL-2.0

//! What an SNP guest may do with its pages, as the reverse map table (RMP) of the processor has it.
//!
//! APM volume 2, 15.36.5 to 15.36.11, and APM volume 3, PVALIDATE and RMPADJUST. The monitor keeps
//! the state of each page, and the host the size of RMP entries: what firmware has validated, and
//! what is assigned as 2M, is one of 2M where the host has such pages. Which pages are a VMSA is
//! kept here.
//!
//! | state | in the RMP |
//! |---|---|
//! | `Unassigned`, `Shared` | not assigned to the guest |
//! | `Pending` | assigned, not validated |
//! | `Private` | assigned and validated |

use crate::{
    monitor::{Accept, Monitor},
    pages::{Hindrance, PAGE, Size, State},
    patch::{Patches, with_carry},
    vcpu::{Action, Register::*, Vcpu},
};
use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard},
    thread,
    time::Duration,
};

/// What PVALIDATE and RMPADJUST leave in EAX.
const SUCCESS: u64 = 0;
const FAIL_INPUT: u64 = 1;
const FAIL_PERMISSION: u64 = 2;
const FAIL_SIZEMISMATCH: u64 = 6;

/// VMPL0 is where the guest runs, and 3 the last.
const LAST_VMPL: u64 = 3;
/// RMPADJUST's RDX: the page becomes a VMSA.
const VMSA: u64 = 1 << 16;

/// How long the processor waits for another one that has the same page under its hands.
pub const MOMENT: Duration = Duration::from_micros(20);

/// What PVALIDATE does: EAX, whether the Validated bit has changed, and what becomes of the guest.
type Outcome = (u64, bool, Action);

pub struct Rmp {
    /// The pages, by PFN, that are a VMSA.
    vmsas: Mutex<HashSet<u64>>,
    pub patches: Patches,
}

impl Rmp {
    pub fn new() -> Self {
        Self {
            vmsas: Mutex::default(),
            patches: Patches::new(),
        }
    }

    /// Assigns pages to the guest, or takes them back, as the hypervisor does when the guest asks
    /// for a page state change. What was in the pages is left there.
    pub fn assign(
        &self,
        monitor: &Monitor,
        vcpu: &dyn Vcpu,
        address: u64,
        size: Size,
        private: bool,
    ) -> Action {
        let (mut seen, mut fresh, mut bad) = (0, 0, None);
        monitor.update(address..address + size.bytes(), |state| {
            let page = address + seen * PAGE;
            seen += 1;
            match (private, state) {
                (true, State::Unassigned | State::Shared) => {
                    fresh += 1;
                    State::Pending
                }
                (true, state) => state,
                (false, State::Private | State::Accepting) => {
                    bad.get_or_insert(page);
                    State::Shared
                }
                (false, _) => State::Shared,
            }
        });
        if size == Size::Small || fresh == seen {
            monitor.host.convert(&size.around(address));
        }
        let Some(page) = bad else {
            return Action::Done;
        };
        let what = format!("the page at {page:#x} became shared while it was validated");
        monitor.illegal(vcpu, page, PAGE, what)
    }

    /// PVALIDATE: RAX is the address, ECX[0] the size, EDX[0] what Validated shall be. The
    /// instruction that is there instead makes EAX and the carry flag of [`with_carry`].
    pub fn pvalidate(&self, monitor: &Monitor, vcpu: &dyn Vcpu) -> Action {
        let linear = vcpu.get(Rax) & !(PAGE - 1);
        let size = size(vcpu);
        let (status, changed, action) = if linear % size.bytes() != 0 {
            (FAIL_INPUT, true, Action::Done)
        } else {
            match self.patches.translate(vcpu, linear) {
                Err(fault) => return fault,
                Ok(address) if vcpu.get(Rdx) & 1 == 1 => {
                    self.validate(monitor, vcpu, address, size)
                }
                Ok(address) => self.rescind(monitor, vcpu, address, size),
            }
        };
        vcpu.set(Rax, with_carry(status, !changed));
        match action {
            Action::Done => Action::Native,
            action => action,
        }
    }

    fn validate(&self, monitor: &Monitor, vcpu: &dyn Vcpu, address: u64, size: Size) -> Outcome {
        if mismatch(monitor, address, size) {
            monitor.mismatch(vcpu);
            return (FAIL_SIZEMISMATCH, true, Action::Done);
        }
        let outcome = monitor.accept(vcpu, address, size, false);
        let action = match outcome {
            Accept::Duplicate(_) | Accept::Illegal => {
                monitor.bad_accept(vcpu, outcome, address, size)
            }
            _ => Action::Done,
        };
        match outcome {
            Accept::Done => (SUCCESS, true, action),
            Accept::Duplicate(_) => (SUCCESS, false, action),
            Accept::Mismatch => (FAIL_SIZEMISMATCH, true, action),
            Accept::Error(Some(status)) => (status, true, action),
            // The monitor waits where a TDX module would be busy, or give way.
            Accept::Error(None) | Accept::Illegal | Accept::Busy | Accept::Interrupted => {
                (FAIL_INPUT, true, action)
            }
        }
    }

    /// Takes Validated away, which a guest has to do before it asks for pages to become shared.
    fn rescind(&self, monitor: &Monitor, vcpu: &dyn Vcpu, address: u64, size: Size) -> Outcome {
        monitor.call("PVALIDATE rescind");
        if mismatch(monitor, address, size) {
            monitor.mismatch(vcpu);
            return (FAIL_SIZEMISMATCH, true, Action::Done);
        }
        let range = address..address + size.bytes();
        let outcome = loop {
            match monitor.change(&range, State::Private, State::Pending) {
                Err(Hindrance::Busy) => thread::sleep(MOMENT),
                outcome => break outcome,
            }
        };
        let (status, changed) = match outcome {
            Ok(()) => return (SUCCESS, true, Action::Done),
            Err(Hindrance::Mixed(..)) => {
                monitor.mismatch(vcpu);
                return (FAIL_SIZEMISMATCH, true, Action::Done);
            }
            Err(Hindrance::All(State::Pending)) => (SUCCESS, false),
            Err(_) => (FAIL_INPUT, true),
        };
        let what = format!("PVALIDATE rescinds {address:#x}, which is not validated");
        let action = monitor.illegal(vcpu, address, size.bytes(), what);
        (status, changed, action)
    }

    /// RMPADJUST: RAX is the address, ECX[0] the size, RDX the VMPL (bits 7:0) whose permissions
    /// change, and whether the page is a VMSA. What other VMPLs may do is of no concern here.
    pub fn rmpadjust(&self, monitor: &Monitor, vcpu: &dyn Vcpu) -> Action {
        monitor.call("RMPADJUST");
        let linear = vcpu.get(Rax) & !(PAGE - 1);
        let (size, attributes) = (size(vcpu), vcpu.get(Rdx));
        let vmpl = attributes & 0xff;
        let (status, action) = if vmpl == 0 {
            (FAIL_PERMISSION, Action::Done)
        } else if vmpl > LAST_VMPL || linear % size.bytes() != 0 {
            (FAIL_INPUT, Action::Done)
        } else {
            match self.patches.translate(vcpu, linear) {
                Err(fault) => return fault,
                Ok(address) if monitor.state(address) == State::Private => (
                    self.adjust(monitor, address, size, attributes),
                    Action::Done,
                ),
                Ok(address) => {
                    let what = format!("RMPADJUST of {address:#x}, which is not validated");
                    let action = monitor.illegal(vcpu, address, size.bytes(), what);
                    (FAIL_INPUT, action)
                }
            }
        };
        vcpu.set(Rax, status);
        action
    }

    fn adjust(&self, monitor: &Monitor, address: u64, size: Size, attributes: u64) -> u64 {
        if mismatch(monitor, address, size) {
            return FAIL_SIZEMISMATCH;
        }
        let mut vmsas = lock(&self.vmsas);
        if attributes & VMSA != 0 {
            vmsas.insert(address / PAGE);
        } else {
            vmsas.remove(&(address / PAGE));
        }
        SUCCESS
    }

    /// Whether the guest has made the page at an address a VMSA.
    pub fn is_vmsa(&self, address: u64) -> bool {
        lock(&self.vmsas).contains(&(address / PAGE))
    }
}

/// Whether the RMP entry is smaller than what the guest asks for. If it is larger, the hypervisor
/// splits it (PSMASH) before the guest notices: APM volume 2, table 15-40.
fn mismatch(monitor: &Monitor, address: u64, size: Size) -> bool {
    monitor.host.split(address, size);
    monitor.host.page(address) < size
}

fn size(vcpu: &dyn Vcpu) -> Size {
    if vcpu.get(Rcx) & 1 == 1 {
        Size::Medium
    } else {
        Size::Small
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|error| error.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        faults::{Answer, Fault},
        host::HostPages,
        options::Options,
        testing::Fake,
        vcpu::{Register, Stop},
    };
    use coco_protocol::Guest;

    const BASE: u64 = 0x4000_0000;
    const BLOCK: u64 = 2 << 20;

    fn guest(change: impl FnOnce(&mut Options)) -> (Rmp, Monitor, Fake) {
        let mut options = Options::of(Guest::Snp);
        change(&mut options);
        let (monitor, fake) = (Monitor::new(options), Fake::new());
        monitor.unaccept(&fake, BASE..BASE + 2 * BLOCK).unwrap();
        monitor.start(&fake, 0x10_0000..0x200_0000).unwrap();
        (Rmp::new(), monitor, fake)
    }

    fn set(fake: &Fake, registers: &[(Register, u64)]) {
        registers
            .iter()
            .for_each(|(register, value)| fake.set(*register, *value));
    }

    /// EAX and the carry flag.
    fn pvalidate(
        rmp: &Rmp,
        monitor: &Monitor,
        fake: &Fake,
        at: u64,
        size: Size,
        on: bool,
    ) -> (u64, bool) {
        let large = u64::from(size == Size::Medium);
        set(fake, &[(Rax, at), (Rcx, large), (Rdx, on.into())]);
        rmp.pvalidate(monitor, fake);
        (fake.get(Rax) >> 1, fake.get(Rax) & 1 != 0)
    }

    fn assign(rmp: &Rmp, monitor: &Monitor, fake: &Fake, at: u64, size: Size, private: bool) {
        let action = rmp.assign(monitor, fake, at, size, private);
        assert_eq!(action, Action::Done);
    }

    #[test]
    fn a_page_is_assigned_and_then_validated() {
        let (rmp, monitor, fake) = guest(|options| options.poison = Some(0xaa));
        assign(&rmp, &monitor, &fake, BASE, Size::Medium, true);
        assert_eq!(monitor.state(BASE + BLOCK - 1), State::Pending);
        assert_eq!(monitor.state(BASE + BLOCK), State::Unassigned);
        let done = pvalidate(&rmp, &monitor, &fake, BASE, Size::Medium, true);
        assert_eq!(done, (SUCCESS, false));
        assert_eq!(monitor.state(BASE), State::Private);
        // PVALIDATE does not clear.
        assert_eq!(fake.byte(BASE), 0xaa);
        assert_eq!(monitor.report().accepts.medium, 1);
    }

    #[test]
    fn the_second_validation_changes_nothing() {
        let (rmp, monitor, fake) = guest(|options| options.stop = false);
        assign(&rmp, &monitor, &fake, BASE, Size::Small, true);
        let validate = || pvalidate(&rmp, &monitor, &fake, BASE, Size::Small, true);
        assert_eq!(validate(), (SUCCESS, false));
        assert_eq!(validate(), (SUCCESS, true));
        let report = monitor.report();
        assert_eq!((report.accepts.small, report.duplicates), (1, 1));
        assert_eq!(report.violations[0].kind, "duplicate");
    }

    #[test]
    fn what_is_not_assigned_cannot_be_validated() {
        let (rmp, monitor, fake) = guest(|options| options.stop = false);
        let validate = |at| pvalidate(&rmp, &monitor, &fake, at, Size::Small, true);
        assert_eq!(validate(BASE), (FAIL_INPUT, false));
        assign(&rmp, &monitor, &fake, BASE, Size::Small, false);
        assert_eq!(validate(BASE), (FAIL_INPUT, false));
        let kinds: Vec<_> = monitor.report().violations.iter().map(|v| v.kind).collect();
        assert_eq!(kinds, ["illegal"; 2]);
        let (rmp, monitor, fake) = guest(|_| ());
        set(&fake, &[(Rax, BASE), (Rcx, 0), (Rdx, 1)]);
        let action = rmp.pvalidate(&monitor, &fake);
        assert!(
            matches!(action, Action::Stop(Stop::Violation(_))),
            "{action:?}"
        );
    }

    #[test]
    fn sizes_have_to_match() {
        let (rmp, monitor, fake) = guest(|_| ());
        let validate = |at, size| pvalidate(&rmp, &monitor, &fake, at, size, true);
        // Assigned page by page: there is no 2M entry.
        for page in 0..512 {
            assign(&rmp, &monitor, &fake, BASE + page * PAGE, Size::Small, true);
        }
        assert_eq!(validate(BASE, Size::Medium), (FAIL_SIZEMISMATCH, false));
        assert_eq!(validate(BASE, Size::Small), (SUCCESS, false));
        // A 4K page of a 2M entry splits it.
        assign(&rmp, &monitor, &fake, BASE + BLOCK, Size::Medium, true);
        assert_eq!(validate(BASE + BLOCK + PAGE, Size::Small), (SUCCESS, false));
        assert_eq!(
            validate(BASE + BLOCK, Size::Medium),
            (FAIL_SIZEMISMATCH, false)
        );
        assert_eq!(monitor.report().mismatches, 2);
        // The address is not aligned to the size.
        assert_eq!(validate(BASE + PAGE, Size::Medium), (FAIL_INPUT, false));
    }

    #[test]
    fn a_block_that_was_shared_as_a_whole_is_whole_again() {
        let (rmp, monitor, fake) = guest(|_| ());
        assign(&rmp, &monitor, &fake, BASE + PAGE, Size::Small, false);
        assign(&rmp, &monitor, &fake, BASE, Size::Medium, false);
        assign(&rmp, &monitor, &fake, BASE, Size::Medium, true);
        let done = pvalidate(&rmp, &monitor, &fake, BASE, Size::Medium, true);
        assert_eq!(done, (SUCCESS, false));
    }

    #[test]
    fn a_page_is_rescinded_before_it_is_shared() {
        let (rmp, monitor, fake) = guest(|options| options.stop = false);
        let low = 0x20_0000;
        let rescind = |size| pvalidate(&rmp, &monitor, &fake, low, size, false);
        assert_eq!(rescind(Size::Medium), (SUCCESS, false));
        assert_eq!(monitor.state(low), State::Pending);
        assign(&rmp, &monitor, &fake, low, Size::Medium, false);
        assert_eq!(monitor.report().shared_bytes, BLOCK);
        assert_eq!(monitor.report().violation_count, 0);
        assert_eq!(rescind(Size::Small), (FAIL_INPUT, false));
        assert_eq!(rescind(Size::Medium), (FAIL_SIZEMISMATCH, false));
        assign(&rmp, &monitor, &fake, low, Size::Medium, true);
        assert_eq!(rescind(Size::Small), (SUCCESS, true));
        assert_eq!(monitor.report().illegal, 2);
        // Straight from validated to shared.
        rmp.assign(&monitor, &fake, low + BLOCK, Size::Small, false);
        let report = monitor.report();
        assert_eq!(report.illegal, 3);
        assert!(report.violations[2].what.contains("became shared"));
    }

    #[test]
    fn an_address_that_is_not_mapped_is_a_page_fault() {
        let (rmp, monitor, fake) = guest(|_| ());
        fake.pc.set(0x10_0000);
        set(&fake, &[(Rax, 1 << 40), (Rcx, 0), (Rdx, 1)]);
        assert_eq!(rmp.pvalidate(&monitor, &fake), Action::Again);
        assert_eq!(rmp.rmpadjust(&monitor, &fake), Action::Again);
        assert_eq!(fake.get(Rax), 1 << 40);
        assert_eq!(monitor.report().violation_count, 0);
    }

    #[test]
    fn faults_come_where_they_were_asked_for() {
        let (rmp, monitor, fake) = guest(|options| {
            options.faults = vec![
                Fault::at(Answer::Error, BASE + PAGE, u64::MAX),
                Fault::at(Answer::Status(FAIL_PERMISSION), BASE + 2 * PAGE, 1),
            ];
        });
        assign(&rmp, &monitor, &fake, BASE, Size::Medium, true);
        let validate = |at, size| pvalidate(&rmp, &monitor, &fake, at, size, true);
        assert_eq!(validate(BASE, Size::Small), (SUCCESS, false));
        assert_eq!(validate(BASE + PAGE, Size::Small), (FAIL_INPUT, false));
        let third = BASE + 2 * PAGE;
        assert_eq!(validate(third, Size::Small), (FAIL_PERMISSION, false));
        assert_eq!(validate(third, Size::Small), (SUCCESS, false));
        let report = monitor.report();
        assert_eq!((report.errors, report.in_vain), (2, 2));
    }

    #[test]
    fn a_host_of_4k_has_no_entry_of_2m() {
        let (rmp, monitor, fake) = guest(|options| options.host_pages = HostPages::Small);
        assign(&rmp, &monitor, &fake, BASE, Size::Medium, true);
        let validate = |at, size| pvalidate(&rmp, &monitor, &fake, at, size, true);
        assert_eq!(validate(BASE, Size::Medium), (FAIL_SIZEMISMATCH, false));
        assert_eq!(validate(BASE, Size::Small), (SUCCESS, false));
        assert_eq!(monitor.report().mismatches, 1);
    }

    #[test]
    fn a_vmsa_is_what_rmpadjust_made_one() {
        let (rmp, monitor, fake) = guest(|options| options.stop = false);
        let adjust = |at, rdx| {
            set(&fake, &[(Rax, at), (Rcx, 0), (Rdx, rdx)]);
            rmp.rmpadjust(&monitor, &fake);
            fake.get(Rax)
        };
        assert_eq!(adjust(0x3000, VMSA | 1), SUCCESS);
        assert!(rmp.is_vmsa(0x3000) && !rmp.is_vmsa(0x2000));
        assert_eq!(adjust(0x3000, 1), SUCCESS);
        assert!(!rmp.is_vmsa(0x3000));
        assert_eq!(adjust(0x3000, VMSA), FAIL_PERMISSION);
        assert_eq!(adjust(0x3000, VMSA | 4), FAIL_INPUT);
        assert_eq!(monitor.report().illegal, 0);
        assert_eq!(adjust(BASE, VMSA | 1), FAIL_INPUT);
        assert_eq!(monitor.report().illegal, 1);
    }
}
