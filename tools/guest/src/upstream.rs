// SPDX-License-Identifier: GPL-2.0

//! `make check-upstream`: the kernel's own selftests of memory management, on the base and on ours.
//! What they say is compared test by test: an exit status hides what was skipped. Whether they pass is
//! not asked, only whether the series changes it.

use crate::boot::Run;
use crate::build::{Build, build_in, make};
use crate::cache::Place;
use crate::console::without_stamp;
use crate::progress::{run_in, step};
use crate::setup::{Tools, libraries};
use crate::tree::Tree;
use anyhow::{Context, Result, bail};
use regex::Regex;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    sync::LazyLock,
    time::Duration,
};
use tempfile::TempDir;

/// The two kernels that are compared.
const BASE: &str = "upstream-base";
const OURS: &str = "upstream";

/// Libraries that programs of mm/ are linked with.
const LIBRARIES: &[(&str, &str)] = &[
    ("libcap-dev", "/usr/include/sys/capability.h"),
    ("libnuma-dev", "/usr/include/numa.h"),
    ("liburing-dev", "/usr/include/liburing.h"),
];

const TARGETS: &str = "mm memfd mincore proc ptrace";

/// Programs that do not end in an emulated guest, or that are no tests by themselves.
const LEFT_OUT: &[&str] = &[
    "mm/folio_split_race_test",
    "mm/hmm-tests",
    "mm/hugetlb_fault_after_madv",
    "mm/transhuge-stress",
    "mm/write_to_hugetlbfs",
    "memfd/fuse_test",
    "proc/proc-maps-race",
];

/// What programs are run with, if not without arguments; each line is a run.
const ARGUMENTS: &[(&str, &[&str])] = &[
    (
        "mm/gup_test",
        &[
            "-u -n 1",
            "-u -n -1",
            "-a -n 1",
            "-a -n -1",
            "-U -n 512",
            "-b -n 512",
            "-L -n 512",
            "-u -H -m 16",
            "-a -t -m 64",
            "-a -T -m 64",
            "-ct -F 0x1 0 19 0x1000",
        ],
    ),
    (
        "mm/uffd-stress",
        &["anon 20 4", "shmem 20 4", "hugetlb 64 4"],
    ),
    ("mm/khugepaged", &["", "-s 2", "all:shmem"]),
    (
        "mm/ksm_tests",
        &[
            "-M -p 10",
            "-U",
            "-Z -p 10 -z 0",
            "-Z -p 10 -z 1",
            "-N -m 1",
            "-N -m 0",
        ],
    ),
];

/// Differences that are meant, by the beginning of a test's name, and why.
const MEANT: &[(&str, &str)] = &[];

/// Seconds that a program may take.
const LIMIT: u32 = 240;

/// Runs the programs of a list, between lines that say which and how each ended.
const JOB: &str = r#"
ulimit -l 65536
mkdir -p /dev/hugepages && mount -t hugetlbfs none /dev/hugepages
mkswap /dev/ram0 && swapon /dev/ram0
while read -r folder program arguments; do
	cd "/files/$folder" || exit
	echo 64 > /proc/sys/vm/nr_hugepages
	echo "upstream: begin $folder/$program $arguments"
	# shellcheck disable=SC2086
	timeout -s KILL LIMIT "./$program" $arguments < /dev/null 2>&1
	status=$?
	echo
	echo "upstream: end $status"
done < /files/LIST
"#;

static RESULT: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^(?:# )*(not ok|ok) \d+ *(?:- )?(.*)$").unwrap());
/// Addresses, times and the like, which are others in each run.
static NUMBER: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"0x[0-9a-fA-F]+|\b[0-9a-f]{8,}\b|\d+\.\d+|\d{4,}").unwrap());

/// How each test ended, by its name: "mm/cow: ..." or, for a program, "mm/cow".
type Results = BTreeMap<String, String>;

/// Takes what the guest says.
#[derive(Default)]
struct Reader {
    program: Option<String>,
    results: Results,
}

impl Reader {
    fn line(&mut self, line: &str) {
        let line = without_stamp(line).trim_end();
        if let Some(program) = line.strip_prefix("upstream: begin ") {
            self.program = Some(program.trim().into());
            return;
        }
        let Some(program) = self.program.clone() else {
            return;
        };
        if let Some(status) = line.strip_prefix("upstream: end ") {
            let ending = match status {
                "0" => "passed".into(),
                "4" => "skipped".into(),
                "137" => "killed".into(),
                status => format!("failed with {status}"),
            };
            self.results.insert(program, ending);
            self.program = None;
        } else if let Some(found) = RESULT.captures(line) {
            let (name, skipped) = match found[2].split_once("# SKIP") {
                Some((name, _)) => (name, true),
                None => (&found[2], false),
            };
            let name = NUMBER.replace_all(name.trim(), "N");
            let ending = match (&found[1], skipped) {
                (_, true) => "skipped",
                ("ok", _) => "passed",
                _ => "failed",
            };
            self.add(&format!("{program}: {name}"), ending);
        }
    }

    /// Several tests of a program may have one name.
    fn add(&mut self, name: &str, ending: &str) {
        let numbers = std::iter::once(name.to_string());
        let mut names = numbers.chain((2..).map(|number| format!("{name} ({number})")));
        if let Some(name) = names.find(|name| !self.results.contains_key(name)) {
            self.results.insert(name, ending.into());
        }
    }
}

/// A test that did not end the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Difference {
    test: String,
    base: String,
    ours: String,
}

fn differences(base: &Results, ours: &Results) -> Vec<Difference> {
    let of =
        |results: &Results, test: &String| results.get(test).cloned().unwrap_or("absent".into());
    let tests: BTreeSet<_> = base.keys().chain(ours.keys()).collect();
    let all = tests.into_iter().map(|test| Difference {
        test: test.clone(),
        base: of(base, test),
        ours: of(ours, test),
    });
    all.filter(|one| one.base != one.ours).collect()
}

/// The run that a test belongs to.
fn program_of(test: &str) -> &str {
    test.split_once(": ").map_or(test, |(program, _)| program)
}

/// Builds the programs, in a copy of their sources: they leave files there.
fn build(place: &Place, tree: &Tree, tools: &Tools, kernel: &Build) -> Result<TempDir> {
    let stage = kernel.folder.join("upstream");
    let installed = place.scratch()?;
    let log = place.log("upstream-build");
    step("build upstream's selftests", |step| {
        fs::create_dir_all(&stage)?;
        let mut rsync = Command::new("rsync");
        rsync.args(["--archive", "--delete", "--relative"]);
        for part in [
            "Makefile", "scripts", "include", "arch/x86", "mm", "tools", "lib",
        ] {
            rsync.arg(part);
        }
        rsync.arg(stage.join("source/")).current_dir(tree.root());
        run_in(step, &log, &mut rsync)?;
        run_in(step, &log, make(tree, tools, &kernel.folder).arg("headers"))?;
        let mut install = Command::new("make");
        install
            .arg("-C")
            .arg(stage.join("source/tools/testing/selftests"));
        install.args([&format!("TARGETS={TARGETS}"), "--ignore-errors", "install"]);
        install.arg(format!("O={}", stage.join("objects").display()));
        install.arg(format!(
            "KHDR_INCLUDES=-isystem {}",
            kernel.folder.join("usr/include").display()
        ));
        install.args([
            "USERLDFLAGS=-static",
            "LDFLAGS=-static",
            "EXTRA_CFLAGS=-static",
        ]);
        install.arg(format!("KSFT_INSTALL_PATH={}", installed.path().display()));
        // What lacks a library is not there, on either kernel.
        let _ = run_in(step, &log, &mut install);
        Ok(())
    })?;
    if !installed.path().join("mm/cow").is_file() {
        bail!(
            "upstream's selftests were not built (full log: {})",
            log.display()
        );
    }
    Ok(installed)
}

/// The runs, as the job reads them.
fn runs(installed: &Path) -> Result<Vec<String>> {
    let mut runs = Vec::new();
    for folder in TARGETS.split(' ') {
        let entries = fs::read_dir(installed.join(folder));
        let entries = entries.with_context(|| format!("no tests of {folder} were built"))?;
        let mut names: Vec<_> = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| !name.contains('.') && !["config", "settings"].contains(&name.as_str()))
            .collect();
        names.sort();
        for name in names {
            let path = format!("{folder}/{name}");
            if LEFT_OUT.contains(&path.as_str()) {
                continue;
            }
            let found = ARGUMENTS.iter().find(|(program, _)| *program == path);
            let lines = found.map_or(&[""][..], |(_, lines)| lines);
            runs.extend(lines.iter().map(|line| format!("{folder} {name} {line}")));
        }
    }
    Ok(runs)
}

/// Runs the list on one kernel.
fn results(
    place: &Place,
    tools: &Tools,
    kernel: &Build,
    installed: &Path,
    runs: &[String],
    round: u32,
) -> Result<Results> {
    let job = JOB.replace("LIMIT", &LIMIT.to_string());
    let usual = Run::new(place, tools, kernel, &format!("selftests-{round}"), &job);
    let run = Run {
        files: Some(installed.to_path_buf()),
        silence: Duration::from_secs(u64::from(LIMIT) + 60),
        limit: Duration::from_secs(3 * 3600),
        ..usual
    };
    step(
        &format!("upstream's selftests on {}", kernel.config),
        |step| {
            let mut reader = Reader::default();
            let outcome = run.run(step, |_, line| {
                line.into_iter().for_each(|line| reader.line(line));
            })?;
            outcome.sound()?;
            let told = reader
                .results
                .keys()
                .filter(|test| program_of(test) == **test);
            let count = told.count();
            if count != runs.len() {
                bail!(
                    "{count} of {} programs came to an end (full log: {})",
                    runs.len(),
                    outcome.log.display()
                );
            }
            Ok(reader.results)
        },
    )
}

/// Both kernels, and the programs.
pub struct Built {
    base: Build,
    ours: Build,
    programs: TempDir,
}

/// Builds what `compare` runs.
pub fn prepare(place: &Place, tree: &Tree, tools: &Tools) -> Result<Built> {
    libraries(place, LIBRARIES)?;
    let kernel = |config| build_in(place, tree, tools, config, config, true);
    let (base, ours) = (kernel(BASE)?, kernel(OURS)?);
    let programs = build(place, tree, tools, &base)?;
    Ok(Built {
        base: base.own(place)?,
        ours: ours.own(place)?,
        programs,
    })
}

/// Runs the programs on both kernels at once, and says what differs.
pub fn compare(place: &Place, tools: &Tools, built: &Built) -> Result<String> {
    let installed = built.programs.path();
    let mut runs = runs(installed)?;
    let mut found = Vec::new();
    let mut counts = (0, 0, 0);
    // What differs has to do so twice: some of these tests depend on time, or luck.
    for round in 1..=2 {
        fs::write(installed.join("LIST"), runs.join("\n") + "\n")?;
        let of = |kernel| results(place, tools, kernel, installed, &runs, round);
        let (on_base, on_ours) = std::thread::scope(|scope| {
            let on_base = scope.spawn(|| of(&built.base));
            let on_ours = of(&built.ours);
            let on_base = on_base.join().unwrap_or_else(|_| bail!("a run panicked"));
            (on_base, on_ours)
        });
        let (on_base, on_ours) = (on_base?, on_ours?);
        let count = |ending: &str| on_ours.values().filter(|one| *one == ending).count();
        if round == 1 {
            counts = (on_ours.len(), count("passed"), count("skipped"));
        }
        let now = differences(&on_base, &on_ours);
        found = match round {
            1 => now,
            _ => now.into_iter().filter(|one| found.contains(one)).collect(),
        };
        let programs: BTreeSet<_> = found.iter().map(|one| program_of(&one.test)).collect();
        runs.retain(|run| programs.contains(run.replacen(' ', "/", 1).trim()));
        if runs.is_empty() {
            break;
        }
    }
    let meant = |one: &Difference| MEANT.iter().any(|(test, _)| one.test.starts_with(test));
    let (meant, bad): (Vec<_>, Vec<_>) = found.into_iter().partition(meant);
    if !bad.is_empty() {
        let lines = bad.iter().map(|one| {
            format!(
                "  {}: {} on the base, {} on ours",
                one.test, one.base, one.ours
            )
        });
        bail!(
            "the series changes what tests say:\n{}",
            lines.collect::<Vec<_>>().join("\n")
        );
    }
    let (all, passed, skipped) = counts;
    Ok(format!(
        "{all} tests of upstream's end as on the base: {passed} pass, {skipped} are skipped; {} \
         differences are meant",
        meant.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Results {
        let mut reader = Reader::default();
        text.lines().for_each(|line| reader.line(line));
        reader.results
    }

    #[test]
    fn results_are_those_of_the_program_that_runs() {
        let results = read(
            "ok 1 no test of ours\nupstream: begin mm/cow \nok 1 fork 0x7f12\nnot ok 2 fork 0x8f12\n\
             ok 3 - swap # SKIP no swap\n\nupstream: end 1\nupstream: begin mm/gup_test -u -n 1\n\
             upstream: end 137\n",
        );
        let of = |test: &str| results.get(test).map(String::as_str);
        assert_eq!(results.len(), 5);
        assert_eq!(of("mm/cow"), Some("failed with 1"));
        assert_eq!(of("mm/cow: fork N"), Some("passed"));
        assert_eq!(of("mm/cow: fork N (2)"), Some("failed"));
        assert_eq!(of("mm/cow: swap"), Some("skipped"));
        assert_eq!(of("mm/gup_test -u -n 1"), Some("killed"));
    }

    #[test]
    fn what_is_missing_differs() {
        let base = read("upstream: begin a/b\nok 1 x\nok 2 y\nupstream: end 0\n");
        let ours = read("upstream: begin a/b\nok 1 x\nupstream: end 0\n");
        let found = differences(&base, &ours);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].test, "a/b: y");
        assert_eq!(program_of(&found[0].test), "a/b");
        assert_eq!(found[0].ours, "absent");
        assert!(differences(&base, &base).is_empty());
    }
}
