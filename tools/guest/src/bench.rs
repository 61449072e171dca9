// SPDX-License-Identifier: GPL-2.0

//! Benches: the same program in a guest with the Rust and one with the C implementation, where
//! guest time is the number of instructions executed.

use crate::boot::Run;
use crate::build::Build;
use crate::cache::{Place, write};
use crate::coco;
use crate::guests::{curve, memory_picture, watch_memory, when};
use crate::machine::Machine;
use crate::picture::{C, RUST};
use crate::progress::step;
use crate::setup::Tools;
use anyhow::{Context, Result, bail};
use plotters::style::RGBColor;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

pub struct Bench {
    name: &'static str,
    work: Work,
}

/// What a bench does.
enum Work {
    /// Runs these in both guests.
    Compare(&'static [Part]),
    /// Likewise, and draws how much memory of the host the guests have.
    Memory(&'static [Part]),
    /// Emulated confidential guests, with the base kernel.
    Coco,
    /// Emulated TDX guests that accept memory, with both.
    Accept,
}

/// A program of freepage's kselftests, and the guest that it is run in.
#[derive(Clone, Copy)]
struct Part {
    program: &'static str,
    arguments: &'static str,
    memory_mib: u32,
    nodes: u32,
    cpus: u32,
    /// Added to "max".
    cpu_flags: &'static str,
    /// Added to the kernel's command line.
    append: &'static [&'static str],
}

impl Part {
    const fn new(program: &'static str, arguments: &'static str, memory_mib: u32) -> Self {
        Self {
            program,
            arguments,
            memory_mib,
            nodes: 1,
            cpus: 1,
            cpu_flags: "",
            append: &[],
        }
    }

    fn machine(&self) -> Machine {
        Machine {
            memory_mib: self.memory_mib,
            cpus: self.cpus,
            nodes: self.nodes,
            icount: true,
            dimm_mib: 0,
            balloon: false,
            append: self.append.iter().map(|word| word.to_string()).collect(),
            // The last one counts.
            qemu_args: vec!["-cpu".into(), format!("max{}", self.cpu_flags)],
            ..Default::default()
        }
    }

    fn command(&self) -> String {
        format!("/kselftest/freepage/{} {}", self.program, self.arguments)
    }
}

/// Figures of this unit are taken twice: with CPUs that clear a page by an instruction (as it is
/// counted) for each byte, and by one for each eight bytes.
const CLEARING: &str = "instructions and bytes";

pub const BENCHES: &[Bench] = &[
    Bench {
        name: "reporting",
        work: Work::Memory(&[Part {
            nodes: 2,
            ..Part::new("reporting_bench.sh", "", 4096)
        }]),
    },
    Bench {
        name: "unmapped",
        work: Work::Compare(&[
            Part::new("unmapped_bench.sh", "faults", 2048),
            Part {
                cpu_flags: ",-erms,-fsrm",
                ..Part::new("unmapped_bench.sh", "faults", 2048)
            },
            Part::new("unmapped_bench.sh", "text", 2048),
            Part {
                append: &["rootfstype=ramfs"],
                ..Part::new("unmapped_bench.sh", "fragmented", 2048)
            },
            Part {
                cpus: 8,
                cpu_flags: ",-erms,-fsrm",
                ..Part::new("unmapped_bench.sh", "together", 2048)
            },
        ]),
    },
    Bench {
        name: "zero",
        work: Work::Compare(&[
            Part::new("page_zero_bench.sh", "faults", 3072),
            Part {
                cpu_flags: ",-erms,-fsrm",
                ..Part::new("page_zero_bench.sh", "faults", 3072)
            },
            Part {
                cpu_flags: ",-erms,-fsrm",
                ..Part::new("page_zero_bench.sh", "small", 3072)
            },
        ]),
    },
    Bench {
        name: "coco",
        work: Work::Coco,
    },
    Bench {
        name: "accept",
        work: Work::Accept,
    },
];

/// One figure, as the guest prints it after "bench: ".
#[derive(Clone, Debug, Deserialize)]
struct Figure {
    case: String,
    metric: String,
    unit: String,
    value: f64,
}

/// A figure of both implementations.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    case: String,
    metric: String,
    unit: String,
    c: Option<f64>,
    rust: Option<f64>,
}

fn figures(lines: &[String]) -> Result<Vec<Figure>> {
    let texts = lines
        .iter()
        .filter_map(|line| line.strip_prefix("bench: "))
        .filter(|text| *text != "done");
    let parse =
        |text: &str| serde_json::from_str(text).with_context(|| format!("not a figure: {text}"));
    let all: Vec<_> = texts.map(parse).collect::<Result<_>>()?;
    if all.is_empty() || !lines.iter().any(|line| line == "bench: done") {
        bail!("the bench did not come to its end: no 'bench: done'");
    }
    Ok(all)
}

/// The figures of all parts. Of those that were taken twice, clearing becomes one of its own.
fn merged(parts: Vec<Vec<Figure>>) -> Vec<Figure> {
    let mut all: Vec<Figure> = Vec::new();
    for figure in parts.into_iter().flatten() {
        let same = |other: &&mut Figure| other.case == figure.case && other.metric == figure.metric;
        match all.iter_mut().find(same) {
            None => all.push(figure),
            Some(first) if first.unit == CLEARING => {
                let bytes = ((first.value - figure.value) * 8.0 / 7.0).max(0.0);
                first.unit = "instructions".into();
                first.value -= bytes;
                all.push(Figure {
                    metric: format!("{}: bytes cleared", figure.metric),
                    unit: "bytes".into(),
                    value: bytes.round(),
                    ..figure
                });
            }
            Some(_) => {}
        }
    }
    all
}

fn rows(c: &[Figure], rust: &[Figure]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for (figure, ours) in rust
        .iter()
        .map(|f| (f, true))
        .chain(c.iter().map(|f| (f, false)))
    {
        let same = |row: &&mut Row| row.case == figure.case && row.metric == figure.metric;
        let row = match rows.iter_mut().find(same) {
            Some(row) => row,
            None => {
                let Figure {
                    case, metric, unit, ..
                } = figure.clone();
                rows.push(Row {
                    case,
                    metric,
                    unit,
                    c: None,
                    rust: None,
                });
                rows.last_mut().expect("a row was pushed")
            }
        };
        *(if ours { &mut row.rust } else { &mut row.c }) = Some(figure.value);
    }
    rows
}

fn table(rows: &[Row]) -> String {
    let cell = |value: Option<f64>| match value {
        Some(value) if value.fract() == 0.0 => group(value as i64),
        Some(value) if value.abs() < 1.0 => format!("{value:.4}"),
        Some(value) => format!("{value:.2}"),
        None => "-".into(),
    };
    let mut text =
        "| case | metric | unit | C | Rust | Rust / C |\n|---|---|---|--:|--:|--:|\n".to_string();
    for row in rows {
        let ratio = match (row.c, row.rust) {
            (Some(c), Some(rust)) if c != 0.0 => format!("{:.3}", rust / c),
            _ => "-".into(),
        };
        text += &format!(
            "| {} | {} | {} | {} | {} | {ratio} |\n",
            row.case,
            row.metric,
            row.unit,
            cell(row.c),
            cell(row.rust)
        );
    }
    text
}

/// 1234567 as "1 234 567".
fn group(number: i64) -> String {
    let digits = number.abs().to_string();
    let parts: Vec<_> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(String::from_utf8_lossy)
        .collect();
    format!("{}{}", if number < 0 { "-" } else { "" }, parts.join(" "))
}

/// The bench of this name, or all.
pub fn named(name: Option<&str>) -> Result<Vec<&'static Bench>> {
    let chosen: Vec<_> = BENCHES
        .iter()
        .filter(|bench| name.is_none_or(|name| name == bench.name))
        .collect();
    if chosen.is_empty() {
        let known: Vec<_> = BENCHES.iter().map(|bench| bench.name).collect();
        bail!(
            "no bench '{}': there are {}",
            name.unwrap_or_default(),
            known.join(", ")
        );
    }
    Ok(chosen)
}

/// Runs a bench and writes its table; the paths of the files.
pub fn bench(
    place: &Place,
    tools: &Tools,
    bench: &Bench,
    guest: &Build,
    base: &Build,
) -> Result<[PathBuf; 2]> {
    match bench.work {
        Work::Compare(parts) => compare(place, tools, bench.name, parts, guest, base),
        Work::Memory(parts) => {
            memory(
                place,
                tools,
                bench.name,
                [("C", C, base), ("Rust", RUST, guest)],
            )?;
            compare(place, tools, bench.name, parts, guest, base)
        }
        Work::Coco => coco::bench(place, tools, &coco::build(place, tools)?, base),
        Work::Accept => coco::accept(place, tools, &coco::build(place, tools)?, base, guest),
    }
}

/// What a program takes and frees, as the host sees it, of each kernel.
fn memory(
    place: &Place,
    tools: &Tools,
    name: &str,
    kernels: [(&str, RGBColor, &Build); 2],
) -> Result<()> {
    let job = "sleep 4\necho 'bench: begin'\nsleep 1\n\
               /kselftest/freepage/memory_hog 1024 3 || exit 1\nsleep 16\necho 'bench: end'";
    let mut curves = Vec::new();
    for (kernel, colour, build) in kernels {
        let run = Run::new(place, tools, build, &format!("bench-{name}-memory"), job);
        let step = format!("bench {name}: memory of the host, {kernel}");
        let (samples, marks, _) = watch_memory(&run, &step)?;
        let time = when(&marks, "bench: begin")?..when(&marks, "bench: end")?;
        curves.push(curve(&samples, time, kernel, colour));
    }
    memory_picture(
        &place.cache.join(format!("results/bench-{name}.svg")),
        curves,
    )
}

/// Runs the parts on both kernels.
fn compare(
    place: &Place,
    tools: &Tools,
    name: &str,
    parts: &[Part],
    guest: &Build,
    base: &Build,
) -> Result<[PathBuf; 2]> {
    for Part { program, .. } in parts {
        if !guest.kselftest().join("freepage").join(program).is_file() {
            bail!("the guest has no {program}: tools/testing/selftests/freepage is not complete");
        }
    }
    let (rust, c) = step(&format!("bench {name} (C and Rust)"), |step| {
        let measure_part = |build: &Build, (index, part): (usize, &Part)| {
            let log = format!("bench-{name}-{index}");
            let mut run = Run::new(place, tools, build, &log, &part.command());
            run.machine = part.machine();
            run.silence = Duration::from_secs(1200);
            run.limit = Duration::from_secs(3600);
            let outcome = run.run(step, |_, _| {})?;
            outcome.success()?;
            figures(&outcome.lines)
                .with_context(|| format!("{} (full log: {})", build.config, outcome.log.display()))
        };
        let measure = |build: &Build| -> Result<Vec<Figure>> {
            let parts = parts.iter().enumerate();
            let figures = parts.map(|part| measure_part(build, part));
            Ok(merged(figures.collect::<Result<_>>()?))
        };
        // Instructions do not care what else the host does.
        std::thread::scope(|scope| {
            let c = scope.spawn(|| measure(base));
            let rust = measure(guest)?;
            let c = c
                .join()
                .map_err(|_| anyhow::anyhow!("the run of base panicked"))??;
            Ok((rust, c))
        })
    })?;
    let rows = rows(&c, &rust);
    let text = table(&rows);
    println!("\n{text}");
    let folder = place.cache.join("results");
    let (markdown, json) = (
        folder.join(format!("bench-{name}.md")),
        folder.join(format!("bench-{name}.json")),
    );
    write(&markdown, text.as_bytes(), 0o644)?;
    write(&json, &serde_json::to_vec_pretty(&rows)?, 0o644)?;
    Ok([markdown, json])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(String::from).collect()
    }

    const RUST: &str = "noise\nbench: {\"bench\":\"reporting\",\"case\":\"free-1g-order-9\",\"metric\":\"pass\",\
                        \"unit\":\"instructions\",\"value\":1234567}\nbench: done\n";

    #[test]
    fn figures_of_both_sides_meet_in_a_row() {
        let rust = figures(&lines(RUST)).unwrap();
        let c = figures(&lines(&RUST.replace("1234567", "2469134.5"))).unwrap();
        let text = table(&rows(&c, &rust));
        let row = "| free-1g-order-9 | pass | instructions | 2469134.50 | 1 234 567 | 0.500 |";
        assert_eq!(text.lines().last(), Some(row));
        let alone = table(&rows(&[], &rust));
        assert!(alone.contains("| - | 1 234 567 | - |"), "{alone}");
    }

    #[test]
    fn clearing_is_told_from_other_work() {
        let part = |value: &str| {
            let unit = format!("\"unit\":\"{CLEARING}\"");
            let text = RUST.replace("\"unit\":\"instructions\"", &unit);
            figures(&lines(&text.replace("1234567", value))).unwrap()
        };
        // 1000 and a page.
        let all = merged(vec![part("5096"), part("1512")]);
        assert_eq!(
            (all[0].unit.as_str(), all[0].value),
            ("instructions", 1000.0)
        );
        assert_eq!((all[1].unit.as_str(), all[1].value), ("bytes", 4096.0));
    }

    #[test]
    fn a_bench_that_did_not_end_is_an_error() {
        assert!(figures(&lines(&RUST.replace("bench: done\n", ""))).is_err());
        assert!(figures(&lines("bench: done\n")).is_err());
        let error = figures(&lines(&RUST.replace("1234567", "fast")))
            .unwrap_err()
            .to_string();
        assert!(error.contains("fast"), "{error}");
    }
}
