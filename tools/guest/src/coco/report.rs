// SPDX-License-Identifier: GPL-2.0

//! What the plugin of an emulated guest leaves: a report, and the exit status of QEMU.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::{fs, path::Path};

/// The parts of the report that are looked at here; Documentation/dev-tools/coco-emulation.rst has
/// all.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct Report {
    pub accepts: Accepts,
    pub accepted_bytes: u64,
    pub pending_bytes: u64,
    pub shared_bytes: u64,
    pub duplicates: u64,
    pub illegal: u64,
    pub mismatches: u64,
    pub busy: u64,
    pub errors: u64,
    /// Accepts that were refused, for whatever reason.
    pub in_vain: u64,
    pub accept_ns: u64,
    pub most_in_flight: u64,
    pub violation_count: u64,
    pub violations: Vec<Violation>,
    pub checked_accesses: u64,
}

/// Accepts by the size of the page.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct Accepts {
    #[serde(rename = "4k")]
    pub small: u64,
    #[serde(rename = "2m")]
    pub medium: u64,
    #[serde(rename = "1g")]
    pub large: u64,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Violation {
    pub kind: String,
    pub address: String,
    pub what: String,
}

impl Report {
    /// The report, if there is one.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        if !path.is_file() {
            return Ok(None);
        }
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let report = serde_json::from_slice(&text);
        report
            .map(Some)
            .context("the plugin's report cannot be understood")
    }

    /// Nothing was touched before it was accepted, and nothing accepted twice.
    pub fn no_violation(&self) -> Result<()> {
        if let Some(first) = self.violations.first() {
            let Violation {
                kind,
                address,
                what,
            } = first;
            let count = self.violation_count;
            bail!("{count} violations; the first: {kind} at {address}: {what}");
        }
        let none = [
            ("violations", self.violation_count),
            ("duplicates", self.duplicates),
            ("illegal changes of state", self.illegal),
        ];
        for (what, count) in none {
            if count > 0 {
                bail!("{count} {what}, none was expected");
            }
        }
        Ok(())
    }

    /// No violation, and something was accepted.
    pub fn clean(&self) -> Result<()> {
        self.no_violation()?;
        if self.accepted_bytes == 0 {
            bail!("nothing was accepted: has the kernel CONFIG_UNACCEPTED_MEMORY?");
        }
        Ok(())
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        let Accepts {
            small,
            medium,
            large,
        } = self.accepts;
        write!(
            f,
            "accepted {} MiB ({small} x 4K, {medium} x 2M, {large} x 1G), {} MiB pending, {} MiB shared, {} duplicates, {} violations",
            mib(self.accepted_bytes),
            mib(self.pending_bytes),
            mib(self.shared_bytes),
            self.duplicates,
            self.violation_count
        )?;
        if self.checked_accesses > 0 {
            write!(f, ", {} accesses checked", self.checked_accesses)?;
        }
        Ok(())
    }
}

/// How an emulated guest ended, as QEMU's exit status says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ending {
    Clean,
    /// The plugin found a violation.
    Violation,
    /// The guest told its host that it cannot go on.
    Terminated,
    /// QEMU itself.
    Other(Option<i32>),
}

impl Ending {
    pub fn of(status: std::process::ExitStatus) -> Self {
        match status.code() {
            Some(0) => Self::Clean,
            Some(70) => Self::Violation,
            Some(71) => Self::Terminated,
            code => Self::Other(code),
        }
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Clean => write!(f, "the guest has ended"),
            Self::Violation => write!(f, "the guest broke the rules for unaccepted memory"),
            Self::Terminated => write!(f, "the guest gave up and told its host"),
            Self::Other(Some(code)) => write!(f, "QEMU ended with exit status {code}"),
            Self::Other(None) => write!(f, "QEMU was killed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: &str = r#"{"guest": "tdx", "accepts": {"4k": 346, "2m": 207, "1g": 0},
        "accepted_bytes": 435462144, "pending_bytes": 1040187392, "shared_bytes": 134479872,
        "duplicates": 0, "illegal": 0, "mismatches": 0, "busy": 0, "errors": 0, "in_vain": 0, "accept_ns": 1,
        "most_in_flight": 2, "vcpus": [{"accepts": 553, "accepted_bytes": 435462144}],
        "violation_count": 0, "violations": [], "checked_accesses": 0, "tdx": {}}"#;

    fn parse(text: &str) -> Report {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        fs::write(&path, text).unwrap();
        Report::read(&path).unwrap().unwrap()
    }

    #[test]
    fn a_report_is_said_in_a_line() {
        let report = parse(CLEAN);
        report.clean().unwrap();
        let want = "accepted 415 MiB (346 x 4K, 207 x 2M, 0 x 1G), 992 MiB pending, \
                    128 MiB shared, 0 duplicates, 0 violations";
        assert_eq!(report.to_string(), want);
        let checked = Report {
            checked_accesses: 5,
            ..report
        };
        assert_eq!(checked.to_string(), format!("{want}, 5 accesses checked"));
    }

    #[test]
    fn what_is_not_clean_is_named() {
        let violations = r#""violation_count": 3, "violations": [{"kind": "read",
            "address": "0x40000000", "size": 8, "pc": "0x1", "vcpu": 0, "what": "not accepted"}]"#;
        let old = r#""violation_count": 0, "violations": []"#;
        let error = |from, to| {
            let text = CLEAN.replace(from, to);
            assert_ne!(text, CLEAN);
            parse(&text).clean().unwrap_err().to_string()
        };
        let text = error(old, violations);
        assert!(
            text.contains("3 violations; the first: read at 0x40000000"),
            "{text}"
        );
        let text = error("\"duplicates\": 0", "\"duplicates\": 1");
        assert!(text.contains("1 duplicates"), "{text}");
        let text = error(
            "\"accepted_bytes\": 435462144, \"p",
            "\"accepted_bytes\": 0, \"p",
        );
        assert!(text.contains("nothing was accepted"), "{text}");
    }

    #[test]
    fn a_missing_report_is_none_and_a_broken_one_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        assert!(Report::read(&path).unwrap().is_none());
        fs::write(&path, "{").unwrap();
        assert!(Report::read(&path).is_err());
    }
}
