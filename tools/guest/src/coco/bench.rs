// SPDX-License-Identifier: GPL-2.0

//! `make bench-coco`: how long confidential guests take to boot, and how acceptance scales.
//!
//! Times are the host's, under TCG but for a plain guest where KVM works: they say something next
//! to each other, and nothing about hardware. The cost of an accept is a sleep, so that accepts of
//! several CPUs pass at once even where the host has fewer.

use super::{Emulated, Kind, Parts, Report};
use crate::boot::{Outcome, Run};
use crate::build::Build;
use crate::cache::{Place, write};
use crate::machine::{Machine, Platform, kvm_works};
use crate::progress::{Step, step};
use crate::setup::Tools;
use anyhow::{Context, Result};
use serde::Serialize;
use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

/// Boots of each kind; the table has the median.
const BOOTS: usize = 3;

const TASKS: u32 = 8;
const TASK_MIB: u32 = 440;
const MEMORY_MIB: u32 = 6144;
const COSTS_US: [u64; 3] = [0, 8, 40];
const CPUS: [u32; 4] = [1, 2, 4, 8];

#[derive(Debug, PartialEq, Serialize)]
struct Boot {
    guest: &'static str,
    kernel: String,
    /// From QEMU's start to the job's.
    total_s: f64,
    /// The kernel's own time when init starts.
    kernel_s: f64,
}

#[derive(Debug, PartialEq, Serialize)]
struct Scaling {
    kernel: String,
    cost_us: u64,
    cpus: u32,
    seconds: f64,
    most_in_flight: u64,
    accepted_mib: u64,
    duplicates: u64,
}

#[derive(Serialize)]
struct Figures {
    host: Host,
    boot: Vec<Boot>,
    scaling: Vec<Scaling>,
}

/// What the times depend on.
#[derive(Debug, PartialEq, Serialize)]
struct Host {
    cpus: usize,
    /// What else it had to do before: the load average of a minute.
    load: f64,
}

impl Host {
    fn now() -> Self {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().and_then(|load| load.parse().ok());
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            load: load.unwrap_or_default(),
        }
    }
}

struct Bench<'a> {
    place: &'a Place,
    tools: &'a Tools,
    parts: &'a Parts,
}

/// Runs the bench and writes its tables; the paths of the files.
pub fn bench(
    place: &Place,
    tools: &Tools,
    parts: &Parts,
    builds: &[&Build],
) -> Result<[PathBuf; 2]> {
    let bench = Bench {
        place,
        tools,
        parts,
    };
    let mut figures = Figures {
        host: Host::now(),
        boot: Vec::new(),
        scaling: Vec::new(),
    };
    for build in builds {
        let name = &build.config;
        let boot = step(&format!("bench coco: boot {name}"), |step| {
            bench.boots(build, step)
        })?;
        let scaling = step(&format!("bench coco: accept {name}"), |step| {
            bench.scaling(build, step)
        })?;
        figures.boot.extend(boot);
        figures.scaling.extend(scaling);
    }
    let text = figures.table();
    println!("\n{text}");
    let path = |end| {
        place
            .cache
            .join("results")
            .join(format!("bench-coco.{end}"))
    };
    let (markdown, json) = (path("md"), path("json"));
    write(&markdown, text.as_bytes(), 0o644)?;
    write(&json, &serde_json::to_vec_pretty(&figures)?, 0o644)?;
    Ok([markdown, json])
}

impl Bench<'_> {
    fn emulated(&self, kind: Kind, options: &str) -> Platform {
        Platform::Emulated(Emulated::new(kind, self.parts).plugin(options))
    }

    fn boots(&self, build: &Build, step: &Step) -> Result<Vec<Boot>> {
        let plain = if kvm_works() { "plain, KVM" } else { "plain" };
        let kinds = [
            (plain, Platform::Usual),
            ("plain, by UEFI", Platform::Uefi(self.parts.flash.clone())),
            ("TDX", self.emulated(Kind::Tdx, "")),
            (
                "TDX, each access checked",
                self.emulated(Kind::Tdx, "check=on"),
            ),
            ("SEV-SNP", self.emulated(Kind::Snp, "")),
        ];
        let mut boots = Vec::new();
        for (guest, platform) in kinds {
            let mut times = Vec::new();
            for _ in 0..BOOTS {
                times.push(self.boot(build, step, &platform)?);
            }
            boots.push(Boot {
                guest,
                kernel: build.config.clone(),
                total_s: median(times.iter().map(|time| time.0)),
                kernel_s: median(times.iter().map(|time| time.1)),
            });
        }
        Ok(boots)
    }

    /// Both times of a boot.
    fn boot(&self, build: &Build, step: &Step, platform: &Platform) -> Result<(f64, f64)> {
        let mut run = Run::new(self.place, self.tools, build, "bench-coco-boot", "true");
        run.machine = Machine {
            memory_mib: 2048,
            cpus: 1,
            nodes: 1,
            dimm_mib: 0,
            balloon: false,
            ..Machine::of(platform.clone())
        };
        let (start, mut total) = (Instant::now(), None);
        let outcome = run.run(step, |_, line| {
            if line.is_some_and(|line| line.starts_with("guest: job starts")) {
                total.get_or_insert(start.elapsed());
            }
        })?;
        outcome.success()?;
        let total = total.context("the guest did not say that its job starts")?;
        Ok((total.as_secs_f64(), init_stamp(&outcome.lines)?))
    }

    fn scaling(&self, build: &Build, step: &Step) -> Result<Vec<Scaling>> {
        let mut all = Vec::new();
        for cost_us in COSTS_US {
            for cpus in CPUS {
                let options = format!("cost-ns={}", cost_us * 1000);
                let outcome = self.lock_at_once(build, step, &options, cpus)?;
                outcome.success()?;
                let seconds = elapsed(&outcome.lines)?;
                let report = outcome.report.as_ref().context("no report")?;
                all.push(Scaling::new(build, cost_us, cpus, seconds, report));
            }
        }
        Ok(all)
    }

    /// All tasks start at once and hold what they got until the last one is done.
    fn lock_at_once(
        &self,
        build: &Build,
        step: &Step,
        options: &str,
        cpus: u32,
    ) -> Result<Outcome> {
        let job = format!(
            "now() {{ cut -d ' ' -f 1 /proc/uptime; }}\n\
             start=$(now)\n\
             for task in $(seq {TASKS}); do\n\
             /kselftest/freepage/memory_hog {TASK_MIB} 9999 lock &\n\
             done | head -n {TASKS} >/dev/null\n\
             echo \"scaling: $start $(now)\"\n\
             killall memory_hog\n"
        );
        let mut run = Run::new(self.place, self.tools, build, "bench-coco-accept", &job);
        run.machine = Machine {
            memory_mib: MEMORY_MIB,
            cpus,
            nodes: 1,
            ..Machine::of(self.emulated(Kind::Tdx, options))
        };
        run.silence = Duration::from_secs(300);
        run.run(step, |_, _| {})
    }
}

impl Scaling {
    fn new(build: &Build, cost_us: u64, cpus: u32, seconds: f64, report: &Report) -> Self {
        Self {
            kernel: build.config.clone(),
            cost_us,
            cpus,
            seconds,
            most_in_flight: report.most_in_flight,
            accepted_mib: report.accepted_bytes >> 20,
            duplicates: report.duplicates,
        }
    }
}

impl Figures {
    fn table(&self) -> String {
        let Host { cpus, load } = self.host;
        let mut text = format!(
            "On a host with {cpus} CPUs, whose load was {load:.1} before\n\nTime to init (median of {BOOTS}, 1 CPU, 2 GiB)\n\n\
             | guest | kernel | since QEMU's start | kernel's own time |\n|---|---|--:|--:|\n"
        );
        for boot in &self.boot {
            let Boot {
                guest,
                kernel,
                total_s,
                kernel_s,
            } = boot;
            text += &format!("| {guest} | {kernel} | {total_s:.1} s | {kernel_s:.2} s |\n");
        }
        text += &format!(
            "\n{TASKS} tasks lock {TASK_MIB} MiB each at once (TDX, {} GiB): time, and accepts \
             in flight\n\n| kernel | cost of 4K |{}\n|---|--:|{}\n",
            MEMORY_MIB / 1024,
            CPUS.map(|cpus| format!(" {cpus} CPU |")).concat(),
            "--:|".repeat(CPUS.len())
        );
        for row in self.scaling.chunks(CPUS.len()) {
            let cells = row.iter().map(|run| {
                let Scaling {
                    seconds,
                    most_in_flight,
                    ..
                } = run;
                format!(" {seconds:.1} s, {most_in_flight} |")
            });
            let cells: String = cells.collect();
            let Scaling {
                kernel, cost_us, ..
            } = &row[0];
            text += &format!("| {kernel} | {cost_us} µs |{cells}\n");
        }
        text
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The stamp of the kernel's line about init.
fn init_stamp(lines: &[String]) -> Result<f64> {
    let mut stamps = lines.iter().filter_map(|line| {
        let (stamp, text) = line.strip_prefix('[')?.split_once(']')?;
        text.contains("Run /init as init process")
            .then(|| stamp.trim().parse().ok())?
    });
    stamps
        .next()
        .context("the kernel did not say that it runs init")
}

/// Seconds between the two numbers of the line "scaling:".
fn elapsed(lines: &[String]) -> Result<f64> {
    let line = lines.iter().find_map(|line| line.strip_prefix("scaling: "));
    let line = line.context("the job did not come to its end: no line 'scaling:'")?;
    let times: Option<Vec<f64>> = line.split(' ').map(|time| time.parse().ok()).collect();
    match times.as_deref() {
        Some([start, end]) => Ok(end - start),
        _ => anyhow::bail!("not two times: {line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(String::from).collect()
    }

    #[test]
    fn times_are_read_from_the_console() {
        let log = lines(
            "BdsDxe: starting\n[    0.9] x\n[    1.499138] Run /init as init process\n\
             scaling: 2.50 14.75\n",
        );
        assert_eq!(init_stamp(&log).unwrap(), 1.499138);
        assert_eq!(elapsed(&log).unwrap(), 12.25);
        assert!(init_stamp(&lines("[    0.9] x")).is_err());
        assert!(elapsed(&lines("scaling: 2.50")).is_err());
        assert!(elapsed(&[]).is_err());
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
    }

    #[test]
    fn the_table_has_a_row_for_each_cost() {
        let run = |cost_us, cpus| Scaling {
            kernel: "base".into(),
            cost_us,
            cpus,
            seconds: 12.14,
            most_in_flight: cpus as u64,
            accepted_mib: 3520,
            duplicates: 0,
        };
        let figures = Figures {
            host: Host { cpus: 2, load: 0.1 },
            boot: vec![Boot {
                guest: "TDX",
                kernel: "base".into(),
                total_s: 9.96,
                kernel_s: 1.499,
            }],
            scaling: COSTS_US
                .iter()
                .flat_map(|cost| CPUS.map(|cpus| run(*cost, cpus)))
                .collect(),
        };
        let text = figures.table();
        assert!(text.contains("| TDX | base | 10.0 s | 1.50 s |"), "{text}");
        let row = "| base | 40 µs | 12.1 s, 1 | 12.1 s, 2 | 12.1 s, 4 | 12.1 s, 8 |";
        assert_eq!(text.lines().last(), Some(row));
    }
}
