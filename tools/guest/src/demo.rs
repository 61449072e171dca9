// SPDX-License-Identifier: GPL-2.0

//! `make demo`: the picture of memory going back to the host, and unmapped pages coming and going.

use crate::boot::Run;
use crate::build::Build;
use crate::cache::Place;
use crate::guests::{Sample, WITHIN, curve, memory_picture, returned, watch_memory, when};
use crate::picture;
use crate::setup::Tools;
use anyhow::{Result, bail};
use std::time::Duration;

const WIDTH: usize = 72;
const HEIGHT: usize = 14;

const JOB: &str = r#"
show() {
	echo "$1"
	for file in /sys/kernel/mm/page_reporting/*; do
		[ -f "$file" ] && echo "  ${file##*/}: $(cat "$file")"
	done
}
uname -srv
sleep 4
show "demo: before"
/kselftest/freepage/memory_hog 1024 3 || exit 1
sleep 12
show "demo: after"

# The table of all nodes, and what it is about.
unmapped() {
	echo "unmapped: $1"
	sed -n '3,6s/^/  /p' /sys/kernel/debug/unmapped_alloc
	grep -E '^(DirectMap|Unmapped:)' /proc/meminfo | sed 's/^/  /'
}
unmapped "before"
mkfifo /tmp/end
/kselftest/freepage/secretmem_check hold 64 < /tmp/end > /tmp/held &
exec 3> /tmp/end
until grep -q held /tmp/held; do sleep 0.1; done
unmapped "a program uses 64 MiB of memfd_secret(2)"
exec 3>&-
wait
sleep 1
unmapped "it has ended: its pages are cleared and ready for the next one"
for _ in 1 2 3; do echo 3 > /proc/sys/vm/drop_caches; sleep 0.2; done
unmapped "caches were dropped: what is free is mapped again"

# The time to lock memory, best of three.
zero() {
	echo "zero: $1"
	for kind in small huge; do
		best=
		for _ in 1 2 3; do
			[ -z "$2" ] || echo 1T > /sys/kernel/mm/page_zero/flush
			took=$(/kselftest/freepage/zero_check time $kind 256) || exit 1
			took=${took% *}
			[ -n "$best" ] && [ "$best" -le "$took" ] || best=$took
		done
		echo "  256 MiB, $kind pages: $((best / 1000)) us"
	done
}
zero "cleared when it is locked"
zero "cleared before" flush
for file in cleared_bytes used_bytes vain_bytes; do
	echo "  $file: $(cat /sys/kernel/mm/page_zero/$file)"
done
"#;

pub fn demo(place: &Place, tools: &Tools, build: &Build) -> Result<()> {
    for program in ["memory_hog", "secretmem_check", "zero_check"] {
        if !build.kselftest().join("freepage").join(program).is_file() {
            bail!("the guest has no {program}: tools/testing/selftests/freepage is not complete");
        }
    }
    let run = Run::new(place, tools, build, "demo", JOB);
    let (samples, marks, lines) = watch_memory(&run, "demo: a guest takes 1 GiB and frees it")?;
    let figure = returned(&samples, &marks, when(&marks, "demo: before")?)?;
    println!();
    for line in lines.iter().filter(|line| line.starts_with("Linux ")) {
        println!("Guest: {line}");
    }
    println!("\nResident memory of the guest's QEMU on this host, in MiB\n");
    let shown = [("hog: filled", "filled"), ("hog: freed", "freed")];
    let shown: Vec<_> = shown
        .iter()
        .map(|(text, label)| Ok((when(&marks, text)?, *label)))
        .collect::<Result<_>>()?;
    println!("{}", chart(&samples, &shown, WIDTH, HEIGHT));
    let svg = place.cache.join("results/demo.svg");
    let time = when(&marks, "demo: before")?..when(&marks, "demo: after")?;
    memory_picture(&svg, vec![curve(&samples, time, "Rust", picture::RUST)])?;
    println!("As a picture: {}\n", svg.display());
    println!("The program took {:.0} MiB.", figure.added);
    match figure.time {
        Some(time) => println!(
            "90 % of it was back with the host {:.1} s after it was freed,",
            time.as_secs_f64()
        ),
        None => println!(
            "Less than 90 % of it came back within {} s,",
            WITHIN.as_secs()
        ),
    }
    println!(
        "{:.1} % within {} s.",
        figure.part * 100.0,
        WITHIN.as_secs()
    );
    let statistics = below(&lines, "demo: after");
    if !statistics.is_empty() {
        println!("\n/sys/kernel/mm/page_reporting in the guest, at the end:");
        statistics.iter().for_each(|line| println!("{line}"));
    }
    println!(
        "\nThen, pages outside the direct map: /sys/kernel/debug/unmapped_alloc (blocks of 4 KiB \
         << order)\nand /proc/meminfo in the guest. DirectMap2M falls where 2M mappings are split."
    );
    show(&lines, "unmapped: ");
    println!(
        "\nAnd memory that is locked, mlock(2), with and without pages that were cleared before \
         (echo 1T >\n/sys/kernel/mm/page_zero/flush). An emulated CPU clears memory far faster \
         than it does all else."
    );
    show(&lines, "zero: ");
    Ok(())
}

/// Prints all that begins with `prefix`, and the indented lines that follow.
fn show(lines: &[String], prefix: &str) {
    for title in lines.iter().filter(|line| line.starts_with(prefix)) {
        println!("\n{}", title.trim_start_matches(prefix));
        below(lines, title)
            .iter()
            .for_each(|line| println!("{line}"));
    }
}

/// The indented lines that follow a line.
fn below<'a>(lines: &'a [String], title: &str) -> Vec<&'a String> {
    let rest = lines.iter().skip_while(|line| *line != title).skip(1);
    rest.take_while(|line| line.starts_with("  ")).collect()
}

/// A chart of columns, with marks below.
fn chart(samples: &[Sample], marks: &[(Duration, &str)], width: usize, height: usize) -> String {
    let Some(end) = samples.last().map(|sample| sample.time.as_secs_f64()) else {
        return String::new();
    };
    let top = samples.iter().map(|sample| sample.mib).fold(1.0, f64::max);
    // A round number of MiB for each line.
    let line = (top / height as f64 / 10.0).ceil() * 10.0;
    let column = |time: Duration| {
        ((time.as_secs_f64() / end.max(0.001) * width as f64) as usize).min(width - 1)
    };
    let mut peaks = vec![None::<f64>; width];
    for sample in samples {
        let peak = &mut peaks[column(sample.time)];
        *peak = Some(peak.map_or(sample.mib, |mib| mib.max(sample.mib)));
    }
    // A column without a sample is like the one before.
    let mut last = 0.0;
    let columns: Vec<f64> = peaks
        .into_iter()
        .map(|peak| {
            last = peak.unwrap_or(last);
            last
        })
        .collect();
    let eighths = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let mut text = String::new();
    for row in (0..height).rev() {
        let label = if row % 2 == 1 {
            format!("{:6.0}", line * (row + 1) as f64)
        } else {
            " ".repeat(6)
        };
        let cells: String = columns
            .iter()
            .map(|mib| eighths[((mib / line - row as f64).clamp(0.0, 1.0) * 8.0).round() as usize])
            .collect();
        text += &format!("{label} │{cells}\n", cells = cells.trim_end());
    }
    let mut axis: Vec<char> = "─".repeat(width).chars().collect();
    let mut names: Vec<char> = " ".repeat(width + 12).chars().collect();
    for (time, name) in marks {
        axis[column(*time)] = '▲';
        for (at, letter) in name.chars().enumerate() {
            names[column(*time) + at] = letter;
        }
    }
    text += &format!("       └{}\n", axis.iter().collect::<String>());
    text += &format!("        {}\n", names.iter().collect::<String>().trim_end());
    let time = format!("{end:.0} s");
    text + &format!("        0 s{time:>rest$}\n", rest = width - 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_shows_rise_and_fall() {
        let sample = |time: u64, mib| Sample {
            time: Duration::from_secs(time),
            mib,
        };
        let samples: Vec<_> = (0..=10)
            .map(|t| sample(t, if (4..7).contains(&t) { 100.0 } else { 50.0 }))
            .collect();
        let text = chart(
            &samples,
            &[
                (Duration::from_secs(4), "filled"),
                (Duration::from_secs(7), "x"),
            ],
            10,
            2,
        );
        let rows: Vec<_> = text.lines().collect();
        assert_eq!(rows[0], "   100 │    ███");
        assert_eq!(rows[1], "       │██████████");
        assert_eq!(rows[2], "       └────▲──▲──");
        assert_eq!(rows[3], "            filxed");
        assert_eq!(rows[4], "        0 s   10 s");
    }

    #[test]
    fn an_empty_chart_is_empty() {
        assert_eq!(chart(&[], &[], 10, 2), "");
    }
}
