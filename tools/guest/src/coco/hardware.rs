// SPDX-License-Identifier: GPL-2.0

//! Confidential guests on hardware: QEMU's arguments, as its documentation has them
//! (docs/system/i386/tdx.rst and amd-memory-encryption.rst), and what the host must have for them.
//!
//! Not run on hardware yet.

use super::Kind;
use crate::machine::value;
use crate::progress::output;
use crate::setup::Tools;
use anyhow::{Result, bail};
use raw_cpuid::cpuid;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

#[derive(Clone, Debug, PartialEq)]
pub struct Hardware {
    kind: Kind,
    firmware: PathBuf,
    encryption: Encryption,
}

/// How an AMD processor marks encrypted memory.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Encryption {
    /// The bit of a physical address that does.
    bit: u32,
    /// How many bits fewer a physical address has then.
    reduction: u32,
}

impl Encryption {
    /// CPUID 0x8000001f, EBX: bits 5:0 and 11:6 (AMD64 Architecture Programmer's Manual, volume 3).
    fn of(ebx: u32) -> Self {
        Self {
            bit: ebx & 0x3f,
            reduction: ebx >> 6 & 0x3f,
        }
    }

    fn of_host() -> Self {
        if cpuid!(0x8000_0000).eax < 0x8000_001f {
            return Self::of(0);
        }
        Self::of(cpuid!(0x8000_001f).ebx)
    }
}

impl Hardware {
    /// A guest of this kind, if the host can have it.
    pub fn find(kind: Kind, tools: &Tools, firmware: Result<PathBuf>) -> Result<Self> {
        let objects = output(
            Command::new(&tools.qemu[0])
                .args(&tools.qemu[1..])
                .args(["-object", "help"]),
        )?;
        let mut missing = missing(kind, Path::new("/"), &objects);
        let firmware = match firmware {
            Ok(path) if File::open(&path).is_ok() => path,
            Ok(path) => {
                missing.push(format!("{} cannot be read (FIRMWARE=)", path.display()));
                path
            }
            Err(error) => {
                missing.push(format!("{error}, or name an image with FIRMWARE="));
                PathBuf::new()
            }
        };
        if !missing.is_empty() {
            bail!(
                "this host cannot run {kind} guests:\n  {}\nwithout HARDWARE=1 the guest is emulated",
                missing.join("\n  ")
            );
        }
        Ok(Self {
            kind,
            firmware,
            encryption: Encryption::of_host(),
        })
    }

    /// QEMU's arguments. Private memory comes from guest_memfd; what the guest shares, from a memfd.
    pub fn args(&self, memory_mib: u32) -> Vec<String> {
        let Encryption { bit, reduction } = self.encryption;
        let (machine, object) = match self.kind {
            Kind::Tdx => (",kernel-irqchip=split", "tdx-guest,id=coco0".to_string()),
            Kind::Snp => (
                ",vmport=off",
                format!("sev-snp-guest,id=coco0,cbitpos={bit},reduced-phys-bits={reduction}"),
            ),
        };
        let machine = format!("q35{machine},confidential-guest-support=coco0,memory-backend=ram0");
        let memory = format!("memory-backend-memfd,id=ram0,size={memory_mib}M,share=true");
        let mut args: Vec<String> = ["-accel", "kvm", "-cpu", "host"].map(String::from).into();
        args.extend(["-machine".into(), machine]);
        args.extend(["-object".into(), object, "-object".into(), memory]);
        args.extend(["-bios".into(), value(&self.firmware)]);
        args
    }
}

/// What the host below `root` lacks, and what to do about it.
fn missing(kind: Kind, root: &Path, objects: &str) -> Vec<String> {
    let mut missing = Vec::new();
    let mut need = |there: bool, what: &str| {
        if !there {
            missing.push(what.to_string());
        }
    };
    let can_open = |path: &str| {
        let file = File::options().read(true).write(true).open(root.join(path));
        file.is_ok()
    };
    let on = |path: &str| {
        let text = fs::read_to_string(root.join(path)).unwrap_or_default();
        matches!(text.trim(), "Y" | "1")
    };
    need(
        can_open("dev/kvm"),
        "/dev/kvm cannot be opened: load kvm_intel or kvm_amd, and be root or in the group kvm",
    );
    let object = match kind {
        Kind::Tdx => {
            need(
                on("sys/module/kvm_intel/parameters/tdx"),
                "kvm_intel has no TDX: it takes a CPU with TDX, TDX enabled in the BIOS, a kernel \
                 with CONFIG_KVM_INTEL_TDX (6.16 or later), and kvm_intel.tdx=1",
            );
            "tdx-guest"
        }
        Kind::Snp => {
            need(
                on("sys/module/kvm_amd/parameters/sev_snp"),
                "kvm_amd has no SEV-SNP: it takes a CPU with SEV-SNP, SNP enabled in the BIOS, a \
                 kernel with CONFIG_KVM_AMD_SEV (6.11 or later), and kvm_amd.sev_snp=1",
            );
            need(
                can_open("dev/sev"),
                "/dev/sev cannot be opened: load ccp, and be root",
            );
            "sev-snp-guest"
        }
    };
    need(
        objects.split_whitespace().any(|word| word == object),
        &format!("QEMU knows no object {object}: it was built without, or is too old"),
    );
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn guest(kind: Kind) -> String {
        let hardware = Hardware {
            kind,
            firmware: "/f/OVMF.fd".into(),
            encryption: Encryption::of(0x173),
        };
        hardware.args(8192).join(" ")
    }

    #[test]
    fn a_tdx_guest_has_its_object_and_a_split_irqchip() {
        assert_eq!(
            guest(Kind::Tdx),
            "-accel kvm -cpu host -machine q35,kernel-irqchip=split,\
             confidential-guest-support=coco0,memory-backend=ram0 -object tdx-guest,id=coco0 \
             -object memory-backend-memfd,id=ram0,size=8192M,share=true -bios /f/OVMF.fd"
        );
    }

    #[test]
    fn an_snp_guest_has_the_hosts_encryption_bit() {
        let args = guest(Kind::Snp);
        let object = "-object sev-snp-guest,id=coco0,cbitpos=51,reduced-phys-bits=5 ";
        assert!(args.contains(object), "{args}");
        assert!(
            args.contains("-machine q35,vmport=off,confidential"),
            "{args}"
        );
    }

    #[test]
    fn a_host_that_has_everything_lacks_nothing() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        put(root, "dev/kvm", "");
        put(root, "dev/sev", "");
        put(root, "sys/module/kvm_intel/parameters/tdx", "Y\n");
        put(root, "sys/module/kvm_amd/parameters/sev_snp", "Y\n");
        let objects = "List of user creatable objects:\n  sev-snp-guest\n  tdx-guest\n";
        assert_eq!(missing(Kind::Tdx, root, objects), [""; 0]);
        assert_eq!(missing(Kind::Snp, root, objects), [""; 0]);
        // Each of them is missed when it is not there.
        put(root, "sys/module/kvm_intel/parameters/tdx", "N\n");
        let said = missing(Kind::Tdx, root, objects);
        assert!(
            matches!(&said[..], [one] if one.contains("kvm_intel.tdx=1")),
            "{said:?}"
        );
        fs::remove_file(root.join("dev/sev")).unwrap();
        let said = missing(Kind::Snp, root, "tdx-guest");
        assert!(
            said[0].contains("/dev/sev") && said[1].contains("sev-snp-guest"),
            "{said:?}"
        );
        assert_eq!(said.len(), 2);
    }

    #[test]
    fn a_host_that_has_nothing_lacks_all() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(missing(Kind::Tdx, root.path(), "").len(), 3);
        assert_eq!(missing(Kind::Snp, root.path(), "").len(), 4);
    }
}
