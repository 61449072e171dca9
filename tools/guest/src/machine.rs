// SPDX-License-Identifier: GPL-2.0

//! Machines: what a guest consists of, as QEMU's command line.

use crate::build::Build;
use crate::cache::Place;
use crate::coco::{Emulated, Hardware};
use crate::firmware::Flash;
use crate::setup::Tools;
use anyhow::{Context, Result};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

/// What makes a guest the kind of guest that it is.
#[derive(Clone)]
pub enum Platform {
    /// KVM where it works, else TCG. QEMU loads the kernel.
    Usual,
    /// As `Emulated`, but for the emulation: what that is compared with.
    Uefi(Flash),
    /// A TDX or SEV-SNP guest under TCG, as tools/testing/coco emulates it.
    Emulated(Emulated),
    /// A TDX or SEV-SNP guest on hardware.
    Hardware(Hardware),
}

#[derive(Clone)]
pub struct Machine {
    pub platform: Platform,
    pub memory_mib: u32,
    pub cpus: u32,
    /// NUMA nodes, 1 or 2.
    pub nodes: u32,
    /// Guest time is the number of instructions executed (nanoseconds, one CPU).
    pub icount: bool,
    /// A DIMM besides, which goes to the movable zone and can be unplugged.
    pub dimm_mib: u32,
    pub balloon: bool,
    pub append: Vec<String>,
    pub qemu_args: Vec<String>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            platform: Platform::Usual,
            memory_mib: 3072,
            cpus: 2,
            nodes: 2,
            icount: false,
            dimm_mib: 512,
            balloon: true,
            append: Vec::new(),
            qemu_args: Vec::new(),
        }
    }
}

/// The files of one guest; they go when it has gone, unless they are kept.
pub struct Files {
    folder: PathBuf,
    _scratch: Option<tempfile::TempDir>,
}

impl Files {
    pub fn new(place: &Place) -> Result<Self> {
        let scratch = place.scratch()?;
        Ok(Self {
            folder: scratch.path().to_path_buf(),
            _scratch: Some(scratch),
        })
    }

    /// In a folder that stays.
    pub fn kept(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self {
            folder,
            _scratch: None,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The socket that takes what the job prints, if it has a port of its own.
    pub fn output(&self) -> PathBuf {
        self.path("output")
    }

    pub fn initramfs(&self) -> PathBuf {
        self.path("initramfs")
    }

    /// The script of a command that is run on a port of its own.
    pub fn command(&self) -> PathBuf {
        self.path("command")
    }

    /// The guest's own copy of the firmware's variables.
    pub fn variables(&self) -> PathBuf {
        self.path("vars.fd")
    }

    /// The socket of QEMU's monitor.
    pub fn monitor(&self) -> PathBuf {
        self.path("monitor")
    }

    /// What the emulation leaves.
    pub fn report(&self) -> PathBuf {
        self.path("report.json")
    }
}

/// A path or text as the value of an option, where a comma would end it.
pub fn value(text: impl AsRef<Path>) -> String {
    text.as_ref().display().to_string().replace(',', ",,")
}

/// KVM hangs the guest where /dev/kvm is there but the CPU cannot do it.
pub fn kvm_works() -> bool {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let able = cpu.lines().any(|line| {
        line.starts_with("flags")
            && line
                .split_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm")
    });
    able && File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok()
}

impl Machine {
    /// A machine of this platform, without devices that confidential guests cannot have: their
    /// memory cannot be plugged, and a balloon needs memory that the host can reach.
    pub fn of(platform: Platform) -> Self {
        let usual = matches!(platform, Platform::Usual);
        let both = Self::default();
        let (memory_mib, nodes) = match platform {
            // The firmware accepts what is below 4 GiB itself; private memory has one backend.
            Platform::Hardware(_) => (8192, 1),
            _ => (both.memory_mib, both.nodes),
        };
        Self {
            platform,
            memory_mib,
            nodes,
            dimm_mib: if usual { both.dimm_mib } else { 0 },
            balloon: usual,
            ..both
        }
    }

    /// QEMU with all but a console. Makes what the platform needs in `files`.
    pub fn command(&self, tools: &Tools, build: &Build, files: &Files) -> Result<Command> {
        let mut qemu = Command::new(&tools.qemu[0]);
        qemu.args(&tools.qemu[1..]);
        if let Some(flash) = self.flash() {
            let copy = files.variables();
            fs::copy(&flash.variables, &copy).with_context(|| {
                let from = flash.variables.display();
                format!("cannot copy {from} to {}", copy.display())
            })?;
        }
        qemu.args(self.platform_args(files));
        qemu.args(self.memory_args());
        if self.balloon {
            qemu.args(["-device", "virtio-balloon-pci,free-page-reporting=on"]);
        }
        qemu.args(["-nic", "none", "-display", "none", "-no-reboot"]);
        qemu.arg("-kernel")
            .arg(build.image())
            .arg("-initrd")
            .arg(files.initramfs())
            .args(["-append", &self.kernel_command_line(build)])
            .args(&self.qemu_args);
        Ok(qemu)
    }

    fn flash(&self) -> Option<&Flash> {
        match &self.platform {
            Platform::Uefi(flash) => Some(flash),
            Platform::Emulated(guest) => Some(&guest.parts.flash),
            Platform::Usual | Platform::Hardware(_) => None,
        }
    }

    /// Machine type, accelerator, CPU, firmware, and what else makes the platform.
    fn platform_args(&self, files: &Files) -> Vec<String> {
        let words = |text: &str| -> Vec<String> { text.split(' ').map(String::from).collect() };
        let mut args = Vec::new();
        if let Some(flash) = self.flash() {
            args.extend(flash.args(&files.variables()));
        }
        args.extend(match &self.platform {
            Platform::Usual if self.icount => {
                words("-machine q35 -accel tcg -cpu max -icount shift=0,sleep=off")
            }
            Platform::Usual if kvm_works() => words("-machine q35 -accel kvm -cpu host"),
            // With a thread for each CPU, a CPU has been seen (once in 40 boots, host overloaded)
            // to run into a breakpoint that another had long patched away: "Oops: int3".
            Platform::Usual => words("-machine q35 -accel tcg,thread=single -cpu max"),
            Platform::Uefi(_) => words("-machine q35 -accel tcg,thread=multi -cpu max"),
            Platform::Emulated(guest) => guest.args(&files.report()),
            Platform::Hardware(guest) => guest.args(self.memory_mib),
        });
        args
    }

    fn memory_args(&self) -> Vec<String> {
        let memory = |id: &str, mib: u32| format!("memory-backend-ram,id={id},size={mib}M");
        // One socket for each CPU: two nodes cannot share a cache.
        let mut args = vec![
            "-smp".into(),
            format!("{0},sockets={0},cores=1,threads=1", self.cpus),
        ];
        let mut add = |option: &str, value: String| args.extend([option.to_string(), value]);
        if self.nodes == 1 {
            add("-m", format!("{}M", self.memory_mib));
            return args;
        }
        let part = self.memory_mib / self.nodes;
        let whole = part * self.nodes;
        add("-m", format!("{whole}M,slots=2,maxmem=64G"));
        for node in 0..self.nodes {
            let cpus: String = (0..self.cpus)
                .filter(|cpu| cpu % self.nodes == node)
                .map(|cpu| format!(",cpus={cpu}"))
                .collect();
            add("-object", memory(&format!("node{node}"), part));
            let node = format!("node,nodeid={node},memdev=node{node}{cpus}");
            add("-numa", node);
        }
        if self.dimm_mib > 0 {
            add("-object", memory("dimm", self.dimm_mib));
            add("-device", "pc-dimm,id=dimm0,memdev=dimm,node=1".into());
        }
        args
    }

    fn kernel_command_line(&self, build: &Build) -> String {
        let ours = "console=ttyS0 panic=-1 memhp_default_state=online_movable";
        // With KASAN and five levels of page tables, page_tables/kernel takes 25 s to read under
        // TCG instead of 0.3 s, and a timer interrupt in identify_cpu(), where the feature bits are
        // gone for a moment, is reported as a wild access. The other kernels have five levels.
        let levels = (build.config == "debug").then_some("no5lvl");
        let words = [ours]
            .into_iter()
            .chain(levels)
            .chain(self.append.iter().map(String::as_str));
        words.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_share_memory_and_cpus() {
        let machine = Machine {
            memory_mib: 3072,
            cpus: 3,
            dimm_mib: 0,
            ..Default::default()
        };
        let args = machine.memory_args().join(" ");
        assert!(
            args.contains("-smp 3,sockets=3,cores=1,threads=1"),
            "{args}"
        );
        assert!(
            args.contains("-numa node,nodeid=0,memdev=node0,cpus=0,cpus=2"),
            "{args}"
        );
        assert!(
            args.contains("-numa node,nodeid=1,memdev=node1,cpus=1"),
            "{args}"
        );
        assert!(
            args.contains("id=node1,size=1536M") && !args.contains("dimm"),
            "{args}"
        );
        let one = Machine {
            nodes: 1,
            ..machine
        };
        assert!(one.memory_args().join(" ").ends_with("-m 3072M"));
    }

    #[test]
    fn confidential_guests_have_no_plain_devices() {
        let flash = Flash {
            code: "/c".into(),
            variables: "/v".into(),
        };
        let machine = Machine::of(Platform::Uefi(flash));
        assert!(!machine.balloon && machine.dimm_mib == 0);
        let machine = Machine::of(Platform::Usual);
        assert!(machine.balloon && machine.dimm_mib > 0);
    }

    #[test]
    fn a_comma_in_a_path_stays_in_the_path() {
        assert_eq!(value("/a,b/report"), "/a,,b/report");
    }
}
