// SPDX-License-Identifier: GPL-2.0

//! The command behind the Makefile.

mod apt;
mod args;
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
mod picture;
mod progress;
mod results;
mod series;
mod setup;
mod submit;
mod tree;
mod upstream;

use anyhow::{Context, Result};
use build::Build;
use cache::Place;
use clap::{Parser, Subcommand, builder::FalseyValueParser};
use guests::Pick;
use machine::Machine;
use setup::Tools;
use std::{collections::BTreeSet, fs, path::Path, process::ExitCode};
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
        #[command(flatten)]
        boot: args::Boot,
        #[command(flatten)]
        wanted: coco::Wanted,
    },
    /// Show memory that goes back to the host
    Demo,
    /// Run every test
    Check {
        /// Also what is long or rare
        #[arg(long)]
        all: bool,
        /// Only the steps with one of these texts, separated by commas, in their names
        #[arg(long, env = "STEPS")]
        steps: Option<String>,
        /// Not the tests that have passed before, if nothing has changed since
        #[arg(long, env = "RESUME", value_parser = FalseyValueParser::new())]
        resume: bool,
    },
    /// Run the kernel's own selftests of memory management, and compare what they say with the base
    CheckUpstream,
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
    Coco {
        /// Only the cases with this text in their names
        #[arg(long, env = "CASE", default_value = "")]
        case: String,
    },
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
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What can be said to be wrong before any work is done.
fn check_arguments(place: &Place, command: &Command) -> Result<()> {
    args::check_names()?;
    match command {
        Command::Build(which) | Command::Kunit(which) | Command::HostMemory(which) => {
            args::config(&which.config)
        }
        Command::Boot { which, wanted, .. } => {
            wanted.kind()?;
            args::config(&which.config)
        }
        Command::Check { all, steps, resume } => check::check_steps(&check::Wanted {
            all: *all,
            steps: steps.clone(),
            resume: *resume,
        }),
        Command::Kselftest {
            which,
            test,
            wanted,
        } => {
            wanted.kind()?;
            args::config(&which.config)?;
            let test = test.as_deref();
            test.map_or(Ok(()), |test| args::test(&place.repo, test))
        }
        Command::Coco { case } => coco::cases_with(case).map(drop),
        Command::Bench { name } => bench::named(name.as_deref()).map(drop),
        Command::Series { verify } => args::verify(verify.as_deref()).map(drop),
        Command::Setup
        | Command::Tree
        | Command::Demo
        | Command::CheckUpstream
        | Command::Lint
        | Command::Clean => Ok(()),
    }
}

fn run(args: Args) -> Result<ExitCode> {
    let place = Place::find()?;
    check_arguments(&place, &args.command)?;
    let guest = match &args.command {
        Command::Boot { boot, .. } => Some(boot.parse()?),
        _ => None,
    };
    let result = work(&place, args.command, guest);
    result.map_err(|error| match place.free_mib() {
        Ok(free) if free < 64 => error.context(format!(
            "the disk of {} is full ({free} MiB are free)",
            place.cache.display()
        )),
        _ => error,
    })
}

fn work(place: &Place, command: Command, guest: Option<args::Guest>) -> Result<ExitCode> {
    // Held while the cache is written to; a guest that runs does not need it.
    let lock = place.lock()?;
    place.sweep();
    if matches!(command, Command::Clean) {
        return clean(place).map(|()| ExitCode::SUCCESS);
    }
    place.check_space()?;
    if guest.as_ref().is_some_and(|guest| guest.run.is_some()) {
        progress::be_quiet();
    }
    setup::setup(place)?;
    if matches!(command, Command::Setup) {
        return Ok(ExitCode::SUCCESS);
    }
    let tools = Tools::find(place)?;
    let built = |config: &str| -> Result<Build> {
        let tree = Tree::update(place)?;
        let build = build::build(place, &tree, &tools, config)?;
        build::kselftest(place, &tree, &tools, &build)?;
        Ok(build)
    };
    let own = |config: &str| built(config)?.own(place);
    match command {
        Command::Setup | Command::Clean => unreachable!("done above"),
        Command::Tree => println!("{}", Tree::update(place)?.root().display()),
        Command::Build(Which { config }) => println!("{}", built(&config)?.image().display()),
        Command::Boot {
            which: Which { config },
            wanted,
            ..
        } => {
            // First, as it may be refused.
            let platform = wanted.platform(place, &tools)?;
            let guest = guest.context("boot has its arguments")?;
            let build = built(&config)?;
            // What is printed is for later.
            let build = if guest.wishes.dry {
                build
            } else {
                build.own(place)?
            };
            drop(lock);
            let machine = guest.machine(platform);
            let (run, wishes) = (guest.run, guest.wishes);
            if wishes.dry {
                boot::dry(place, &tools, &build, &machine, run.as_deref(), &wishes)?;
            } else if let Some(job) = run {
                return boot_job(place, &tools, &build, machine, &job, wishes);
            } else {
                boot::shell(place, &tools, &build, &machine, &wishes)?;
            }
        }
        Command::Demo => {
            let build = own("guest")?;
            drop(lock);
            demo::demo(place, &tools, &build)?;
        }
        Command::Check { all, steps, resume } => {
            let wanted = check::Wanted { all, steps, resume };
            check::check(place, &tools, &wanted)?;
        }
        Command::CheckUpstream => {
            let tree = Tree::update(place)?;
            let built = upstream::prepare(place, &tree, &tools)?;
            drop(lock);
            println!("{}", upstream::compare(place, &tools, &built)?);
        }
        Command::Kunit(Which { config }) => {
            let tree = Tree::update(place)?;
            let mut cases = Vec::new();
            let uml = guests::kunit_uml(place, &tree, &tools, &mut cases)?;
            println!("uml: {uml}");
            let build = own(&config)?;
            drop(lock);
            let guest = guests::kunit(place, &tools, &build, &mut cases)?;
            println!("{config}: {guest}");
        }
        Command::Kselftest {
            which: Which { config },
            test,
            wanted,
        } => {
            let platform = wanted.platform(place, &tools)?;
            let build = own(&config)?;
            drop(lock);
            let pick = test.as_deref().map_or(Pick::All, Pick::One);
            let cases = &mut Vec::new();
            let sum = guests::kselftest(place, &tools, &build, platform, pick, cases)?;
            println!("{config}: {sum}");
        }
        Command::Coco { case } => {
            let cases = coco::cases_with(&case)?;
            let configs: BTreeSet<_> = cases.iter().map(|case| case.config).collect();
            let build = |config| Ok((config, own(config)?));
            let builds = configs.into_iter().map(build).collect::<Result<_>>()?;
            drop(lock);
            check::coco(place, &tools, cases, &builds)?;
        }
        Command::HostMemory(Which { config }) => {
            let build = own(&config)?;
            drop(lock);
            guests::host_memory(place, &tools, &build, &mut Vec::new())?;
        }
        Command::Lint => {
            lint::tools(place, &tools)?;
            lint::shell(place)?;
            let tree = Tree::update(place)?;
            lint::kernel_rust(place, &tree, &tools)?;
            let folder = submit::write_series(place, &tree)?;
            submit::checkpatch(place, &tree, &folder)?;
        }
        Command::Bench { name } => {
            let (guest, base) = (own("guest")?, own("base")?);
            drop(lock);
            for name in bench::named(name.as_deref())? {
                for path in bench::bench(place, &tools, name, &guest, &base)? {
                    println!("{}", path.display());
                }
            }
        }
        Command::Series { verify } => {
            let tree = Tree::update(place)?;
            let folder = submit::write_series(place, &tree)?;
            submit::verify_series(place, &tree, &folder)?;
            submit::checkpatch(place, &tree, &folder)?;
            if args::verify(verify.as_deref())? {
                submit::unchanged_when_off(place, &tree, &tools)?;
                submit::compiles_for_arm64(place, &tree, &tools)?;
                submit::verify_steps(place, &tree, &tools)?;
            }
            println!("{}", folder.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a command in a guest; its exit status is ours.
fn boot_job(
    place: &Place,
    tools: &Tools,
    build: &Build,
    machine: Machine,
    job: &str,
    wishes: boot::Wishes,
) -> Result<ExitCode> {
    let usual = boot::Run::new(place, tools, build, "boot", job);
    let run = boot::Run {
        machine,
        shown: true,
        files: wishes.files,
        // Who says how long it may take, also says how long it may say nothing.
        silence: wishes.timeout.unwrap_or(usual.silence),
        limit: wishes.timeout.unwrap_or(usual.limit),
        ..usual
    };
    let status = progress::step(&format!("boot {}", build.config), |step| {
        let outcome = run.run(step, |_, _| {})?;
        if let Some(report) = &outcome.report {
            eprintln!("{report}");
        }
        outcome.sound()?;
        Ok(outcome.exit.unwrap_or(1))
    })?;
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)))
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
        } else if ["logs", "results", "target-coco", "target-lint"].contains(&&*name) {
            remove(&path)?;
        }
    }
    // Guests that run have theirs in it.
    let _ = fs::remove_dir(place.cache.join("tmp"));
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
