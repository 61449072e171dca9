// SPDX-License-Identifier: GPL-2.0

//! The make variables: which there are, what each target takes, and what values they can have. All of
//! it is looked at before any work is done, and messages name the variable.

use crate::boot::Wishes;
use crate::build::config_names;
use crate::cache::read;
use crate::machine::{Machine, Platform};
use anyhow::{Context, Result, bail};
use clap::builder::FalseyValueParser;
use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

/// Variables that every target takes.
const EVERYWHERE: &[&str] = &["FREEPAGE_CACHE", "KSRC"];

const GUEST: &[&str] = &["TDX", "SNP", "HARDWARE", "FIRMWARE", "PLUGIN", "UNACCEPTED"];

/// What a target takes besides.
const TARGETS: &[(&str, &[&str])] = &[
    ("build", &["CONFIG"]),
    (
        "boot",
        &[
            "CONFIG", "RUN", "APPEND", "MEMORY", "CPUS", "TIMEOUT", "FILES", "QEMU", "DRY",
        ],
    ),
    ("check", &["STEPS", "RESUME"]),
    ("check-all", &["STEPS", "RESUME"]),
    ("kunit", &["CONFIG"]),
    ("kselftest", &["CONFIG", "TEST"]),
    ("coco", &["CASE"]),
    ("host-memory", &["CONFIG"]),
    ("series", &["VERIFY"]),
];

/// Whether this target takes the options of confidential guests.
fn confidential(target: &str) -> bool {
    matches!(target, "boot" | "kselftest")
}

fn takes(target: &str, name: &str) -> bool {
    let own = TARGETS.iter().find(|(known, _)| *known == target);
    EVERYWHERE.contains(&name)
        || own.is_some_and(|(_, names)| names.contains(&name))
        || confidential(target) && GUEST.contains(&name)
}

/// The variables that were given on make's command line are ones that one of the targets takes. What
/// the environment has is nobody's mistake.
pub fn check_names() -> Result<()> {
    let of = |name| env::var(name).unwrap_or_default();
    let (given, targets) = (of("FREEPAGE_GIVEN"), of("FREEPAGE_TARGETS"));
    refuse(
        &given.split_whitespace().collect::<Vec<_>>(),
        &targets.split_whitespace().collect::<Vec<_>>(),
    )
}

fn refuse(given: &[&str], targets: &[&str]) -> Result<()> {
    for name in given {
        if targets.iter().any(|target| takes(target, name)) {
            continue;
        }
        let by: Vec<_> = TARGETS
            .iter()
            .map(|(target, _)| *target)
            .filter(|target| takes(target, name))
            .collect();
        if !by.is_empty() {
            bail!(
                "{name} is not for {}: it is for {}",
                targets.join(" "),
                by.join(", ")
            );
        }
        let known = TARGETS.iter().flat_map(|(_, names)| *names);
        let known = known.chain(EVERYWHERE).chain(GUEST);
        let near = known
            .map(|known| {
                (
                    strsim::damerau_levenshtein(known, &name.to_uppercase()),
                    known,
                )
            })
            .min()
            .filter(|(distance, _)| *distance <= 2);
        match near {
            Some((_, near)) => bail!("there is no variable {name}: is {near} meant?"),
            None => bail!("there is no variable {name}: `make` alone shows what there is"),
        }
    }
    Ok(())
}

/// What `boot` takes besides the kernel and the kind of guest. All are texts, so that it is us who say
/// what is wrong with one.
#[derive(clap::Args, Default)]
pub struct Boot {
    /// A shell command to run in the guest instead of a shell
    #[arg(long, env = "RUN")]
    run: Option<String>,
    /// More words for the kernel's command line
    #[arg(long, env = "APPEND")]
    append: Option<String>,
    /// The guest's memory, as 3G, or in MiB
    #[arg(long, env = "MEMORY")]
    memory: Option<String>,
    /// The guest's CPUs
    #[arg(long, env = "CPUS")]
    cpus: Option<String>,
    /// How long the command may take, and may say nothing: seconds, or as 5m
    #[arg(long, env = "TIMEOUT")]
    timeout: Option<String>,
    /// A folder that is /files in the guest
    #[arg(long, env = "FILES")]
    files: Option<PathBuf>,
    /// More options of QEMU's
    #[arg(long, env = "QEMU")]
    qemu: Option<String>,
    /// Print QEMU's command line instead of running it
    #[arg(long, env = "DRY", value_parser = FalseyValueParser::new())]
    dry: bool,
}

/// The same, understood.
#[derive(Debug)]
pub struct Guest {
    pub run: Option<String>,
    append: Option<String>,
    memory_mib: Option<u32>,
    cpus: Option<u32>,
    qemu: Vec<String>,
    pub wishes: Wishes,
}

impl Boot {
    pub fn parse(&self) -> Result<Guest> {
        let qemu = self.qemu.as_deref().unwrap_or_default();
        let qemu = shlex::split(qemu).with_context(|| format!("QEMU={qemu}: a quote is open"))?;
        let run = self.run.clone().filter(|run| !run.trim().is_empty());
        let timeout = self.timeout.as_deref().map(timeout).transpose()?;
        if timeout.is_some() && run.is_none() {
            bail!("TIMEOUT is for a command: give RUN='...' with it, or leave it out");
        }
        let memory_mib = self.memory.as_deref().map(memory).transpose()?;
        let files = self.files.as_deref().map(folder).transpose()?;
        Ok(Guest {
            run,
            append: self.append.clone(),
            memory_mib,
            cpus: self.cpus.as_deref().map(cpus).transpose()?,
            qemu,
            wishes: Wishes {
                files,
                timeout,
                dry: self.dry,
            },
        })
    }
}

impl Guest {
    pub fn machine(&self, platform: Platform) -> Machine {
        let usual = Machine::of(platform);
        Machine {
            memory_mib: self.memory_mib.unwrap_or(usual.memory_mib),
            cpus: self.cpus.unwrap_or(usual.cpus),
            append: self.append.iter().cloned().collect(),
            qemu_args: self.qemu.clone(),
            ..usual
        }
    }
}

/// FILES. They are unpacked into the guest's memory.
fn folder(path: &Path) -> Result<PathBuf> {
    const MOST: u64 = 512 << 20;
    let given = path.display();
    let folder = path
        .canonicalize()
        .ok()
        .filter(|folder| folder.is_dir())
        .with_context(|| format!("FILES={given}: there is no such folder"))?;
    let mut size = 0;
    for entry in ignore::WalkBuilder::new(&folder)
        .standard_filters(false)
        .build()
    {
        size += entry?.metadata()?.len();
        if size > MOST {
            bail!(
                "FILES={given}: more than {} MiB do not fit into the guest",
                MOST >> 20
            );
        }
    }
    Ok(folder)
}

/// CONFIG.
pub fn config(name: &str) -> Result<()> {
    let names: Vec<_> = config_names().collect();
    if !names.contains(&name) {
        bail!(
            "CONFIG={name}: there is no such kernel; choose {}",
            names.join(", ")
        );
    }
    Ok(())
}

/// MEMORY, in MiB: a number of MiB, or a size as 3G or 1.5G.
pub fn memory(text: &str) -> Result<u32> {
    const LEAST: f64 = 512.0;
    // What QEMU is told to leave room for, with the DIMM.
    const MOST: f64 = 63.0 * 1024.0;
    let trimmed = text.trim();
    let upper = trimmed.to_ascii_uppercase();
    let digits = upper.trim_end_matches('B').trim_end_matches('I');
    let (number, unit) = match digits.chars().last() {
        Some('G') => (&digits[..digits.len() - 1], 1024.0),
        Some('M') => (&digits[..digits.len() - 1], 1.0),
        _ => (upper.as_str(), 1.0),
    };
    let plain = !number.is_empty() && number.chars().all(|c| c.is_ascii_digit() || c == '.');
    let mib = number
        .parse::<f64>()
        .ok()
        .filter(|_| plain)
        .map(|n| n * unit);
    let mib = mib.with_context(|| format!("MEMORY={text}: not a size; write 3G or 3072 (MiB)"))?;
    if !(LEAST..=MOST).contains(&mib) {
        bail!(
            "MEMORY={text}: that is {mib} MiB; a guest has {LEAST} MiB to {} GiB",
            MOST / 1024.0
        );
    }
    Ok(mib as u32)
}

/// CPUS.
pub fn cpus(text: &str) -> Result<u32> {
    // CONFIG_NR_CPUS in configs/guest.config.
    const MOST: u32 = 64;
    match text.trim().parse() {
        Ok(number @ 1..=MOST) => Ok(number),
        _ => bail!("CPUS={text}: a guest has 1 to {MOST} CPUs"),
    }
}

/// TIMEOUT, in seconds, or as 5m or 2h.
pub fn timeout(text: &str) -> Result<Duration> {
    let trimmed = text.trim();
    let (number, unit) = match trimmed.chars().last() {
        Some('s') => (&trimmed[..trimmed.len() - 1], 1),
        Some('m') => (&trimmed[..trimmed.len() - 1], 60),
        Some('h') => (&trimmed[..trimmed.len() - 1], 3600),
        _ => (trimmed, 1),
    };
    let seconds = number.parse::<u32>().ok().filter(|number| *number > 0);
    let seconds = seconds
        .with_context(|| format!("TIMEOUT={text}: not a time; write 90 (seconds), 5m or 2h"))?;
    Ok(Duration::from_secs(u64::from(seconds) * unit))
}

/// TEST: there is such a kselftest in the repository.
pub fn test(repo: &Path, name: &str) -> Result<()> {
    let makefile = read(&repo.join("tools/testing/selftests/freepage/Makefile"))?;
    let tests = programs(&makefile);
    let plain = name.strip_prefix("freepage:").unwrap_or(name);
    if !tests.contains(&plain) {
        let names: Vec<_> = tests
            .iter()
            .map(|test| format!("freepage:{test}"))
            .collect();
        bail!(
            "TEST={name}: there is no such test; there are\n  {}",
            names.join("\n  ")
        );
    }
    Ok(())
}

/// What a kselftest Makefile runs.
fn programs(makefile: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in makefile.lines() {
        let mut rest = line.trim();
        if let Some((name, value)) = rest.split_once(":=") {
            inside = matches!(name.trim(), "TEST_PROGS" | "TEST_GEN_PROGS");
            rest = value;
        }
        if inside {
            found.extend(rest.split_whitespace().filter(|word| *word != "\\"));
        }
        inside = inside && line.ends_with('\\');
    }
    found
}

/// VERIFY.
pub fn verify(value: Option<&str>) -> Result<bool> {
    match value {
        None | Some("") => Ok(false),
        Some("all") => Ok(true),
        Some(other) => bail!("VERIFY={other}: it is 'all', or left out"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_do_nothing_are_refused() {
        refuse(&["CPUS", "KSRC", "TDX"], &["boot"]).unwrap();
        refuse(&["CONFIG"], &["tree", "build"]).unwrap();
        refuse(&[], &[]).unwrap();
        let says = |given: &str, target: &str| refuse(&[given], &[target]).unwrap_err().to_string();
        assert_eq!(
            says("CPU", "boot"),
            "there is no variable CPU: is CPUS meant?"
        );
        assert_eq!(
            says("memory", "boot"),
            "there is no variable memory: is MEMORY meant?"
        );
        assert!(says("COLOUR", "boot").contains("`make` alone"));
        let lint = says("CONFIG", "lint");
        assert!(
            lint.starts_with("CONFIG is not for lint: it is for build, boot"),
            "{lint}"
        );
        assert!(says("TDX", "build").contains("boot, kselftest"));
    }

    #[test]
    fn the_table_has_what_each_target_takes() {
        use clap::CommandFactory;
        for command in crate::Args::command().get_subcommands() {
            let names = command.get_arguments().filter_map(|arg| arg.get_env());
            let names: Vec<_> = names.map(|name| name.to_string_lossy()).collect();
            for name in &names {
                assert!(
                    takes(command.get_name(), name),
                    "{}: {name}",
                    command.get_name()
                );
            }
            let target = TARGETS
                .iter()
                .find(|(target, _)| *target == command.get_name());
            for name in target.map_or(&[][..], |(_, names)| names) {
                assert!(
                    names.iter().any(|known| known == name),
                    "{}: {name}",
                    command.get_name()
                );
            }
        }
    }

    #[test]
    fn every_kernel_is_a_config() {
        config("guest").unwrap();
        config("no-execmem").unwrap();
        let error = config("gast").unwrap_err().to_string();
        assert!(
            error.contains("CONFIG=gast") && error.contains("guest, debug, base"),
            "{error}"
        );
    }

    #[test]
    fn memory_is_a_size() {
        for (text, mib) in [
            ("3072", 3072),
            ("3G", 3072),
            ("3g", 3072),
            ("1.5G", 1536),
            ("800M", 800),
            ("2GiB", 2048),
            ("2GB", 2048),
        ] {
            assert_eq!(memory(text).unwrap(), mib, "{text}");
        }
        for text in [
            "1", "0", "", "G", "-3G", "3T", "lots", "64G", "1e9", "nan", "3 G x",
        ] {
            let error = memory(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("MEMORY={text}:")), "{error}");
        }
    }

    #[test]
    fn what_boot_is_given_is_understood_first() {
        let boot = Boot {
            run: Some(" ".into()),
            qemu: Some("-device 'x,a=b c'".into()),
            ..Boot::default()
        };
        let guest = boot.parse().unwrap();
        assert_eq!(
            (guest.run, guest.qemu),
            (None, vec!["-device".into(), "x,a=b c".into()])
        );
        let says = |boot: Boot| boot.parse().unwrap_err().to_string();
        let text = |text: &str| Some(text.to_string());
        let quote = Boot {
            qemu: text("-device 'x"),
            ..Boot::default()
        };
        assert!(says(quote).starts_with("QEMU="));
        let timeout = Boot {
            timeout: text("5m"),
            ..Boot::default()
        };
        assert!(says(timeout).contains("give RUN="));
        let files = Boot {
            files: Some("/nowhere/at/all".into()),
            ..Boot::default()
        };
        assert!(says(files).starts_with("FILES=/nowhere/at/all:"));
    }

    #[test]
    fn cpus_are_counted() {
        assert_eq!(cpus("1").unwrap(), 1);
        assert_eq!(cpus("64").unwrap(), 64);
        for text in ["0", "65", "-1", "two", ""] {
            let error = cpus(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("CPUS={text}:")), "{error}");
        }
    }

    #[test]
    fn a_timeout_has_a_unit() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("5m", 300), ("2h", 7200)] {
            assert_eq!(timeout(text).unwrap(), Duration::from_secs(seconds));
        }
        for text in ["0", "", "m", "5d", "-1", "1.5"] {
            let error = timeout(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("TIMEOUT={text}:")), "{error}");
        }
    }

    #[test]
    fn the_makefile_says_which_tests_there_are() {
        let makefile = "TEST_PROGS := a.sh b.sh \\\n\tc.sh\nTEST_PROGS_EXTENDED := d.sh\n\
                        ifneq ($(X),)\nTEST_GEN_PROGS := e\nendif\nTEST_FILES := lib.sh\n";
        assert_eq!(programs(makefile), ["a.sh", "b.sh", "c.sh", "e"]);
    }

    #[test]
    fn verify_is_all_or_nothing() {
        assert!(verify(Some("all")).unwrap());
        assert!(!verify(None).unwrap() && !verify(Some("")).unwrap());
        let error = verify(Some("al")).unwrap_err().to_string();
        assert!(error.starts_with("VERIFY=al:"), "{error}");
    }
}
