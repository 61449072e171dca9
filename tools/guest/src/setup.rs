// SPDX-License-Identifier: GPL-2.0

//! Tools: found where they are, installed where they are missing.
//!
//! Distribution packages go to the system (apt, as root). What the distribution has only in an
//! older version (bindgen, QEMU) goes to the cache and leaves the system alone.

use crate::apt::PrivateApt;
use crate::cache::{Place, Version};
use crate::firmware::Flash;
use crate::progress::{output, run, run_in, step};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

enum Probe {
    Program(&'static str),
    File(&'static str),
    StaticLibc,
    StaticBusybox,
    Llvm,
    Rust,
}

/// What is needed, and the packages that have it: on Debian 12, and on later Debian and Ubuntu.
const NEEDS: &[(Probe, &str, &str)] = &[
    (Probe::Program("gcc"), "gcc libc6-dev", "gcc libc6-dev"),
    (Probe::StaticLibc, "libc6-dev", "libc6-dev"),
    (Probe::Program("make"), "make", "make"),
    (Probe::Program("git"), "git", "git"),
    (Probe::Program("patch"), "patch", "patch"),
    (Probe::Program("perl"), "perl", "perl"),
    (Probe::Program("python3"), "python3", "python3"),
    (Probe::Program("flex"), "flex", "flex"),
    (Probe::Program("bison"), "bison", "bison"),
    (Probe::Program("bc"), "bc", "bc"),
    (
        Probe::File("/usr/include/gelf.h"),
        "libelf-dev",
        "libelf-dev",
    ),
    (
        Probe::File("/usr/include/openssl/ssl.h"),
        "libssl-dev",
        "libssl-dev",
    ),
    (Probe::Program("depmod"), "kmod", "kmod"),
    (Probe::Program("cpio"), "cpio", "cpio"),
    (Probe::Program("rsync"), "rsync", "rsync"),
    (Probe::Program("xz"), "xz-utils", "xz-utils"),
    (
        Probe::Program("curl"),
        "curl ca-certificates",
        "curl ca-certificates",
    ),
    (Probe::Program("shellcheck"), "shellcheck", "shellcheck"),
    (Probe::StaticBusybox, "busybox-static", "busybox-static"),
    (
        Probe::Llvm,
        "clang-19 lld-19 llvm-19 libclang-19-dev",
        "clang lld llvm libclang-dev",
    ),
    (
        Probe::Rust,
        "rustc-web rust-web-src rust-web-clippy rustfmt-web",
        "rustc rust-src rust-clippy rustfmt",
    ),
];

/// The compilers and QEMU, by the names and paths that work on this machine.
pub struct Tools {
    llvm_suffix: String,
    rust_bin: PathBuf,
    bindgen: PathBuf,
    pub qemu: Vec<String>,
}

impl Tools {
    /// Finds everything, without installing anything.
    pub fn find(place: &Place) -> Result<Self> {
        let hint = "run `make setup`";
        Ok(Self {
            llvm_suffix: llvm_suffix(place).context(hint)?,
            rust_bin: rust_bin(place).context(hint)?,
            bindgen: bindgen(place).context(hint)?,
            qemu: qemu(place).context(hint)?,
        })
    }

    /// The linker of UEFI programs, by its name.
    pub fn lld_link(&self) -> String {
        format!("lld-link{}", self.llvm_suffix)
    }

    pub fn rust_tool(&self, name: &str) -> PathBuf {
        self.rust_bin.join(name)
    }

    /// The arguments that make every `make` of the kernel use these tools.
    pub fn make_args(&self) -> Vec<String> {
        let rust = |variable: &str, name| format!("{variable}={}", self.rust_tool(name).display());
        let llvm = if self.llvm_suffix.is_empty() {
            "1"
        } else {
            &self.llvm_suffix
        };
        vec![
            format!("LLVM={llvm}"),
            rust("RUSTC", "rustc"),
            rust("HOSTRUSTC", "rustc"),
            rust("RUSTDOC", "rustdoc"),
            rust("RUSTFMT", "rustfmt"),
            rust("CLIPPY_DRIVER", "clippy-driver"),
            format!("BINDGEN={}", self.bindgen.display()),
        ]
    }
}

pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // depmod and the like are not on the PATH of every user.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

fn version_of(program: &Path) -> Option<Version> {
    Version::find(&output(Command::new(program).arg("--version")).ok()?)
}

/// The newest of clang, clang-21, ... that is new enough, as the kernel's `LLVM=` wants it.
fn llvm_suffix(place: &Place) -> Result<String> {
    let least = place.kernel.version("LLVM")?;
    let whole = |suffix: &String| {
        let all = [
            "clang",
            "ld.lld",
            "lld-link",
            "llvm-nm",
            "llvm-objcopy",
            "llvm-readelf",
        ];
        all.iter()
            .all(|tool| find_program(&format!("{tool}{suffix}")).is_some())
            && find_program(&format!("clang{suffix}")).and_then(|p| version_of(&p))
                >= Some(least.clone())
    };
    let mut names = (17..=30)
        .rev()
        .map(|n| format!("-{n}"))
        .chain([String::new()]);
    names
        .find(whole)
        .with_context(|| format!("no clang, lld and llvm tools of {least} or later"))
}

/// The folder of a rustc that has its library's source. The distribution's comes first: rustup's
/// is earlier on many PATHs, and mostly without `rust-src`.
fn rust_bin(place: &Place) -> Result<PathBuf> {
    let least = place.kernel.version("RUSTC")?;
    let good = |bin: &PathBuf| {
        let rustc = bin.join("rustc");
        let whole = ["rustc", "rustdoc", "rustfmt", "clippy-driver"];
        if !whole.iter().all(|tool| bin.join(tool).is_file())
            || version_of(&rustc) < Some(least.clone())
        {
            return false;
        }
        let sysroot = output(Command::new(&rustc).args(["--print", "sysroot"])).unwrap_or_default();
        Path::new(sysroot.trim())
            .join("lib/rustlib/src/rust/library/core/src/lib.rs")
            .is_file()
    };
    let on_path = find_program("rustc").and_then(|p| p.parent().map(Path::to_path_buf));
    let mut bins = [PathBuf::from("/usr/bin")].into_iter().chain(on_path);
    bins.find(good).with_context(|| {
        format!(
            "no rustc {least} or later with rustfmt, clippy and its library's source (rust-src)"
        )
    })
}

fn bindgen(place: &Place) -> Result<PathBuf> {
    let least = place.kernel.version("BINDGEN")?;
    let names = [place.cache.join("bindgen/bin/bindgen")]
        .into_iter()
        .chain(find_program("bindgen"));
    let mut good = names.filter(|p| p.is_file() && version_of(p) >= Some(least.clone()));
    good.next()
        .with_context(|| format!("no bindgen {least} or later"))
}

/// QEMU, by preference the system's.
fn qemu(place: &Place) -> Result<Vec<String>> {
    let least = place.kernel.version("QEMU")?;
    if let Some(native) = find_program("qemu-system-x86_64") {
        if version_of(&native) >= Some(least.clone()) {
            return Ok(vec![native.display().to_string()]);
        }
    }
    let root = place.cache.join("qemu");
    let in_root = |path: &str| root.join(path).display().to_string();
    if !root.join(".whole").is_file() {
        bail!("no qemu-system-x86_64 {least} or later");
    }
    // The loader by hand instead of chroot: that needs no privilege.
    let libraries = in_root("usr/lib/x86_64-linux-gnu");
    Ok(vec![
        in_root("usr/lib64/ld-linux-x86-64.so.2"),
        "--library-path".into(),
        format!("{libraries}:{libraries}/pulseaudio"),
        in_root("usr/bin/qemu-system-x86_64"),
        "-L".into(),
        in_root("usr/share/qemu"),
        "-L".into(),
        in_root("usr/share/seabios"),
    ])
}

fn present(probe: &Probe, place: &Place) -> bool {
    match probe {
        Probe::Program(name) => find_program(name).is_some(),
        Probe::File(path) => Path::new(path).exists(),
        // Where it is, only the compiler knows.
        Probe::StaticLibc => output(Command::new("gcc").arg("-print-file-name=libc.a"))
            .is_ok_and(|path| Path::new(path.trim()).is_absolute()),
        Probe::StaticBusybox => busybox().is_ok(),
        Probe::Llvm => llvm_suffix(place).is_ok() && libclang(),
        Probe::Rust => rust_bin(place).is_ok(),
    }
}

/// bindgen loads libclang when it runs.
fn libclang() -> bool {
    let llvm = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let mut folders: Vec<_> = llvm
        .map(|e| e.path().join("lib"))
        .filter(|p| p.is_dir())
        .collect();
    folders.extend([
        "/usr/lib64".into(),
        "/usr/lib".into(),
        "/usr/lib/x86_64-linux-gnu".into(),
    ]);
    folders
        .iter()
        .flat_map(fs::read_dir)
        .flatten()
        .flatten()
        .any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("libclang") && name.contains(".so")
        })
}

/// A busybox that runs without libraries: the guest has none.
pub fn busybox() -> Result<PathBuf> {
    let path = find_program("busybox").context("no busybox")?;
    let headers = output(Command::new("readelf").args(["-lW"]).arg(&path))?;
    if headers.contains("INTERP") {
        bail!("{} is not static", path.display());
    }
    Ok(path)
}

/// `make setup`.
pub fn setup(place: &Place) -> Result<()> {
    packages(place)?;
    if bindgen(place).is_err() {
        install_bindgen(place)?;
    }
    // With QEMU comes firmware; a native QEMU may be without.
    if qemu(place).is_err() || Flash::find(place).is_err() {
        install_qemu(place)?;
    }
    Tools::find(place).map(drop)
}

fn release() -> (String, String) {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |key: &str| {
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches('"').to_string()
    };
    (
        format!("{} {}", field("ID"), field("ID_LIKE")),
        field("VERSION_ID"),
    )
}

fn has_apt(id: &str) -> bool {
    find_program("apt-get").is_some() && (id.contains("debian") || id.contains("ubuntu"))
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn install(place: &Place, names: &[&str]) -> Result<()> {
    run(
        "setup: apt-get update",
        &place.log("apt-update"),
        Command::new("apt-get").arg("update"),
    )?;
    run(
        &format!("setup: install {}", names.join(" ")),
        &place.log("apt-install"),
        Command::new("apt-get")
            .args(["install", "-y", "--no-install-recommends"])
            .args(["-o", "DPkg::Lock::Timeout=300"])
            .args(names)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

/// Installs libraries, by their packages and a file of each, if that can be done here: what wants them
/// does without.
pub fn libraries(place: &Place, wanted: &[(&'static str, &str)]) -> Result<()> {
    let missing = wanted.iter().filter(|(_, file)| !Path::new(file).exists());
    let names: Vec<_> = missing.map(|(name, _)| *name).collect();
    if names.is_empty() || !is_root() || !has_apt(&release().0) {
        return Ok(());
    }
    install(place, &names)
}

fn packages(place: &Place) -> Result<()> {
    let (id, version) = release();
    let debian_12 = id.starts_with("debian") && version == "12";
    let missing = || {
        let needs = NEEDS.iter().filter(|(probe, ..)| !present(probe, place));
        let names = needs.flat_map(|(_, debian12, newer)| {
            (if debian_12 { debian12 } else { newer }).split_whitespace()
        });
        let mut names: Vec<_> = names.collect();
        names.sort();
        names.dedup();
        names
    };
    let names = missing();
    if names.is_empty() {
        return Ok(());
    }
    let apt = has_apt(&id);
    if !apt || !is_root() {
        let why = if apt {
            "not root"
        } else {
            "not a Debian or Ubuntu system"
        };
        bail!(
            "these are missing, and cannot be installed here ({why}); by Debian's names:\n  {}\n\
             needed are rustc {} with rust-src, and clang {} or later: {}",
            names.join(" "),
            place.kernel.get("RUSTC")?,
            place.kernel.get("LLVM")?,
            if apt {
                "install them with apt-get as root, then run the same command again"
            } else {
                "install them (rustup component add rust-src rustfmt clippy is enough for Rust), then run the same command again"
            }
        );
    }
    install(place, &names)?;
    let names = missing();
    if !names.is_empty() {
        bail!(
            "installed, but still missing or too old: {} (needed: rustc {} with rust-src, clang {})",
            names.join(" "),
            place.kernel.get("RUSTC")?,
            place.kernel.get("LLVM")?
        );
    }
    Ok(())
}

fn install_bindgen(place: &Place) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run(
        "setup: cargo install bindgen-cli",
        &place.log("bindgen"),
        Command::new(cargo)
            .args(["install", "--locked", "bindgen-cli", "--root"])
            .arg(place.cache.join("bindgen"))
            .arg("--target-dir")
            .arg(place.cache.join("target")),
    )
}

fn install_qemu(place: &Place) -> Result<()> {
    let least = place.kernel.get("QEMU")?;
    step("setup: QEMU into the cache", |step| {
        let apt = PrivateApt::new(place).with_context(|| {
            format!(
                "QEMU {least} or later and its UEFI firmware are needed: install qemu-system-x86_64 and ovmf (edk2-ovmf), and run this again"
            )
        })?;
        let log = place.log("qemu");
        apt.update(step)?;
        let install = [
            "-y",
            "--download-only",
            "install",
            "qemu-system-x86",
            "ovmf",
        ];
        run_in(step, &log, apt.command().args(install))?;
        let root = place.cache.join("qemu");
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root)?;
        for entry in fs::read_dir(apt.archives())? {
            let package = entry?.path();
            if package.extension().is_some_and(|e| e == "deb") {
                run_in(
                    step,
                    &log,
                    Command::new("dpkg-deb").arg("-x").arg(package).arg(&root),
                )?;
            }
        }
        fs::write(root.join(".whole"), "")?;
        fs::remove_dir_all(apt.archives())?;
        let command = qemu(place)?;
        let version = output(
            Command::new(&command[0])
                .args(&command[1..])
                .arg("--version"),
        )?;
        if Version::find(&version) < Some(place.kernel.version("QEMU")?) {
            fs::remove_dir_all(&root)?;
            bail!(
                "the suites of KERNEL have only {}",
                version.lines().next().unwrap_or_default()
            );
        }
        Ok(())
    })
}
