// SPDX-License-Identifier: GPL-2.0

//! `make check`: every test, one after the other, and a table of how each ended.

use crate::build::{Build, build, kselftest as build_kselftest};
use crate::cache::Place;
use crate::machine::Platform;
use crate::progress::seconds;
use crate::setup::Tools;
use crate::tree::Tree;
use crate::{guests, lint, submit};
use anyhow::{Result, bail};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

enum Ending {
    Pass(String),
    Fail,
    Skip(String),
}

struct Row {
    name: String,
    ending: Ending,
    time: Duration,
    log: PathBuf,
}

struct Check<'a> {
    place: &'a Place,
    rows: Vec<Row>,
}

impl Check<'_> {
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
            match work() {
                Ok((value, note)) => {
                    made = value;
                    Ending::Pass(note)
                }
                Err(error) => {
                    eprintln!("\nFAIL {name}: {error:#}\n");
                    Ending::Fail
                }
            }
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

    fn count(&self, is: impl Fn(&Ending) -> bool) -> usize {
        self.rows.iter().filter(|row| is(&row.ending)).count()
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
                "{word}  {:<28} {:>13}  {}\n",
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

/// Words for the table, of a step that makes nothing.
fn said<E>(note: impl ToString) -> impl FnOnce(()) -> Result<((), String), E> {
    let note = note.to_string();
    move |()| Ok(((), note))
}

pub fn check(place: &Place, tools: &Tools) -> Result<()> {
    let start = Instant::now();
    let mut check = Check {
        place,
        rows: Vec::new(),
    };
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
        for config in ["guest", "debug"] {
            let (name, log) = (format!("kunit {config}"), format!("guest-{config}-kunit"));
            check.step(&name, &log, &[&format!("build {config}")], || {
                let sum = guests::kunit(place, tools, one(&builds, config)?)?;
                Ok(((), sum.to_string()))
            });
        }
    }
    if has("tools/testing/selftests/freepage") {
        for (config, _) in crate::build::CONFIGS {
            let (name, log) = (
                format!("kselftest {config}"),
                format!("guest-{config}-kselftest"),
            );
            check.step(&name, &log, &[&format!("build {config}")], || {
                let sum =
                    guests::kselftest(place, tools, one(&builds, config)?, Platform::Usual, None)?;
                Ok(((), sum.to_string()))
            });
        }
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
    let pass = check.count(|ending| matches!(ending, Ending::Pass(_)));
    let fail = check.count(|ending| matches!(ending, Ending::Fail));
    let skip = check.count(|ending| matches!(ending, Ending::Skip(_)));
    println!("\n{}\nin {}", check.table(), seconds(start.elapsed()));
    println!("{pass} passed, {fail} failed, {skip} skipped");
    if fail + skip > 0 {
        bail!("not everything passed");
    }
    Ok(())
}

fn some<T>(made: &Option<T>) -> Result<&T> {
    made.as_ref()
        .ok_or_else(|| anyhow::anyhow!("an earlier step made nothing"))
}

fn one<'a>(builds: &'a BTreeMap<&str, Build>, config: &str) -> Result<&'a Build> {
    some(&builds.get(config)).copied()
}
