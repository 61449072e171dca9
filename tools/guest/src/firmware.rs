// SPDX-License-Identifier: GPL-2.0

//! UEFI firmware (OVMF), which confidential guests boot from.
//!
//! `-shim`, by which the loader of tools/testing/coco gets in, needs edk2-stable202502 or later.
//! A QEMU that is new enough for us comes with one that is, or its distribution has one.

use crate::cache::{Place, Version};
use crate::machine::value;
use crate::progress::output;
use crate::setup::find_program;
use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Firmware in two flash chips: the code, and the variables that it starts with.
#[derive(Clone, Debug, PartialEq)]
pub struct Flash {
    pub code: PathBuf,
    pub variables: PathBuf,
}

/// Code and variables, below a root.
const FLASH: &[(&str, &str)] = &[
    (
        "usr/share/OVMF/OVMF_CODE_4M.fd",
        "usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
    (
        "usr/share/edk2/ovmf/OVMF_CODE.fd",
        "usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
];

/// Firmware in one piece, for `-bios`, as guests on hardware need it.
const WHOLE: &[&str] = &[
    "usr/share/ovmf/OVMF.fd",
    "usr/share/OVMF/OVMF.fd",
    "usr/share/edk2/x64/OVMF.4m.fd",
    "usr/share/edk2/ovmf/OVMF.fd",
];

impl Flash {
    /// The firmware that goes with the QEMU that is used.
    pub fn find(place: &Place) -> Result<Self> {
        Self::candidates(place)
            .into_iter()
            .find(|flash| flash.code.is_file() && flash.variables.is_file())
            .with_context(|| missing(place))
    }

    fn candidates(place: &Place) -> Vec<Self> {
        let mut all = Vec::new();
        // What QEMU was built with, first: an installation from source has only that.
        if let Some(prefix) = native_prefix() {
            all.push(Self {
                code: prefix.join("share/qemu/edk2-x86_64-code.fd"),
                variables: prefix.join("share/qemu/edk2-i386-vars.fd"),
            });
        }
        for root in roots(place) {
            all.extend(FLASH.iter().map(|(code, variables)| Self {
                code: root.join(code),
                variables: root.join(variables),
            }));
        }
        all
    }

    /// QEMU's arguments; `variables` is a copy that the guest may write to.
    pub fn args(&self, variables: &Path) -> [String; 4] {
        let drive = |unit, path: &Path, more: &str| {
            let path = value(path);
            format!("if=pflash,format=raw,unit={unit}{more},file={path}")
        };
        [
            "-drive".into(),
            drive(0, &self.code, ",readonly=on"),
            "-drive".into(),
            drive(1, variables, ""),
        ]
    }
}

/// The firmware for guests on hardware.
pub fn whole(place: &Place) -> Result<PathBuf> {
    let paths = roots(place)
        .into_iter()
        .flat_map(|root| WHOLE.iter().map(move |path| root.join(path)));
    let mut found = paths.filter(|path| path.is_file());
    found.next().with_context(|| missing(place))
}

fn missing(place: &Place) -> String {
    let least = place.kernel.get("OVMF").unwrap_or_default();
    format!("no UEFI firmware (OVMF, edk2) {least} or later: install the package ovmf or edk2-ovmf")
}

/// Where a native QEMU is installed.
fn native_prefix() -> Option<PathBuf> {
    let program = find_program("qemu-system-x86_64")?.canonicalize().ok()?;
    Some(program.parent()?.parent()?.to_path_buf())
}

/// The folders that firmware may be in, the system's first, if it is new enough.
fn roots(place: &Place) -> Vec<PathBuf> {
    let mut roots = Vec::new();
    if system_is_new_enough(place).is_ok() {
        roots.push(PathBuf::from("/"));
    }
    roots.push(place.cache.join("qemu"));
    roots
}

/// Images do not say their version, packages do. Without dpkg, the distribution is trusted.
fn system_is_new_enough(place: &Place) -> Result<()> {
    if find_program("dpkg-query").is_none() {
        return Ok(());
    }
    let version = output(Command::new("dpkg-query").args(["-W", "-f", "${Version}", "ovmf"]))?;
    let least = place.kernel.version("OVMF")?;
    if Version::find(&version) < Some(least.clone()) {
        bail!("the package ovmf is {version}, older than {least}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_writes_only_to_its_copy() {
        let flash = Flash {
            code: "/f/CODE.fd".into(),
            variables: "/f/VARS.fd".into(),
        };
        let args = flash.args(Path::new("/tmp/a,b.fd")).join(" ");
        assert!(
            args.contains("unit=0,readonly=on,file=/f/CODE.fd"),
            "{args}"
        );
        assert!(args.ends_with("unit=1,file=/tmp/a,,b.fd"), "{args}");
        assert!(!args.contains("VARS"), "{args}");
    }
}
