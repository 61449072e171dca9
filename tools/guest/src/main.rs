// SPDX-License-Identifier: GPL-2.0

//! The command behind the Makefile.

mod boot;
mod build;
mod cache;
mod console;
mod ktap;
mod progress;
mod series;
mod setup;
mod tree;

use anyhow::Result;
use cache::Place;
use clap::{Parser, Subcommand};
use setup::Tools;
use tree::Tree;

#[derive(Parser)]
#[command(about = "Builds, boots and tests kernels with the freepage series", max_term_width = 100)]
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
    Build {
        /// guest, base (C implementations) or debug (KASAN, lockdep, ...)
        #[arg(env = "CONFIG", default_value = "guest")]
        config: String,
    },
    /// Boot a guest: a shell, or RUN='command' in it
    Boot {
        #[arg(env = "CONFIG", default_value = "guest")]
        config: String,
        /// A shell command to run in the guest instead of a shell
        #[arg(long, env = "RUN")]
        run: Option<String>,
        /// More words for the kernel's command line
        #[arg(long, env = "APPEND")]
        append: Option<String>,
        /// The guest's memory in MiB
        #[arg(long, env = "MEMORY", default_value_t = 3072)]
        memory: u32,
        /// The guest's CPUs
        #[arg(long, env = "CPUS", default_value_t = 2)]
        cpus: u32,
    },
}

fn main() -> Result<()> {
    let args = Args::parse();
    let place = Place::find()?;
    match args.command {
        Command::Setup => {
            let _lock = place.lock()?;
            setup::setup(&place)
        }
        Command::Tree => {
            let _lock = place.lock()?;
            let tree = Tree::update(&place)?;
            println!("{}", tree.root().display());
            Ok(())
        }
        Command::Build { config } => {
            let build = built(&place, &Tools::find(&place)?, &config)?;
            println!("{}", build.image().display());
            Ok(())
        }
        Command::Boot { config, run, append, memory, cpus } => {
            let tools = Tools::find(&place)?;
            let build = built(&place, &tools, &config)?;
            let machine = boot::Machine {
                memory_mib: memory,
                cpus,
                append: append.into_iter().collect(),
                ..Default::default()
            };
            match run.filter(|run| !run.is_empty()) {
                None => boot::shell(&place, &tools, &build, &machine),
                Some(job) => {
                    let run = boot::Run { machine, ..boot::Run::new(&place, &tools, &build, "boot", &job) };
                    let outcome = progress::step(&format!("boot {config}"), |step| {
                        run.run(step, |_, line| line.into_iter().for_each(|line| println!("{line}")))
                    })?;
                    outcome.success()
                }
            }
        }
    }
}

/// Tree, kernel and kselftests, up to date.
fn built(place: &Place, tools: &Tools, config: &str) -> Result<build::Build> {
    let _lock = place.lock()?;
    let tree = Tree::update(place)?;
    let build = build::build(place, &tree, tools, config)?;
    build::kselftest(place, &tree, tools, &build)?;
    Ok(build)
}
