// SPDX-License-Identifier: GPL-2.0

//! Confidential guests: emulated by tools/testing/coco, or on hardware.

mod accept;
mod bench;
mod check;
mod hardware;
mod report;
mod scaling;

pub use accept::accept;
pub use bench::bench;
pub use check::{Case, cases, cases_with};
pub use hardware::Hardware;
pub use report::{Ending, Report};

use crate::cache::Place;
use crate::firmware::{self, Flash};
use crate::lint::cargo;
use crate::machine::{Platform, value};
use crate::progress::{run_in, step};
use crate::setup::Tools;
use anyhow::{Result, bail};
use clap::builder::FalseyValueParser;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

/// Where plugin and loader are in the repository.
pub const WORKSPACE: &str = "tools/testing/coco";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tdx,
    Snp,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tdx => "tdx",
            Self::Snp => "snp",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tdx => "TDX",
            Self::Snp => "SEV-SNP",
        })
    }
}

/// What an emulated guest is made of.
#[derive(Clone)]
pub struct Parts {
    pub plugin: PathBuf,
    pub loader: PathBuf,
    pub flash: Flash,
}

/// What cargo needs for the loader: a library that no toolchain has ready for UEFI. That is the one
/// unstable thing in it.
pub fn loader_build(tools: &Tools, cargo: &mut Command) {
    cargo
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_X86_64_UNKNOWN_UEFI_LINKER", tools.lld_link());
    cargo.args(["--package=coco-loader", "--target=x86_64-unknown-uefi"]);
    cargo.args([
        "-Zbuild-std=core,compiler_builtins",
        "-Zbuild-std-features=compiler-builtins-mem",
    ]);
}

/// Builds plugin and loader, and finds the firmware. Cargo sees to it that only one does so.
pub fn build(place: &Place, tools: &Tools) -> Result<Parts> {
    let flash = Flash::find(place)?;
    let target = place.cache.join("target-coco");
    let build = || {
        let mut cargo = cargo(place, tools, WORKSPACE);
        cargo.env("CARGO_TARGET_DIR", &target);
        cargo.args(["build", "--release", "--locked"]);
        cargo
    };
    step("build coco", |step| {
        let mut plugin = build();
        plugin.arg("--package=coco");
        run_in(step, &place.log("build-coco-plugin"), &mut plugin)?;
        let mut loader = build();
        loader_build(tools, &mut loader);
        run_in(step, &place.log("build-coco-loader"), &mut loader)
    })?;
    Ok(Parts {
        plugin: target.join("release/libcoco.so"),
        loader: target.join("x86_64-unknown-uefi/release/coco-loader.efi"),
        flash,
    })
}

/// An emulated guest.
#[derive(Clone)]
pub struct Emulated {
    pub kind: Kind,
    pub parts: Parts,
    /// More options of the plugin, "check=on,cost-ns=8000".
    pub plugin: String,
    /// Which memory is unaccepted, in the loader's words; empty for its default.
    pub unaccepted: String,
}

impl Emulated {
    pub fn new(kind: Kind, parts: &Parts) -> Self {
        Self {
            kind,
            parts: parts.clone(),
            plugin: String::new(),
            unaccepted: String::new(),
        }
    }

    pub fn plugin(self, options: &str) -> Self {
        Self {
            plugin: options.into(),
            ..self
        }
    }

    /// QEMU's arguments, but for the flash.
    pub fn args(&self, report: &Path) -> Vec<String> {
        let cpu = match self.kind {
            Kind::Tdx => "max,vendor=GenuineIntel,-monitor",
            // With the leaves that announce memory encryption.
            Kind::Snp => "max,xlevel=0x80000021",
        };
        let plugin = self.plugin_option(report);
        let mut args = vec!["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", cpu];
        args.extend(["-plugin", &plugin]);
        let loader = self.parts.loader.display().to_string();
        args.extend(["-shim", &loader]);
        let unaccepted = format!(
            "name=opt/org.kernel.coco/unaccepted,string={}",
            value(&self.unaccepted)
        );
        if !self.unaccepted.is_empty() {
            args.extend(["-fw_cfg", &unaccepted]);
        }
        args.into_iter().map(String::from).collect()
    }
}

impl Emulated {
    /// Whether the plugin takes its options: QEMU loads it, and is told to end at once.
    fn try_plugin(&self, place: &Place, tools: &Tools) -> Result<()> {
        let scratch = place.scratch()?;
        let plugin = self.plugin_option(&scratch.path().join("report"));
        let mut qemu = Command::new(&tools.qemu[0]);
        qemu.args(&tools.qemu[1..]);
        qemu.args(["-machine", "none", "-accel", "tcg", "-display", "none"]);
        qemu.args(["-nodefaults", "-monitor", "stdio", "-plugin", &plugin]);
        let end = scratch.path().join("end");
        fs::write(&end, "quit\n")?;
        let out = qemu.stdin(File::open(&end)?).output()?;
        let said = String::from_utf8_lossy(&out.stderr);
        let of_plugin = said.lines().find(|line| line.starts_with("coco: "));
        match of_plugin.filter(|_| !out.status.success()) {
            Some(line) => bail!(
                "PLUGIN={}: {}",
                self.plugin,
                line.trim_start_matches("coco: ")
            ),
            None => Ok(()),
        }
    }

    fn plugin_option(&self, report: &Path) -> String {
        let (name, file) = (self.kind.name(), value(&self.parts.plugin));
        let plugin = format!("{file},guest={name},report={}", value(report));
        match self.plugin.as_str() {
            "" => plugin,
            more => format!("{plugin},{more}"),
        }
    }
}

/// Which guest the user wants.
#[derive(clap::Args)]
pub struct Wanted {
    /// A TDX guest, emulated unless --hardware is given
    #[arg(long, env = "TDX", value_parser = FalseyValueParser::new())]
    tdx: bool,
    /// A SEV-SNP guest, emulated unless --hardware is given
    #[arg(long, env = "SNP", value_parser = FalseyValueParser::new())]
    snp: bool,
    /// The TDX or SEV-SNP of this host
    #[arg(long, env = "HARDWARE", value_parser = FalseyValueParser::new())]
    hardware: bool,
    /// The firmware of a guest on hardware, if not the distribution's
    #[arg(long, env = "FIRMWARE")]
    firmware: Option<PathBuf>,
    /// More options of the plugin that emulates the guest, as check=on,cost-ns=8000
    #[arg(long, env = "PLUGIN")]
    plugin: Option<String>,
    /// Which memory of the emulated guest is unaccepted, as "all-but=1G unaligned"
    #[arg(long, env = "UNACCEPTED")]
    unaccepted: Option<String>,
}

impl Wanted {
    /// The kind of guest, if all that was given goes together.
    pub fn kind(&self) -> Result<Option<Kind>> {
        let kind = match (self.tdx, self.snp) {
            (true, true) => bail!("TDX and SNP are two kinds of guest: ask for one of them"),
            (true, false) => Some(Kind::Tdx),
            (false, true) => Some(Kind::Snp),
            (false, false) => None,
        };
        let given = [
            ("HARDWARE", self.hardware),
            ("FIRMWARE", self.firmware.is_some()),
            ("PLUGIN", self.plugin.is_some()),
            ("UNACCEPTED", self.unaccepted.is_some()),
        ];
        let without = |names: &[&str]| {
            let mut found = given.iter().filter(|(name, _)| names.contains(name));
            found.find(|(_, given)| *given).map(|(name, _)| *name)
        };
        if kind.is_none() {
            if let Some(name) = without(&["HARDWARE", "FIRMWARE", "PLUGIN", "UNACCEPTED"]) {
                bail!("{name} is for confidential guests: give TDX=1 or SNP=1 with it");
            }
        } else if self.hardware {
            if let Some(name) = without(&["PLUGIN", "UNACCEPTED"]) {
                bail!("{name} is for emulated guests: leave out HARDWARE or {name}");
            }
        } else if self.firmware.is_some() {
            bail!("FIRMWARE is for guests on hardware: give HARDWARE=1 with it, or leave it out");
        }
        let plugin = self.plugin.as_deref().unwrap_or_default();
        for ours in ["guest", "report"] {
            if plugin
                .split(',')
                .any(|word| word.split('=').next() == Some(ours))
            {
                bail!("PLUGIN has {ours}=, which is set by make itself: leave it out");
            }
        }
        if let Err(error) = coco_loader::options::Options::parse(self.words()) {
            bail!("UNACCEPTED={}: {error}", self.words());
        }
        if let Some(path) = self.firmware.as_ref().filter(|path| !path.is_file()) {
            bail!("FIRMWARE={}: there is no such file", path.display());
        }
        Ok(kind)
    }

    /// UNACCEPTED.
    fn words(&self) -> &str {
        self.unaccepted.as_deref().unwrap_or_default()
    }

    /// The platform, with what it needs built or found.
    pub fn platform(&self, place: &Place, tools: &Tools) -> Result<Platform> {
        let Some(kind) = self.kind()? else {
            return Ok(Platform::Usual);
        };
        if self.hardware {
            let firmware = match &self.firmware {
                Some(path) => Ok(path.clone()),
                None => firmware::whole(place),
            };
            return Ok(Platform::Hardware(Hardware::find(kind, tools, firmware)?));
        }
        let guest = Emulated {
            plugin: self.plugin.clone().unwrap_or_default(),
            unaccepted: self.words().into(),
            ..Emulated::new(kind, &build(place, tools)?)
        };
        if !guest.plugin.is_empty() {
            guest.try_plugin(place, tools)?;
        }
        Ok(Platform::Emulated(guest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Parts {
        Parts {
            plugin: "/t/libcoco.so".into(),
            loader: "/t/loader.efi".into(),
            flash: Flash {
                code: "/t/code".into(),
                variables: "/t/vars".into(),
            },
        }
    }

    fn wanted() -> Wanted {
        Wanted {
            tdx: false,
            snp: false,
            hardware: false,
            firmware: None,
            plugin: None,
            unaccepted: None,
        }
    }

    #[test]
    fn an_emulated_guest_has_plugin_loader_and_cpu() {
        let guest = Emulated::new(Kind::Tdx, &parts());
        let args = guest.args(Path::new("/r/a,b.json")).join(" ");
        assert!(
            args.contains("-plugin /t/libcoco.so,guest=tdx,report=/r/a,,b.json -shim"),
            "{args}"
        );
        assert!(args.contains("max,vendor=GenuineIntel,-monitor"), "{args}");
        assert!(!args.contains("fw_cfg"), "{args}");
        let guest = Emulated {
            unaccepted: "range=1G+64M unaligned".into(),
            ..Emulated::new(Kind::Snp, &parts()).plugin("check=on,list=3")
        };
        let args = guest.args(Path::new("/r"));
        assert!(args.contains(&"max,xlevel=0x80000021".to_string()));
        let plugin = "/t/libcoco.so,guest=snp,report=/r,check=on,list=3";
        assert!(args.contains(&plugin.to_string()), "{args:?}");
        let words = "name=opt/org.kernel.coco/unaccepted,string=range=1G+64M unaligned";
        assert_eq!(args.last().map(String::as_str), Some(words));
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        let both = Wanted {
            tdx: true,
            snp: true,
            ..wanted()
        };
        let plugin = Wanted {
            plugin: Some("check=on".into()),
            ..wanted()
        };
        let hardware = Wanted {
            snp: true,
            hardware: true,
            unaccepted: Some("all-but=1G".into()),
            ..wanted()
        };
        let firmware = Wanted {
            tdx: true,
            firmware: Some("/f".into()),
            ..wanted()
        };
        let report = Wanted {
            tdx: true,
            plugin: Some("check=on,report=/r".into()),
            ..wanted()
        };
        for (wanted, says) in [
            (report, "PLUGIN has report="),
            (both, "TDX and SNP"),
            (plugin, "PLUGIN is for confidential"),
            (hardware, "leave out HARDWARE or UNACCEPTED"),
            (firmware, "FIRMWARE is for guests on hardware"),
        ] {
            let error = wanted.kind().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert_eq!(wanted().kind().unwrap(), None);
        let snp = Wanted {
            snp: true,
            ..wanted()
        };
        assert_eq!(snp.kind().unwrap(), Some(Kind::Snp));
    }
}
