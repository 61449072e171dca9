// SPDX-License-Identifier: GPL-2.0

//! How acceptance scales: tasks that lock memory at once, on more and more CPUs.
//!
//! Time counts from QEMU's start, so that what is accepted at boot is in it: one kernel does more
//! of it then, another one later.

use super::bench::{Bench, timed};
use crate::boot::Run;
use crate::build::Build;
use crate::machine::Machine;
use crate::picture::{self, Curve, Picture};
use crate::progress::Step;
use anyhow::{Context, Result};
use serde::Serialize;
use std::time::Duration;

pub const TASKS: u32 = 8;
pub const TASK_MIB: u32 = 440;
pub const MEMORY_MIB: u32 = 6144;
/// What the job says when all tasks have their memory.
const LOCKED: &str = "scaling: locked";
/// Of each 4K that is accepted.
pub const COSTS_US: [u64; 3] = [0, 8, 40];
pub const CPUS: [u32; 5] = [1, 2, 4, 8, 16];

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scaling {
    pub kernel: String,
    pub host_pages: &'static str,
    pub cost_us: u64,
    pub cpus: u32,
    /// From QEMU's start until all of them have their memory.
    pub seconds: f64,
    pub most_in_flight: u64,
    pub accepted_mib: u64,
    pub in_vain: u64,
    pub duplicates: u64,
}

/// Runs with each cost and each number of CPUs, the latter in order, for one kernel after the other.
///
/// The kernels take turns, so that what else the host does is the same for both.
pub fn scaling(
    bench: &Bench,
    builds: &[&Build],
    host_pages: &'static str,
    step: &Step,
) -> Result<Vec<Scaling>> {
    let mut all: Vec<_> = builds.iter().map(|_| Vec::new()).collect();
    for cost_us in COSTS_US {
        for cpus in CPUS {
            for (build, runs) in builds.iter().zip(&mut all) {
                runs.push(lock_at_once(bench, build, host_pages, cost_us, cpus, step)?);
            }
        }
    }
    Ok(all.concat())
}

/// All tasks start at once and hold what they got until the last one is done.
fn lock_at_once(
    bench: &Bench,
    build: &Build,
    host_pages: &'static str,
    cost_us: u64,
    cpus: u32,
    step: &Step,
) -> Result<Scaling> {
    let job = format!(
        "for task in $(seq {TASKS}); do\n\
         /kselftest/freepage/memory_hog {TASK_MIB} 9999 lock &\n\
         done | head -n {TASKS} >/dev/null\n\
         echo \"{LOCKED}\"\n\
         killall memory_hog\n"
    );
    let options = format!("host-pages={host_pages},cost-ns={}", cost_us * 1000);
    let mut run = Run::new(bench.place, bench.tools, build, "bench-accept", &job);
    run.machine = Machine {
        memory_mib: MEMORY_MIB,
        cpus,
        nodes: 1,
        ..Machine::of(bench.tdx(&options))
    };
    run.silence = Duration::from_secs(300);
    let (outcome, [seconds]) = timed(&run, step, [LOCKED])?;
    let report = outcome.report.as_ref().context("no report")?;
    Ok(Scaling {
        kernel: build.config.clone(),
        host_pages,
        cost_us,
        cpus,
        seconds,
        most_in_flight: report.most_in_flight,
        accepted_mib: report.accepted_bytes >> 20,
        in_vain: report.in_vain,
        duplicates: report.duplicates,
    })
}

/// A row for each kernel, host and cost.
pub fn table(scaling: &[Scaling]) -> String {
    let mut text = format!(
        "{TASKS} tasks lock {TASK_MIB} MiB each at once (TDX, {} GiB): time from QEMU's start, and \
         accepts in flight\n\n| kernel | host pages | cost of 4K |{}\n|---|---|--:|{}\n",
        MEMORY_MIB / 1024,
        CPUS.map(|cpus| format!(" {cpus} CPU |")).concat(),
        "--:|".repeat(CPUS.len())
    );
    for row in scaling.chunks(CPUS.len()) {
        let cells = row
            .iter()
            .map(|run| format!(" {:.1} s, {} |", run.seconds, run.most_in_flight));
        let cells: String = cells.collect();
        let Scaling {
            kernel,
            host_pages,
            cost_us,
            ..
        } = &row[0];
        text += &format!("| {kernel} | {host_pages} | {cost_us} µs |{cells}\n");
    }
    text
}

/// A curve for each kernel and cost.
pub fn picture(scaling: &[Scaling]) -> Picture<'static> {
    let curve = |row: &[Scaling]| {
        let (name, colour) = match row[0].kernel.as_str() {
            "base" => ("C", picture::C),
            _ => ("Rust", picture::RUST),
        };
        let cost = COSTS_US.iter().position(|cost| *cost == row[0].cost_us);
        Curve {
            name: format!("{name}, {} µs", row[0].cost_us),
            colour,
            width: 1 + cost.unwrap_or(0) as u32,
            points: row
                .iter()
                .map(|run| (run.cpus.into(), run.seconds))
                .collect(),
        }
    };
    Picture {
        title: format!(
            "{TASKS} tasks lock {TASK_MIB} MiB each: time from the guest's start, by the cost of 4K"
        ),
        x: "CPUs",
        y: "seconds",
        doubling: true,
        curves: scaling.chunks(CPUS.len()).map(curve).collect(),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A run with so many seconds.
    pub fn run(kernel: &str, cost_us: u64, cpus: u32, seconds: f64) -> Scaling {
        Scaling {
            kernel: kernel.into(),
            host_pages: "4k",
            cost_us,
            cpus,
            seconds,
            most_in_flight: cpus.into(),
            accepted_mib: 3520,
            in_vain: 0,
            duplicates: 0,
        }
    }

    #[test]
    fn the_table_has_a_row_for_each_cost() {
        let runs: Vec<_> = COSTS_US
            .iter()
            .flat_map(|cost| CPUS.map(|cpus| run("base", *cost, cpus, 12.14)))
            .collect();
        let text = table(&runs);
        let row =
            "| base | 4k | 40 µs | 12.1 s, 1 | 12.1 s, 2 | 12.1 s, 4 | 12.1 s, 8 | 12.1 s, 16 |";
        assert_eq!(text.lines().last(), Some(row));
        let curves = picture(&runs).curves;
        let names: Vec<_> = curves.iter().map(|curve| curve.name.as_str()).collect();
        assert_eq!(names, ["C, 0 µs", "C, 8 µs", "C, 40 µs"]);
        assert_eq!(curves[2].points[4], (16.0, 12.14));
    }
}
