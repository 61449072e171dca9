// SPDX-License-Identifier: GPL-2.0

//! What is run in a guest: kselftests, KUnit (on UML, too), and memory that goes back to the
//! host.

use crate::boot::Run;
use crate::build::{Build, NO_BYTECODE, configure_in, make};
use crate::cache::{Place, read, write};
use crate::console::without_stamp;
use crate::ktap::{Ktap, Status, Test, Totals, failures, totals};
use crate::machine::{Machine, Platform};
use crate::picture::{Curve, Picture};
use crate::progress::{log_end, run_in, step};
use crate::setup::Tools;
use crate::tree::Tree;
use anyhow::{Context, Result, bail};
use plotters::style::RGBColor;
use regex::Regex;
use std::{
    fs,
    ops::Range,
    path::Path,
    process::Command,
    sync::LazyLock,
    time::{Duration, Instant},
};

/// The end of a KTAP run, its tests put into `cases`: an error that names what failed, if anything did
/// or nothing ran.
fn verdict(ktap: Ktap, log: &Path, cases: &mut Vec<Test>) -> Result<Totals> {
    let tests = ktap.finish();
    cases.extend(tests.iter().cloned());
    let sum = totals(&tests);
    if sum.fail > 0 {
        let names = failures(&tests).join("\n  ");
        bail!("{sum}; failed:\n  {names}\n(full log: {})", log.display());
    }
    if sum.pass + sum.skip == 0 {
        bail!("no test ran (full log: {})", log.display());
    }
    Ok(sum)
}

static SKIPPED: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^# .*# SKIP:? (.+)$").unwrap());
static OPTION: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\bCONFIG_[A-Z0-9_]+").unwrap());

/// Whether this is no reason to skip a test: options that are on, or a module that is built, are
/// not there. Other reasons may be those of the machine.
fn unfounded(reason: &str, config: &str) -> bool {
    let is_on = |option: &str| {
        config
            .lines()
            .filter_map(|line| line.strip_prefix(option))
            .any(|value| matches!(value, "=y" | "=m"))
    };
    let mut options = OPTION.find_iter(reason).map(|found| found.as_str());
    match options.next() {
        Some(first) => is_on(first) && options.all(is_on),
        None => reason.contains("not built"),
    }
}

/// Which kselftests are run.
#[derive(Clone, Copy)]
pub enum Pick<'a> {
    All,
    /// One, as "freepage:sysfs.sh", or as "sysfs.sh".
    One(&'a str),
    /// The n-th of so many parts that take about as long as each other.
    Part(usize, usize),
    /// The one that looks for leaks, with that turned on.
    Leaks,
}

/// Tests that take longer than others on the debug kernel, in half minutes.
const LONG: &[(&str, u32)] = &[
    ("data_integrity.sh", 8),
    ("execmem.sh", 9),
    ("fault_injection.sh", 8),
    ("freezer.sh", 8),
    ("hotplug.sh", 3),
    ("jitalloc.sh", 21),
    ("mock_device.sh", 19),
    ("order_change.sh", 3),
    ("page_zero.sh", 20),
    ("rebind.sh", 3),
    ("sysfs.sh", 4),
    ("tracepoints.sh", 5),
    ("unmapped_alloc.sh", 9),
    ("unmapped_failures.sh", 25),
];

/// Divides the tests, the longest first, each to who has least to do; in a part they keep their order.
fn parts<'a>(tests: &[&'a str], count: usize) -> Vec<Vec<&'a str>> {
    let weight = |test: &str| {
        let name = test.rsplit(':').next().unwrap_or(test);
        let found = LONG.iter().find(|(long, _)| *long == name);
        found.map_or(1, |(_, weight)| *weight)
    };
    let mut order: Vec<usize> = (0..tests.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(weight(tests[at])));
    let mut parts = vec![(0, Vec::new()); count];
    for at in order {
        if let Some((sum, part)) = parts.iter_mut().min_by_key(|(sum, _)| *sum) {
            *sum += weight(tests[at]);
            part.push(at);
        }
    }
    let sorted = parts.into_iter().map(|(_, mut part)| {
        part.sort();
        part.into_iter().map(|at| tests[at]).collect()
    });
    sorted.collect()
}

impl Pick<'_> {
    /// What run_kselftest.sh has to be told.
    fn options(self, list: &str) -> Result<String> {
        let tests: Vec<_> = list.lines().collect();
        let picked = match self {
            Self::Leaks => return Self::One("unmapped_alloc.sh").options(list),
            Self::All => return Ok(String::new()),
            Self::One(name) => {
                let is = |test: &&str| *test == name || test.split(':').nth(1) == Some(name);
                let found = tests.iter().copied().find(is).with_context(|| {
                    format!(
                        "TEST={name}: there is no such test; these can be picked:\n  {}",
                        tests.join("\n  ")
                    )
                })?;
                vec![found]
            }
            Self::Part(number, count) => parts(&tests, count).swap_remove(number - 1),
        };
        let options = picked.iter().map(|test| format!(" -t '{test}'"));
        Ok(options.collect())
    }

    /// What the log is named after.
    fn log_name(self) -> String {
        match self {
            Self::All | Self::One(_) => "kselftest".into(),
            Self::Part(number, _) => format!("kselftest-{number}"),
            Self::Leaks => "kselftest-leaks".into(),
        }
    }
}

/// A probe before anybody else has text: its slot is allocated with text_mutex held.
const EARLY_PROBE: &str = "kprobe_event=p:freepage/early,__x64_sys_nanosleep";

/// Runs our kselftests; what each test said goes to `cases`.
pub fn kselftest(
    place: &Place,
    tools: &Tools,
    build: &Build,
    platform: Platform,
    pick: Pick,
    cases: &mut Vec<Test>,
) -> Result<Totals> {
    let list = read(&build.kselftest().join("kselftest-list.txt"))?;
    let options = pick.options(&list)?;
    let job = format!("cd /kselftest && ./run_kselftest.sh{options}");
    let mut run = Run {
        machine: Machine {
            append: vec![EARLY_PROBE.into()],
            ..Machine::of(platform)
        },
        ..Run::new(place, tools, build, &pick.log_name(), &job)
    };
    if matches!(pick, Pick::Leaks) {
        run.machine.append.push("kmemleak=on".into());
    }
    let config = read(&build.kernel_config())?;
    let part = match pick {
        Pick::Part(number, count) => format!(" {number}/{count}"),
        Pick::Leaks => ": leaks".into(),
        _ => String::new(),
    };
    step(&format!("kselftest {}{part}", build.config), |step| {
        let (mut ktap, mut started) = (Ktap::default(), false);
        let mut unfounded_skips = Vec::new();
        let outcome = run.run(step, |_, line| {
            // What the kernel says before is no result of ours.
            started |= line.is_some_and(|line| line.starts_with("guest: job starts"));
            if let Some(line) = line.filter(|_| started) {
                ktap.line(line);
                let skipped = SKIPPED.captures(without_stamp(line).trim_end());
                if let Some(found) = skipped.filter(|found| unfounded(&found[1], &config)) {
                    unfounded_skips.push(found[1].to_string());
                }
            }
        })?;
        let sound = outcome.sound();
        let sum =
            verdict(ktap, &outcome.log, cases).and_then(|sum| match unfounded_skips.first() {
                None => Ok(sum),
                Some(reason) => bail!(
                    "{sum}; skipped for what this kernel should have: {reason}\n(full log: {})",
                    outcome.log.display()
                ),
            });
        match (sound, sum) {
            (Ok(()), sum) => sum,
            (Err(trouble), Ok(_)) => Err(trouble),
            (Err(trouble), Err(failed)) => bail!("{failed}\n{trouble}"),
        }
    })
}

/// Runs the KUnit tests that are built into the kernel, at boot.
pub fn kunit(place: &Place, tools: &Tools, build: &Build, cases: &mut Vec<Test>) -> Result<Totals> {
    let mut run = Run::new(place, tools, build, "kunit", "true");
    run.machine.append = ["kunit.enable=1", "kunit.autorun=1"]
        .map(String::from)
        .to_vec();
    step(&format!("kunit {}", build.config), |step| {
        let (mut ktap, mut ended) = (Ktap::default(), false);
        let outcome = run.run(step, |_, line| {
            ended |= line.is_some_and(|line| line.starts_with("guest: job starts"));
            if let Some(line) = line.filter(|_| !ended) {
                ktap.line(line);
            }
        })?;
        let sum = verdict(ktap, &outcome.log, cases);
        outcome.success()?;
        sum
    })
}

/// Builds and runs the KUnit tests on UML, by the kernel's own kunit.py.
pub fn kunit_uml(
    place: &Place,
    tree: &Tree,
    tools: &Tools,
    cases: &mut Vec<Test>,
) -> Result<Totals> {
    let log = place.log("kunit-uml");
    step("kunit uml", |step| {
        let folder = tree.build("kunit");
        fs::create_dir_all(&folder)?;
        // kunit.py begins with what is on by default: it gets every option instead.
        let aside = tree.build("kunit-config");
        let mut conf = make(tree, tools, &aside);
        conf.arg("ARCH=um");
        configure_in(place, conf, "kunit", &aside, true)?;
        let asked = read(&place.repo.join("configs/kunit.config"))?;
        let whole = read(&aside.join(".config"))?;
        let wanted = aside.join("kunitconfig");
        // Last what was asked for: kunit.py would add to what is not named.
        write(&wanted, format!("{whole}{asked}").as_bytes(), 0o644)?;
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let mut kunit = Command::new("python3");
        kunit
            .current_dir(tree.root())
            .arg("tools/testing/kunit/kunit.py");
        kunit
            .args(["run", "--arch=um", "--raw_output", "--timeout=600"])
            .arg(format!("--jobs={jobs}"));
        kunit.arg(format!("--build_dir={}", folder.display()));
        kunit.arg(format!("--kunitconfig={}", wanted.display()));
        for option in tools.make_args() {
            kunit.arg("--make_options").arg(option);
        }
        for name in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL"] {
            kunit.env_remove(name);
        }
        kunit.envs(NO_BYTECODE);
        run_in(step, &log, &mut kunit)?;
        let mut ktap = Ktap::default();
        let text = read(&log)?;
        text.lines().for_each(|line| {
            ktap.line(line);
        });
        verdict(ktap, &log, cases).with_context(|| log_end(&log).unwrap_or_default())
    })
}

/// QEMU's resident memory at a time since the run's start.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub time: Duration,
    pub mib: f64,
}

/// Something the guest said, and when.
#[derive(Clone, Debug)]
pub struct Mark {
    pub time: Duration,
    pub text: String,
}

/// When the guest said this for the first time.
pub fn when(marks: &[Mark], text: &str) -> Result<Duration> {
    let found = marks.iter().find(|mark| mark.text == text);
    found
        .map(|mark| mark.time)
        .with_context(|| format!("the guest did not say '{text}'"))
}

/// Private memory of a process, which is where the guest's memory is.
fn resident_mib(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.split_whitespace()
        .next()?
        .parse::<f64>()
        .ok()
        .map(|kib| kib / 1024.0)
}

/// Runs a job and watches QEMU's resident memory meanwhile.
pub fn watch_memory(run: &Run, name: &str) -> Result<(Vec<Sample>, Vec<Mark>, Vec<String>)> {
    step(name, |step| {
        let start = Instant::now();
        let (mut samples, mut marks) = (Vec::<Sample>::new(), Vec::new());
        let outcome = run.run(step, |pid, line| {
            let time = start.elapsed();
            let due = samples
                .last()
                .is_none_or(|last| time - last.time >= Duration::from_millis(50));
            if line.is_some() || due {
                samples.extend(resident_mib(pid).map(|mib| Sample { time, mib }));
            }
            marks.extend(line.map(|line| Mark {
                time,
                text: line.to_string(),
            }));
        })?;
        outcome.success()?;
        Ok((samples, marks, outcome.lines))
    })
}

/// The samples of a time as a curve in MiB, over the seconds since its begin.
pub fn curve(samples: &[Sample], time: Range<Duration>, name: &str, colour: RGBColor) -> Curve {
    let during = samples.iter().filter(|sample| time.contains(&sample.time));
    Curve {
        name: name.into(),
        colour,
        width: 2,
        points: during
            .map(|sample| ((sample.time - time.start).as_secs_f64(), sample.mib))
            .collect(),
    }
}

/// The picture of such curves.
pub fn memory_picture(path: &Path, curves: Vec<Curve>) -> Result<()> {
    let picture = Picture {
        title: "A guest takes 1 GiB, and frees it".into(),
        x: "seconds",
        y: "MiB of the host",
        doubling: false,
        curves,
    };
    picture.save(path)
}

/// How much of what a program took and freed came back to the host.
#[derive(Debug, PartialEq)]
pub struct Returned {
    /// What the program added, in MiB.
    pub added: f64,
    /// The part of it that was back at the end of the time.
    pub part: f64,
    /// How long it took for `WANTED` of it to come back.
    pub time: Option<Duration>,
}

/// What must be back within `WITHIN`.
pub const WANTED: f64 = 0.9;
pub const WITHIN: Duration = Duration::from_secs(10);

/// Looks at one "hog: filled" and "hog: freed" that follow a mark.
pub fn returned(samples: &[Sample], marks: &[Mark], begin: Duration) -> Result<Returned> {
    let since: Vec<_> = marks
        .iter()
        .filter(|mark| mark.time >= begin)
        .cloned()
        .collect();
    let (filled, freed) = (when(&since, "hog: filled")?, when(&since, "hog: freed")?);
    let between = |from: Duration, to: Duration| {
        samples
            .iter()
            .filter(move |sample| sample.time >= from && sample.time <= to)
    };
    let before = between(begin, filled)
        .next()
        .context("no sample before the program ran")?
        .mib;
    let peak = between(filled, freed)
        .map(|sample| sample.mib)
        .fold(f64::MIN, f64::max);
    let added = peak - before;
    if added < 1.0 {
        bail!("the program added {added:.0} MiB to QEMU's resident memory, from {before:.0} MiB");
    }
    let part = |sample: &Sample| (peak - sample.mib) / added;
    let after = || between(freed, freed + WITHIN);
    let best = after().map(part).fold(0.0, f64::max);
    let time = after()
        .find(|sample| part(sample) >= WANTED)
        .map(|sample| sample.time - freed);
    Ok(Returned {
        added,
        part: best,
        time,
    })
}

const HOG: &str = "/kselftest/freepage/memory_hog";
const ORDER: &str = "/sys/module/page_reporting/parameters/page_reporting_order";

/// Whether freed memory comes back, with the default order, 9 and 0. For the C implementation the
/// figure is only recorded.
pub fn host_memory(
    place: &Place,
    tools: &Tools,
    build: &Build,
    cases: &mut Vec<Test>,
) -> Result<Totals> {
    let orders = ["default", "9", "0"];
    let settle = WITHIN.as_secs() + 2;
    let job = format!(
        "for order in {}; do\n[ $order = default ] || echo $order >{ORDER} || exit 1\n\
         echo \"host-memory: order $order\"\n{HOG} 1024 2 || exit 1\nsleep {settle}\ndone",
        orders.join(" ")
    );
    let run = Run::new(place, tools, build, "host-memory", &job);
    let (samples, marks, _) = watch_memory(&run, &format!("host-memory {}", build.config))?;
    let mut sum = Totals::default();
    let mut failed = Vec::new();
    println!("1..{}", orders.len());
    for (number, order) in orders.iter().enumerate() {
        let begin = when(&marks, &format!("host-memory: order {order}"))?;
        let figure = returned(&samples, &marks, begin)?;
        let time = figure
            .time
            .map_or("not within the time".to_string(), |time| {
                format!("90 % after {:.1} s", time.as_secs_f64())
            });
        let text = format!(
            "host-memory {} order {order}: {:.1} % of {:.0} MiB came back in {} s, {time}",
            build.config,
            figure.part * 100.0,
            figure.added,
            WITHIN.as_secs()
        );
        let (number, good) = (number + 1, figure.part >= WANTED);
        // The C code is here to be compared with.
        let passes = good || build.config == "base";
        cases.push(Test {
            name: text.clone(),
            status: if passes { Status::Pass } else { Status::Fail },
            seconds: 0.0,
            children: Vec::new(),
        });
        if passes {
            println!(
                "ok {number} - {text}{}",
                if good {
                    ""
                } else {
                    " # XFAIL the C implementation"
                }
            );
            sum.pass += 1;
        } else {
            println!("not ok {number} - {text}");
            failed.push(text);
        }
    }
    if !failed.is_empty() {
        bail!(
            "at least {:.0} % must come back within {} s:\n  {}",
            WANTED * 100.0,
            WITHIN.as_secs(),
            failed.join("\n  ")
        );
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_not_skipped_for_what_is_there() {
        let config = "CONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_AC=y\n";
        assert!(unfounded("no file (CONFIG_A)", config));
        assert!(unfounded("no module (CONFIG_A, CONFIG_B)", config));
        assert!(!unfounded("no file (CONFIG_A, CONFIG_C)", config));
        assert!(!unfounded("no CONFIG_D", config));
        assert!(unfounded("a.ko was not built for this kernel", config));
        assert!(!unfounded("there is one node", config));
    }

    #[test]
    fn parts_have_every_test_once_and_in_order() {
        let list = "freepage:page_zero.sh\nfreepage:a.sh\nfreepage:execmem.sh\nfreepage:b.sh\n\
                    freepage:unmapped_failures.sh\n";
        let tests: Vec<_> = list.lines().collect();
        let [one, two] = &parts(&tests, 2)[..] else {
            panic!("two parts")
        };
        let mut all = [one.clone(), two.clone()].concat();
        assert_eq!(
            one,
            &[
                "freepage:a.sh",
                "freepage:b.sh",
                "freepage:unmapped_failures.sh"
            ]
        );
        assert_eq!(two, &["freepage:page_zero.sh", "freepage:execmem.sh"]);
        all.sort();
        let mut wanted = tests.clone();
        wanted.sort();
        assert_eq!(all, wanted);
        assert_eq!(parts(&tests, 1), [tests]);
    }

    #[test]
    fn a_test_is_picked_by_either_name() {
        let list = "freepage:a.sh\nfreepage:b.sh\n";
        let of = |name| Pick::One(name).options(list);
        assert_eq!(of("freepage:b.sh").unwrap(), " -t 'freepage:b.sh'");
        assert_eq!(of("b.sh").unwrap(), " -t 'freepage:b.sh'");
        let error = of("c.sh").unwrap_err().to_string();
        assert!(
            error.contains("TEST=c.sh") && error.contains("freepage:a.sh"),
            "{error}"
        );
        let part = Pick::Part(2, 2).options(list).unwrap();
        assert_eq!(part, " -t 'freepage:b.sh'");
    }

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn curve(points: &[(f64, f64)]) -> Vec<Sample> {
        points
            .iter()
            .map(|&(time, mib)| Sample {
                time: at(time),
                mib,
            })
            .collect()
    }

    fn marks() -> Vec<Mark> {
        let mark = |time, text: &str| Mark {
            time: at(time),
            text: text.into(),
        };
        vec![
            mark(1.0, "hog: filled"),
            mark(2.0, "hog: freed"),
            mark(21.0, "hog: filled"),
            mark(22.0, "hog: freed"),
        ]
    }

    #[test]
    fn memory_that_comes_back_is_measured() {
        let samples = curve(&[
            (0.0, 100.0),
            (1.5, 1100.0),
            (3.0, 600.0),
            (5.5, 150.0),
            (13.0, 100.0),
        ]);
        let got = returned(&samples, &marks(), at(0.0)).unwrap();
        assert_eq!((got.added, got.time), (1000.0, Some(at(3.5))));
        assert!((got.part - 0.95).abs() < 1e-9, "{got:?}");
    }

    #[test]
    fn memory_that_stays_away_is_seen() {
        let samples = curve(&[(20.5, 100.0), (21.5, 1100.0), (30.0, 300.0), (33.0, 100.0)]);
        let got = returned(&samples, &marks(), at(20.0)).unwrap();
        assert_eq!(got.time, None);
        assert!((got.part - 0.8).abs() < 1e-9, "{got:?}");
        assert!(returned(&samples, &marks(), at(23.0)).is_err());
        assert!(returned(&curve(&[(0.0, 100.0), (1.5, 100.0)]), &marks(), at(0.0)).is_err());
    }
}
