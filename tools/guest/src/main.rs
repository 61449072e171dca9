// SPDX-License-Identifier: GPL-2.0

//! The command behind the Makefile.

mod apt;
mod bench;
mod boot;
mod build;
mod cache;
mod check;
mod coco;
mod console;
mod demo;
mod firmware;
mod guests;
mod ktap;
mod lint;
mod machine;
mod progress;
mod series;
mod setup;
mod submit;
mod tree;

use anyhow::{Context, Result};
use build::Build;
use cache::Place;
use clap::{Parser, Subcommand};
use machine::Machine;
use setup::Tools;
use std::{fs, path::Path, process::ExitCode};
use tree::Tree;

#[derive(Parser)]
#[command(
    about = "Builds, boots and tests kernels with the freepage series",
    max_term_width = 100
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing
    Setup,
    /// Lay out the kernel tree: base, overlay, patches
    Tree,
    /// Build one kernel and its kselftests
    Build(Which),
    /// Boot a guest: a shell, or a command in it
    Boot {
        #[command(flatten)]
        which: Which,
        /// A shell command to run in the guest instead of a shell
        #[arg(long, env = "RUN")]
        run: Option<String>,
        /// More words for the kernel's command line
        #[arg(long, env = "APPEND")]
        append: Option<String>,
        /// The guest's memory in MiB
        #[arg(long, env = "MEMORY")]
        memory: Option<u32>,
        /// The guest's CPUs
        #[arg(long, env = "CPUS")]
        cpus: Option<u32>,
        #[command(flatten)]
        wanted: coco::Wanted,
    },
    /// Show memory that goes back to the host
    Demo,
    /// Run every test
    Check,
    /// Run the KUnit tests, on UML and in the guest
    Kunit(Which),
    /// Run the kselftests in the guest
    Kselftest {
        #[command(flatten)]
        which: Which,
        /// One test, as freepage:NAME
        #[arg(long, env = "TEST")]
        test: Option<String>,
        #[command(flatten)]
        wanted: coco::Wanted,
    },
    /// Run kernels as emulated TDX and SEV-SNP guests, and see that mistakes are caught
    Coco,
    /// See whether memory that the guest frees comes back to the host
    HostMemory(Which),
    /// Check style: tools, kernel Rust, shell, patches
    Lint,
    /// Compare the Rust and the C implementations; without a name, all benches
    Bench { name: Option<String> },
    /// Write the series as patches for git am
    Series {
        /// "all" also builds every step of it, compares mm/ with the base's with all options off, and
        /// compiles mm/ for arm64
        #[arg(long, env = "VERIFY")]
        verify: Option<String>,
    },
    /// Remove trees, build folders and logs from the cache; downloads and tools stay
    Clean,
}

#[derive(clap::Args)]
struct Which {
    /// guest, base (C implementations) or debug (KASAN, lockdep, ...)
    #[arg(env = "CONFIG", default_value = "guest")]
    config: String,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let place = Place::find()?;
    // Held while the cache is written to; a guest that runs does not need it.
    let lock = place.lock()?;
    if matches!(args.command, Command::Setup) {
        return setup::setup(&place);
    }
    if matches!(args.command, Command::Clean) {
        return clean(&place);
    }
    let tools = Tools::find(&place)?;
    let built = |config: &str| -> Result<Build> {
        let tree = Tree::update(&place)?;
        let build = build::build(&place, &tree, &tools, config)?;
        build::kselftest(&place, &tree, &tools, &build)?;
        Ok(build)
    };
    match args.command {
        Command::Setup | Command::Clean => unreachable!("done above"),
        Command::Tree => println!("{}", Tree::update(&place)?.root().display()),
        Command::Build(Which { config }) => println!("{}", built(&config)?.image().display()),
        Command::Boot {
            which: Which { config },
            run,
            append,
            memory,
            cpus,
            wanted,
        } => {
            // First, as it may be refused.
            let platform = wanted.platform(&place, &tools)?;
            let build = built(&config)?;
            drop(lock);
            let usual = Machine::of(platform);
            let machine = Machine {
                memory_mib: memory.unwrap_or(usual.memory_mib),
                cpus: cpus.unwrap_or(usual.cpus),
                append: append.into_iter().collect(),
                ..usual
            };
            match run.filter(|run| !run.is_empty()) {
                None => boot::shell(&place, &tools, &build, &machine)?,
                Some(job) => boot_job(&place, &tools, &build, machine, &job)?,
            }
        }
        Command::Demo => {
            let build = built("guest")?;
            drop(lock);
            demo::demo(&place, &tools, &build)?;
        }
        Command::Check => check::check(&place, &tools)?,
        Command::Kunit(Which { config }) => {
            let tree = Tree::update(&place)?;
            println!("uml: {}", guests::kunit_uml(&place, &tree, &tools)?);
            let build = built(&config)?;
            drop(lock);
            println!("{config}: {}", guests::kunit(&place, &tools, &build)?);
        }
        Command::Kselftest {
            which: Which { config },
            test,
            wanted,
        } => {
            let platform = wanted.platform(&place, &tools)?;
            let build = built(&config)?;
            drop(lock);
            let sum = guests::kselftest(&place, &tools, &build, platform, test.as_deref())?;
            println!("{config}: {sum}");
        }
        Command::Coco => {
            let (guest, base) = (built("guest")?, built("base")?);
            drop(lock);
            check::coco(&place, &tools, guest, base)?;
        }
        Command::HostMemory(Which { config }) => {
            let build = built(&config)?;
            drop(lock);
            guests::host_memory(&place, &tools, &build)?;
        }
        Command::Lint => {
            lint::tools(&place, &tools)?;
            lint::shell(&place)?;
            let tree = Tree::update(&place)?;
            lint::kernel_rust(&place, &tree, &tools)?;
            let folder = submit::write_series(&place, &tree)?;
            submit::checkpatch(&place, &tree, &folder)?;
        }
        Command::Bench { name } => {
            let (guest, base) = (built("guest")?, built("base")?);
            drop(lock);
            for name in bench::named(name.as_deref())? {
                for path in bench::bench(&place, &tools, name, &guest, &base)? {
                    println!("{}", path.display());
                }
            }
        }
        Command::Series { verify } => {
            let tree = Tree::update(&place)?;
            let folder = submit::write_series(&place, &tree)?;
            submit::verify_series(&place, &tree, &folder)?;
            submit::checkpatch(&place, &tree, &folder)?;
            if verify.as_deref() == Some("all") {
                submit::unchanged_when_off(&place, &tree, &tools)?;
                submit::compiles_for_arm64(&place, &tree, &tools)?;
                submit::verify_steps(&place, &tree, &tools)?;
            }
            println!("{}", folder.display());
        }
    }
    Ok(())
}

/// Runs a job in a guest and shows what it says.
fn boot_job(
    place: &Place,
    tools: &Tools,
    build: &Build,
    machine: Machine,
    job: &str,
) -> Result<()> {
    let run = boot::Run {
        machine,
        ..boot::Run::new(place, tools, build, "boot", job)
    };
    let show = |_, line: Option<&str>| line.into_iter().for_each(|line| println!("{line}"));
    progress::step(&format!("boot {}", build.config), |step| {
        let outcome = run.run(step, show)?;
        if let Some(report) = &outcome.report {
            println!("{report}");
        }
        outcome.success()
    })
}

fn clean(place: &Place) -> Result<()> {
    for entry in fs::read_dir(&place.cache)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("linux-") || name.starts_with("ksrc-") {
            for part in fs::read_dir(&path)?.flatten().map(|part| part.path()) {
                if !part.ends_with("pristine") {
                    remove(&part)?;
                }
            }
        } else if ["logs", "results", "target-coco", "target-lint", "tmp"].contains(&&*name) {
            remove(&path)?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}
