// SPDX-License-Identifier: GPL-2.0

//! `make bench-accept`: both implementations of unaccepted memory, in emulated TDX guests whose
//! host maps pages of 4K.
//!
//! Times are the host's, as in bench-coco: each says something next to the others of this run.

use super::bench::{Bench, Host, JOB, median, timed};
use super::scaling::{self, CPUS, MEMORY_MIB, Scaling};
use super::{Parts, Report};
use crate::boot::{Outcome, Run};
use crate::build::Build;
use crate::cache::{Place, write};
use crate::machine::Machine;
use crate::progress::{Step, step};
use crate::setup::Tools;
use anyhow::{Context, Result};
use serde::Serialize;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// CPUs of the guests that are booted.
const BOOT_CPUS: [u32; 4] = [1, 8, 32, 64];

/// What a 4K costs, and more for each CPU that is idle: published are 8 µs with few of them, and
/// 153 µs with 247.
const BOOT_COSTS: [(&str, &str); 2] = [
    ("8 µs", "cost-ns=8000"),
    (
        "8 µs, and 0.6 µs for each idle CPU",
        "cost-ns=8000,idle-cost-ns=600",
    ),
];

/// Modes of each kernel.
const MODES: [(&str, &str); 6] = [
    ("base", "lazy"),
    ("base", "eager"),
    ("guest", "lazy"),
    ("guest", "background"),
    ("guest", "eager"),
    ("guest", "on_alloc"),
];

/// What the tasks of a run with a mode touch, of how much, and on how many CPUs.
const MODE_TASKS: u32 = 8;
const MODE_TASK_MIB: u32 = 440;
const MODE_CPUS: u32 = 8;

/// What its job says when all was touched.
const TOUCHED: &str = "touched: all";

/// How often the foreground moves memory while the background accepts, or nobody does.
const FOREGROUND_RUNS: usize = 3;

#[derive(Debug, PartialEq, Serialize)]
struct Boot {
    kernel: String,
    cost: &'static str,
    cpus: u32,
    /// From QEMU's start to that of the job.
    init_s: f64,
    accepted_mib: u64,
    calls: u64,
    in_vain: u64,
}

#[derive(Debug, PartialEq, Serialize)]
struct Mode {
    kernel: String,
    mode: &'static str,
    /// From QEMU's start to that of the job.
    init_s: f64,
    /// From QEMU's start until all memory was touched, by all tasks at once.
    touch_s: f64,
    /// The slowest touch of a page.
    slowest_us: u64,
    /// As the kernel counts it; only the one in Rust does.
    irqs_off_us: Option<u64>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Foreground {
    mode: &'static str,
    seconds: f64,
    /// Accepted while it ran.
    background_mib: u64,
}

#[derive(Serialize)]
struct Figures {
    host: Host,
    scaling: Vec<Scaling>,
    boot: Vec<Boot>,
    modes: Vec<Mode>,
    foreground: Vec<Foreground>,
}

/// Runs the bench and writes its tables; the paths of the files.
pub fn accept(
    place: &Place,
    tools: &Tools,
    parts: &Parts,
    base: &Build,
    guest: &Build,
) -> Result<[PathBuf; 2]> {
    let bench = Bench {
        place,
        tools,
        parts,
    };
    let builds = [base, guest];
    let mut figures = Figures {
        host: Host::now(),
        scaling: Vec::new(),
        modes: Vec::new(),
        foreground: Vec::new(),
        boot: Vec::new(),
    };
    let folder = place.cache.join("results");
    let path = |end| folder.join(format!("bench-accept.{end}"));
    let (markdown, json) = (path("md"), path("json"));
    // What there is stays, should the bench be ended.
    let save = |figures: &Figures| -> Result<()> {
        write(&markdown, figures.table().as_bytes(), 0o644)?;
        write(&json, &serde_json::to_vec_pretty(figures)?, 0o644)
    };
    let name = format!("bench accept: {} at once", scaling::TASKS);
    figures.scaling = step(&name, |step| scaling::scaling(&bench, &builds, "4k", step))?;
    save(&figures)?;
    scaling::picture(&figures.scaling).save(&path("svg"))?;
    figures.modes = step("bench accept: modes", |step| {
        let run = |(kernel, mode): &(&str, &'static str)| {
            let build = builds.iter().find(|build| build.config == *kernel);
            touch(&bench, build.context("a kernel of two")?, mode, step)
        };
        MODES.iter().map(run).collect::<Result<_>>()
    })?;
    save(&figures)?;
    figures.foreground = step("bench accept: background", |step| {
        let run = |mode| foreground(&bench, guest, mode, step);
        ["lazy", "background"]
            .into_iter()
            .map(run)
            .collect::<Result<_>>()
    })?;
    save(&figures)?;
    for build in builds {
        let name = format!("bench accept: boot {}", build.config);
        figures
            .boot
            .extend(step(&name, |step| boots(&bench, build, step))?);
        save(&figures)?;
    }
    println!("\n{}", figures.table());
    Ok([markdown, json])
}

/// A guest with this job, cost and mode, which was fine; when it said what `marks` has.
fn run<const N: usize>(
    bench: &Bench,
    build: &Build,
    job: &str,
    machine: Machine,
    mode: &str,
    marks: [&str; N],
    step: &Step,
) -> Result<(Outcome, Report, [f64; N])> {
    let mut run = Run::new(bench.place, bench.tools, build, "bench-accept", job);
    run.machine = Machine {
        nodes: 1,
        append: vec![format!("accept_memory={mode}")],
        ..machine
    };
    run.silence = Duration::from_secs(300);
    let (outcome, times) = timed(&run, step, marks)?;
    let report = outcome.report.clone().context("no report")?;
    Ok((outcome, report, times))
}

fn boots(bench: &Bench, build: &Build, step: &Step) -> Result<Vec<Boot>> {
    let mut all = Vec::new();
    for (cost, options) in BOOT_COSTS {
        for cpus in BOOT_CPUS {
            let machine = Machine {
                memory_mib: 2048,
                cpus,
                ..Machine::of(bench.tdx(options))
            };
            let (_, report, [init_s]) = run(bench, build, "true", machine, "lazy", [JOB], step)?;
            all.push(Boot {
                kernel: build.config.clone(),
                cost,
                cpus,
                init_s,
                accepted_mib: report.accepted_bytes >> 20,
                calls: report.accepts.small + report.accepts.medium + report.in_vain,
                in_vain: report.in_vain,
            });
        }
    }
    Ok(all)
}

fn touch(bench: &Bench, build: &Build, mode: &'static str, step: &Step) -> Result<Mode> {
    let job = format!(
        "for task in $(seq {MODE_TASKS}); do\n\
         /kselftest/freepage/memory_hog {MODE_TASK_MIB} 9999 time &\n\
         done | head -n {MODE_TASKS}\n\
         echo \"{TOUCHED}\"\n\
         killall memory_hog\n\
         file=/sys/kernel/mm/unaccepted/longest_irqs_off_ns\n\
         [ ! -e $file ] || echo \"irqs_off_ns: $(cat $file)\"\n"
    );
    let machine = Machine {
        memory_mib: MEMORY_MIB,
        cpus: MODE_CPUS,
        ..Machine::of(bench.tdx("cost-ns=8000"))
    };
    let marks = [JOB, TOUCHED];
    let (outcome, _, [init_s, touch_s]) = run(bench, build, &job, machine, mode, marks, step)?;
    let irqs_off_ns = said(&outcome.lines)
        .get("irqs_off_ns")
        .and_then(|ns| ns.parse::<u64>().ok());
    Ok(Mode {
        kernel: build.config.clone(),
        mode,
        init_s,
        touch_s,
        slowest_us: slowest_us(&outcome.lines).context("no task said how long it took")?,
        irqs_off_us: irqs_off_ns.map(|ns| ns / 1000),
    })
}

/// Moves memory on one CPU while the other one accepts, or does nothing.
fn foreground(bench: &Bench, build: &Build, mode: &'static str, step: &Step) -> Result<Foreground> {
    let job = format!(
        "now() {{ cut -d ' ' -f 1 /proc/uptime; }}\n\
         bytes() {{ cat /sys/kernel/mm/unaccepted/bytes_background; }}\n\
         before=$(bytes)\n\
         for run in $(seq {FOREGROUND_RUNS}); do\n\
         start=$(now)\n\
         dd if=/dev/zero of=/dev/null bs=1M count=12000 2>/dev/null\n\
         echo \"run: $start $(now)\"\n\
         done\n\
         echo \"background: $(($(bytes) - before))\"\n"
    );
    let machine = Machine {
        memory_mib: MEMORY_MIB,
        cpus: 2,
        ..Machine::of(bench.tdx("cost-ns=8000"))
    };
    let (outcome, _, []) = run(bench, build, &job, machine, mode, [], step)?;
    let runs = outcome.lines.iter().filter_map(|line| {
        let (start, end) = line.strip_prefix("run: ")?.split_once(' ')?;
        Some(end.parse::<f64>().ok()? - start.parse::<f64>().ok()?)
    });
    let runs: Vec<_> = runs.collect();
    anyhow::ensure!(
        runs.len() == FOREGROUND_RUNS,
        "{} runs of {FOREGROUND_RUNS} ended",
        runs.len()
    );
    let bytes: u64 = said(&outcome.lines)
        .get("background")
        .and_then(|bytes| bytes.parse().ok())
        .context("the guest did not say 'background:'")?;
    Ok(Foreground {
        mode,
        seconds: median(runs.into_iter()),
        background_mib: bytes >> 20,
    })
}

/// Lines "name: value".
fn said(lines: &[String]) -> BTreeMap<&str, &str> {
    lines
        .iter()
        .filter_map(|line| line.split_once(": "))
        .collect()
}

/// Of the lines of memory_hog.
fn slowest_us(lines: &[String]) -> Option<u64> {
    let times = lines.iter().filter_map(|line| {
        let text = line.strip_prefix("hog: filled, a page in ")?;
        text.split_once(' ')?.0.parse().ok()
    });
    times.max()
}

/// How many times faster than on one CPU acceptance alone is: without what the same takes if
/// acceptance costs nothing.
fn gain(scaling: &[Scaling], kernel: &str, cost_us: u64, cpus: u32) -> Option<f64> {
    let seconds = |cost_us, cpus| {
        let mut runs = scaling.iter();
        let run =
            runs.find(|run| run.kernel == kernel && run.cost_us == cost_us && run.cpus == cpus)?;
        Some(run.seconds)
    };
    let net = |cpus| Some(seconds(cost_us, cpus)? - seconds(0, cpus)?);
    let (one, many) = (net(1)?, net(cpus)?);
    // What is lost in the floor's own noise says nothing.
    (many > 0.1).then_some(one / many)
}

impl Figures {
    fn table(&self) -> String {
        let Host { cpus, load } = self.host;
        let mut text = format!(
            "On a host with {cpus} CPUs, whose load was {load:.1} before; base is C, guest is \
             Rust\n\n"
        );
        text += &scaling::table(&self.scaling);
        text += &format!(
            "\nOf that acceptance alone, as a multiple of one CPU's speed\n\n\
             | kernel | cost of 4K |{}\n|---|--:|{}\n",
            CPUS.map(|cpus| format!(" {cpus} CPU |")).concat(),
            "--:|".repeat(CPUS.len())
        );
        for kernel in ["base", "guest"] {
            for cost_us in [8, 40] {
                let cells = CPUS.map(|cpus| match gain(&self.scaling, kernel, cost_us, cpus) {
                    Some(gain) => format!(" {gain:.1} |"),
                    None => " - |".into(),
                });
                text += &format!("| {kernel} | {cost_us} µs |{}\n", cells.concat());
            }
        }
        text += "\nA boot to init and its end (2 GiB): time from QEMU's start to init, what was \
                 accepted, and calls for it\n\n\
                 | kernel | cost of 4K | CPUs | time to init | accepted | calls | in vain |\n\
                 |---|---|--:|--:|--:|--:|--:|\n";
        for boot in &self.boot {
            text += &format!(
                "| {} | {} | {} | {:.2} s | {} MiB | {} | {} |\n",
                boot.kernel,
                boot.cost,
                boot.cpus,
                boot.init_s,
                boot.accepted_mib,
                boot.calls,
                boot.in_vain
            );
        }
        text += &format!(
            "\nModes ({MODE_CPUS} CPUs, {} GiB, 8 µs): {MODE_TASKS} tasks touch {MODE_TASK_MIB} \
             MiB each; times from QEMU's start\n\n\
             | kernel | mode | to init | until all is touched | slowest page | interrupts off, at most |\n\
             |---|---|--:|--:|--:|--:|\n",
            MEMORY_MIB / 1024
        );
        for mode in &self.modes {
            let irqs_off = mode
                .irqs_off_us
                .map_or("-".into(), |us| format!("{:.1} ms", us as f64 / 1000.0));
            text += &format!(
                "| {} | {} | {:.2} s | {:.1} s | {:.1} ms | {irqs_off} |\n",
                mode.kernel,
                mode.mode,
                mode.init_s,
                mode.touch_s,
                mode.slowest_us as f64 / 1000.0
            );
        }
        text += "\nA task that moves memory, beside the background (2 CPUs, 8 µs)\n\n\
                 | mode | time (median) | accepted meanwhile |\n|---|--:|--:|\n";
        for run in &self.foreground {
            text += &format!(
                "| {} | {:.2} s | {} MiB |\n",
                run.mode, run.seconds, run.background_mib
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coco::scaling::tests::run;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(String::from).collect()
    }

    #[test]
    fn what_acceptance_costs_is_told_from_the_rest() {
        let runs = [
            run("guest", 0, 1, 6.5),
            run("guest", 40, 1, 38.5),
            run("guest", 0, 8, 3.0),
            run("guest", 40, 8, 7.0),
            run("guest", 0, 16, 3.0),
            run("guest", 40, 16, 3.0),
        ];
        assert_eq!(gain(&runs, "guest", 40, 8), Some(8.0));
        assert_eq!(gain(&runs, "guest", 40, 1), Some(1.0));
        assert_eq!(gain(&runs, "guest", 40, 16), None);
        assert_eq!(gain(&runs, "base", 40, 8), None);
    }

    #[test]
    fn the_guest_says_what_it_measured() {
        let log = lines(
            "hog: filled, a page in 120 us at most\nhog: filled, a page in 5300 us at most\n\
             hog: filled\nirqs_off_ns: 250\n",
        );
        assert_eq!(slowest_us(&log), Some(5300));
        assert_eq!(slowest_us(&lines("hog: filled")), None);
        assert_eq!(said(&log).get("irqs_off_ns"), Some(&"250"));
    }

    #[test]
    fn the_tables_have_all_figures() {
        let figures = Figures {
            host: Host { cpus: 2, load: 0.1 },
            scaling: CPUS.map(|cpus| run("base", 40, cpus, 12.0)).into(),
            boot: vec![Boot {
                kernel: "guest".into(),
                cost: "8 µs",
                cpus: 32,
                init_s: 1.499,
                accepted_mib: 200,
                calls: 51_300,
                in_vain: 12,
            }],
            modes: vec![Mode {
                kernel: "base".into(),
                mode: "eager",
                init_s: 9.0,
                touch_s: 3.04,
                slowest_us: 41_300,
                irqs_off_us: None,
            }],
            foreground: vec![Foreground {
                mode: "background",
                seconds: 5.0,
                background_mib: 3000,
            }],
        };
        let text = figures.table();
        for row in [
            "| guest | 8 µs | 32 | 1.50 s | 200 MiB | 51300 | 12 |",
            "| base | eager | 9.00 s | 3.0 s | 41.3 ms | - |",
            "| background | 5.00 s | 3000 MiB |",
            "| base | 40 µs | - | - | - | - | - |",
        ] {
            assert!(text.contains(row), "{row} is not in\n{text}");
        }
    }
}
