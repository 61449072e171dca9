// SPDX-License-Identifier: GPL-2.0

//! `make check`: every test, and a table of how each ended.

use crate::build::{Build, build, kselftest as build_kselftest};
use crate::cache::Place;
use crate::coco;
use crate::ktap::Totals;
use crate::machine::Platform;
use crate::progress::{seconds, step};
use crate::setup::Tools;
use crate::tree::Tree;
use crate::{guests, lint, submit};
use anyhow::{Result, bail};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Mutex,
    thread::available_parallelism,
    time::{Duration, Instant},
};

enum Ending {
    Pass(String),
    Fail,
    Skip(String),
}

impl Ending {
    /// Shows an error at once.
    fn of(name: &str, result: Result<String>) -> Self {
        match result {
            Ok(note) => Self::Pass(note),
            Err(error) => {
                eprintln!("\nFAIL {name}: {error:#}\n");
                Self::Fail
            }
        }
    }
}

struct Row {
    name: String,
    ending: Ending,
    time: Duration,
    log: PathBuf,
}

/// Something to be done beside others.
struct Job<'a> {
    name: String,
    log: PathBuf,
    /// The row that has to have passed.
    needs: String,
    work: Box<dyn FnOnce() -> Result<String> + Send + 'a>,
}

struct Check<'a> {
    place: &'a Place,
    start: Instant,
    rows: Vec<Row>,
}

impl<'a> Check<'a> {
    fn new(place: &'a Place) -> Self {
        Self {
            place,
            start: Instant::now(),
            rows: Vec::new(),
        }
    }

    /// Does a step, if what it needs has passed; what the step made.
    fn step<T: Default>(
        &mut self,
        name: &str,
        log: &str,
        needs: &[&str],
        work: impl FnOnce() -> Result<(T, String)>,
    ) -> T {
        let bad = |need: &&str| {
            self.rows
                .iter()
                .any(|row| row.name == *need && !matches!(row.ending, Ending::Pass(_)))
        };
        let start = Instant::now();
        let mut made = T::default();
        let ending = if let Some(need) = needs.iter().find(|need| bad(need)) {
            Ending::Skip(format!("needs '{need}'"))
        } else {
            let result = work().map(|(value, note)| {
                made = value;
                note
            });
            Ending::of(name, result)
        };
        let (name, time, log) = (name.to_string(), start.elapsed(), self.place.log(log));
        self.rows.push(Row {
            name,
            ending,
            time,
            log,
        });
        made
    }

    /// Does jobs that use one CPU each, as many at once as the host has CPUs, but not more than two:
    /// each is a guest with gigabytes of memory.
    fn at_once(&mut self, jobs: Vec<Job<'_>>) {
        let passed = |need: &str| {
            let found = self.rows.iter().find(|row| row.name == need);
            found.is_none_or(|row| matches!(row.ending, Ending::Pass(_)))
        };
        let (jobs, rows) = (
            Mutex::new(jobs.into_iter().enumerate()),
            Mutex::new(Vec::new()),
        );
        let next = || jobs.lock().ok().and_then(|mut jobs| jobs.next());
        let work = || {
            while let Some((number, job)) = next() {
                let start = Instant::now();
                let ending = if passed(&job.needs) {
                    Ending::of(&job.name, (job.work)())
                } else {
                    Ending::Skip(format!("needs '{}'", job.needs))
                };
                let (name, time, log) = (job.name, start.elapsed(), job.log);
                let row = Row {
                    name,
                    ending,
                    time,
                    log,
                };
                rows.lock()
                    .unwrap_or_else(|error| error.into_inner())
                    .push((number, row));
            }
        };
        let at_once = available_parallelism().map_or(1, usize::from).min(2);
        std::thread::scope(|scope| {
            for _ in 0..at_once {
                scope.spawn(work);
            }
        });
        let mut rows = rows.into_inner().unwrap_or_else(|error| error.into_inner());
        rows.sort_by_key(|(number, _)| *number);
        self.rows.extend(rows.into_iter().map(|(_, row)| row));
    }

    fn build_coco(&mut self, tools: &Tools) -> Option<coco::Parts> {
        self.step("build coco", "build-coco-plugin", &[], || {
            Ok((Some(coco::build(self.place, tools)?), String::new()))
        })
    }

    fn count(&self, is: impl Fn(&Ending) -> bool) -> usize {
        self.rows.iter().filter(|row| is(&row.ending)).count()
    }

    /// Prints the table; an error unless all is well.
    fn end(&self) -> Result<()> {
        let pass = self.count(|ending| matches!(ending, Ending::Pass(_)));
        let fail = self.count(|ending| matches!(ending, Ending::Fail));
        let skip = self.count(|ending| matches!(ending, Ending::Skip(_)));
        println!("\n{}\nin {}", self.table(), seconds(self.start.elapsed()));
        println!("{pass} passed, {fail} failed, {skip} skipped");
        if fail + skip > 0 {
            bail!("not everything passed");
        }
        Ok(())
    }

    fn table(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let (word, note) = match &row.ending {
                Ending::Pass(note) => ("pass", note.as_str()),
                Ending::Fail => ("FAIL", ""),
                Ending::Skip(why) => ("skip", why.as_str()),
            };
            text += &format!(
                "{word}  {:<42} {:>13}  {}\n",
                row.name,
                seconds(row.time),
                row.log.display()
            );
            if !note.is_empty() {
                text += &format!("      {note}\n");
            }
        }
        text
    }
}

/// A test in a guest with this kernel.
type Test = fn(&Place, &Tools, &Build) -> Result<Totals>;

/// The emulated confidential guests, if there is what emulates them.
fn coco_jobs<'a>(
    place: &'a Place,
    tools: &'a Tools,
    parts: Option<&'a coco::Parts>,
    builds: &'a BTreeMap<&str, Build>,
) -> Vec<Job<'a>> {
    let Some(parts) = parts else {
        return Vec::new();
    };
    let job = |case: coco::Case| Job {
        name: case.name.clone(),
        log: case.log(place),
        needs: format!("build {}", case.config),
        work: Box::new(move || {
            step(&case.name, |step| {
                case.run(place, tools, parts, one(builds, case.config)?, step)
            })
        }),
    };
    coco::cases().into_iter().map(job).collect()
}

/// Words for the table, of a step that makes nothing.
fn said<E>(note: impl ToString) -> impl FnOnce(()) -> Result<((), String), E> {
    let note = note.to_string();
    move |()| Ok(((), note))
}

pub fn check(place: &Place, tools: &Tools) -> Result<()> {
    let mut check = Check::new(place);
    check.step("tools: unit tests", "cargo-test-guest", &[], || {
        lint::unit_tests(place, tools).and_then(said(""))
    });
    check.step("lint: tools", "lint-guest-clippy", &[], || {
        lint::tools(place, tools).and_then(said(""))
    });
    check.step("lint: shell", "lint-shellcheck", &[], || {
        lint::shell(place).and_then(said(""))
    });
    let tree = check.step("tree", "tree", &[], || {
        let tree = Tree::update(place)?;
        let note = format!("Linux {}", tree.version);
        Ok((Some(tree), note))
    });
    // Parts of the series that are not there yet have nothing to be checked by.
    let has = |path: &str| place.repo.join(path).exists();
    let mut builds = BTreeMap::new();
    for (config, _) in crate::build::CONFIGS {
        let name = format!("build {config}");
        let made = check.step(&name, &name.replace(' ', "-"), &["tree"], || {
            let tree = some(&tree)?;
            let build = build(place, tree, tools, config)?;
            build_kselftest(place, tree, tools, &build)?;
            Ok((Some(build), String::new()))
        });
        builds.extend(made.map(|build| (*config, build)));
    }
    if has("mm/freepage") {
        check.step("lint: kernel Rust", "lint-clippy", &["tree"], || {
            lint::kernel_rust(place, some(&tree)?, tools).and_then(said(""))
        });
        check.step("kunit uml", "kunit-uml", &["tree"], || {
            let sum = guests::kunit_uml(place, some(&tree)?, tools)?;
            Ok(((), sum.to_string()))
        });
    }
    let parts = check.build_coco(tools);
    let guest = |what: &str, config: &'static str, work: Test| Job {
        name: format!("{what} {config}"),
        log: place.log(&format!("guest-{config}-{what}")),
        needs: format!("build {config}"),
        work: Box::new({
            let builds = &builds;
            move || Ok(work(place, tools, one(builds, config)?)?.to_string())
        }),
    };
    let mut jobs = Vec::new();
    if has("tools/testing/selftests/freepage") {
        let kselftest: Test =
            |place, tools, build| guests::kselftest(place, tools, build, Platform::Usual, None);
        // The longest first.
        jobs.extend(["debug", "guest", "base"].map(|config| guest("kselftest", config, kselftest)));
    }
    if has("mm/freepage") {
        jobs.extend(["guest", "debug"].map(|config| guest("kunit", config, guests::kunit)));
    }
    jobs.extend(coco_jobs(place, tools, parts.as_ref(), &builds));
    check.at_once(jobs);
    if has("tools/testing/selftests/freepage") {
        // One after the other: how soon memory comes back is measured.
        for config in ["guest", "base"] {
            let (name, log) = (
                format!("host-memory {config}"),
                format!("guest-{config}-host-memory"),
            );
            check.step(&name, &log, &[&format!("build {config}")], || {
                let sum = guests::host_memory(place, tools, one(&builds, config)?)?;
                Ok(((), sum.to_string()))
            });
        }
    }
    if has("patches/series") {
        let folder = check.step("series", "series", &["tree"], || {
            let tree = some(&tree)?;
            let folder = submit::write_series(place, tree)?;
            submit::verify_series(place, tree, &folder)?;
            Ok((Some(folder), String::new()))
        });
        check.step("checkpatch", "checkpatch", &["series"], || {
            submit::checkpatch(place, some(&tree)?, some(&folder)?).and_then(said(""))
        });
    }
    check.end()
}

/// Only the emulated confidential guests.
pub fn coco(place: &Place, tools: &Tools, guest: Build, base: Build) -> Result<()> {
    let mut check = Check::new(place);
    let builds = BTreeMap::from([("guest", guest), ("base", base)]);
    let parts = check.build_coco(tools);
    check.at_once(coco_jobs(place, tools, parts.as_ref(), &builds));
    check.end()
}

fn some<T>(made: &Option<T>) -> Result<&T> {
    made.as_ref()
        .ok_or_else(|| anyhow::anyhow!("an earlier step made nothing"))
}

fn one<'a>(builds: &'a BTreeMap<&str, Build>, config: &str) -> Result<&'a Build> {
    some(&builds.get(config)).copied()
}
