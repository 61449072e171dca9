// SPDX-License-Identifier: GPL-2.0

//! Guests that run: initramfs, QEMU's life, what a guest's console says, and how it ended.

use crate::build::Build;
use crate::cache::Place;
use crate::coco::{Ending, Report};
use crate::console;
use crate::machine::{Files, Machine, Platform, value};
use crate::progress::{Step, end_with_us, output, seconds};
use crate::setup::{Tools, busybox};
use anyhow::{Context, Result, bail};
use nix::sys::{
    signal::Signal,
    termios::{SetArg, Termios, tcgetattr, tcsetattr},
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write, stdin, stdout},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
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

/// How long QEMU may take to end when the guest has powered off.
const LEAVE: Duration = Duration::from_secs(30);

/// An NMI that nobody knows the reason of makes the kernel panic, and a panic shows what all CPUs do:
/// what is wanted of a guest that hangs.
const SHOW_HANGS: &str = "unknown_nmi_panic panic_sys_info=all_bt";

/// What a guest that hangs is told, by QEMU's monitor, and how long it is listened to after that. The
/// second ends QEMU in good order, with the plugin's report.
const HUNG: [(&str, Duration); 2] = [
    ("nmi\n", Duration::from_secs(30)),
    ("quit\n", Duration::from_secs(20)),
];

/// What a command's output goes to: the console has the kernel's messages, too.
const PORT: &str = "/dev/ttyS1";

/// Runs /command, on a port of its own, as a program in a pipe: what it prints is not changed.
const ON_PORT: &str = r#"
stty -F PORT 115200 raw -echo || exit 125
echo "BEGIN" > PORT
exec /command < /dev/null > PORT 2>&1
"#;

/// What comes by the port before the command's output: firmware writes to every port that it finds.
const BEGIN: &str = "guest: the command's output begins";

/// Leaves out what comes by the port before the command's output.
#[derive(Default)]
struct Output {
    begun: bool,
    before: Vec<u8>,
}

impl Output {
    /// The part of these bytes that is the command's.
    fn take(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        if self.begun {
            return bytes;
        }
        self.before.extend(bytes);
        let mark = format!("{BEGIN}\n").into_bytes();
        let found = self
            .before
            .windows(mark.len())
            .position(|part| part == mark);
        match found {
            Some(at) => {
                self.begun = true;
                self.before.split_off(at + mark.len())
            }
            None => Vec::new(),
        }
    }
}

/// Puts busybox, init, the kselftests, the job and `extra` into an initramfs. No device nodes are needed,
/// so that anyone can do it: the kernel's built-in one has /dev/console.
fn initramfs(
    place: &Place,
    build: &Build,
    job: Option<&str>,
    extra: &[(&str, PathBuf)],
    given: Option<&Path>,
    files: &Files,
) -> Result<()> {
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
    for (path, from) in extra {
        put(path, &fs::read(from)?)?;
    }
    let copy = |from: &Path, name: &str| -> Result<()> {
        let mut cp = Command::new("cp");
        cp.args(["--archive", "--dereference", "--"]);
        output(cp.arg(from).arg(root.join(name))).map(drop)
    };
    if build.kselftest().is_dir() {
        copy(&build.kselftest(), "kselftest")?;
    }
    if let Some(folder) = given {
        copy(folder, "files")?;
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

/// What of a guest the user chose besides the machine.
#[derive(Debug, Default)]
pub struct Wishes {
    /// A folder that is /files in the guest.
    pub files: Option<PathBuf>,
    pub timeout: Option<Duration>,
    /// Only prints the command line.
    pub dry: bool,
}

/// Prints how QEMU is started, and leaves what it needs in the results.
pub fn dry(
    place: &Place,
    tools: &Tools,
    build: &Build,
    machine: &Machine,
    job: Option<&str>,
    wishes: &Wishes,
) -> Result<()> {
    let files = Files::kept(place.cache.join("results/boot"))?;
    initramfs(place, build, job, &[], wishes.files.as_deref(), &files)?;
    let mut qemu = machine.command(tools, build, &files)?;
    qemu.args(["-serial", "mon:stdio"]);
    let words = [qemu.get_program()].into_iter().chain(qemu.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    println!(
        "{}",
        shlex::try_join(words.iter().map(|word| word.as_ref()))?
    );
    Ok(())
}

/// The state of the terminal, which QEMU changes: it is put back when this goes, and if the process is
/// told to end meanwhile.
struct Terminal(Option<Termios>);

impl Terminal {
    fn keep() -> Result<Self> {
        let state = tcgetattr(stdin()).ok();
        if let Some(state) = state.clone() {
            let mut signals = Signals::new([SIGTERM, SIGHUP, SIGINT])?;
            std::thread::spawn(move || {
                if let Some(signal) = signals.forever().next() {
                    put_back(&state);
                    // QEMU goes with this process.
                    std::process::exit(128 + signal);
                }
            });
        }
        Ok(Self(state))
    }
}

fn put_back(state: &Termios) {
    let _ = tcsetattr(stdin(), SetArg::TCSADRAIN, state);
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.0.iter().for_each(put_back);
    }
}

/// An interactive shell in the guest.
pub fn shell(
    place: &Place,
    tools: &Tools,
    build: &Build,
    machine: &Machine,
    wishes: &Wishes,
) -> Result<()> {
    let files = Files::new(place)?;
    initramfs(place, build, None, &[], wishes.files.as_deref(), &files)?;
    let mut qemu = machine.command(tools, build, &files)?;
    end_with_us(&mut qemu, Signal::SIGKILL);
    // QEMU puts the terminal into raw mode, and back only if it comes to an end by itself.
    let terminal = Terminal::keep()?;
    let status = qemu.args(["-serial", "mon:stdio"]).status();
    drop(terminal);
    let status = status.context("cannot start QEMU")?;
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
    /// More files for the guest: their paths there, and here.
    pub extra: Vec<(&'static str, PathBuf)>,
    /// A folder that is /files in the guest.
    pub files: Option<PathBuf>,
    /// The job is a command whose output is wanted: it has a port of its own, and what comes by it goes
    /// to standard output as it is.
    pub shown: bool,
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
    Job(Vec<u8>),
}

/// Sends what comes by the job's port, once QEMU has connected to it.
fn listen_to_port(port: UnixListener, send: mpsc::Sender<Said>) {
    std::thread::spawn(move || {
        let Ok((mut from, _)) = port.accept() else {
            return;
        };
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            if send.send(Said::Job(bytes[..count].to_vec())).is_err() {
                return;
            }
        }
    });
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

/// Says something to QEMU's monitor.
fn tell(files: &Files, word: &str) -> std::io::Result<()> {
    UnixStream::connect(files.monitor())?.write_all(word.as_bytes())
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
            extra: Vec::new(),
            files: None,
            shown: false,
            log: place.log(&format!("guest-{}-{name}", build.config)),
            silence: Duration::from_secs(120) * slow,
            limit: Duration::from_secs(1800) * slow,
        }
    }

    /// Runs the guest. `observe` gets each line as it comes, and no line every tenth of a second,
    /// with QEMU's process id.
    pub fn run(&self, step: &Step, mut observe: impl FnMut(u32, Option<&str>)) -> Result<Outcome> {
        let files = Files::new(self.place)?;
        let mut extra = self.extra.clone();
        let (mut job, command_file) = (self.job.clone(), files.command());
        if self.shown {
            fs::write(&command_file, format!("#!/bin/sh\n{job}\n"))?;
            extra.push(("command", command_file));
            job = ON_PORT.replace("PORT", PORT).replace("BEGIN", BEGIN);
        }
        let given = self.files.as_deref();
        initramfs(self.place, self.build, Some(&job), &extra, given, &files)?;
        fs::create_dir_all(self.log.parent().context("a log has a folder")?)?;
        let mut log = File::create(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut machine = self.machine.clone();
        machine.append.push(SHOW_HANGS.into());
        let mut command = machine.command(self.tools, self.build, &files)?;
        let monitor = format!("unix:{},server=on,wait=off", value(files.monitor()));
        command
            .args(["-monitor", &monitor])
            .args(["-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let (send, receive) = mpsc::channel();
        if self.shown {
            let port = UnixListener::bind(files.output())?;
            let device = format!("socket,id=output,path={}", value(files.output()));
            command.args(["-chardev", &device, "-serial", "chardev:output"]);
            listen_to_port(port, send.clone());
        }
        writeln!(log, "+ {command:?}")?;
        end_with_us(&mut command, Signal::SIGKILL);
        let mut qemu = Qemu(command.spawn().context("cannot start QEMU")?);
        let pid = qemu.0.id();
        let console = qemu.0.stdout.take().context("QEMU has no console")?;
        listen(console, send.clone(), Said::Console);
        let errors = qemu.0.stderr.take().context("QEMU has no standard error")?;
        listen(errors, send, Said::Qemu);
        let mut output = Output::default();
        let (mut lines, mut said, mut exit, mut hang) = (Vec::new(), Vec::new(), None, None);
        let start = Instant::now();
        let (mut heard, mut told, mut listen_until) = (start, HUNG.iter(), start);
        loop {
            match receive.recv_timeout(TICK) {
                Ok(Said::Console(line)) => {
                    writeln!(log, "{line}")?;
                    heard = Instant::now();
                    match self.shown && line.starts_with("guest: job starts") {
                        true => step.hide(),
                        false => step.note(&line),
                    }
                    if let Some(status) = line.strip_prefix(ENDED) {
                        exit = status.trim().parse().ok();
                    }
                    observe(pid, Some(&line));
                    lines.push(line);
                }
                Ok(Said::Job(bytes)) => {
                    heard = Instant::now();
                    let bytes = output.take(bytes);
                    log.write_all(&bytes)?;
                    let mut out = stdout().lock();
                    // Who reads may have read enough.
                    let _ = out.write_all(&bytes).and_then(|()| out.flush());
                }
                Ok(Said::Qemu(line)) => {
                    writeln!(log, "{line}")?;
                    said.push(line);
                }
                Err(RecvTimeoutError::Timeout) => observe(pid, None),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if hang.is_none() && heard.elapsed() > self.silence {
                hang = Some(format!(
                    "the guest has said nothing for {}",
                    seconds(self.silence)
                ));
                listen_until = Instant::now();
            } else if hang.is_none() && start.elapsed() > self.limit {
                hang = Some(format!(
                    "the guest has not ended within {}",
                    seconds(self.limit)
                ));
                listen_until = Instant::now();
            }
            if hang.is_some() && Instant::now() >= listen_until {
                let Some((word, time)) = told.next() else {
                    break;
                };
                // Its monitor may hang like the rest of it: it is killed in the end.
                let _ = tell(&files, word);
                listen_until = Instant::now() + *time;
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
        let tail =
            |what: &dyn std::fmt::Display| format!("{what}; its last lines:\n{}", self.tail());
        // What it reported then, it was made to.
        if let Some(hang) = &self.hang {
            return Some(tail(hang));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_firmware_says_is_no_output() {
        let mark = format!("{BEGIN}\n");
        let (one, two) = mark.split_at(7);
        let mut output = Output::default();
        let mut got = Vec::new();
        for part in ["BdsDxe: loading\n", one, two, "a\n", "b", &mark] {
            got.extend(output.take(part.as_bytes().to_vec()));
        }
        assert_eq!(String::from_utf8(got).unwrap(), format!("a\nb{mark}"));
        let together = format!("x{mark}y").into_bytes();
        assert_eq!(Output::default().take(together), b"y");
    }
}
