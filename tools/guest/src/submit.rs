// SPDX-License-Identifier: GPL-2.0

//! `make series`: the overlay and the patches as a `git format-patch` series, and the proof that
//! it applies and gives the same tree.

use crate::build::{build_in, configure_in, make};
use crate::cache::{Place, read, write};
use crate::progress::{output, run_in, step};
use crate::series::{Patch, Series, insert_maintainers};
use crate::setup::Tools;
use crate::tree::{Content, Files, Tree, final_files, overlay};
use anyhow::{Context, Result, bail};
use globset::GlobBuilder;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// One commit of the series: the files that it adds or changes, as it leaves them.
struct Commit {
    patch: Patch,
    files: Files,
}

fn matches(patch: &Patch, path: &Path) -> Result<bool> {
    for glob in &patch.overlay {
        let glob = GlobBuilder::new(glob).literal_separator(true).build();
        let glob = glob.with_context(|| format!("{}: a bad glob", patch.file.display()))?;
        if glob.compile_matcher().is_match(path) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn commits(place: &Place, pristine: &Path) -> Result<Vec<Commit>> {
    let overlay = overlay(&place.repo)?;
    let section = place.repo.join("MAINTAINERS");
    let series = Series::read(&place.repo)?;
    if section.is_file() && !series.patches.iter().any(|patch| patch.maintainers) {
        bail!("no patch in patches/series has 'Maintainers: yes', so none adds MAINTAINERS");
    }
    for path in overlay.keys() {
        let mut by = Vec::new();
        for patch in &series.patches {
            if matches(patch, path)? {
                by.push(patch.file.display().to_string());
            }
        }
        match by.len() {
            1 => {}
            0 => bail!(
                "{}: no patch names it in an 'Overlay:' line",
                path.display()
            ),
            _ => bail!(
                "{}: more than one patch names it: {}",
                path.display(),
                by.join(", ")
            ),
        }
    }
    let mut patched = Files::new();
    let mut commits = Vec::new();
    for patch in series.patches {
        if patch.changelog.is_empty() {
            bail!(
                "{}: there is no changelog below its subject",
                patch.file.display()
            );
        }
        patch.apply(pristine, &mut patched)?;
        if patch.maintainers {
            let name = PathBuf::from("MAINTAINERS");
            let old = patched.get(&name).cloned();
            let mut content = old.map_or_else(|| Content::of(&pristine.join(&name)), Ok)?;
            let text = String::from_utf8_lossy(&content.bytes).into_owned();
            content.bytes = insert_maintainers(&text, &read(&section)?)?.into_bytes();
            patched.insert(name, content);
        }
        let mut files = Files::new();
        let edits = patch.edits()?;
        let edits = edits
            .into_iter()
            .chain(patch.maintainers.then(|| PathBuf::from("MAINTAINERS")));
        files.extend(edits.map(|path| (path.clone(), patched[&path].clone())));
        for (path, content) in &overlay {
            if matches(&patch, path)? {
                files.insert(path.clone(), content.clone());
            }
        }
        if files.is_empty() {
            bail!("{}: it changes nothing", patch.file.display());
        }
        commits.push(Commit { patch, files });
    }
    Ok(commits)
}

/// Runs git in a scratch repository. Of the user's settings only name and e-mail address are used.
struct Git<'a> {
    folder: &'a Path,
    name: String,
    email: String,
    date: String,
}

impl<'a> Git<'a> {
    fn new(place: &Place, folder: &'a Path) -> Self {
        let ask = |args: &[&str], fallback: &str| {
            let said =
                output(Command::new("git").args(args).current_dir(&place.repo)).unwrap_or_default();
            if said.trim().is_empty() {
                fallback.to_string()
            } else {
                said.trim().to_string()
            }
        };
        Self {
            folder,
            name: ask(&["config", "user.name"], "freepage"),
            email: ask(&["config", "user.email"], "freepage@localhost"),
            date: ask(&["log", "-1", "--format=%cI"], "2026-01-01T00:00:00Z"),
        }
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        let mut git = Command::new("git");
        git.current_dir(self.folder)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .envs([
                ("GIT_AUTHOR_NAME", &self.name),
                ("GIT_COMMITTER_NAME", &self.name),
            ])
            .envs([
                ("GIT_AUTHOR_EMAIL", &self.email),
                ("GIT_COMMITTER_EMAIL", &self.email),
            ])
            .envs([
                ("GIT_AUTHOR_DATE", &self.date),
                ("GIT_COMMITTER_DATE", &self.date),
            ]);
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
            git.env_remove(name);
        }
        output(git.args(args))
    }

    /// A repository whose first commit has the base's `paths`.
    fn start(&self, version: &str, paths: &[PathBuf]) -> Result<()> {
        self.run(&["init", "--quiet", "--initial-branch=series"])?;
        for path in paths {
            // Some of the kernel's .gitignore files are broad.
            self.run(&["add", "--force", "--", &path.display().to_string()])?;
        }
        let message = format!("Linux {version}");
        self.run(&["commit", "--quiet", "--allow-empty", "-m", &message])?;
        self.run(&["tag", "base"]).map(drop)
    }
}

/// Writes the series; the folder with the patches.
pub fn write_series(place: &Place, tree: &Tree) -> Result<PathBuf> {
    step("series", |_| {
        let commits = commits(place, tree.pristine())?;
        if commits.is_empty() {
            bail!("patches/series is missing or empty");
        }
        let scratch = place.scratch()?;
        let git = Git::new(place, scratch.path());
        let touched = commits.iter().flat_map(|commit| commit.files.keys());
        let mut existing: Vec<_> = touched
            .filter(|path| tree.pristine().join(path).is_file())
            .cloned()
            .collect();
        existing.sort();
        existing.dedup();
        for path in &existing {
            Content::of(&tree.pristine().join(path))?.put(&scratch.path().join(path))?;
        }
        git.start(&tree.version.to_string(), &existing)?;
        for commit in &commits {
            for (path, content) in &commit.files {
                content.put(&scratch.path().join(path))?;
            }
            git.run(&["add", "--force", "--all"])?;
            let message = format!("{}\n\n{}\n", commit.patch.subject, commit.patch.changelog);
            git.run(&["commit", "--quiet", "--cleanup=verbatim", "-m", &message])?;
        }
        let folder = place.cache.join("results/series");
        let _ = fs::remove_dir_all(&folder);
        let out = folder.display().to_string();
        git.run(&[
            "format-patch",
            "--quiet",
            "--cover-letter",
            "--zero-commit",
            "--no-signature",
            "-o",
            &out,
            "base",
        ])?;
        let letter = folder.join("0000-cover-letter.patch");
        let (subject, text) = cover(place)?;
        let note = format!(
            "Base: Linux {} (tag v{} of the stable tree)",
            tree.version, tree.version
        );
        let cover = read(&letter)?
            .replace("*** SUBJECT HERE ***", &subject)
            .replace("*** BLURB HERE ***", &format!("{text}\n\n{note}"));
        write(&letter, cover.as_bytes(), 0o644)?;
        Ok(folder)
    })
}

/// Subject and text of `patches/cover-letter`.
fn cover(place: &Place) -> Result<(String, String)> {
    let text = read(&place.repo.join("patches/cover-letter"))?;
    let text = text.trim_start_matches("# SPDX-License-Identifier: GPL-2.0\n");
    let (subject, text) = text
        .strip_prefix("Subject: ")
        .and_then(|text| text.split_once('\n'))
        .context("patches/cover-letter: the first line is not 'Subject: ...'")?;
    Ok((subject.to_string(), text.trim().to_string()))
}

/// The series' patches, without the cover letter.
fn patches(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let mut patches: Vec<_> = entries
        .filter(|path| !path.ends_with("0000-cover-letter.patch"))
        .collect();
    patches.sort();
    Ok(patches)
}

/// Applies the series to a pristine tree with `git am`, and compares the outcome with `tree`.
pub fn verify_series(place: &Place, tree: &Tree, folder: &Path) -> Result<()> {
    step("series: git am on a pristine tree", |step| {
        let scratch = place.scratch()?;
        let log = place.log("series");
        // Links cost no space; git writes a changed file anew, so the source stays as it is.
        let mut copy = Command::new("cp");
        copy.arg("-a");
        if tree.pristine().starts_with(&place.cache) {
            copy.arg("--link");
        }
        run_in(
            step,
            &log,
            copy.arg(tree.pristine().join(".")).arg(scratch.path()),
        )?;
        let _ = fs::remove_dir_all(scratch.path().join(".git"));
        let files = final_files(place, tree.pristine())?;
        let (old, _): (Vec<_>, Vec<_>) = files
            .keys()
            .cloned()
            .partition(|path| tree.pristine().join(path).is_file());
        let git = Git::new(place, scratch.path());
        git.start(&tree.version.to_string(), &old)?;
        for patch in patches(folder)? {
            let name = patch.display().to_string();
            git.run(&["am", "--quiet", &name])
                .with_context(|| format!("{name} does not apply"))?;
        }
        fs::remove_dir_all(scratch.path().join(".git"))?;
        let mut diff = Command::new("diff");
        // Bytecode is Python's, of scripts that somebody ran by hand.
        diff.args(["-rq", "--no-dereference", "--exclude=__pycache__"])
            .arg(scratch.path())
            .arg(tree.root());
        run_in(step, &log, &mut diff)
            .context("the series does not give the same files as `make tree`")
    })
}

/// Runs the kernel's checkpatch on every patch.
pub fn checkpatch(place: &Place, tree: &Tree, folder: &Path) -> Result<()> {
    step("series: checkpatch", |step| {
        // Who submits the series signs it off; our section covers the new files; and the glue
        // exports functions that are Rust's.
        let mut checkpatch = Command::new("perl");
        checkpatch
            .current_dir(tree.root())
            .args([
                "scripts/checkpatch.pl",
                "-q",
                "--no-signoff",
                "--show-types",
                "--ignore",
                "FILE_PATH_CHANGES,EXPORT_SYMBOL",
            ])
            .args(patches(folder)?);
        run_in(step, &place.log("checkpatch"), &mut checkpatch)
    })
}

/// Builds every step of the series, with its options on and off.
pub fn verify_steps(place: &Place, tree: &Tree, tools: &Tools) -> Result<()> {
    let stepped = tree.sibling("series-step");
    let mut files = Files::new();
    let commits = commits(place, tree.pristine())?;
    let count = commits.len();
    for (number, commit) in commits.into_iter().enumerate() {
        files.extend(commit.files);
        let what = format!("series {}/{count}", number + 1);
        step(&format!("{what}: {}", commit.patch.subject), |step| {
            stepped.lay_out(place, step, &files)
        })?;
        for config in ["guest", "base"] {
            build_in(
                place,
                &stepped,
                tools,
                config,
                &format!("series-{config}"),
                false,
            )
            .with_context(|| format!("{what}: {} ({config})", commit.patch.subject))?;
        }
    }
    Ok(())
}

/// With every new option off, the code and data of each object in mm/ are the base's.
pub fn unchanged_when_off(place: &Place, tree: &Tree, tools: &Tools) -> Result<()> {
    let pristine = tree.sibling("pristine-build");
    step("off: lay out the base", |step| {
        pristine.lay_out(place, step, &Files::new())
    })?;
    let sizes = |tree: &Tree, name: &str| -> Result<String> {
        let folder = tree.build(name);
        configure_in(place, make(tree, tools, &folder), "base", &folder, false)?;
        let mut mm = make(tree, tools, &folder);
        crate::progress::run(
            &format!("off: build mm/ of {name}"),
            &place.log(name),
            mm.args(["prepare", "mm/"]),
        )?;
        let list = "for o in mm/*.o mm/*/*.o; do [ -f \"$o\" ] && echo \"$o $(size \"$o\" | tail -n 1 | cut -f 1-3)\"; done; true";
        let text = output(Command::new("sh").args(["-c", list]).current_dir(&folder))?;
        Ok(text
            .lines()
            .filter(|line| !line.starts_with("mm/built-in"))
            .collect::<Vec<_>>()
            .join("\n"))
    };
    let (ours, theirs) = (sizes(tree, "off-ours")?, sizes(&pristine, "off-base")?);
    let differ: Vec<_> = ours
        .lines()
        .filter(|line| !theirs.lines().any(|other| other == *line))
        .collect();
    if !differ.is_empty() || ours.lines().count() != theirs.lines().count() {
        bail!(
            "with the new options off these objects differ from the base's (text, data, bss):\n{}",
            differ.join("\n")
        );
    }
    Ok(())
}

/// Compiles mm/ for arm64, with the new options off and on.
pub fn compiles_for_arm64(place: &Place, tree: &Tree, tools: &Tools) -> Result<()> {
    for config in ["base", "guest"] {
        let name = format!("arm64-{config}");
        let folder = tree.build(&name);
        let make = || {
            let mut make = make(tree, tools, &folder);
            make.arg("ARCH=arm64");
            make
        };
        configure_in(place, make(), config, &folder, false)?;
        crate::progress::run(
            &format!("arm64: build mm/ of {config}"),
            &place.log(&name),
            make().args(["prepare", "mm/"]),
        )?;
    }
    Ok(())
}
