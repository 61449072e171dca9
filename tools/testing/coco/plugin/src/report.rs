// SPDX-License-Identifier: GPL-2.0

//! The report that is left when the guest ends: a JSON file.

use serde::Serialize;
use std::{fs, path::Path};

/// Accepts that succeeded, by the size that was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct BySize {
    #[serde(rename = "4k")]
    pub small: u64,
    #[serde(rename = "2m")]
    pub medium: u64,
    #[serde(rename = "1g")]
    pub large: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Violation {
    /// "read", "write", "execute", "page table", "duplicate" or "illegal".
    pub kind: &'static str,
    /// Guest-physical, hexadecimal.
    pub address: String,
    pub size: u64,
    pub pc: String,
    pub vcpu: Option<usize>,
    pub what: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PerVcpu {
    pub accepts: u64,
    pub accepted_bytes: u64,
    /// Accepts that were refused, for whatever reason.
    pub in_vain: u64,
    /// What its calls cost, as the options say.
    pub cost_ns: u64,
    /// The longest accept, as measured, up to where it gave way to interrupts.
    pub longest_ns: u64,
    /// How many accepts took less than 1, 2, 4, 8 ... µs, as measured.
    pub latencies: Vec<u64>,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub guest: &'static str,
    pub accepts: BySize,
    pub accepted_bytes: u64,
    /// What is left to accept.
    pub pending_bytes: u64,
    pub shared_bytes: u64,
    /// Accepts of pages that were accepted before.
    pub duplicates: u64,
    /// Changes of state that no guest may ask for.
    pub illegal: u64,
    /// Times that an accept gave way to interrupts before it was done.
    pub interrupted: u64,
    /// Accepts that were refused, for whatever reason.
    pub in_vain: u64,
    /// What calls cost, as the options say, in all vCPUs together.
    pub cost_ns: u64,
    /// Accepts that were refused because of their size.
    pub mismatches: u64,
    /// Accepts that were answered busy.
    pub busy: u64,
    /// Accepts that were answered with an error on purpose.
    pub errors: u64,
    /// Time spent in accepts, in all vCPUs together.
    pub accept_ns: u64,
    /// The largest number of accepts that were under way at once.
    pub most_in_flight: u64,
    pub vcpus: Vec<PerVcpu>,
    /// Duplicates, illegal changes, and loads and stores of pages that are not accepted.
    pub violation_count: u64,
    /// The first of them.
    pub violations: Vec<Violation>,
    /// Loads and stores that were looked at.
    pub checked_accesses: u64,
    /// Those of which it could not be found out where they went, or by which mapping.
    pub failed_lookups: u64,
    /// Breakpoints that QEMU executed after the guest had taken them back, and that were undone.
    pub stale_breakpoints: u64,
    /// How often the guest called, by what it called for.
    pub calls: std::collections::BTreeMap<String, u64>,
}

impl Report {
    /// Writes the file; the error names it.
    pub fn write(&self, path: &Path) -> Result<(), String> {
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| error.to_string())?;
        text.push(b'\n');
        fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
    }
}
