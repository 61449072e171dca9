// SPDX-License-Identifier: GPL-2.0

//! What `make check` runs in emulated guests: kernels that have to be clean, and mistakes that have
//! to be caught.

use super::{Emulated, Kind, Parts};
use crate::boot::{Outcome, Run};
use crate::build::Build;
use crate::cache::Place;
use crate::coco::{Ending, Report};
use crate::machine::{Machine, Platform};
use crate::progress::Step;
use crate::setup::Tools;
use anyhow::{Context, Result, bail};
use std::{path::PathBuf, time::Duration};

/// Has to touch most of memory: what is free and not accepted, and what was accepted all along.
const JOB: &str = r#"
unaccepted() { awk '/^Unaccepted:/ { print $2 }' /proc/meminfo; }
cat /proc/meminfo
before=$(unaccepted)
most=$(awk '/^MemAvailable:/ { print int($2 / 1024 * 0.9) }' /proc/meminfo)
/kselftest/freepage/memory_hog "$most" 0 lock || exit 1
cat /proc/meminfo
after=$(unaccepted)
echo "coco: $most MiB locked, Unaccepted from $before to $after kB"
[ "$after" -lt "$before" ] || exit 1
"#;

/// Our kernel knows that it must not report pages here; a SKIP is a failure.
const REFUSES_REPORTING: &str = "/kselftest/freepage/confidential.sh\n";

/// What the loader leaves accepted by default ends here.
const ACCEPTED: &str = "0x10000000+2M";
/// Neither in what is accepted nor at the end of memory, where the firmware is.
const UNACCEPTED: &str = "0x28000000";

/// How a guest has to end.
enum Expect {
    /// By itself, with a clean report.
    Clean,
    /// The same, with each load and store looked at.
    Checked,
    /// By itself, with a clean report and 4K accepts only.
    OnlySmall,
    /// By the plugin, for a violation of one of these kinds.
    Stopped(&'static [&'static str]),
    /// By itself, with violations of one of these kinds.
    GoesOn(&'static [&'static str]),
    /// By the kernel, which says this, and in this way.
    GivesUp(Ending, &'static str),
}

/// One guest of the check.
pub struct Case {
    pub name: String,
    /// The kernel: base or guest.
    pub config: &'static str,
    kind: Kind,
    cpus: u32,
    plugin: String,
    unaccepted: &'static str,
    expect: Expect,
}

impl Case {
    fn new(config: &'static str, kind: Kind, cpus: u32, what: &str) -> Self {
        Self {
            name: format!("{} {config}: {what}", kind.name()),
            config,
            kind,
            cpus,
            plugin: String::new(),
            unaccepted: "",
            expect: Expect::Clean,
        }
    }

    fn fault(kind: Kind, what: &str, plugin: String, expect: Expect) -> Self {
        Self {
            plugin,
            expect,
            ..Self::new("base", kind, 2, what)
        }
    }

    fn log_name(&self) -> String {
        let what: String = self.name.chars().filter(|c| !":,".contains(*c)).collect();
        format!("coco-{}", what.replace(' ', "-"))
    }

    pub fn log(&self, place: &Place) -> PathBuf {
        place.log(&format!("guest-{}-{}", self.config, self.log_name()))
    }

    /// Runs the guest; what is worth saying of it.
    pub fn run(
        &self,
        place: &Place,
        tools: &Tools,
        parts: &Parts,
        build: &Build,
        step: &Step,
    ) -> Result<String> {
        let mut job = format!("[ $(nproc) -eq {} ] || exit 1\n{JOB}", self.cpus);
        if self.config == "guest" {
            job += REFUSES_REPORTING;
        }
        let guest = Emulated {
            unaccepted: self.unaccepted.into(),
            ..Emulated::new(self.kind, parts).plugin(&self.plugin)
        };
        let run = Run {
            machine: Machine {
                memory_mib: 2048,
                cpus: self.cpus,
                ..Machine::of(Platform::Emulated(guest))
            },
            log: self.log(place),
            limit: Duration::from_secs(300),
            ..Run::new(place, tools, build, &self.log_name(), &job)
        };
        let outcome = run.run(step, |_, _| {})?;
        let judged = self.expect.judge(&outcome);
        judged.with_context(|| format!("{} (full log: {})", self.name, run.log.display()))
    }
}

/// All guests of the check.
pub fn cases() -> Vec<Case> {
    use Kind::{Snp, Tdx};
    const TOUCHED: &[&str] = &["read", "write"];
    const DUPLICATE: &[&str] = &["duplicate"];
    let mut all = Vec::new();
    for config in ["base", "guest"] {
        all.push(Case::new(config, Tdx, 1, "1 CPU"));
        all.push(Case::new(config, Tdx, 4, "4 CPUs"));
        all.push(Case {
            plugin: "check=on".into(),
            expect: Expect::Checked,
            ..Case::new(config, Tdx, 2, "each access checked")
        });
        all.push(Case::new(config, Snp, 1, "1 CPU"));
        all.push(Case::new(config, Snp, 4, "4 CPUs"));
        all.push(Case {
            plugin: "check=on".into(),
            expect: Expect::Checked,
            ..Case::new(config, Snp, 2, "each access checked")
        });
    }
    all.push(Case {
        unaccepted: "all-but=512M unaligned",
        ..Case::new("base", Tdx, 2, "odd edges")
    });
    all.extend([
        Case::fault(
            Tdx,
            "access before accept is caught",
            format!("check=on,secretly-unaccepted={ACCEPTED}"),
            Expect::Stopped(TOUCHED),
        ),
        Case::fault(
            Tdx,
            "access before accept, going on",
            format!("check=on,on-violation=continue,secretly-unaccepted={ACCEPTED}"),
            Expect::GoesOn(TOUCHED),
        ),
        Case::fault(
            Tdx,
            "second accept is caught",
            format!("secretly-accepted={UNACCEPTED}+2M"),
            Expect::Stopped(DUPLICATE),
        ),
        Case::fault(
            Snp,
            "second accept is caught",
            format!("secretly-accepted={UNACCEPTED}+2M"),
            Expect::Stopped(DUPLICATE),
        ),
        Case::fault(
            Snp,
            "access before accept is caught",
            format!("check=on,secretly-unaccepted={ACCEPTED}"),
            Expect::Stopped(TOUCHED),
        ),
        Case::fault(
            Tdx,
            "accept error ends in a panic",
            format!("error-at={UNACCEPTED}"),
            Expect::GivesUp(
                Ending::Clean,
                "Kernel panic - not syncing: TDX: Failed to accept memory",
            ),
        ),
        Case::fault(
            Snp,
            "accept error ends the guest",
            format!("error-at={UNACCEPTED}"),
            Expect::GivesUp(Ending::Terminated, "PVALIDATE failure"),
        ),
        Case::fault(
            Tdx,
            "2M refused, 4K accepted",
            "refuse-2m=on".into(),
            Expect::OnlySmall,
        ),
        Case::fault(
            Snp,
            "2M refused, 4K accepted",
            "refuse-2m=on".into(),
            Expect::OnlySmall,
        ),
    ]);
    all
}

impl Expect {
    fn judge(&self, outcome: &Outcome) -> Result<String> {
        match self {
            Self::Clean => {
                outcome.success()?;
                Ok(report(outcome)?.to_string())
            }
            Self::Checked => {
                outcome.success()?;
                let report = report(outcome)?;
                if report.checked_accesses == 0 {
                    bail!("no access was checked: {report}");
                }
                Ok(report.to_string())
            }
            Self::OnlySmall => {
                outcome.success()?;
                let report = report(outcome)?;
                if report.mismatches == 0 || report.accepts.medium + report.accepts.large > 0 {
                    bail!("2M was to be refused: {report}");
                }
                Ok(report.to_string())
            }
            Self::Stopped(kinds) => {
                let words = outcome.last_words();
                if outcome.ending != Some(Ending::Violation) {
                    bail!("the plugin should have stopped the guest:\n{words}");
                }
                of_kind(report(outcome)?, kinds)?;
                let mut violations = outcome.said.iter();
                let said = violations.find(|line| line.starts_with("coco: violation"));
                said.cloned()
                    .with_context(|| format!("no message 'coco: violation': {words}"))
            }
            Self::GoesOn(kinds) => {
                if outcome.ending != Some(Ending::Clean) || outcome.exit != Some(0) {
                    let words = outcome.last_words();
                    bail!("the guest should have come to its end:\n{words}");
                }
                let report = report(outcome)?;
                of_kind(report, kinds)?;
                Ok(format!(
                    "{} violations, not stopped",
                    report.violation_count
                ))
            }
            Self::GivesUp(ending, message) => {
                let mut lines = outcome.lines.iter();
                let found = lines.find(|line| line.contains(message));
                let line = found.with_context(|| format!("the console has no '{message}'"))?;
                if outcome.ending != Some(*ending) {
                    bail!("'{message}', but then: {}", outcome.last_words());
                }
                if report(outcome)?.errors == 0 {
                    bail!("'{message}', but no accept failed");
                }
                Ok(line.clone())
            }
        }
    }
}

fn report(outcome: &Outcome) -> Result<&Report> {
    let report = outcome.report.as_ref();
    report.with_context(|| format!("no report; {}", outcome.last_words()))
}

/// The first violation is of one of these kinds.
fn of_kind(report: &Report, kinds: &[&str]) -> Result<()> {
    match report.violations.first() {
        Some(first) if kinds.contains(&first.kind.as_str()) => Ok(()),
        Some(first) => bail!("a violation, but of kind '{}': {}", first.kind, first.what),
        None => bail!("the report has no violation"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coco::report::Violation;

    fn outcome(ending: Ending, report: Report) -> Outcome {
        Outcome {
            lines: vec!["[    1.0] Kernel panic - not syncing: TDX: Failed".into()],
            said: vec!["coco: violation: read of 0x1000".into()],
            exit: Some(0),
            ending: Some(ending),
            hang: None,
            report: Some(report),
            log: PathBuf::new(),
            emulated: true,
        }
    }

    fn violation(kind: &str) -> Report {
        Report {
            violation_count: 1,
            violations: vec![Violation {
                kind: kind.into(),
                address: "0x1000".into(),
                what: "not accepted".into(),
            }],
            ..Report::default()
        }
    }

    #[test]
    fn a_guest_must_be_stopped_for_the_right_reason() {
        let expect = Expect::Stopped(&["read", "write"]);
        let judge = |ending, kind| expect.judge(&outcome(ending, violation(kind)));
        let said = judge(Ending::Violation, "read").unwrap();
        assert_eq!(said, "coco: violation: read of 0x1000");
        assert!(judge(Ending::Violation, "duplicate").is_err());
        assert!(judge(Ending::Clean, "read").is_err());
    }

    #[test]
    fn a_guest_that_goes_on_must_still_have_the_violation() {
        let expect = Expect::GoesOn(&["read"]);
        let good = outcome(Ending::Clean, violation("read"));
        assert!(expect.judge(&good).is_ok());
        let clean = outcome(Ending::Clean, Report::default());
        assert!(expect.judge(&clean).is_err());
    }

    #[test]
    fn a_panic_must_be_the_one_that_was_provoked() {
        let failed = Report {
            errors: 1,
            ..Report::default()
        };
        let end = outcome(Ending::Clean, failed);
        let panic = |message| Expect::GivesUp(Ending::Clean, message);
        assert!(panic("TDX: Failed").judge(&end).is_ok());
        assert!(panic("Out of memory").judge(&end).is_err());
        let none = outcome(Ending::Clean, Report::default());
        assert!(panic("TDX: Failed").judge(&none).is_err());
        let terminated = Expect::GivesUp(Ending::Terminated, "TDX: Failed");
        assert!(terminated.judge(&end).is_err());
    }

    #[test]
    fn guests_have_logs_of_their_own() {
        let all = cases();
        let mut names: Vec<_> = all.iter().map(Case::log_name).collect();
        assert!(
            names.contains(&"coco-tdx-base-4-CPUs".to_string()),
            "{names:?}"
        );
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all.len());
    }
}
