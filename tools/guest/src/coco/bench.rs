// SPDX-License-Identifier: GPL-2.0

//! `make bench-coco`: how long confidential guests take to boot, and how acceptance scales.
//!
//! Times are the host's, under TCG but for a plain guest where KVM works: they say something next
//! to each other, and nothing about hardware. The cost of an accept is a sleep, so that accepts of
//! several CPUs pass at once even where the host has fewer.

use super::scaling::{self, Scaling};
use super::{Emulated, Kind, Parts};
use crate::boot::{Outcome, Run};
use crate::build::Build;
use crate::cache::{Place, write};
use crate::machine::{Machine, Platform, kvm_works};
use crate::progress::{Step, step};
use crate::setup::Tools;
use anyhow::{Context, Result};
use serde::Serialize;
use std::{fs, path::PathBuf, time::Instant};

/// Boots of each kind; the table has the median.
const BOOTS: usize = 3;

/// By which pages the host maps memory.
const HOST_PAGES: [&str; 2] = ["4k", "2m"];

#[derive(Debug, PartialEq, Serialize)]
struct Boot {
    guest: &'static str,
    kernel: String,
    cpus: u32,
    /// From QEMU's start to the job's.
    total_s: f64,
    /// The kernel's own time when init starts.
    kernel_s: f64,
}

#[derive(Serialize)]
struct Figures {
    host: Host,
    boot: Vec<Boot>,
    scaling: Vec<Scaling>,
}

/// What the times depend on.
#[derive(Debug, PartialEq, Serialize)]
pub struct Host {
    pub cpus: usize,
    /// What else it had to do before: the load average of a minute.
    pub load: f64,
}

impl Host {
    pub fn now() -> Self {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().and_then(|load| load.parse().ok());
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            load: load.unwrap_or_default(),
        }
    }
}

/// What a bench of emulated guests runs them with.
pub struct Bench<'a> {
    pub place: &'a Place,
    pub tools: &'a Tools,
    pub parts: &'a Parts,
}

/// Runs the bench with this kernel and writes its tables; the paths of the files.
pub fn bench(place: &Place, tools: &Tools, parts: &Parts, build: &Build) -> Result<[PathBuf; 2]> {
    let bench = Bench {
        place,
        tools,
        parts,
    };
    let host = Host::now();
    let boot = step("bench coco: boot", |step| bench.boots(build, step))?;
    let scaling = step("bench coco: accept", |step| {
        let hosts = HOST_PAGES.iter();
        let runs = hosts.map(|pages| scaling::scaling(&bench, &[build], pages, step));
        Ok(runs.collect::<Result<Vec<_>>>()?.concat())
    })?;
    let figures = Figures {
        host,
        boot,
        scaling,
    };
    let text = figures.table();
    println!("\n{text}");
    let folder = place.cache.join("results");
    let path = |end| folder.join(format!("bench-coco.{end}"));
    let (markdown, json) = (path("md"), path("json"));
    write(&markdown, text.as_bytes(), 0o644)?;
    write(&json, &serde_json::to_vec_pretty(&figures)?, 0o644)?;
    Ok([markdown, json])
}

impl Bench<'_> {
    fn emulated(&self, kind: Kind, options: &str) -> Platform {
        Platform::Emulated(Emulated::new(kind, self.parts).plugin(options))
    }

    /// A TDX guest with these options of the plugin.
    pub fn tdx(&self, options: &str) -> Platform {
        self.emulated(Kind::Tdx, options)
    }

    fn boots(&self, build: &Build, step: &Step) -> Result<Vec<Boot>> {
        let plain = if kvm_works() { "plain, KVM" } else { "plain" };
        let (tdx, snp) = (self.emulated(Kind::Tdx, ""), self.emulated(Kind::Snp, ""));
        let checked = self.emulated(Kind::Tdx, "check=on");
        let kinds = [
            (plain, Platform::Usual, 1),
            (
                "plain, by UEFI",
                Platform::Uefi(self.parts.flash.clone()),
                1,
            ),
            ("TDX", tdx.clone(), 1),
            ("TDX, each access checked", checked, 1),
            ("SEV-SNP", snp.clone(), 1),
            ("TDX", tdx.clone(), 32),
            ("TDX", tdx, 64),
            ("SEV-SNP", snp.clone(), 32),
            ("SEV-SNP", snp, 64),
        ];
        let mut boots = Vec::new();
        for (guest, platform, cpus) in kinds {
            let mut times = Vec::new();
            for _ in 0..BOOTS {
                times.push(self.boot(build, step, &platform, cpus)?);
            }
            boots.push(Boot {
                guest,
                kernel: build.config.clone(),
                cpus,
                total_s: median(times.iter().map(|time| time.0)),
                kernel_s: median(times.iter().map(|time| time.1)),
            });
        }
        Ok(boots)
    }

    /// Both times of a boot.
    fn boot(
        &self,
        build: &Build,
        step: &Step,
        platform: &Platform,
        cpus: u32,
    ) -> Result<(f64, f64)> {
        let mut run = Run::new(self.place, self.tools, build, "bench-coco-boot", "true");
        run.machine = Machine {
            memory_mib: 2048,
            cpus,
            nodes: 1,
            dimm_mib: 0,
            balloon: false,
            ..Machine::of(platform.clone())
        };
        let (outcome, [total]) = timed(&run, step, [JOB])?;
        Ok((total, init_stamp(&outcome.lines)?))
    }
}

impl Figures {
    fn table(&self) -> String {
        let Host { cpus, load } = self.host;
        let mut text = format!(
            "On a host with {cpus} CPUs, whose load was {load:.1} before\n\nTime to init (median of {BOOTS}, 2 GiB)\n\n\
             | guest | kernel | CPUs | since QEMU's start | kernel's own time |\n|---|---|--:|--:|--:|\n"
        );
        for boot in &self.boot {
            let Boot {
                guest,
                kernel,
                cpus,
                total_s,
                kernel_s,
            } = boot;
            text +=
                &format!("| {guest} | {kernel} | {cpus} | {total_s:.1} s | {kernel_s:.2} s |\n");
        }
        text += &format!("\n{}", scaling::table(&self.scaling));
        text
    }
}

/// What a guest says when init is about to do what it is there for.
pub const JOB: &str = "guest: job starts";

/// Runs a guest that has to be fine; seconds from QEMU's start to the first line that begins with
/// each of these.
pub fn timed<const N: usize>(
    run: &Run,
    step: &Step,
    marks: [&str; N],
) -> Result<(Outcome, [f64; N])> {
    let (start, mut times) = (Instant::now(), [None; N]);
    let outcome = run.run(step, |_, line| {
        for (mark, time) in marks.iter().zip(&mut times) {
            if line.is_some_and(|line| line.starts_with(mark)) {
                time.get_or_insert(start.elapsed());
            }
        }
    })?;
    outcome.success()?;
    let mut seconds = [0.0; N];
    for ((mark, time), seconds) in marks.iter().zip(times).zip(&mut seconds) {
        let time = time.with_context(|| format!("the guest did not say '{mark}'"))?;
        *seconds = time.as_secs_f64();
    }
    Ok((outcome, seconds))
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The stamp of the kernel's line about init.
pub fn init_stamp(lines: &[String]) -> Result<f64> {
    let mut stamps = lines.iter().filter_map(|line| {
        let (stamp, text) = line.strip_prefix('[')?.split_once(']')?;
        text.contains("Run /init as init process")
            .then(|| stamp.trim().parse().ok())?
    });
    stamps
        .next()
        .context("the kernel did not say that it runs init")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(String::from).collect()
    }

    #[test]
    fn times_are_read_from_the_console() {
        let log =
            lines("BdsDxe: starting\n[    0.9] x\n[    1.499138] Run /init as init process\n");
        assert_eq!(init_stamp(&log).unwrap(), 1.499138);
        assert!(init_stamp(&lines("[    0.9] x")).is_err());
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
    }

    #[test]
    fn the_table_has_a_row_for_each_guest() {
        let figures = Figures {
            host: Host { cpus: 2, load: 0.1 },
            boot: vec![Boot {
                guest: "TDX",
                kernel: "base".into(),
                cpus: 32,
                total_s: 9.96,
                kernel_s: 1.499,
            }],
            scaling: Vec::new(),
        };
        let text = figures.table();
        assert!(
            text.contains("| TDX | base | 32 | 10.0 s | 1.50 s |"),
            "{text}"
        );
    }
}
