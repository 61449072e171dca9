// SPDX-License-Identifier: GPL-2.0

//! Guests that run: initramfs, QEMU's life, what a guest's console says, and how it ended.

use crate::build::Build;
use crate::cache::Place;
use crate::coco::{Ending, Report};
use crate::console;
use crate::machine::{Files, Machine, Platform};
use crate::progress::{Step, output, seconds};
use crate::setup::{Tools, busybox};
use anyhow::{Context, Result, bail};
use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::PathBuf,
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

/// How long QEMU may take to end when the guest has powered off.
const LEAVE: Duration = Duration::from_secs(30);

/// Puts busybox, init, the kselftests and the job into an initramfs. No device nodes are needed,
/// so that anyone can do it: the kernel's built-in one has /dev/console.
fn initramfs(place: &Place, build: &Build, job: Option<&str>, files: &Files) -> Result<()> {
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
    let image = files.initramfs();
    let image =
        File::create(&image).with_context(|| format!("cannot write {}", image.display()))?;
    let pack =
        "find . | LC_ALL=C sort | cpio --create --format=newc --owner=+0:+0 --reproducible --quiet";
    let status = Command::new("sh")
        .args(["-c", pack])
        .current_dir(root)
        .stdout(image)
        .status()
        .context("cannot start sh")?;
    if !status.success() {
        bail!("cpio could not pack the initramfs ({status})");
    }
    Ok(())
}

/// An interactive shell in the guest.
pub fn shell(place: &Place, tools: &Tools, build: &Build, machine: &Machine) -> Result<()> {
    let files = Files::new(place)?;
    initramfs(place, build, None, &files)?;
    let mut qemu = machine.command(tools, build, &files)?;
    let status = qemu
        .args(["-serial", "mon:stdio"])
        .status()
        .context("cannot start QEMU")?;
    let ending = Ending::of(status);
    if let Some(report) = Report::read(&files.report())? {
        println!("{report}");
        if ending == Ending::Clean {
            report.no_violation()?;
        }
    }
    if ending != Ending::Clean {
        bail!("{ending}");
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
    /// What QEMU and its plugin said besides.
    pub said: Vec<String>,
    /// The exit status of the job, if it came to its end.
    pub exit: Option<i32>,
    /// How QEMU ended; none if it had to be killed.
    pub ending: Option<Ending>,
    pub hang: Option<String>,
    pub report: Option<Report>,
    pub log: PathBuf,
    pub emulated: bool,
}

enum Said {
    Console(String),
    Qemu(String),
}

/// Sends each line to whoever runs the guest, until there are no more.
fn listen(from: impl Read + Send + 'static, send: mpsc::Sender<Said>, kind: fn(String) -> Said) {
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut bytes = Vec::new();
        while matches!(from.read_until(b'\n', &mut bytes), Ok(n) if n > 0) {
            let line = String::from_utf8_lossy(&bytes);
            if send
                .send(kind(console::clean(line.trim_end_matches('\n'))))
                .is_err()
            {
                return;
            }
            bytes.clear();
        }
    });
}

/// QEMU, which goes when the run goes.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Qemu {
    /// How it ended, once its output has.
    fn ending(&mut self) -> Result<Option<Ending>> {
        let start = Instant::now();
        while start.elapsed() < LEAVE {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(Ending::of(status)));
            }
            std::thread::sleep(TICK);
        }
        Ok(None)
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
            limit: Duration::from_secs(1800) * slow,
        }
    }

    /// Runs the guest. `observe` gets each line as it comes, and no line every tenth of a second,
    /// with QEMU's process id.
    pub fn run(&self, step: &Step, mut observe: impl FnMut(u32, Option<&str>)) -> Result<Outcome> {
        let files = Files::new(self.place)?;
        initramfs(self.place, self.build, Some(&self.job), &files)?;
        fs::create_dir_all(self.log.parent().context("a log has a folder")?)?;
        let mut log = File::create(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut command = self.machine.command(self.tools, self.build, &files)?;
        command
            .args(["-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        writeln!(log, "+ {command:?}")?;
        // SAFETY: prctl() is async-signal-safe, and nothing else runs between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(nix::sys::signal::SIGKILL)?));
        }
        let mut qemu = Qemu(command.spawn().context("cannot start QEMU")?);
        let pid = qemu.0.id();
        let (send, receive) = mpsc::channel();
        let console = qemu.0.stdout.take().context("QEMU has no console")?;
        listen(console, send.clone(), Said::Console);
        let errors = qemu.0.stderr.take().context("QEMU has no standard error")?;
        listen(errors, send, Said::Qemu);
        let (mut lines, mut said, mut exit, mut hang) = (Vec::new(), Vec::new(), None, None);
        let start = Instant::now();
        let mut heard = start;
        loop {
            match receive.recv_timeout(TICK) {
                Ok(Said::Console(line)) => {
                    writeln!(log, "{line}")?;
                    heard = Instant::now();
                    step.note(&line);
                    if let Some(status) = line.strip_prefix(ENDED) {
                        exit = status.trim().parse().ok();
                    }
                    observe(pid, Some(&line));
                    lines.push(line);
                }
                Ok(Said::Qemu(line)) => {
                    writeln!(log, "{line}")?;
                    said.push(line);
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
        let ending = match hang {
            Some(_) => None,
            None => qemu.ending()?,
        };
        drop(qemu);
        Ok(Outcome {
            lines,
            said,
            exit,
            ending,
            hang,
            report: Report::read(&files.report())?,
            log: self.log.clone(),
            emulated: matches!(self.machine.platform, Platform::Emulated(_)),
        })
    }
}

impl Outcome {
    /// Whether the guest was fine and the job came to its end; the error shows what not.
    pub fn sound(&self) -> Result<()> {
        if let Some(trouble) = self.trouble() {
            bail!("{trouble}\n(full log: {})", self.log.display());
        }
        Ok(())
    }

    fn trouble(&self) -> Option<String> {
        let reports = console::reports(&self.lines);
        if let Some(first) = reports.first() {
            let more = match reports.len() {
                1 => String::new(),
                n => format!("\n({} more in the log)", n - 1),
            };
            return Some(format!(
                "the guest's kernel reported trouble:\n{first}{more}"
            ));
        }
        let tail =
            |what: &dyn std::fmt::Display| format!("{what}; its last lines:\n{}", self.tail());
        if let Some(hang) = &self.hang {
            return Some(tail(hang));
        }
        match self.ending {
            Some(Ending::Clean) => {}
            Some(ending) => return Some(format!("{ending}:\n{}", self.last_words())),
            None => return Some("QEMU did not end by itself".into()),
        }
        if self.exit.is_none() {
            return Some(tail(&"the guest ended before its job did"));
        }
        if !self.emulated {
            return None;
        }
        match &self.report {
            None => Some("the emulation left no report".into()),
            Some(report) => report.clean().err().map(|error| format!("{error}")),
        }
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
        last(&self.lines, 40)
    }

    /// What QEMU or its plugin said at last, and the guest.
    pub fn last_words(&self) -> String {
        let console = format!("on the console:\n{}", last(&self.lines, 10));
        match self.said.is_empty() {
            true => console,
            false => format!("{}\n{console}", last(&self.said, 10)),
        }
    }
}

fn last(lines: &[String], count: usize) -> String {
    lines[lines.len().saturating_sub(count)..].join("\n")
}
