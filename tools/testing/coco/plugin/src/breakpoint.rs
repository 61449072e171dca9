// SPDX-License-Identifier: GPL-2.0

//! Breakpoints that are no longer there.
//!
//! The kernel changes its code under running CPUs by way of INT3: it writes one over the first
//! byte, and replaces it when the rest is in place. With a thread for each vCPU, a kernel has been
//! seen to die of one that was gone by then ("Oops: int3", once in some 40 boots). By reading of
//! QEMU: it drops what it had translated from a page when the page is about to be written. A vCPU
//! that translates just between the two keeps the INT3, for good. Here such a translation is found
//! out and made anew; the report has how often.

use crate::{
    monitor::Monitor,
    vcpu::{Action, Vcpu},
};

const INT3: u8 = 0xcc;

pub fn int3(monitor: &Monitor, vcpu: &dyn Vcpu) -> Action {
    let mut byte = [0];
    let Some(address) = vcpu.translate(vcpu.pc()) else {
        return Action::Native;
    };
    if !vcpu.read(address, &mut byte) || byte == [INT3] {
        return Action::Native;
    }
    monitor.stale_breakpoint();
    // A write of what is there makes QEMU forget what it had translated.
    vcpu.write(address, &byte);
    Action::Again
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{options::Options, testing::Fake};
    use coco_protocol::Guest;

    #[test]
    fn only_a_breakpoint_that_is_gone_is_translated_again() {
        let (monitor, fake) = (Monitor::new(Options::of(Guest::Tdx)), Fake::new());
        fake.pc.set(0x1000);
        fake.write(0x1000, &[INT3]);
        assert_eq!(int3(&monitor, &fake), Action::Native);
        fake.write(0x1000, &[0x90]);
        assert_eq!(int3(&monitor, &fake), Action::Again);
        assert_eq!(monitor.report().stale_breakpoints, 1);
        fake.pc.set(u64::MAX);
        assert_eq!(int3(&monitor, &fake), Action::Native);
    }
}
