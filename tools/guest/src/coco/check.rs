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

/// Starts the kernel anew, without firmware: all but the job is as it was. What was accepted stays so,
/// and what was shared is the guest's again, or it is caught.
const KEXEC: &str = r#"
mkdir /tmp/second || exit 1
cat > /tmp/second/job <<'END'
#!/bin/sh
grep -q 'second=1' /proc/cmdline || exit 1
most=$(awk '/^MemAvailable:/ { print int($2 / 1024 * 0.5) }' /proc/meminfo)
/kselftest/freepage/memory_hog "$most" 0 lock
END
chmod 755 /tmp/second/job
{
	(cd / && { echo kselftest; echo kselftest/freepage; find init bin usr kselftest/freepage/memory_hog; } |
		cpio -o -H newc)
	(cd /tmp/second && find job | cpio -o -H newc)
} > /tmp/initrd 2> /dev/null
exec /kselftest/freepage/kexec_reboot /bzImage /tmp/initrd "$(cat /proc/cmdline) second=1"
"#;

/// More often than a kernel with two GHCBs for each CPU gets away with, if it loses one each time.
const CPUS_COME_AND_GO: &str = r#"
for round in 1 2 3 4 5; do
	echo 0 > /sys/devices/system/cpu/cpu1/online || exit 1
	echo 1 > /sys/devices/system/cpu/cpu1/online || exit 1
done
[ "$(nproc)" -eq 2 ]
"#;

/// Our kernel knows that it must not report pages here; a SKIP is a failure.
const REFUSES_REPORTING: &str = "/kselftest/freepage/confidential.sh\n";

/// Nothing is left for later, and all of it can be used.
const EAGER: &str = r#"
[ "$(cat /sys/kernel/mm/unaccepted/remaining)" -eq 0 ] || exit 1
[ "$(cat /sys/kernel/mm/unaccepted/bytes_request)" -gt 0 ] || exit 1
/kselftest/freepage/memory_hog 1200 0 lock || exit 1
"#;

/// The thread accepts everything while others take memory.
const BACKGROUND: &str = r#"
cd /sys/kernel/mm/unaccepted || exit 1
echo 100 > background_share || exit 1
/kselftest/freepage/memory_hog 400 0 lock || exit 1
tries=0
until [ "$(cat remaining)" -eq 0 ]; do
	tries=$((tries + 1))
	[ $tries -lt 120 ] || exit 1
	sleep 1
done
[ "$(cat bytes_background)" -gt 0 ] || exit 1
/kselftest/freepage/memory_hog 1200 0 lock || exit 1
"#;

/// Only what is used is accepted, until all is wanted.
const ON_ALLOC: &str = r#"
cd /sys/kernel/mm/unaccepted || exit 1
[ "$(cat mode)" = on_alloc ] || exit 1
[ "$(awk '/^Unaccepted:/ { print $2 }' /proc/meminfo)" -eq 0 ] || exit 1
before=$(cat remaining)
[ "$before" -gt 0 ] || exit 1
/kselftest/freepage/memory_hog 400 0 lock || exit 1
used=$((before - $(cat remaining)))
echo "$((used >> 20)) MiB accepted for 400"
[ $used -le $((480 << 20)) ] || exit 1
before=$(cat remaining)
echo 64M > accept || exit 1
[ $((before - $(cat remaining))) -ge $((64 << 20)) ] || exit 1
before=$(cat bytes_allocation)
/kselftest/freepage/memory_hog 1200 0 lock || exit 1
[ "$(cat bytes_allocation)" -gt "$before" ] || exit 1
echo all > accept || exit 1
[ "$(cat remaining)" -eq 0 ] || exit 1
tries=0
until dmesg | grep 'all memory that is online has been accepted'; do
	tries=$((tries + 1))
	[ $tries -lt 20 ] || exit 1
	sleep 1
done
"#;

/// Free pages that are written to are not left unaccepted.
const ON_ALLOC_REFUSED: &str = r#"
cd /sys/kernel/mm/unaccepted || exit 1
dmesg | grep 'accept_memory=on_alloc: not with init_on_free' || exit 1
[ "$(cat mode)" = lazy ] || exit 1
[ "$(cat remaining)" -gt 0 ] || exit 1
echo all > accept || exit 1
[ "$(cat remaining)" -eq 0 ] || exit 1
/kselftest/freepage/memory_hog 1200 0 lock || exit 1
"#;

/// The word is named, and what there is to choose.
const UNKNOWN_MODE: &str = r#"
dmesg | grep 'accept_memory=sometimes is not known: choose lazy, eager, background or on_alloc; it is lazy' || exit 1
[ "$(cat /sys/kernel/mm/unaccepted/mode)" = lazy ] || exit 1
[ "$(cat /sys/kernel/mm/unaccepted/remaining)" -gt 0 ] || exit 1
/kselftest/freepage/memory_hog 1200 0 lock || exit 1
"#;

/// What the loader leaves accepted by default ends here.
const ACCEPTED: &str = "0x10000000+2M";
/// A page of it, which nobody uses by itself.
const ACCEPTED_PAGE: &str = "0x12345000";
/// In the middle of what node 0 has unaccepted: a kernel begins at one end, and may not come to the
/// other. Early boot, which has no console, takes from the ends, too.
const UNACCEPTED: &str = "0x30000000";

/// Writes to files of coco_access.ko.
fn accesses(writes: &[(&str, &str)]) -> String {
    let mut job = String::from(
        "insmod /kselftest/freepage/test_module/coco_access.ko && cd /sys/kernel/debug/coco_access || exit 1\n",
    );
    for (file, value) in writes {
        job += &format!("echo {value} > {file} || exit 1\n");
    }
    job
}

/// A guest that has not ended by then hangs.
const LIMIT: Duration = Duration::from_secs(600);

/// How a guest has to end.
enum Expect {
    /// By itself, with a clean report.
    Clean,
    /// The same, with each load and store looked at.
    Checked,
    /// By itself, with a clean report, though some calls were answered with a fault.
    Answered,
    /// By itself, with a clean report; whether accepts of 2M were refused, and whether they were not.
    Sizes { refused: bool, taken: bool },
    /// By the plugin, for a violation of one of these kinds.
    Stopped(&'static [&'static str]),
    /// By itself, with violations of one of these kinds.
    GoesOn(&'static [&'static str]),
    /// By hanging, with a backtrace of each of so many CPUs, and with a report.
    Hangs(u32),
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
    job: String,
    /// More for the kernel's command line.
    append: &'static str,
    /// A guest that says nothing for so long hangs.
    silence: Option<Duration>,
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
            job: JOB.into(),
            append: "",
            silence: None,
            expect: Expect::Clean,
        }
    }

    fn fault(kind: Kind, what: &str, plugin: String, expect: Expect) -> Self {
        Self::control("base", kind, what, plugin, expect)
    }

    fn control(
        config: &'static str,
        kind: Kind,
        what: &str,
        plugin: String,
        expect: Expect,
    ) -> Self {
        Self {
            plugin,
            expect,
            ..Self::new(config, kind, 2, what)
        }
    }

    fn job(self, job: String) -> Self {
        Self { job, ..self }
    }

    fn host_pages(kind: Kind, pages: &str, refused: bool, taken: bool) -> Self {
        Self::fault(
            kind,
            &format!("host of {pages}"),
            format!("host-pages={pages}"),
            Expect::Sizes { refused, taken },
        )
    }

    pub fn log_name(&self) -> String {
        let what: String = self.name.chars().filter(|c| !":,=%".contains(*c)).collect();
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
        let mut job = format!("[ $(nproc) -eq {} ] || exit 1\n{}", self.cpus, self.job);
        if self.config == "guest" && self.job == JOB {
            job += REFUSES_REPORTING;
        }
        let guest = Emulated {
            unaccepted: self.unaccepted.into(),
            ..Emulated::new(self.kind, parts).plugin(&self.plugin)
        };
        let usual = Run::new(place, tools, build, &self.log_name(), &job);
        // With each access checked, a host that has other things to do takes minutes to lock memory.
        let silence = self.silence.unwrap_or(LIMIT);
        let run = Run {
            machine: Machine {
                append: self
                    .append
                    .split_terminator(' ')
                    .map(String::from)
                    .collect(),
                memory_mib: 2048,
                cpus: self.cpus,
                ..Machine::of(Platform::Emulated(guest))
            },
            log: self.log(place),
            limit: LIMIT,
            silence,
            extra: match self.job == KEXEC {
                true => vec![("bzImage", build.image())],
                false => Vec::new(),
            },
            ..usual
        };
        let outcome = run.run(step, |_, _| {})?;
        let judged = self.expect.judge(&outcome);
        judged.with_context(|| format!("{} (full log: {})", self.name, run.log.display()))
    }
}

/// What each mode of accepting is tried with in `make check-all`.
const MODES: [(&str, &str); 4] = [
    ("accept_memory=lazy", JOB),
    ("accept_memory=eager", EAGER),
    ("accept_memory=background", BACKGROUND),
    ("accept_memory=on_alloc", ON_ALLOC),
];

/// Each mode on few and on many CPUs, and as both kinds of guest.
fn rare_cases() -> Vec<Case> {
    let mut all = Vec::new();
    for kind in [Kind::Tdx, Kind::Snp] {
        for cpus in [1, 2, 8, 16] {
            for (mode, job) in MODES {
                all.push(Case {
                    append: mode,
                    plugin: "check=on".into(),
                    expect: Expect::Checked,
                    ..Case::new("guest", kind, cpus, &format!("{mode}, {cpus} CPUs"))
                        .job(job.into())
                });
            }
        }
        all.push(Case {
            plugin: "check=on".into(),
            expect: Expect::Checked,
            ..Case::new("unaccepted", kind, 4, "none of our other options")
        });
    }
    all
}

/// All guests of `make check`, and with `rare` those of `make check-all`: the kernel that ours is
/// compared with, too.
pub fn cases(rare: bool) -> Vec<Case> {
    let mut all = usual_cases();
    match rare {
        true => all.extend(rare_cases()),
        false => all.retain(|case| case.config != "base"),
    }
    all
}

fn usual_cases() -> Vec<Case> {
    use Kind::{Snp, Tdx};
    const TOUCHED: &[&str] = &["read", "write"];
    const DUPLICATE: &[&str] = &["duplicate"];
    let mut all = Vec::new();
    for (kind, fault) in [(Tdx, "map-gpa:retry:every=2"), (Snp, "psc:retry:every=3")] {
        for config in ["base", "guest"] {
            all.push(Case {
                plugin: format!("fault={fault}"),
                expect: Expect::Answered,
                ..Case::new(config, kind, 2, "conversions end early")
            });
        }
    }
    for kind in [Tdx, Snp] {
        for (file, what) in [
            ("private_mapping", "private mapping of a shared page"),
            ("shared_mapping", "shared mapping of a private page"),
        ] {
            let expect = Expect::Stopped(&["read"]);
            let case = Case::control(
                "guest",
                kind,
                &format!("{what} is caught"),
                "check=on".into(),
                expect,
            );
            all.push(case.job(accesses(&[(file, "1")])));
        }
    }
    for config in ["base", "guest"] {
        for kind in [Tdx, Snp] {
            let case = Case {
                plugin: "check=on".into(),
                expect: Expect::Checked,
                ..Case::new(config, kind, 2, "edges of blocks, mappings of both kinds")
            };
            all.push(case.job(accesses(&[("edges", "512"), ("both_mappings", "1")])));
        }
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
    for kind in [Tdx, Snp] {
        for config in ["base", "guest"] {
            // The wakeup mailbox, by which a second TDX kernel would start its other CPUs, is not
            // modelled.
            all.push(Case::new(config, kind, 1, "kexec").job(KEXEC.into()));
        }
        all.push(Case::new("base", kind, 2, "a CPU goes and comes").job(CPUS_COME_AND_GO.into()));
    }
    for config in ["base", "guest"] {
        all.push(Case {
            plugin: "check=on".into(),
            unaccepted: "odd-table",
            expect: Expect::Checked,
            ..Case::new(config, Tdx, 2, "table at an odd address")
        });
    }
    // The C code takes a kernel without a table that it knows for one with nothing to accept.
    for (unaccepted, what) in [
        ("no-table", "missing table is noticed"),
        ("table-version=2", "table of another version is noticed"),
    ] {
        let expect = Expect::Stopped(TOUCHED);
        all.push(Case {
            unaccepted,
            ..Case::fault(Tdx, what, "check=on".into(), expect)
        });
    }
    for config in ["base", "guest"] {
        all.push(Case {
            unaccepted: "all-but=512M unaligned",
            ..Case::new(config, Tdx, 2, "odd edges")
        });
    }
    all.push(Case {
        plugin: "check=on,cost-ns=8000".into(),
        expect: Expect::Checked,
        ..Case::new("guest", Tdx, 8, "8 CPUs, accepts take time")
    });
    for kind in [Tdx, Snp] {
        let case = Case::new("guest", kind, 4, "what sysfs says and takes");
        all.push(case.job("/kselftest/freepage/unaccepted.sh\n".into()));
    }
    for (mode, job) in [
        ("accept_memory=eager", EAGER),
        ("accept_memory=background", BACKGROUND),
        ("accept_memory=on_alloc", ON_ALLOC),
        ("accept_memory=on_alloc init_on_free=1", ON_ALLOC_REFUSED),
        ("accept_memory=sometimes", UNKNOWN_MODE),
    ] {
        all.push(Case {
            append: mode,
            plugin: "check=on".into(),
            expect: Expect::Checked,
            ..Case::new("guest", Tdx, 4, mode).job(job.into())
        });
    }
    for (pages, refused, taken) in [("2m", false, true), ("mixed=50%", true, true)] {
        all.push(Case::control(
            "guest",
            Tdx,
            &format!("host of {pages}"),
            format!("host-pages={pages}"),
            Expect::Sizes { refused, taken },
        ));
    }
    all.push(Case {
        plugin: "busy-every=3".into(),
        expect: Expect::Answered,
        ..Case::new("guest", Tdx, 2, "busy is tried again")
    });
    all.push(Case::control(
        "guest",
        Tdx,
        "accept error names range and status",
        format!("error-at={UNACCEPTED}"),
        Expect::GivesUp(
            Ending::Clean,
            "TDX: Failed to accept memory [mem 0x0000000030000000-0x",
        ),
    ));
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
        Case::control(
            "guest",
            Tdx,
            "load that reaches into pending memory is caught",
            format!("check=on,secretly-unaccepted={ACCEPTED_PAGE}+4K"),
            Expect::Stopped(&["read"]),
        )
        .job(accesses(&[("straddle", ACCEPTED_PAGE)])),
        Case::control(
            "guest",
            Snp,
            "load that reaches into pending memory is caught",
            format!("check=on,secretly-unaccepted={ACCEPTED_PAGE}+4K"),
            Expect::Stopped(&["read"]),
        )
        .job(accesses(&[("straddle", ACCEPTED_PAGE)])),
        Case {
            silence: Some(Duration::from_secs(20)),
            ..Case::control(
                "guest",
                Tdx,
                "hang is shown",
                String::new(),
                Expect::Hangs(2),
            )
        }
        .job("sleep 1000\n".into()),
        Case::fault(
            Snp,
            "list of conversions that fails ends the guest",
            "fault=psc-list:error:every=2".into(),
            Expect::GivesUp(Ending::Terminated, "page state change failed"),
        ),
        Case::host_pages(Tdx, "4k", true, false),
        Case::host_pages(Tdx, "2m", false, true),
        Case::host_pages(Tdx, "mixed=50%", true, true),
        Case::host_pages(Snp, "4k", true, false),
        Case::host_pages(Snp, "2m", false, true),
    ]);
    all
}

/// The guests that have this text in their names.
pub fn cases_with(text: &str) -> Result<Vec<Case>> {
    // Without a text, those of `make check`.
    let (chosen, others): (Vec<_>, Vec<_>) = cases(!text.is_empty())
        .into_iter()
        .partition(|case| case.name.contains(text));
    if chosen.is_empty() {
        let names: Vec<_> = others.into_iter().map(|case| case.name).collect();
        bail!(
            "CASE: no case has '{text}' in its name; there are\n{}",
            names.join("\n")
        );
    }
    Ok(chosen)
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
            Self::Answered => {
                outcome.success()?;
                let report = report(outcome)?;
                if report.errors + report.busy == 0 {
                    bail!("no call was answered with a fault: {report}");
                }
                Ok(format!("{report}, {} faults", report.errors + report.busy))
            }
            Self::Sizes { refused, taken } => {
                outcome.success()?;
                let report = report(outcome)?;
                let is = (report.mismatches > 0, report.accepts.medium > 0);
                if is != (*refused, *taken) {
                    bail!("2M should {}: {report}", sizes(*refused, *taken));
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
            Self::Hangs(cpus) => {
                if outcome.hang.is_none() {
                    bail!("the guest should have hung: {}", outcome.last_words());
                }
                for cpu in 0..*cpus {
                    let mark = format!("NMI backtrace for cpu {cpu}");
                    if !outcome.lines.iter().any(|line| line.contains(&mark)) {
                        bail!("the guest hung, but the console has no '{mark}'");
                    }
                }
                Ok(format!("backtraces of {cpus} CPUs; {}", report(outcome)?))
            }
            Self::GivesUp(ending, message) => {
                // The plugin may know why, and the kernel not say it.
                let mut lines = outcome.lines.iter().chain(&outcome.said);
                let found = lines.find(|line| line.contains(message));
                let line = found.with_context(|| format!("nobody said '{message}'"))?;
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

/// What is to become of accepts of 2M, in words.
fn sizes(refused: bool, taken: bool) -> &'static str {
    match (refused, taken) {
        (true, true) => "be refused at some places and taken at others",
        (true, false) => "always be refused",
        (false, true) => "never be refused",
        (false, false) => "not be tried",
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
    fn a_hang_must_show_what_all_cpus_do() {
        let mut end = outcome(Ending::Clean, Report::default());
        let judge = |end: &Outcome| Expect::Hangs(2).judge(end);
        end.lines = vec!["[ 1.0] NMI backtrace for cpu 0".into()];
        end.hang = Some("it said nothing".into());
        assert!(judge(&end).is_err());
        end.lines
            .push("[ 1.0] NMI backtrace for cpu 1 skipped: idling".into());
        assert!(judge(&end).is_ok());
        end.report = None;
        assert!(judge(&end).is_err());
        end.report = Some(Report::default());
        end.hang = None;
        assert!(judge(&end).is_err());
    }

    #[test]
    fn faults_must_have_been_there() {
        let judge = |errors| {
            let report = Report {
                accepted_bytes: 4096,
                errors,
                ..Report::default()
            };
            let mut end = outcome(Ending::Clean, report);
            end.lines.clear();
            Expect::Answered.judge(&end)
        };
        assert!(judge(1).unwrap().ends_with("1 faults"));
        assert!(judge(0).is_err());
    }

    #[test]
    fn accepts_of_2m_end_as_the_host_lets_them() {
        let judge = |refused, taken, mismatches, medium| {
            let mut report = Report {
                accepted_bytes: 4096,
                mismatches,
                ..Report::default()
            };
            report.accepts.medium = medium;
            let mut end = outcome(Ending::Clean, report);
            end.lines.clear();
            Expect::Sizes { refused, taken }.judge(&end)
        };
        assert!(judge(true, false, 1, 0).is_ok());
        assert!(judge(false, true, 0, 1).is_ok());
        assert!(judge(true, true, 1, 1).is_ok());
        for (mismatches, medium) in [(0, 1), (1, 1), (0, 0)] {
            assert!(judge(true, false, mismatches, medium).is_err());
        }
        assert!(judge(false, true, 1, 1).is_err());
        assert!(judge(true, true, 0, 1).is_err());
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
    fn cases_are_chosen_by_their_names() {
        assert_eq!(cases_with("").unwrap().len(), cases(false).len());
        let some = cases_with("snp guest").unwrap();
        assert!(!some.is_empty() && some.len() < cases(true).len());
        let error = cases_with("sev").err().unwrap().to_string();
        assert!(error.contains("tdx base: 1 CPU"), "{error}");
    }

    #[test]
    fn guests_have_logs_of_their_own() {
        let all = cases(true);
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
