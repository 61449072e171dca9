// SPDX-License-Identifier: GPL-2.0

//! Kernel builds: configuration, kernel, kselftests.

use crate::cache::{Place, read, write};
use crate::progress::{output, run_in, run_logged, step};
use crate::setup::Tools;
use crate::tree::Tree;
use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// The kernels that are built; each is a list of fragments in `configs/`, later ones on top.
pub const CONFIGS: &[(&str, &[&str])] = &[("guest", &["guest"]), ("debug", &["guest", "debug"])];

/// Kernels of `make check-all`: the one that ours are compared with, and, since what a configuration
/// leaves out is not tested, ones with each of our options alone.
pub const RARE_CONFIGS: &[(&str, &[&str])] = &[
    ("base", &["guest", "base"]),
    ("no-execmem", &["guest", "no-execmem"]),
    ("jitalloc", &["guest", "base", "jitalloc"]),
    ("unmapped", &["guest", "base", "unmapped"]),
    ("reporting", &["guest", "base", "reporting"]),
    ("zeroing", &["guest", "base", "zeroing"]),
    ("unaccepted", &["guest", "base", "unaccepted"]),
];

/// What is built by other means than `build`.
const OTHER_CONFIGS: &[(&str, &[&str])] = &[
    ("kunit", &["kunit"]),
    ("upstream", &["guest", "upstream"]),
    ("upstream-base", &["guest", "base", "upstream"]),
];

/// A built kernel.
pub struct Build {
    pub config: String,
    pub folder: PathBuf,
    _own: Option<TempDir>,
}

const IMAGE: &str = "arch/x86/boot/bzImage";
const KSELFTEST: &str = "kselftest/kselftest_install";
const CONFIG: &str = ".config";

impl Build {
    pub fn image(&self) -> PathBuf {
        self.folder.join(IMAGE)
    }

    pub fn kselftest(&self) -> PathBuf {
        self.folder.join(KSELFTEST)
    }

    pub fn kernel_config(&self) -> PathBuf {
        self.folder.join(CONFIG)
    }

    /// A copy of what guests need, which goes with its owner: other commands may build the same
    /// kernel, or clean up, while guests run.
    pub fn own(self, place: &Place) -> Result<Self> {
        let own = place.scratch()?;
        let parts = [IMAGE, KSELFTEST, CONFIG].map(|part| self.folder.join(".").join(part));
        let mut cp = Command::new("rsync");
        // With the folders after "/./"; tests may not have been built.
        cp.args(["--archive", "--copy-links", "--relative"]);
        cp.args(parts.iter().filter(|part| part.exists()));
        output(cp.arg(own.path()))?;
        Ok(Self {
            folder: own.path().to_path_buf(),
            config: self.config,
            _own: Some(own),
        })
    }
}

/// Python would leave bytecode in the tree, which is to be what the series makes of it.
pub const NO_BYTECODE: [(&str, &str); 1] = [("PYTHONDONTWRITEBYTECODE", "1")];

pub fn make(tree: &Tree, tools: &Tools, folder: &Path) -> Command {
    let mut make = Command::new("make");
    // One more than there are CPUs, as some of them wait for the disk.
    let jobs = std::thread::available_parallelism().map_or(1, usize::from) + 1;
    make.arg("-C")
        .arg(tree.root())
        .arg(format!("O={}", folder.display()));
    make.args(tools.make_args()).arg(format!("-j{jobs}"));
    // The outer make's variables and job server are not for the kernel's make.
    for name in [
        "MAKEFLAGS",
        "MFLAGS",
        "MAKELEVEL",
        "MAKEOVERRIDES",
        "CONFIG",
        "KSRC",
        "LLVM",
    ] {
        make.env_remove(name);
    }
    make.env("KBUILD_BUILD_USER", "freepage")
        .env("KBUILD_BUILD_HOST", "freepage")
        .envs(NO_BYTECODE);
    make
}

/// Configures and builds one kernel.
pub fn build(place: &Place, tree: &Tree, tools: &Tools, config: &str) -> Result<Build> {
    build_in(place, tree, tools, config, config, true)
}

/// The same in a build folder of another name; `whole` as in `configure_in`.
pub fn build_in(
    place: &Place,
    tree: &Tree,
    tools: &Tools,
    config: &str,
    name: &str,
    whole: bool,
) -> Result<Build> {
    let build = Build {
        config: config.to_string(),
        folder: tree.build(name),
        _own: None,
    };
    step(&format!("build {name}"), |step| {
        step.note("configure");
        let conf = make(tree, tools, &build.folder);
        configure_in(place, conf, config, &build.folder, whole)?;
        let log = place.log(&format!("build-{name}"));
        run_in(
            step,
            &log,
            make(tree, tools, &build.folder).args(["bzImage", "modules"]),
        )
    })?;
    Ok(build)
}

/// The names that CONFIG can have.
pub fn config_names() -> impl Iterator<Item = &'static str> {
    CONFIGS.iter().chain(RARE_CONFIGS).map(|(name, _)| *name)
}

fn fragments(config: &str) -> Result<&'static [&'static str]> {
    let mut all = CONFIGS.iter().chain(RARE_CONFIGS).chain(OTHER_CONFIGS);
    all.find(|(name, _)| *name == config)
        .map(|(_, list)| *list)
        .with_context(|| {
            let names: Vec<_> = config_names().collect();
            format!("no config '{config}': there are {}", names.join(", "))
        })
}

/// Writes the build folder's .config, by `conf`, a `make` without a target. With `whole`, every
/// option asked for must be in it; without, options that are not in the tree (yet), or not for the
/// architecture, may be missing.
pub fn configure_in(
    place: &Place,
    mut conf: Command,
    config: &str,
    folder: &Path,
    whole: bool,
) -> Result<()> {
    let mut wanted = Options::new();
    for name in fragments(config)? {
        let path = place.repo.join("configs").join(format!("{name}.config"));
        wanted.extend(options(&read(&path)?));
    }
    fs::create_dir_all(folder)?;
    let request = folder.join("freepage.config");
    let text: String = wanted
        .iter()
        .map(|(name, value)| setting(name, value) + "\n")
        .collect();
    write(&request, text.as_bytes(), 0o644)?;
    // Made aside: if the outcome is the same, .config keeps its time, and make its objects.
    let scratch = folder.join(".config.freepage");
    conf.arg("allnoconfig")
        .env("KCONFIG_ALLCONFIG", &request)
        .env("KCONFIG_CONFIG", &scratch);
    run_logged(&place.log(&format!("config-{config}")), &mut conf, |_| {})?;
    let got = read(&scratch)?;
    if whole {
        verify(&wanted, &options(&got)).with_context(|| {
            format!("config '{config}': Kconfig did not keep what was asked for")
        })?;
    }
    if got.as_bytes() != fs::read(folder.join(".config")).unwrap_or_default() {
        write(&folder.join(".config"), got.as_bytes(), 0o644)?;
    }
    fs::remove_file(&scratch)?;
    Ok(())
}

/// Option to value; "n" for one that is not set.
type Options = BTreeMap<String, String>;

fn options(text: &str) -> Options {
    let line = |line: &str| {
        let unset = line
            .strip_prefix("# ")
            .and_then(|l| l.strip_suffix(" is not set"));
        match unset {
            Some(name) => Some((name.to_string(), "n".to_string())),
            None if line.starts_with("CONFIG_") => line
                .split_once('=')
                .map(|(name, value)| (name.to_string(), value.to_string())),
            None => None,
        }
    };
    text.lines().filter_map(|l| line(l.trim())).collect()
}

fn setting(name: &str, value: &str) -> String {
    if value == "n" {
        format!("# {name} is not set")
    } else {
        format!("{name}={value}")
    }
}

/// Whether every option that was asked for is in the outcome; the error names those that are not.
fn verify(wanted: &Options, got: &Options) -> Result<()> {
    let value = |name: &str| got.get(name).map_or("n", String::as_str);
    let lost = wanted.iter().filter(|(name, want)| value(name) != *want);
    let lost: Vec<_> = lost
        .map(|(name, want)| format!("  {name}: asked for {want}, got {}", value(name)))
        .collect();
    if !lost.is_empty() {
        bail!(
            "options with unmet dependencies, or that the kernel does not have:\n{}",
            lost.join("\n")
        );
    }
    Ok(())
}

/// Builds and installs our kselftests for one kernel, if there are any yet.
///
/// Test modules are built where their source is. The kernels share the tree, so each gets a copy
/// of the tests, beside links to what they take from the tree.
pub fn kselftest(place: &Place, tree: &Tree, tools: &Tools, build: &Build) -> Result<bool> {
    const TESTS: &str = "tools/testing/selftests";
    let root = tree.root();
    if !root.join(TESTS).join("freepage/Makefile").is_file() {
        return Ok(false);
    }
    let stage = build.folder.join("kselftest-source");
    let log = place.log(&format!("kselftest-build-{}", build.config));
    step(&format!("kselftest build {}", build.config), |step| {
        fs::create_dir_all(stage.join(TESTS))?;
        for name in [
            "arch",
            "include",
            "scripts",
            "Makefile",
            "tools/include",
            "tools/lib",
            "tools/scripts",
            "tools/arch",
        ] {
            if fs::symlink_metadata(stage.join(name)).is_err() {
                symlink(root.join(name), stage.join(name))?;
            }
        }
        let mut rsync = Command::new("rsync");
        rsync.arg("-a").args([
            "Makefile",
            "lib.mk",
            "kselftest.h",
            "kselftest_harness.h",
            "run_kselftest.sh",
            "kselftest",
        ]);
        rsync
            .args(["freepage", "kselftest_module.h"])
            .arg(stage.join(TESTS).join(""));
        run_in(step, &log, rsync.current_dir(root.join(TESTS)))?;
        // Sources that are gone from the overlay must go here too; what was built stays.
        prune(
            &root.join(TESTS).join("freepage"),
            &stage.join(TESTS).join("freepage"),
        )?;
        run_in(step, &log, make(tree, tools, &build.folder).arg("headers"))?;
        let _ = fs::remove_dir_all(build.kselftest());
        let mut install = make(tree, tools, &build.folder);
        install.arg("-C").arg(stage.join(TESTS));
        install.args([
            "TARGETS=freepage",
            "FORCE_TARGETS=1",
            "USERLDFLAGS=-static",
            "install",
        ]);
        install.arg(format!("KDIR={}", build.folder.display()));
        install.arg(format!("KSFT_INSTALL_PATH={}", build.kselftest().display()));
        run_in(step, &log, &mut install)
    })?;
    Ok(true)
}

/// Removes source files that are no longer in `from`.
fn prune(from: &Path, copy: &Path) -> Result<()> {
    for entry in fs::read_dir(copy)?.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let source = path
            .extension()
            .is_some_and(|e| e == "c" || e == "h" || e == "sh");
        if path.is_dir() && from.join(&name).is_dir() {
            prune(&from.join(&name), &path)?;
        } else if source
            && !path.to_string_lossy().ends_with(".mod.c")
            && !from.join(&name).exists()
        {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_was_dropped_is_named() {
        let wanted = options(
            "CONFIG_RUST=y\n# CONFIG_SLUB_TINY is not set\nCONFIG_NR_CPUS=64\nCONFIG_KASAN=y\n",
        );
        let got = options("CONFIG_RUST=y\nCONFIG_NR_CPUS=8\n");
        let error = verify(&wanted, &got).unwrap_err().to_string();
        assert!(
            error.contains("CONFIG_NR_CPUS: asked for 64, got 8"),
            "{error}"
        );
        assert!(
            error.contains("CONFIG_KASAN: asked for y, got n"),
            "{error}"
        );
        assert!(
            !error.contains("RUST") && !error.contains("SLUB_TINY"),
            "{error}"
        );
        verify(&wanted, &wanted).unwrap();
    }

    #[test]
    fn a_later_fragment_wins() {
        let mut wanted = options("CONFIG_A=y\nCONFIG_B=y\n");
        wanted.extend(options("# CONFIG_A is not set\n"));
        assert_eq!(
            setting("CONFIG_A", &wanted["CONFIG_A"]),
            "# CONFIG_A is not set"
        );
        assert_eq!(wanted["CONFIG_B"], "y");
    }
}
