// SPDX-License-Identifier: GPL-2.0

//! `make check` and `make check-all`: every test, and a table of how each ended.

use crate::build::{Build, CONFIGS, RARE_CONFIGS, build, kselftest as build_kselftest};
use crate::cache::Place;
use crate::coco;
use crate::guests::{self, Pick};
use crate::ktap::{Test, Totals};
use crate::machine::Platform;
use crate::progress::{seconds, step};
use crate::results::{Earlier, Ending, Row, fingerprint};
use crate::setup::Tools;
use crate::tree::Tree;
use crate::{lint, submit, upstream};
use anyhow::{Context, Result, bail};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    thread::available_parallelism,
    time::{Duration, Instant},
};

/// What of the check is wanted.
#[derive(Default)]
pub struct Wanted {
    /// Also what is long or rare: `make check-all`.
    pub all: bool,
    /// Texts, separated by commas: only steps that have one in their names, and what those need.
    pub steps: Option<String>,
    /// Not what has passed before, if nothing has changed since.
    pub resume: bool,
}

/// A step by its name, the log that it leaves, and the steps that have to have passed.
#[derive(Clone, Debug)]
struct Planned {
    name: String,
    log: String,
    needs: Vec<String>,
}

impl Planned {
    fn new(name: &str, log: &str, needs: &[&str]) -> Self {
        Self {
            name: name.into(),
            log: log.into(),
            needs: needs.iter().map(|need| need.to_string()).collect(),
        }
    }
}

/// The debug kernel's tests are the longest lane by far: two guests share them.
const DEBUG_PARTS: usize = 2;

/// Kernel and tests while kmemleak looks on, which all others do without.
const LEAKS: &str = "leaks debug";

/// The kernels that are built.
fn configs(all: bool) -> impl Iterator<Item = &'static str> {
    let rare = RARE_CONFIGS.iter().filter(move |_| all);
    CONFIGS.iter().chain(rare).map(|(name, _)| *name)
}

/// The guests that run kselftests, the longest first: kernel, and which part of how many.
fn kselftests(all: bool) -> Vec<(&'static str, Option<usize>)> {
    let debug = (1..=DEBUG_PARTS).map(|part| ("debug", Some(part)));
    let others = configs(all).filter(|config| *config != "debug");
    debug.chain(others.map(|config| (config, None))).collect()
}

fn kselftest_name(config: &str, part: Option<usize>) -> String {
    match part {
        Some(part) => format!("kselftest {config} {part}/{DEBUG_PARTS}"),
        None => format!("kselftest {config}"),
    }
}

/// The kernels whose memory is measured from outside.
fn host_memories(all: bool) -> impl Iterator<Item = &'static str> {
    configs(all).filter(|config| ["guest", "base"].contains(config))
}

/// The kernels that have KUnit tests.
fn kunits(all: bool) -> impl Iterator<Item = &'static str> {
    configs(all).filter(|config| *config != "base")
}

/// Every step, in the order of the table.
fn plan(all: bool) -> Vec<Planned> {
    let mut plan = vec![
        Planned::new("tools: unit tests", "cargo-test-guest", &[]),
        Planned::new("lint: tools", "lint-guest-clippy", &[]),
        Planned::new("lint: shell", "lint-shellcheck", &[]),
        Planned::new("tree", "tree", &[]),
    ];
    for config in configs(all) {
        let name = format!("build {config}");
        plan.push(Planned::new(&name, &format!("build-{config}"), &["tree"]));
    }
    plan.extend([
        Planned::new("lint: kernel Rust", "lint-clippy", &["tree"]),
        Planned::new("kunit uml", "kunit-uml", &["tree"]),
        Planned::new("build coco", "build-coco-plugin", &[]),
    ]);
    for (config, part) in kselftests(all) {
        let tail = part.map_or(String::new(), |part| format!("-{part}"));
        plan.push(Planned::new(
            &kselftest_name(config, part),
            &format!("guest-{config}-kselftest{tail}"),
            &[&format!("build {config}")],
        ));
    }
    for config in kunits(all) {
        plan.push(Planned::new(
            &format!("kunit {config}"),
            &format!("guest-{config}-kunit"),
            &[&format!("build {config}")],
        ));
    }
    plan.push(Planned::new(
        LEAKS,
        "guest-debug-kselftest-leaks",
        &["build debug"],
    ));
    for case in coco::cases(all) {
        let needs = [format!("build {}", case.config), "build coco".into()];
        plan.push(Planned {
            name: case.name.clone(),
            log: format!("guest-{}-{}", case.config, case.log_name()),
            needs: needs.into(),
        });
    }
    for config in host_memories(all) {
        plan.push(Planned::new(
            &format!("host-memory {config}"),
            &format!("guest-{config}-host-memory"),
            &[&format!("build {config}")],
        ));
    }
    plan.push(Planned::new("series", "series", &["tree"]));
    plan.push(Planned::new("checkpatch", "checkpatch", &["series"]));
    if all {
        plan.extend([
            Planned::new("upstream", "guest-upstream-selftests-1", &["tree"]),
            Planned::new("series: off changes nothing", "off-ours", &["tree"]),
            Planned::new("series: mm/ for arm64", "arm64-guest", &["tree"]),
            Planned::new("series: each step builds", "build-series-guest", &["tree"]),
        ]);
    }
    plan
}

/// The steps with one of these texts in their names, and what they need.
fn chosen(plan: &[Planned], texts: &str) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for text in texts.split(',').map(str::trim) {
        let found = plan
            .iter()
            .filter(|step| !text.is_empty() && step.name.contains(text));
        let before = names.len();
        let found: Vec<_> = found.map(|step| step.name.clone()).collect();
        names.extend(found.iter().cloned());
        if names.len() == before && found.is_empty() {
            let all: Vec<_> = plan.iter().map(|step| step.name.as_str()).collect();
            bail!(
                "STEPS: no step has '{text}' in its name; there are\n  {}",
                all.join("\n  ")
            );
        }
    }
    // What a step needs stands before it.
    for step in plan.iter().rev() {
        if names.contains(&step.name) {
            names.extend(step.needs.iter().cloned());
        }
    }
    Ok(names)
}

/// Whether STEPS names steps.
pub fn check_steps(wanted: &Wanted) -> Result<()> {
    let texts = wanted.steps.as_deref();
    texts.map_or(Ok(()), |texts| chosen(&plan(wanted.all), texts).map(drop))
}

/// Something to be done beside others.
struct Job<'a> {
    name: String,
    work: Work<'a>,
}

/// Puts its test cases into the list, and says what is worth saying.
type Work<'a> = Box<dyn FnOnce(&mut Vec<Test>) -> Result<String> + Send + 'a>;

struct Check<'a> {
    place: &'a Place,
    start: Instant,
    plan: Vec<Planned>,
    /// None means all.
    chosen: Option<BTreeSet<String>>,
    rows: Vec<Row>,
    earlier: Mutex<Earlier>,
}

impl<'a> Check<'a> {
    fn new(place: &'a Place, plan: Vec<Planned>, wanted: &Wanted) -> Result<Self> {
        let chosen = wanted.steps.as_deref().map(|texts| chosen(&plan, texts));
        let chosen = chosen.transpose()?;
        let earlier = Earlier::open(place, &fingerprint(place)?, wanted.resume)?;
        if wanted.resume {
            eprintln!("RESUME: {earlier}");
        }
        Ok(Self {
            place,
            start: Instant::now(),
            plan,
            chosen,
            rows: Vec::new(),
            earlier: Mutex::new(earlier),
        })
    }

    fn is_chosen(&self, name: &str) -> bool {
        self.chosen
            .as_ref()
            .is_none_or(|names| names.contains(name))
    }

    fn planned(&self, name: &str) -> Result<&Planned> {
        let found = self.plan.iter().find(|step| step.name == name);
        found.with_context(|| format!("step '{name}' is not in the plan"))
    }

    /// The first of what a step needs that has not passed.
    fn unmet(&self, step: &Planned) -> Option<String> {
        let bad = |need: &&String| {
            self.rows
                .iter()
                .any(|row| row.name == **need && row.ending != Ending::Pass)
        };
        step.needs.iter().find(bad).cloned()
    }

    fn earlier(&self) -> std::sync::MutexGuard<'_, Earlier> {
        self.earlier
            .lock()
            .unwrap_or_else(|error| error.into_inner())
    }

    /// Does one step of the plan, if what it needs has passed. Errors are shown at once.
    fn row(
        &self,
        planned: &Planned,
        work: impl FnOnce(&mut Vec<Test>) -> Result<String>,
    ) -> Result<Row> {
        let start = Instant::now();
        let mut cases = Vec::new();
        let (ending, note) = match self.unmet(planned) {
            Some(need) => (Ending::Skip, format!("needs '{need}'")),
            None => match work(&mut cases) {
                Ok(note) => (Ending::Pass, note),
                Err(error) => {
                    eprintln!("\nFAIL {}: {error:#}\n", planned.name);
                    (Ending::Fail, format!("{error:#}"))
                }
            },
        };
        let row = Row {
            name: planned.name.clone(),
            ending,
            note,
            seconds: start.elapsed().as_secs_f64(),
            log: self.place.log(&planned.log),
            cases,
            resumed: false,
        };
        self.earlier().add(&row)?;
        Ok(row)
    }

    /// Does a step that makes something that others need; what it made.
    fn make<T>(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Result<(T, String)>,
    ) -> Result<Option<T>> {
        if !self.is_chosen(name) {
            return Ok(None);
        }
        let planned = self.planned(name)?.clone();
        let mut made = None;
        let row = self.row(&planned, |_| {
            let (value, note) = work()?;
            made = Some(value);
            Ok(note)
        })?;
        self.rows.push(row);
        Ok(made)
    }

    /// Does a step that makes nothing: it need not be done again after it has passed.
    fn test(
        &mut self,
        name: &str,
        work: impl FnOnce(&mut Vec<Test>) -> Result<String>,
    ) -> Result<()> {
        if !self.is_chosen(name) {
            return Ok(());
        }
        let planned = self.planned(name)?.clone();
        let before = self.earlier().passed(name);
        let row = match before {
            Some(row) => row,
            None => self.row(&planned, work)?,
        };
        self.rows.push(row);
        Ok(())
    }

    /// Does jobs that use one CPU each, as many at once as the host has room for.
    fn at_once(&mut self, jobs: Vec<Job<'_>>) -> Result<()> {
        let mut todo = Vec::new();
        for (number, job) in jobs.into_iter().enumerate() {
            if self.is_chosen(&job.name) {
                todo.push((number, self.planned(&job.name)?.clone(), job));
            }
        }
        let at_once = guests_at_once(available_parallelism().map_or(1, usize::from), free_mib());
        let (todo, rows) = (Mutex::new(todo.into_iter()), Mutex::new(Vec::new()));
        let next = || todo.lock().ok().and_then(|mut todo| todo.next());
        let work = || -> Result<()> {
            while let Some((number, planned, job)) = next() {
                let before = self.earlier().passed(&planned.name);
                let row = match before {
                    Some(row) => row,
                    None => self.row(&planned, job.work)?,
                };
                rows.lock()
                    .unwrap_or_else(|error| error.into_inner())
                    .push((number, row));
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
            let mut ends = threads.into_iter().map(|thread| thread.join());
            ends.try_for_each(|end| end.unwrap_or_else(|_| bail!("a step panicked")))
        })?;
        let mut rows = rows.into_inner().unwrap_or_else(|error| error.into_inner());
        rows.sort_by_key(|(number, _)| *number);
        self.rows.extend(rows.into_iter().map(|(_, row)| row));
        Ok(())
    }

    fn build_coco(&mut self, tools: &Tools) -> Result<Option<coco::Parts>> {
        let place = self.place;
        self.make("build coco", || {
            Ok((coco::build(place, tools)?, String::new()))
        })
    }

    fn count(&self, ending: Ending) -> usize {
        self.rows.iter().filter(|row| row.ending == ending).count()
    }

    /// Prints the table; an error unless all is well.
    fn end(&self) -> Result<()> {
        // A step that is planned and never done is no check.
        let done = |step: &&Planned| self.rows.iter().any(|row| row.name == step.name);
        let chosen = self.plan.iter().filter(|step| self.is_chosen(&step.name));
        let forgotten: Vec<_> = chosen
            .filter(|step| !done(step))
            .map(|step| step.name.as_str())
            .collect();
        let (pass, fail, skip) = (
            self.count(Ending::Pass),
            self.count(Ending::Fail),
            self.count(Ending::Skip),
        );
        println!("\n{}\nin {}", self.table(), seconds(self.start.elapsed()));
        println!("{pass} passed, {fail} failed, {skip} skipped");
        if !forgotten.is_empty() {
            bail!("not done: {}", forgotten.join(", "));
        }
        if fail + skip > 0 {
            bail!("not everything passed");
        }
        Ok(())
    }

    fn table(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let (word, note) = match row.ending {
                Ending::Pass => ("pass", row.note.as_str()),
                // It was shown when it happened.
                Ending::Fail => ("FAIL", ""),
                Ending::Skip => ("skip", row.note.as_str()),
            };
            let time = match row.resumed {
                true => "earlier".into(),
                false => seconds(Duration::from_secs_f64(row.seconds)),
            };
            text += &format!(
                "{word}  {:<42} {time:>13}  {}\n",
                row.name,
                row.log.display()
            );
            if !note.is_empty() {
                text += &format!("      {note}\n");
            }
        }
        text
    }
}

/// How many guests a host runs at once, by its CPUs and its memory: each has up to 4 GiB and mostly
/// uses one CPU.
fn guests_at_once(cpus: usize, mib: usize) -> usize {
    cpus.min(mib / 4096).clamp(1, 8)
}

/// Memory that programs can have, in MiB.
fn free_mib() -> usize {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    kib.unwrap_or_default() / 1024
}

/// A test in a guest with this kernel.
type GuestTest = fn(&Place, &Tools, &Build, &mut Vec<Test>) -> Result<Totals>;

/// The emulated confidential guests.
fn coco_jobs<'a>(
    place: &'a Place,
    tools: &'a Tools,
    parts: &'a Option<coco::Parts>,
    builds: &'a BTreeMap<&str, Build>,
    cases: Vec<coco::Case>,
) -> Vec<Job<'a>> {
    let job = |case: coco::Case| Job {
        name: case.name.clone(),
        work: Box::new(move |_| {
            let parts = some(parts)?;
            step(&case.name, |step| {
                case.run(place, tools, parts, one(builds, case.config)?, step)
            })
        }),
    };
    cases.into_iter().map(job).collect()
}

pub fn check(place: &Place, tools: &Tools, wanted: &Wanted) -> Result<()> {
    let all = wanted.all;
    let mut check = Check::new(place, plan(all), wanted)?;
    let quiet = |()| String::new();
    check.test("tools: unit tests", |_| {
        lint::unit_tests(place, tools).map(quiet)
    })?;
    check.test("lint: tools", |_| lint::tools(place, tools).map(quiet))?;
    check.test("lint: shell", |_| lint::shell(place).map(quiet))?;
    let tree = check.make("tree", || {
        let tree = Tree::update(place)?;
        let note = format!("Linux {}", tree.version);
        Ok((tree, note))
    })?;
    let mut builds = BTreeMap::new();
    for config in configs(all) {
        let made = check.make(&format!("build {config}"), || {
            let tree = some(&tree)?;
            let build = build(place, tree, tools, config)?;
            build_kselftest(place, tree, tools, &build)?;
            Ok((build, String::new()))
        })?;
        builds.extend(made.map(|build| (config, build)));
    }
    check.test("lint: kernel Rust", |_| {
        lint::kernel_rust(place, some(&tree)?, tools).map(quiet)
    })?;
    check.test("kunit uml", |cases| {
        Ok(guests::kunit_uml(place, some(&tree)?, tools, cases)?.to_string())
    })?;
    let parts = check.build_coco(tools)?;
    let builds = &builds;
    let mut jobs = Vec::new();
    for (config, part) in kselftests(all) {
        let pick = part.map_or(Pick::All, |part| Pick::Part(part, DEBUG_PARTS));
        jobs.push(Job {
            name: kselftest_name(config, part),
            work: Box::new(move |cases| {
                let (build, usual) = (one(builds, config)?, Platform::Usual);
                Ok(guests::kselftest(place, tools, build, usual, pick, cases)?.to_string())
            }),
        });
    }
    let guest = |what: &str, config: &'static str, work: GuestTest| Job {
        name: format!("{what} {config}"),
        work: Box::new(move |cases| {
            Ok(work(place, tools, one(builds, config)?, cases)?.to_string())
        }),
    };
    jobs.extend(kunits(all).map(|config| guest("kunit", config, guests::kunit)));
    let leaks: GuestTest = |place, tools, build, cases| {
        guests::kselftest(place, tools, build, Platform::Usual, Pick::Leaks, cases)
    };
    jobs.push(guest("leaks", "debug", leaks));
    jobs.extend(coco_jobs(place, tools, &parts, builds, coco::cases(all)));
    check.at_once(jobs)?;
    // One after the other: how soon memory comes back is measured.
    for config in host_memories(all) {
        check.test(&format!("host-memory {config}"), |cases| {
            Ok(guests::host_memory(place, tools, one(builds, config)?, cases)?.to_string())
        })?;
    }
    let folder = check.make("series", || {
        let tree = some(&tree)?;
        let folder = submit::write_series(place, tree)?;
        submit::verify_series(place, tree, &folder)?;
        Ok((folder, String::new()))
    })?;
    check.test("checkpatch", |_| {
        submit::checkpatch(place, some(&tree)?, some(&folder)?).map(quiet)
    })?;
    if all {
        check.test("upstream", |_| {
            let built = upstream::prepare(place, some(&tree)?, tools)?;
            upstream::compare(place, tools, &built)
        })?;
        check.test("series: off changes nothing", |_| {
            submit::unchanged_when_off(place, some(&tree)?, tools).map(quiet)
        })?;
        check.test("series: mm/ for arm64", |_| {
            submit::compiles_for_arm64(place, some(&tree)?, tools).map(quiet)
        })?;
        check.test("series: each step builds", |_| {
            submit::verify_steps(place, some(&tree)?, tools).map(quiet)
        })?;
    }
    check.end()
}

/// Only these emulated confidential guests.
pub fn coco(
    place: &Place,
    tools: &Tools,
    cases: Vec<coco::Case>,
    builds: &BTreeMap<&str, Build>,
) -> Result<()> {
    // Their kernels are built already.
    let names: BTreeSet<_> = cases.iter().map(|case| case.name.clone()).collect();
    let mut plan = plan(true);
    plan.retain(|step| step.name == "build coco" || names.contains(&step.name));
    let mut check = Check::new(place, plan, &Wanted::default())?;
    let parts = check.build_coco(tools)?;
    check.at_once(coco_jobs(place, tools, &parts, builds, cases))?;
    check.end()
}

fn some<T>(made: &Option<T>) -> Result<&T> {
    made.as_ref().context("an earlier step made nothing")
}

fn one<'a>(builds: &'a BTreeMap<&str, Build>, config: &str) -> Result<&'a Build> {
    builds.get(config).context("an earlier step made nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_step_needs_stands_before_it() {
        for all in [false, true] {
            let plan = plan(all);
            let at = |name: &str| plan.iter().position(|step| step.name == name);
            for (number, step) in plan.iter().enumerate() {
                assert_eq!(at(&step.name), Some(number), "{} is there twice", step.name);
                for need in &step.needs {
                    assert!(at(need).is_some_and(|at| at < number), "{step:?}");
                }
            }
        }
        assert!(plan(true).len() > plan(false).len());
    }

    #[test]
    fn steps_are_chosen_with_what_they_need() {
        let plan = plan(false);
        let names = chosen(&plan, "kselftest debug 2, checkpatch").unwrap();
        let wanted = [
            "build debug",
            "checkpatch",
            "kselftest debug 2/2",
            "series",
            "tree",
        ];
        assert_eq!(names.iter().collect::<Vec<_>>(), wanted);
        for bad in ["kselftests", "", "checkpatch,"] {
            let error = chosen(&plan, bad).unwrap_err().to_string();
            assert!(
                error.contains("STEPS") && error.contains("kselftest guest"),
                "{error}"
            );
        }
    }

    #[test]
    fn guests_share_cpus_and_memory() {
        assert_eq!(guests_at_once(2, 16000), 2);
        assert_eq!(guests_at_once(16, 9000), 2);
        assert_eq!(guests_at_once(4, 1000), 1);
        assert_eq!(guests_at_once(64, 1 << 20), 8);
    }
}
