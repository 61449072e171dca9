// SPDX-License-Identifier: GPL-2.0

//! Style and lints: the tools, the kernel's Rust, shell scripts. And the tools' unit tests.

use crate::build::{configure_in, make};
use crate::cache::{Place, read};
use crate::coco;
use crate::progress::{run, run_in, step};
use crate::setup::Tools;
use crate::tree::{Tree, overlay};
use anyhow::{Result, bail};
use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What Rust there is outside of the kernel: folder, and the roots of its crates.
struct Workspace {
    folder: &'static str,
    roots: &'static [&'static str],
}

const TOOL: Workspace = Workspace {
    folder: "tools/guest",
    roots: &["src/main.rs"],
};

const COCO: Workspace = Workspace {
    folder: coco::WORKSPACE,
    roots: &[
        "loader/src/lib.rs",
        "loader/src/main.rs",
        "plugin/src/lib.rs",
        "protocol/src/lib.rs",
    ],
};

/// What compiles kernel code: rustfmt with the kernel's rules is for that.
const UNACCEPTED: Workspace = Workspace {
    folder: "tools/testing/unaccepted",
    roots: &["src/model.rs", "src/table.rs"],
};

/// cargo with our compiler, in a folder of the repository.
pub fn cargo(place: &Place, tools: &Tools, folder: &str) -> Command {
    let mut cargo = Command::new(cargo_program());
    cargo.current_dir(place.repo.join(folder));
    // Not the folder of the tool that runs: clippy's and the tests' builds differ from it.
    cargo
        .env("CARGO_TARGET_DIR", place.cache.join("target-lint"))
        .env("RUSTC", tools.rust_tool("rustc"))
        // Runs the examples in documentation; one of another version cannot read our crates.
        .env("RUSTDOC", tools.rust_tool("rustdoc"));
    cargo.env_remove("MAKEFLAGS");
    cargo
}

fn cargo_program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn clippy(place: &Place, tools: &Tools, folder: &str) -> Command {
    let cargo = cargo(place, tools, folder);
    let mut clippy = Command::new(tools.rust_tool("cargo-clippy"));
    clippy.args(["clippy", "--locked"]);
    clippy.env("CARGO", cargo.get_program());
    clippy.current_dir(place.repo.join(folder));
    for (name, value) in cargo.get_envs() {
        match value {
            Some(value) => clippy.env(name, value),
            None => clippy.env_remove(name),
        };
    }
    clippy
}

/// The unit tests of the tools.
pub fn unit_tests(place: &Place, tools: &Tools) -> Result<()> {
    for Workspace { folder, .. } in [TOOL, COCO, UNACCEPTED] {
        run(
            &format!("unit tests: {folder}"),
            &place.log(&format!("cargo-test-{}", base_name(folder))),
            cargo(place, tools, folder).args(["test", "--locked", "--workspace"]),
        )?;
    }
    Ok(())
}

/// rustfmt and clippy on the tools.
pub fn tools(place: &Place, tools: &Tools) -> Result<()> {
    for Workspace { folder, roots } in [TOOL, COCO, UNACCEPTED] {
        step(&format!("lint: {folder}"), |step| {
            let name = base_name(folder);
            let mut format = Command::new(tools.rust_tool("rustfmt"));
            format.current_dir(place.repo.join(folder));
            format.args(["--check", "--edition", "2024"]).args(roots);
            run_in(
                step,
                &place.log(&format!("lint-{name}-rustfmt")),
                &mut format,
            )?;
            let mut host = clippy(place, tools, folder);
            host.args(["--workspace", "--all-targets", "--", "-D", "warnings"]);
            run_in(step, &place.log(&format!("lint-{name}-clippy")), &mut host)
        })?;
    }
    // Half of the loader is there only when it is built for UEFI.
    step("lint: loader for UEFI", |step| {
        let mut uefi = clippy(place, tools, COCO.folder);
        coco::loader_build(tools, &mut uefi);
        uefi.args(["--", "-D", "warnings"]);
        run_in(step, &place.log("lint-coco-clippy-uefi"), &mut uefi)
    })
}

fn base_name(folder: &str) -> &str {
    folder.rsplit('/').next().unwrap_or(folder)
}

/// kernel-doc on our C in the kernel: what it warns of is an error.
fn kernel_doc(place: &Place, tree: &Tree, ours: &BTreeSet<PathBuf>) -> Result<()> {
    step("lint: kernel-doc", |step| {
        let is_c = |path: &&PathBuf| path.extension().is_some_and(|e| e == "c" || e == "h");
        let mut check = Command::new("python3");
        check
            .current_dir(tree.root())
            .args(["scripts/kernel-doc", "-none", "-Wall", "-Werror"])
            .args(ours.iter().filter(is_c));
        run_in(step, &place.log("lint-kernel-doc"), &mut check)
    })
}

/// kernel-doc on our C, rustfmt and clippy on our Rust in the kernel.
pub fn kernel_rust(place: &Place, tree: &Tree, tools: &Tools) -> Result<()> {
    let ours: BTreeSet<PathBuf> = overlay(&place.repo)?.into_keys().collect();
    kernel_doc(place, tree, &ours)?;
    let rust: Vec<_> = ours
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .filter(|path| !path.starts_with(COCO.folder) && !path.starts_with(UNACCEPTED.folder))
        .collect();
    if rust.is_empty() {
        return Ok(());
    }
    step("lint: kernel Rust", |step| {
        let mut format = Command::new(tools.rust_tool("rustfmt"));
        format.current_dir(tree.root()).args([
            "--check",
            "--edition",
            "2021",
            "--config-path",
            ".rustfmt.toml",
        ]);
        run_in(step, &place.log("lint-rustfmt"), format.args(&rust))?;
        let folder = tree.build("clippy");
        let conf = make(tree, tools, &folder);
        configure_in(place, conf, "guest", &folder, true)?;
        // make runs clippy only where it builds, and warnings of an earlier run count as well.
        for path in &rust {
            let _ = fs::remove_file(folder.join(path).with_extension("o"));
        }
        let folders: BTreeSet<_> = rust
            .iter()
            .filter_map(|path| path.parent())
            .filter(|p| p.starts_with("mm"))
            .collect();
        if rust.iter().any(|path| path.starts_with("rust")) {
            let _ = fs::remove_file(folder.join("rust/kernel.o"));
        }
        let targets = folders.iter().map(|path| format!("{}/", path.display()));
        let log = place.log("lint-clippy");
        run_in(
            step,
            &log,
            make(tree, tools, &folder)
                .args(["CLIPPY=1", "prepare"])
                .args(targets),
        )?;
        let seen = warnings(&read(&log)?, &tree.root(), &ours);
        if !seen.is_empty() {
            bail!(
                "clippy has warnings for our files:\n{}\n(full log: {})",
                seen.join("\n\n"),
                log.display()
            );
        }
        Ok(())
    })
}

/// The warnings in a build log that are about our files.
fn warnings(log: &str, root: &Path, ours: &BTreeSet<PathBuf>) -> Vec<String> {
    let paragraphs = log.split("\n\n").filter(|text| {
        let lines = || text.lines().map(str::trim);
        let warns = lines().any(|line| line.starts_with("warning") || line.starts_with("error"));
        warns
            && lines()
                .filter_map(|line| line.strip_prefix("--> "))
                .any(|place| {
                    let path = Path::new(place.split(':').next().unwrap_or_default());
                    ours.contains(path.strip_prefix(root).unwrap_or(path))
                })
    });
    paragraphs.map(String::from).collect()
}

/// shellcheck on every shell script of the repository.
pub fn shell(place: &Place) -> Result<()> {
    step("lint: shell", |step| {
        let mut scripts = Vec::new();
        for entry in ignore::WalkBuilder::new(&place.repo)
            .hidden(false)
            .require_git(false)
            .build()
        {
            let path = entry?.into_path();
            if path.components().any(|part| part.as_os_str() == ".git") || !path.is_file() {
                continue;
            }
            let text = fs::read(&path)?;
            let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let first = String::from_utf8_lossy(first);
            if first.starts_with("#!") && first.trim_end().ends_with("sh")
                || path.extension().is_some_and(|e| e == "sh")
            {
                scripts.push(path);
            }
        }
        // busybox's shell in the guest is of dash's kind.
        let mut check = Command::new("shellcheck");
        check.args([
            "--shell=dash",
            "--external-sources",
            "--source-path=SCRIPTDIR",
        ]);
        run_in(step, &place.log("lint-shellcheck"), check.args(&scripts))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_warnings_for_our_files_count() {
        let log = "  CLIPPY mm/freepage/freepage.o\nwarning: needless\n  --> /t/mm/freepage/zone.rs:1:2\n   |\n\n\
                   warning: theirs\n  --> /t/rust/kernel/page.rs:1:2\n\nnote: x\n --> mm/freepage/zone.rs:9\n";
        let ours = BTreeSet::from([PathBuf::from("mm/freepage/zone.rs")]);
        let seen = warnings(log, Path::new("/t"), &ours);
        assert_eq!(seen.len(), 1);
        assert!(seen[0].contains("needless"), "{seen:?}");
    }
}
