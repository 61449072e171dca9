// SPDX-License-Identifier: GPL-2.0

//! Long steps: a progress line with elapsed time, the full log in a file, and on failure the end
//! of that log.

use anyhow::{Context, Result, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::{
    fs::{self, File},
    io::{IsTerminal, Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

const TAIL_LINES: usize = 40;
const ERROR_LINES: usize = 8;
/// Longer lines are cut: a command line with a thousand arguments hides the reason behind it.
const LINE_LENGTH: usize = 500;

/// With this, steps that go well and do not take long leave no line.
static QUIET: AtomicBool = AtomicBool::new(false);
const LONG: Duration = Duration::from_secs(10);

pub fn be_quiet() {
    QUIET.store(true, Relaxed);
}

/// The lines of all steps that are under way.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

pub struct Step {
    name: String,
    start: Instant,
    bar: Option<ProgressBar>,
}

impl Step {
    pub fn new(name: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style =
                ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg:.dim}");
            let bar = ProgressBar::new_spinner()
                .with_style(style.unwrap())
                .with_prefix(name.to_string());
            let bar = BARS.add(bar);
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        if bar.is_none() && !QUIET.load(Relaxed) {
            eprintln!("      {name} ...");
        }
        Self {
            name: name.to_string(),
            start: Instant::now(),
            bar,
        }
    }

    /// Takes the progress line away, for what is printed from now on.
    pub fn hide(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    pub fn note(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_string());
        }
    }

    pub fn finish<T>(self, result: Result<T>) -> Result<T> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let word = if result.is_ok() { "done" } else { "FAIL" };
        let elapsed = self.start.elapsed();
        if result.is_err() || elapsed >= LONG || !QUIET.load(Relaxed) {
            let time = seconds(elapsed);
            BARS.suspend(|| eprintln!("{word}  {} ({time})", self.name));
        }
        result
    }
}

pub fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        s => format!("{} min {:02} s", s / 60, s % 60),
    }
}

/// Runs `work` under a progress line.
pub fn step<T>(name: &str, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
    let step = Step::new(name);
    let result = work(&step);
    step.finish(result)
}

/// Runs a command under a progress line; all that it prints goes to `log`.
pub fn run(name: &str, log: &Path, command: &mut Command) -> Result<()> {
    step(name, |step| run_in(step, log, command))
}

/// The same in a step that is under way.
pub fn run_in(step: &Step, log: &Path, command: &mut Command) -> Result<()> {
    run_logged(log, command, |line| step.note(line))
}

/// Makes a command end when this process does, however that comes about. make and cargo end what they
/// started when they are told to.
pub fn end_with_us(command: &mut Command, signal: nix::sys::signal::Signal) {
    let parent = nix::unistd::getpid();
    // SAFETY: prctl() and getppid() are async-signal-safe, and nothing else runs between fork and exec.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(signal)?;
            // It may be gone already.
            match nix::unistd::getppid() == parent {
                true => Ok(()),
                false => Err(std::io::ErrorKind::BrokenPipe.into()),
            }
        });
    }
}

pub fn run_logged(log: &Path, command: &mut Command, note: impl Fn(&str)) -> Result<()> {
    use std::io::Write;
    fs::create_dir_all(log.parent().context("a log has a folder")?)?;
    let mut file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    writeln!(file, "+ {command:?}")?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    let program = command.get_program().to_string_lossy().into_owned();
    end_with_us(command, nix::sys::signal::Signal::SIGTERM);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if let Some(line) = tail(log, 1)?.pop() {
            note(&line);
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    if !status.success() {
        bail!("{program} ended with {status}\n{}", log_end(log)?);
    }
    Ok(())
}

/// The end of a log, as shown when a step fails. With several jobs, what make stopped for is
/// further up: the first error comes first.
pub fn log_end(log: &Path) -> Result<String> {
    let end = tail(log, TAIL_LINES)?;
    let bytes = fs::read(log)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().map(cut).collect();
    let is_error = |line: &&str| line.contains(" error: ") || line.starts_with("error");
    let mut shown = String::new();
    if let Some(first) = lines.iter().position(is_error) {
        if !end.iter().any(|line| line == lines[first]) {
            let block = &lines[first..lines.len().min(first + ERROR_LINES)];
            shown = format!("{}\n...\n", block.join("\n"));
        }
    }
    Ok(format!(
        "{shown}{}\n(full log: {})",
        end.join("\n"),
        log.display()
    ))
}

fn tail(path: &Path, lines: usize) -> Result<Vec<String>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(200 * lines as u64)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    Ok(all[all.len().saturating_sub(lines)..]
        .iter()
        .map(|line| cut(line).to_string())
        .collect())
}

/// The beginning of a line.
fn cut(line: &str) -> &str {
    let end = line.char_indices().nth(LINE_LENGTH);
    end.map_or(line, |(end, _)| &line[..end])
}

/// What a command prints, or an error with what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr).trim().to_string();
        bail!("{command:?} ended with {}: {said}", out.status);
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_shows_the_end_of_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("logs/step.log");
        let mut command = Command::new("sh");
        command.args(["-c", "seq 1 100; echo the reason >&2; exit 3"]);
        let error = run("step", &log, &mut command).unwrap_err().to_string();
        assert!(
            error.contains("the reason") && error.contains("step.log"),
            "{error}"
        );
        assert!(
            error.contains("\n62\n") && !error.contains("\n61\n"),
            "{error}"
        );
    }

    #[test]
    fn a_long_command_line_does_not_hide_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("long.log");
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'No space left on device' >&2; exit 1"]);
        command.arg("x".repeat(100_000));
        let error = run("step", &log, &mut command).unwrap_err().to_string();
        assert!(error.contains("No space left"), "{error}");
        assert!(error.len() < 2000, "{} bytes", error.len());
    }

    #[test]
    fn the_first_error_is_shown_too() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("make.log");
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "echo 'glue.c:1:2: error: undeclared'; seq 1 100; exit 2",
        ]);
        let error = run("step", &log, &mut command).unwrap_err().to_string();
        assert!(
            error.contains("glue.c:1:2: error: undeclared\n1\n2\n"),
            "{error}"
        );
        assert!(
            error.contains("\n100\n") && !error.contains("\n50\n"),
            "{error}"
        );
    }
}
