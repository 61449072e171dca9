// SPDX-License-Identifier: GPL-2.0

//! What a guest asks its hypervisor for in a page that both share, the GHCB.
//!
//! The page's layout, the events and the codes of the answers are those of the GHCB specification
//! (AMD 56421), version 2 of the protocol: "GHCB Layout", "Invoking VMGEXIT", and one section for
//! each event. What a real guest asks for in its #VC handler (port I/O, MSRs, CPUID) QEMU does
//! natively here.

use crate::{
    faults::{self, Call},
    monitor::Monitor,
    pages::{PAGE, Size, State},
    snp::{FEATURES, Snp, termination},
    vcpu::{Action, Stop, Vcpu},
};
use std::{ops::Range, thread, time::Duration};

/// Where the fields of the page are.
const RAX: u64 = 0x1f8;
const EXIT_CODE: u64 = 0x390;
const EXIT_INFO_1: u64 = 0x398;
const EXIT_INFO_2: u64 = 0x3a0;
const SCRATCH: u64 = 0x3a8;
/// A bit for each eight bytes before it: which fields the guest, or the hypervisor, has filled in.
const VALID: u64 = 0x3f0;
const BUFFER: u64 = 0x800;
const BUFFER_SIZE: u64 = 2032;
const USAGE: u64 = 0xffc;

/// The events (SW_EXITCODE).
const NMI_COMPLETE: u64 = 0x8000_0003;
const AP_RESET_HOLD: u64 = 0x8000_0004;
const PAGE_STATE_CHANGE: u64 = 0x8000_0010;
const GUEST_REQUEST: u64 = 0x8000_0011;
const EXTENDED_GUEST_REQUEST: u64 = 0x8000_0012;
const AP_CREATION: u64 = 0x8000_0013;
const HYPERVISOR_FEATURES: u64 = 0x8000_fffd;
const TERMINATION: u64 = 0x8000_fffe;
const UNSUPPORTED: u64 = 0x8000_ffff;

/// SW_EXITINFO1 of the answer: the request was malformed, and SW_EXITINFO2 says why.
const MALFORMED: u64 = 2;
const NOT_REGISTERED: u64 = 1;
const INVALID_USAGE: u64 = 2;
const INVALID_SCRATCH: u64 = 3;
const MISSING_INPUT: u64 = 4;
const INVALID_INPUT: u64 = 5;
const INVALID_EVENT: u64 = 6;

/// SW_EXITINFO2 of an answer to a page state change.
const INVALID_HEADER: u64 = 1 << 32 | 1;
const INVALID_ENTRY: u64 = 1 << 32 | 2;
/// The hypervisor could not do it, for reasons of its own.
const FAILED: u64 = 0x100 << 32;

/// SW_EXITINFO2 of an answer to a guest request: the hypervisor cannot pass it on to firmware.
const NO_FIRMWARE: u64 = 0xffff_ffff << 32;

/// The page operations of a page state change.
pub const PRIVATE: u64 = 1;
pub const SHARED: u64 = 2;
/// Hints, which a hypervisor may ignore, to split a 2M entry of the RMP, or to join its pieces.
const PSMASH: u64 = 3;
const UNSMASH: u64 = 4;

/// How often a vCPU that waits to be started again looks for INIT.
const HOLD: Duration = Duration::from_millis(2);

/// The answer to an event: SW_EXITINFO1 and 2.
type Answer = (u64, u64);

const fn malformed(why: u64) -> Answer {
    (MALFORMED, why)
}

/// The page as it was when the guest executed VMGEXIT: the guest may change it at any time.
struct Ghcb {
    address: u64,
    bytes: [u8; PAGE as usize],
}

impl Ghcb {
    fn read(vcpu: &dyn Vcpu, address: u64) -> Option<Self> {
        let mut bytes = [0; PAGE as usize];
        vcpu.read(address, &mut bytes)
            .then_some(Self { address, bytes })
    }

    fn get(&self, field: u64) -> u64 {
        let at = field as usize;
        (0..8).fold(0, |value, byte| {
            value | u64::from(self.bytes[at + byte]) << (8 * byte)
        })
    }

    fn valid(&self, field: u64) -> bool {
        let number = (field / 8) as usize;
        self.bytes[VALID as usize + number / 8] >> (number % 8) & 1 == 1
    }

    /// Fills in the answer. Of all fields only these two are then valid.
    fn answer(&self, vcpu: &dyn Vcpu, (info_1, info_2): Answer) {
        let bit = |field: u64| 1_u128 << (field / 8);
        let valid = bit(EXIT_INFO_1) | bit(EXIT_INFO_2);
        // The page has been read, so there is memory.
        vcpu.write_u64(self.address + EXIT_INFO_1, info_1);
        vcpu.write_u64(self.address + EXIT_INFO_2, info_2);
        vcpu.write(self.address + VALID, &valid.to_le_bytes());
    }
}

/// VMGEXIT with the address of a GHCB in the MSR. `registered`: the one that the guest has said it
/// would use.
pub fn event(
    snp: &Snp,
    monitor: &Monitor,
    vcpu: &dyn Vcpu,
    address: u64,
    registered: bool,
) -> Action {
    let state = monitor.state(address);
    let ghcb = Ghcb::read(vcpu, address).filter(|_| state == State::Shared);
    let Some(ghcb) = ghcb else {
        let what = format!("VMGEXIT with a GHCB at {address:#x}, which is not shared memory");
        return monitor.illegal(vcpu, address, PAGE, what);
    };
    let needed = [EXIT_CODE, EXIT_INFO_1, EXIT_INFO_2];
    let outcome = if !registered {
        Ok(malformed(NOT_REGISTERED))
    } else if ghcb.get(USAGE - 4) >> 32 != 0 {
        Ok(malformed(INVALID_USAGE))
    } else if !needed.iter().all(|field| ghcb.valid(*field)) {
        Ok(malformed(MISSING_INPUT))
    } else {
        dispatch(snp, monitor, vcpu, &ghcb)
    };
    match outcome {
        Ok(answer) => {
            if answer.0 == MALFORMED {
                monitor.call(format!("VMGEXIT that was malformed, code {}", answer.1));
            }
            ghcb.answer(vcpu, answer);
            Action::Done
        }
        Err(stop) => Action::Stop(stop),
    }
}

fn dispatch(snp: &Snp, monitor: &Monitor, vcpu: &dyn Vcpu, ghcb: &Ghcb) -> Result<Answer, Stop> {
    let (info_1, info_2) = (ghcb.get(EXIT_INFO_1), ghcb.get(EXIT_INFO_2));
    let answer = match ghcb.get(EXIT_CODE) {
        NMI_COMPLETE => {
            monitor.call("VMGEXIT NMI complete");
            (0, 0)
        }
        AP_RESET_HOLD => {
            monitor.call("VMGEXIT AP reset hold");
            hold();
            (0, 0)
        }
        PAGE_STATE_CHANGE => {
            monitor.call("VMGEXIT page state change");
            return page_state_change(snp, monitor, vcpu, ghcb);
        }
        GUEST_REQUEST | EXTENDED_GUEST_REQUEST => {
            monitor.call("VMGEXIT guest request, which is not modelled");
            let fits = info_1 % PAGE == 0 && info_2 % PAGE == 0 && info_1 != info_2;
            if fits {
                (0, NO_FIRMWARE)
            } else {
                malformed(INVALID_INPUT)
            }
        }
        AP_CREATION => {
            monitor.call("VMGEXIT AP creation");
            let features = ghcb.valid(RAX).then(|| ghcb.get(RAX));
            match snp.aps.request(&snp.rmp, vcpu, info_1, info_2, features) {
                Ok(()) => (0, 0),
                Err(why) => {
                    monitor.call(format!("AP creation that was refused: {why}"));
                    malformed(INVALID_INPUT)
                }
            }
        }
        HYPERVISOR_FEATURES => {
            monitor.call("VMGEXIT hypervisor features");
            (0, FEATURES)
        }
        TERMINATION => {
            let why = termination(info_1 & 0xf, info_1 >> 4 & 0xff);
            return Err(Stop::Terminated(format!("{why} ({info_2:#x})")));
        }
        UNSUPPORTED => {
            let why = format!("it does not know what to do about #VC {info_1:#x} ({info_2:#x})");
            return Err(Stop::Terminated(why));
        }
        code => {
            monitor.call(format!("VMGEXIT {code:#x}, which is not modelled"));
            malformed(INVALID_EVENT)
        }
    };
    Ok(answer)
}

/// A list of pages: eight bytes that say from where to where in the list, and eight for each entry.
/// The hypervisor notes in both how far it has come.
fn page_state_change(
    snp: &Snp,
    monitor: &Monitor,
    vcpu: &dyn Vcpu,
    ghcb: &Ghcb,
) -> Result<Answer, Stop> {
    let list = ghcb.get(SCRATCH);
    let start = ghcb.address + BUFFER;
    let end = start + BUFFER_SIZE;
    if !ghcb.valid(SCRATCH) {
        return Ok(malformed(MISSING_INPUT));
    }
    if list < start || list > end - 8 {
        return Ok(malformed(INVALID_SCRATCH));
    }
    let field = |index: u64| ghcb.get(list - ghcb.address + 8 * index);
    let (first, last) = (field(0) & 0xffff, field(0) >> 16 & 0xffff);
    if last >= (end - list) / 8 - 1 {
        return Ok((0, INVALID_HEADER));
    }
    let whole = start..end;
    if let Some(answer) = monitor.fault(Call::PscList, &whole) {
        return Ok((0, status(answer)));
    }
    monitor.pay_conversion(vcpu, 0);
    for index in first..=last {
        match monitor.fault(Call::PscEntry, &covered(field(1 + index))) {
            None => (),
            // The guest sees in the header that something is left, and asks again.
            Some(faults::Answer::Retry) => return Ok((0, 0)),
            Some(answer) => return Ok((0, status(answer))),
        }
        if !change(snp, monitor, vcpu, field(1 + index))? {
            return Ok((0, INVALID_ENTRY));
        }
        let done = if field(1 + index) >> 56 & 1 == 1 {
            512
        } else {
            1
        };
        vcpu.write_u64(list + 8 * (1 + index), field(1 + index) & !0xfff | done);
        vcpu.write(list, &(index as u16 + 1).to_le_bytes());
    }
    Ok((0, 0))
}

/// SW_EXITINFO2 of a list that fails on purpose.
fn status(answer: faults::Answer) -> u64 {
    match answer {
        faults::Answer::Status(status) => status,
        _ => FAILED,
    }
}

/// The pages that an entry is about.
fn covered(entry: u64) -> Range<u64> {
    let size = match entry >> 56 & 1 {
        1 => Size::Medium,
        _ => Size::Small,
    };
    size.around(entry & ((1 << 52) - PAGE))
}

/// One entry: pages done (bits 11:0), PFN (51:12), operation (55:52), 2M (56). False: it is
/// invalid.
fn change(snp: &Snp, monitor: &Monitor, vcpu: &dyn Vcpu, entry: u64) -> Result<bool, Stop> {
    let (done, pfn) = (entry & 0xfff, entry >> 12 & ((1 << 40) - 1));
    let (size, pages) = match entry >> 56 & 1 {
        1 => (Size::Medium, 512),
        _ => (Size::Small, 1),
    };
    if done > pages || pfn % pages != 0 {
        return Ok(false);
    }
    let private = match entry >> 52 & 0xf {
        PRIVATE => true,
        SHARED => false,
        PSMASH | UNSMASH => return Ok(true),
        _ => return Ok(false),
    };
    let assign = |pfn: u64, size| match snp.rmp.assign(monitor, vcpu, pfn * PAGE, size, private) {
        Action::Stop(stop) => Err(stop),
        _ => Ok(()),
    };
    monitor.pay_pages(vcpu, pages - done);
    if done == 0 {
        assign(pfn, size)?;
    } else {
        (pfn + done..pfn + pages).try_for_each(|pfn| assign(pfn, Size::Small))?;
    }
    Ok(true)
}

/// Keeps a vCPU that waits to be started again, for a while. INIT ends the wait without an answer,
/// and the vCPU does not come back; until then it is told to ask again.
pub fn hold() {
    thread::sleep(HOLD);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        faults::{Answer::*, Fault, When},
        options::Options,
        testing::Fake,
    };
    use coco_protocol::Guest;

    const GHCB: u64 = 0x20_3000;
    const BASE: u64 = 0x4000_0000;

    fn guest() -> (Snp, Monitor, Fake) {
        let mut options = Options::of(Guest::Snp);
        options.stop = false;
        let (monitor, fake) = (Monitor::new(options), Fake::new());
        monitor.unaccept(&fake, BASE..BASE + (4 << 20)).unwrap();
        monitor.update(GHCB..GHCB + PAGE, |_| State::Shared);
        monitor.start(&fake, 0x10_0000..0x200_0000).unwrap();
        (Snp::new(), monitor, fake)
    }

    fn fill(fake: &Fake, fields: &[(u64, u64)]) {
        let mut valid = 0_u128;
        for (field, value) in fields {
            fake.write_u64(GHCB + field, *value);
            valid |= 1 << (field / 8).min(127);
        }
        fake.write(GHCB + VALID, &valid.to_le_bytes());
    }

    /// The answer to an event.
    fn ask(snp: &Snp, monitor: &Monitor, fake: &Fake, fields: &[(u64, u64)]) -> Answer {
        fill(fake, fields);
        assert_eq!(event(snp, monitor, fake, GHCB, true), Action::Done);
        assert_eq!(fake.word(GHCB + VALID + 8), 3 << 51);
        (fake.word(GHCB + EXIT_INFO_1), fake.word(GHCB + EXIT_INFO_2))
    }

    fn call(code: u64, info_1: u64, info_2: u64) -> [(u64, u64); 3] {
        [
            (EXIT_CODE, code),
            (EXIT_INFO_1, info_1),
            (EXIT_INFO_2, info_2),
        ]
    }

    /// The answer to a page state change with this header and these entries.
    fn change(snp: &Snp, monitor: &Monitor, fake: &Fake, list: &[u64]) -> Answer {
        for (index, word) in (0..).zip(list) {
            fake.write_u64(GHCB + BUFFER + 8 * index, *word);
        }
        let mut fields = call(PAGE_STATE_CHANGE, 0, 0).to_vec();
        fields.push((SCRATCH, GHCB + BUFFER));
        ask(snp, monitor, fake, &fields)
    }

    fn entry(address: u64, operation: u64, large: u64, done: u64) -> u64 {
        large << 56 | operation << 52 | address | done
    }

    #[test]
    fn events_are_answered() {
        let (snp, monitor, fake) = guest();
        for (event, answer) in [
            (call(NMI_COMPLETE, 0, 0), (0, 0)),
            (call(AP_RESET_HOLD, 0, 0), (0, 0)),
            (call(GUEST_REQUEST, 0x1000, 0x2000), (0, NO_FIRMWARE)),
            (
                call(GUEST_REQUEST, 0x1000, 0x1000),
                malformed(INVALID_INPUT),
            ),
            (
                call(EXTENDED_GUEST_REQUEST, 8, 0x1000),
                malformed(INVALID_INPUT),
            ),
            (
                call(AP_CREATION, 1 << 32 | 1, 0x1000),
                malformed(INVALID_INPUT),
            ),
            (call(HYPERVISOR_FEATURES, 0, 0), (0, 3)),
            (call(0x72, 0, 0), malformed(INVALID_EVENT)),
        ] {
            assert_eq!(ask(&snp, &monitor, &fake, &event), answer, "{event:x?}");
        }
    }

    #[test]
    fn a_malformed_page_is_refused() {
        let (snp, monitor, fake) = guest();
        let missing = [(EXIT_CODE, HYPERVISOR_FEATURES), (EXIT_INFO_1, 0)];
        assert_eq!(
            ask(&snp, &monitor, &fake, &missing),
            malformed(MISSING_INPUT)
        );
        let features = call(HYPERVISOR_FEATURES, 0, 0);
        fill(&fake, &features);
        event(&snp, &monitor, &fake, GHCB, false);
        assert_eq!(fake.word(GHCB + EXIT_INFO_2), NOT_REGISTERED);
        fake.write(GHCB + USAGE, &[1]);
        assert_eq!(
            ask(&snp, &monitor, &fake, &features),
            malformed(INVALID_USAGE)
        );
        assert_eq!(monitor.report().violation_count, 0);
    }

    #[test]
    fn a_page_that_is_not_shared_memory_is_a_violation() {
        let (snp, monitor, fake) = guest();
        for address in [GHCB + PAGE, BASE, 0, 1 << 40] {
            monitor.update((1 << 40)..(1 << 40) + PAGE, |_| State::Shared);
            assert_eq!(event(&snp, &monitor, &fake, address, true), Action::Done);
        }
        assert_eq!(monitor.report().illegal, 4);
    }

    #[test]
    fn the_guest_ends_if_it_wants_to() {
        let (snp, monitor, fake) = guest();
        for (code, info_1, says) in [
            (TERMINATION, 1 << 4 | 1, "a page state change failed"),
            (UNSUPPORTED, 0x7b, "#VC 0x7b"),
        ] {
            fill(&fake, &call(code, info_1, 0));
            let action = event(&snp, &monitor, &fake, GHCB, true);
            let Action::Stop(Stop::Terminated(why)) = action else {
                panic!("{action:?}");
            };
            assert!(why.contains(says), "{why}");
        }
    }

    #[test]
    fn a_list_of_pages_changes_state() {
        let (snp, monitor, fake) = guest();
        let list = [
            2 << 16,
            entry(BASE, PRIVATE, 1, 0),
            entry(BASE + (2 << 20), SHARED, 0, 0),
            entry(BASE + (2 << 20) + PAGE, PRIVATE, 0, 0),
        ];
        assert_eq!(change(&snp, &monitor, &fake, &list), (0, 0));
        let states = [BASE, BASE + (2 << 20), BASE + (2 << 20) + PAGE].map(|at| monitor.state(at));
        assert_eq!(states, [State::Pending, State::Shared, State::Pending]);
        // The header and the entries say how far the hypervisor has come.
        assert_eq!(fake.word(GHCB + BUFFER), 2 << 16 | 3);
        assert_eq!(fake.word(GHCB + BUFFER + 8), list[1] | 512);
        assert_eq!(fake.word(GHCB + BUFFER + 16), list[2] | 1);
    }

    #[test]
    fn a_list_may_begin_in_its_middle() {
        let (snp, monitor, fake) = guest();
        let partly = entry(BASE, PRIVATE, 1, 511);
        let list = [1 << 16 | 1, entry(BASE + (2 << 20), PRIVATE, 0, 0), partly];
        assert_eq!(change(&snp, &monitor, &fake, &list), (0, 0));
        let last = BASE + (2 << 20) - PAGE;
        let states = [BASE, last, BASE + (2 << 20)].map(|at| monitor.state(at));
        assert_eq!(
            states,
            [State::Unassigned, State::Pending, State::Unassigned]
        );
        // Nothing is left to do.
        assert_eq!(change(&snp, &monitor, &fake, &[1 << 16 | 2]), (0, 0));
    }

    #[test]
    fn a_bad_list_is_refused() {
        let (snp, monitor, fake) = guest();
        let refused = |list: &[u64], why| {
            assert_eq!(change(&snp, &monitor, &fake, list), (0, why), "{list:x?}");
        };
        refused(&[253 << 16], INVALID_HEADER);
        refused(&[0xffff << 16], INVALID_HEADER);
        refused(&[0, entry(BASE, 0, 0, 0)], INVALID_ENTRY);
        refused(&[0, entry(BASE, 5, 0, 0)], INVALID_ENTRY);
        refused(&[0, entry(BASE, PRIVATE, 0, 2)], INVALID_ENTRY);
        refused(&[0, entry(BASE, PRIVATE, 1, 513)], INVALID_ENTRY);
        refused(&[0, entry(BASE + PAGE, PRIVATE, 1, 0)], INVALID_ENTRY);
        refused(&[0, entry(BASE, PSMASH, 1, 0)], 0);
        // The entry that is wrong is the one that the header names.
        refused(
            &[1 << 16, entry(BASE, SHARED, 0, 0), entry(BASE, 9, 0, 0)],
            INVALID_ENTRY,
        );
        assert_eq!(fake.word(GHCB + BUFFER), 1 << 16 | 1);
    }

    #[test]
    fn a_list_may_end_early_or_fail() {
        let fault = |call, answer, at| Fault {
            call,
            ..Fault::at(answer, at, 1)
        };
        let third = BASE + 2 * PAGE;
        let mut options = Options::of(Guest::Snp);
        options.faults = vec![
            fault(Call::PscEntry, Retry, BASE + PAGE),
            fault(Call::PscEntry, Status(5), third),
            fault(Call::PscEntry, Error, BASE + 3 * PAGE),
            Fault {
                times: 1,
                ..fault(Call::PscList, Error, 0)
            },
        ];
        options.faults[3].when = When::Every(5);
        options.costs.call = Duration::from_nanos(100);
        options.costs.convert = Duration::from_nanos(10);
        let (snp, fake) = (Snp::new(), Fake::new());
        let monitor = Monitor::new(options);
        monitor.unaccept(&fake, BASE..BASE + (4 << 20)).unwrap();
        monitor.update(GHCB..GHCB + PAGE, |_| State::Shared);
        monitor.start(&fake, 0x10_0000..0x200_0000).unwrap();
        let pages = [0, 1, 2, 3].map(|page| entry(BASE + page * PAGE, SHARED, 0, 0));
        let list = [3 << 16, pages[0], pages[1], pages[2], pages[3]];
        // Successful, but not at its end.
        assert_eq!(change(&snp, &monitor, &fake, &list), (0, 0));
        assert_eq!(fake.word(GHCB + BUFFER), 3 << 16 | 1);
        assert_eq!(monitor.state(BASE + PAGE), State::Unassigned);
        let rest = |snp| {
            let header = fake.word(GHCB + BUFFER);
            change(snp, &monitor, &fake, &[header])
        };
        assert_eq!(rest(&snp), (0, 5));
        assert_eq!(rest(&snp), (0, FAILED));
        assert_eq!(rest(&snp), (0, 0));
        assert_eq!(monitor.report().cost_ns, 4 * 100 + 4 * 10);
        assert_eq!(change(&snp, &monitor, &fake, &list), (0, FAILED));
    }

    #[test]
    fn a_list_that_is_not_in_the_page_is_refused() {
        let (snp, monitor, fake) = guest();
        let mut fields = call(PAGE_STATE_CHANGE, 0, 0).to_vec();
        let answer = ask(&snp, &monitor, &fake, &fields);
        assert_eq!(answer, malformed(MISSING_INPUT));
        fields.push((SCRATCH, 0));
        for list in [0, GHCB, GHCB + PAGE - 16, GHCB + PAGE, u64::MAX] {
            fields[3].1 = list;
            let answer = ask(&snp, &monitor, &fake, &fields);
            assert_eq!(answer, malformed(INVALID_SCRATCH), "{list:#x}");
        }
        // The last place where the header has room, but no entry has.
        fields[3].1 = GHCB + BUFFER + BUFFER_SIZE - 8;
        assert_eq!(ask(&snp, &monitor, &fake, &fields), (0, INVALID_HEADER));
    }
}
