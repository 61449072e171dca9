// SPDX-License-Identifier: GPL-2.0

//! What an SEV-SNP guest asks its firmware and hypervisor for.

use crate::{
    monitor::Monitor,
    vcpu::{Action, Register, Vcpu},
};

pub struct Snp {}

impl Snp {
    pub fn new() -> Self {
        Self {}
    }

    pub fn cpuid(&self, _monitor: &Monitor, _vcpu: &dyn Vcpu) -> Action {
        Action::Native
    }

    pub fn rdmsr(&self, _monitor: &Monitor, _vcpu: &dyn Vcpu) -> Action {
        Action::Native
    }

    pub fn wrmsr(&self, _monitor: &Monitor, _vcpu: &dyn Vcpu) -> Action {
        Action::Native
    }

    pub fn vmgexit(&self, _monitor: &Monitor, _vcpu: &dyn Vcpu) -> Action {
        Action::Native
    }

    pub fn pvalidate(&self, _monitor: &Monitor, _vcpu: &dyn Vcpu) -> Action {
        Action::Native
    }

    pub fn rmpadjust(&self, _monitor: &Monitor, _vcpu: &dyn Vcpu) -> Action {
        Action::Native
    }

    pub fn write_cr3(&self, _monitor: &Monitor, _vcpu: &dyn Vcpu, _from: Register) -> Action {
        Action::Native
    }
}
