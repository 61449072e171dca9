// SPDX-License-Identifier: GPL-2.0

//! Guests: initramfs, QEMU, and what a guest's console says.

use crate::build::Build;
use crate::cache::Place;
use crate::console;
use crate::progress::{Step, output, seconds};
use crate::setup::{Tools, busybox};
use anyhow::{Context, Result, bail};
use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

const INIT: &str = include_str!("../initramfs/init");
const TIMEOUT: &str = include_str!("../initramfs/timeout");

/// What init prints when the job has ended, before the exit status.
const ENDED: &str = "guest: job ended with ";

/// How often a guest is looked at while it says nothing.
const TICK: Duration = Duration::from_millis(100);

#[derive(Clone)]
pub struct Machine {
    pub memory_mib: u32,
    pub cpus: u32,
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
            memory_mib: 3072,
            cpus: 2,
            icount: false,
            dimm_mib: 512,
            balloon: true,
            append: Vec::new(),
            qemu_args: Vec::new(),
        }
    }
}

/// KVM hangs the guest where /dev/kvm is there but the CPU cannot do it.
fn kvm_works() -> bool {
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
    fn command(&self, tools: &Tools, build: &Build, initramfs: &Path) -> Command {
        let mut qemu = Command::new(&tools.qemu[0]);
        qemu.args(&tools.qemu[1..]).args(["-machine", "q35"]);
        if self.icount {
            qemu.args([
                "-accel",
                "tcg",
                "-cpu",
                "max",
                "-icount",
                "shift=0,sleep=off",
            ]);
        } else if kvm_works() {
            qemu.args(["-accel", "kvm", "-cpu", "host"]);
        } else {
            // With a thread for each CPU, a CPU has been seen (once in 40 boots, host overloaded) to
            // run into a breakpoint that another had long patched away: "Oops: int3".
            qemu.args(["-accel", "tcg,thread=single", "-cpu", "max"]);
        }
        let half = self.memory_mib / 2;
        let memory = |id: &str, mib: u32| format!("memory-backend-ram,id={id},size={mib}M");
        // One socket for each CPU: two nodes cannot share a cache.
        qemu.arg("-smp")
            .arg(format!("{0},sockets={0},cores=1,threads=1", self.cpus));
        qemu.arg("-m")
            .arg(format!("{}M,slots=2,maxmem=64G", half * 2));
        for node in 0..2 {
            qemu.arg("-object")
                .arg(memory(&format!("node{node}"), half));
            let cpus: String = (0..self.cpus)
                .filter(|cpu| cpu % 2 == node)
                .map(|cpu| format!(",cpus={cpu}"))
                .collect();
            qemu.arg("-numa")
                .arg(format!("node,nodeid={node},memdev=node{node}{cpus}"));
        }
        if self.dimm_mib > 0 {
            qemu.arg("-object").arg(memory("dimm", self.dimm_mib));
            qemu.args(["-device", "pc-dimm,id=dimm0,memdev=dimm,node=1"]);
        }
        if self.balloon {
            qemu.args(["-device", "virtio-balloon-pci,free-page-reporting=on"]);
        }
        qemu.args(["-nic", "none", "-display", "none", "-no-reboot"]);
        qemu.arg("-kernel")
            .arg(build.image())
            .arg("-initrd")
            .arg(initramfs);
        let append = [
            "console=ttyS0",
            "panic=-1",
            "memhp_default_state=online_movable",
        ];
        let append: Vec<_> = append
            .into_iter()
            .chain(self.append.iter().map(String::as_str))
            .collect();
        qemu.arg("-append")
            .arg(append.join(" "))
            .args(&self.qemu_args);
        qemu
    }
}

/// Puts busybox, init, the kselftests and the job into an initramfs. No device nodes are needed,
/// so that anyone can do it: the kernel's built-in one has /dev/console.
fn initramfs(place: &Place, build: &Build, job: Option<&str>) -> Result<tempfile::NamedTempFile> {
    let scratch = place.scratch()?;
    let root = scratch.path();
    let put = |path: &str, bytes: &[u8]| -> Result<()> {
        let path = root.join(path);
        fs::create_dir_all(path.parent().context("a file has a folder")?)?;
        fs::write(&path, bytes)?;
        Ok(fs::set_permissions(
            &path,
            fs::Permissions::from_mode(0o755),
        )?)
    };
    put("bin/busybox", &fs::read(busybox()?)?)?;
    put("init", INIT.as_bytes())?;
    put("usr/bin/timeout", TIMEOUT.as_bytes())?;
    if let Some(job) = job {
        put("job", format!("#!/bin/sh\n{job}\n").as_bytes())?;
    }
    if build.kselftest().is_dir() {
        output(
            Command::new("cp")
                .arg("-a")
                .arg(build.kselftest())
                .arg(root.join("kselftest")),
        )?;
    }
    let image = tempfile::NamedTempFile::new_in(place.cache.join("tmp"))?;
    let pack =
        "find . | LC_ALL=C sort | cpio --create --format=newc --owner=+0:+0 --reproducible --quiet";
    let status = Command::new("sh")
        .args(["-c", pack])
        .current_dir(root)
        .stdout(image.reopen()?)
        .status()
        .context("cannot start sh")?;
    if !status.success() {
        bail!("cpio could not pack the initramfs ({status})");
    }
    Ok(image)
}

/// An interactive shell in the guest.
pub fn shell(place: &Place, tools: &Tools, build: &Build, machine: &Machine) -> Result<()> {
    let image = initramfs(place, build, None)?;
    let mut qemu = machine.command(tools, build, image.path());
    let status = qemu
        .args(["-serial", "mon:stdio"])
        .status()
        .context("cannot start QEMU")?;
    if !status.success() {
        bail!("QEMU ended with {status}");
    }
    Ok(())
}

/// A guest that runs a job and ends.
pub struct Run<'a> {
    pub place: &'a Place,
    pub tools: &'a Tools,
    pub build: &'a Build,
    pub machine: Machine,
    /// A shell script.
    pub job: String,
    pub log: PathBuf,
    /// A guest that says nothing for so long hangs.
    pub silence: Duration,
    pub limit: Duration,
}

/// What a guest said, and how it ended.
pub struct Outcome {
    pub lines: Vec<String>,
    pub exit: Option<i32>,
    pub hang: Option<String>,
    pub log: PathBuf,
}

/// QEMU, which goes when the run goes.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl<'a> Run<'a> {
    pub fn new(
        place: &'a Place,
        tools: &'a Tools,
        build: &'a Build,
        name: &str,
        job: &str,
    ) -> Self {
        // KASAN and lockdep make everything slower, and TCG more so.
        let slow = if build.config == "debug" { 4 } else { 1 };
        Self {
            place,
            tools,
            build,
            machine: Machine::default(),
            job: job.to_string(),
            log: place.log(&format!("guest-{}-{name}", build.config)),
            silence: Duration::from_secs(120) * slow,
            limit: Duration::from_secs(900) * slow,
        }
    }

    /// Runs the guest. `observe` gets each line as it comes, and no line every tenth of a second,
    /// with QEMU's process id.
    pub fn run(&self, step: &Step, mut observe: impl FnMut(u32, Option<&str>)) -> Result<Outcome> {
        let image = initramfs(self.place, self.build, Some(&self.job))?;
        fs::create_dir_all(self.log.parent().context("a log has a folder")?)?;
        let mut log = File::create(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut command = self.machine.command(self.tools, self.build, image.path());
        command
            .args(["-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        command.stderr(log.try_clone()?);
        writeln!(log, "+ {command:?}")?;
        // SAFETY: prctl() is async-signal-safe, and nothing else runs between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(nix::sys::signal::SIGKILL)?));
        }
        let mut qemu = Qemu(command.spawn().context("cannot start QEMU")?);
        let pid = qemu.0.id();
        let console = qemu.0.stdout.take().context("QEMU has no console")?;
        let (send, receive) = mpsc::channel();
        std::thread::spawn(move || {
            let mut console = BufReader::new(console);
            let mut bytes = Vec::new();
            while matches!(console.read_until(b'\n', &mut bytes), Ok(n) if n > 0) {
                let line = String::from_utf8_lossy(&bytes)
                    .trim_end_matches('\n')
                    .to_string();
                if send.send(line).is_err() {
                    return;
                }
                bytes.clear();
            }
        });
        let (mut lines, mut exit, mut hang) = (Vec::new(), None, None);
        let start = Instant::now();
        let mut heard = start;
        loop {
            match receive.recv_timeout(TICK) {
                Ok(line) => {
                    let line = console::clean(&line);
                    writeln!(log, "{line}")?;
                    heard = Instant::now();
                    step.note(&line);
                    if let Some(status) = line.strip_prefix(ENDED) {
                        exit = status.trim().parse().ok();
                    }
                    observe(pid, Some(&line));
                    lines.push(line);
                }
                Err(RecvTimeoutError::Timeout) => observe(pid, None),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if heard.elapsed() > self.silence {
                hang = Some(format!(
                    "the guest has said nothing for {}",
                    seconds(self.silence)
                ));
            } else if start.elapsed() > self.limit {
                hang = Some(format!(
                    "the guest has not ended within {}",
                    seconds(self.limit)
                ));
            }
            if hang.is_some() {
                break;
            }
        }
        Ok(Outcome {
            lines,
            exit,
            hang,
            log: self.log.clone(),
        })
    }
}

impl Outcome {
    /// Whether the guest's kernel was fine and the job came to its end; the error shows what not.
    pub fn sound(&self) -> Result<()> {
        let reports = console::reports(&self.lines);
        let log = self.log.display();
        if let Some(first) = reports.first() {
            let more = match reports.len() {
                1 => String::new(),
                n => format!("\n({} more in the log)", n - 1),
            };
            bail!("the guest's kernel reported trouble:\n{first}{more}\n(full log: {log})");
        }
        if let Some(hang) = &self.hang {
            bail!(
                "{hang}; its last lines:\n{}\n(full log: {log})",
                self.tail()
            );
        }
        if self.exit.is_none() {
            bail!(
                "the guest ended before its job did; its last lines:\n{}\n(full log: {log})",
                self.tail()
            );
        }
        Ok(())
    }

    /// `sound`, and the job's exit status is 0.
    pub fn success(&self) -> Result<()> {
        self.sound()?;
        match self.exit {
            Some(0) => Ok(()),
            status => bail!(
                "the guest's job ended with {}; its last lines:\n{}\n(full log: {})",
                status.unwrap_or(-1),
                self.tail(),
                self.log.display()
            ),
        }
    }

    fn tail(&self) -> String {
        self.lines[self.lines.len().saturating_sub(40)..].join("\n")
    }
}
