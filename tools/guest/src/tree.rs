// SPDX-License-Identifier: GPL-2.0

//! The kernel tree: pristine source, overlay, patches, and our section of MAINTAINERS.
//!
//! A file is written only where its content differs, so that make rebuilds only what changed,
//! whichever clone the content comes from.

use crate::apt::PrivateApt;
use crate::cache::{Place, Version, read, write};
use crate::progress::{Step, output, run_in, step};
use crate::results::hex;
use crate::series::{Series, insert_maintainers};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    time::UNIX_EPOCH,
};

/// The folders of the repository that are laid over the kernel's.
pub const OVERLAY: &[&str] = &[
    "arch",
    "Documentation",
    "drivers",
    "include",
    "mm",
    "rust",
    "tools/testing",
];

/// A file as the series leaves it.
#[derive(Clone, PartialEq)]
pub struct Content {
    pub bytes: Vec<u8>,
    pub mode: u32,
}

impl Content {
    pub fn of(path: &Path) -> Result<Self> {
        let what = || format!("cannot read {}", path.display());
        let executable = fs::metadata(path).with_context(what)?.permissions().mode() & 0o100 != 0;
        let mode = if executable { 0o755 } else { 0o644 };
        Ok(Self {
            bytes: fs::read(path).with_context(what)?,
            mode,
        })
    }

    /// Writes the file, unless it is there with this content; true if it was written.
    pub fn put(&self, path: &Path) -> Result<bool> {
        let there = path.is_file() && Content::of(path)? == *self;
        if !there {
            write(path, &self.bytes, self.mode)?;
        }
        Ok(!there)
    }
}

pub type Files = BTreeMap<PathBuf, Content>;

/// One base with everything that is made from it: `FREEPAGE_CACHE/linux-7.3.4`, for instance.
pub struct Tree {
    folder: PathBuf,
    name: &'static str,
    pristine: PathBuf,
    pub version: Version,
}

/// What `update` put into the work tree; the rest of it is pristine.
#[derive(Default, Serialize, Deserialize)]
struct Manifest {
    files: Vec<PathBuf>,
}

impl Tree {
    fn new(folder: PathBuf, pristine: PathBuf, version: Version) -> Self {
        Self {
            folder,
            name: "tree",
            pristine,
            version,
        }
    }

    pub fn root(&self) -> PathBuf {
        self.folder.join(self.name)
    }

    /// Another work tree on the same base.
    pub fn sibling(&self, name: &'static str) -> Self {
        let Self {
            folder,
            pristine,
            version,
            ..
        } = self;
        Self {
            folder: folder.clone(),
            name,
            pristine: pristine.clone(),
            version: version.clone(),
        }
    }

    pub fn pristine(&self) -> &Path {
        &self.pristine
    }

    pub fn build(&self, config: &str) -> PathBuf {
        self.folder.join("build").join(config)
    }

    /// Gets the base, and brings the work tree up to date.
    pub fn update(place: &Place) -> Result<Self> {
        step("tree", |step| {
            let tree = source(place, step)?;
            let files = final_files(place, &tree.pristine)?;
            tree.lay_out(place, step, &files)?;
            Ok(tree)
        })
    }

    pub fn lay_out(&self, place: &Place, step: &Step, files: &Files) -> Result<()> {
        let root = self.root();
        let manifest_path = self.folder.join(format!("{}.json", self.name));
        let old: Manifest = match fs::read(&manifest_path) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(_) => Manifest::default(),
        };
        let mut all: Vec<_> = old.files.iter().chain(files.keys()).cloned().collect();
        all.sort();
        all.dedup();
        let own_source = self.pristine.starts_with(&self.folder);
        if !own_source || !self.folder.join(format!("{}.copied", self.name)).is_file() {
            step.note("copy the source");
            let mut rsync = Command::new("rsync");
            rsync.args(["-a", "--exclude=/.git"]);
            // The user's own tree changes below our feet; what we put there is not theirs to undo.
            rsync.args(
                all.iter()
                    .map(|path| format!("--exclude=/{}", path.display())),
            );
            rsync
                .arg("--delete")
                .arg(self.pristine.join(""))
                .arg(root.join(""));
            fs::create_dir_all(&root)?;
            run_in(step, &place.log("tree"), &mut rsync)?;
            fs::write(self.folder.join(format!("{}.copied", self.name)), "")?;
        }
        // Written first: a run that is interrupted leaves no file that nobody knows of.
        let union = serde_json::to_vec_pretty(&Manifest { files: all.clone() })?;
        write(&manifest_path, &union, 0o644)?;
        let mut changed = 0;
        for path in &all {
            let pristine = self.pristine.join(path);
            if let Some(content) = files.get(path) {
                changed += usize::from(content.put(&root.join(path))?);
            } else if pristine.is_file() {
                changed += usize::from(Content::of(&pristine)?.put(&root.join(path))?);
            } else if root.join(path).exists() {
                changed += 1;
                remove(&root, path)?;
            }
        }
        let now = Manifest {
            files: files.keys().cloned().collect(),
        };
        write(&manifest_path, &serde_json::to_vec_pretty(&now)?, 0o644)?;
        step.note(&format!("{changed} files written"));
        Ok(())
    }
}

/// Removes a file, and the folders that it leaves empty.
fn remove(root: &Path, path: &Path) -> Result<()> {
    fs::remove_file(root.join(path))
        .with_context(|| format!("cannot remove {}", path.display()))?;
    for dir in path
        .ancestors()
        .skip(1)
        .take_while(|dir| dir.components().next().is_some())
    {
        if fs::remove_dir(root.join(dir)).is_err() {
            break;
        }
    }
    Ok(())
}

/// The files of the repository that are laid over the kernel's, as they are.
pub fn overlay(repo: &Path) -> Result<Files> {
    let mut files = Files::new();
    for dir in OVERLAY
        .iter()
        .map(|dir| repo.join(dir))
        .filter(|dir| dir.is_dir())
    {
        let walk = ignore::WalkBuilder::new(dir)
            .hidden(false)
            .require_git(false)
            .build();
        for entry in walk {
            let path = entry?.into_path();
            if path.is_file() {
                let name = path.strip_prefix(repo)?.to_path_buf();
                files.insert(name, Content::of(&path)?);
            }
        }
    }
    Ok(files)
}

/// Every file that the series adds or changes, as it leaves it.
pub fn final_files(place: &Place, pristine: &Path) -> Result<Files> {
    let mut files = overlay(&place.repo)?;
    for path in files.keys() {
        if pristine.join(path).exists() {
            bail!(
                "overlay: {} is a file of the kernel; change it by a patch in patches/",
                path.display()
            );
        }
    }
    let series = Series::read(&place.repo)?;
    let mut patched = Files::new();
    for patch in &series.patches {
        patch.apply(pristine, &mut patched)?;
    }
    let section = place.repo.join("MAINTAINERS");
    if section.is_file() {
        let name = PathBuf::from("MAINTAINERS");
        let mut content = match patched.remove(&name) {
            Some(content) => content,
            None => Content::of(&pristine.join(&name))?,
        };
        let text = String::from_utf8_lossy(&content.bytes);
        content.bytes = insert_maintainers(&text, &read(&section)?)?.into_bytes();
        patched.insert(name, content);
    }
    if let Some(path) = patched.keys().find(|path| files.contains_key(*path)) {
        bail!("{} is both in the overlay and in patches/", path.display());
    }
    files.extend(patched);
    Ok(files)
}

/// The version of a kernel source, from its Makefile.
fn source_version(folder: &Path) -> Result<Version> {
    let text = read(&folder.join("Makefile"))
        .with_context(|| format!("{} is not a kernel source", folder.display()))?;
    let field = |key: &str| {
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(key)?.trim_start().strip_prefix('='));
        line.unwrap_or_default().trim().to_string()
    };
    let dotted = format!(
        "{}.{}.{}",
        field("VERSION"),
        field("PATCHLEVEL"),
        field("SUBLEVEL")
    );
    Version::find(&dotted)
        .with_context(|| format!("{}: no version in its Makefile", folder.display()))
}

fn check_version(place: &Place, folder: &Path) -> Result<Version> {
    let version = source_version(folder)?;
    if !place.kernel.accepts(&version)? {
        bail!(
            "{} is Linux {version}; the series is for {} and later releases of the same kernel",
            folder.display(),
            place.kernel.get("VERSION")?
        );
    }
    Ok(version)
}

/// The base: `KSRC`, the distribution's package, or upstream's tarball.
fn source(place: &Place, step: &Step) -> Result<Tree> {
    if let Some(given) = std::env::var_os("KSRC").filter(|v| !v.is_empty()) {
        let given = PathBuf::from(given);
        let given = given
            .canonicalize()
            .with_context(|| format!("KSRC={}", given.display()))?;
        return given_source(place, step, &given);
    }
    let folder = place
        .cache
        .join(format!("linux-{}", place.kernel.get("VERSION")?));
    let pristine = folder.join("pristine");
    if !pristine.join("Makefile").is_file() {
        let packaged = packaged_source(place, step, &pristine);
        if let Err(why) = packaged {
            step.note(&format!("{why:#}; trying upstream"));
            upstream_source(place, step, &pristine).with_context(|| {
                format!("no source: {why:#}; set KSRC= to a folder or tarball of Linux 7.3")
            })?;
        }
    }
    let version = check_version(place, &pristine)?;
    Ok(Tree::new(folder, pristine, version))
}

fn given_source(place: &Place, step: &Step, given: &Path) -> Result<Tree> {
    // A hash that is the same with every compiler: what it names is on disk.
    let mut hash = Sha256::new();
    hash.update(given.as_os_str().as_bytes());
    let named = |hash: Sha256| {
        let name = hex(&hash.finalize()[..8]);
        place.cache.join(format!("ksrc-{name}"))
    };
    if given.is_dir() {
        let folder = named(hash);
        let version = check_version(place, given)?;
        return Ok(Tree::new(folder, given.to_path_buf(), version));
    }
    let changed = fs::metadata(given)?
        .modified()?
        .duration_since(UNIX_EPOCH)?;
    hash.update(changed.as_nanos().to_le_bytes());
    let folder = named(hash);
    let pristine = folder.join("pristine");
    if !pristine.join("Makefile").is_file() {
        unpack(place, step, given, &pristine)?;
    }
    let version = check_version(place, &pristine)?;
    Ok(Tree::new(folder, pristine, version))
}

fn unpack(place: &Place, step: &Step, tarball: &Path, pristine: &Path) -> Result<()> {
    step.note(&format!("unpack {}", tarball.display()));
    let partial = pristine.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    let mut tar = Command::new("tar");
    tar.arg("-xf")
        .arg(tarball)
        .arg("--strip-components=1")
        .arg("-C")
        .arg(&partial);
    run_in(step, &place.log("unpack"), &mut tar)?;
    fs::rename(&partial, pristine)?;
    Ok(())
}

fn packaged_source(place: &Place, step: &Step, pristine: &Path) -> Result<()> {
    let package = place.kernel.get("PACKAGE")?;
    let scratch = place.scratch()?;
    let log = place.log("source");
    let download = |mut apt: Command| {
        run_in(
            step,
            &log,
            apt.args(["download", package]).current_dir(scratch.path()),
        )
    };
    step.note(&format!("download {package}"));
    // The system's own apt where it has the package, else the newer suites that KERNEL names.
    if output(Command::new("apt-cache").args(["show", package])).is_ok() {
        download(Command::new("apt-get"))?;
    } else {
        let apt = PrivateApt::new(place)?;
        apt.update(step)?;
        download(apt.command())?;
    }
    let entries = fs::read_dir(scratch.path())?.flatten();
    let deb = entries
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "deb"));
    let deb = deb.with_context(|| format!("apt-get download {package} left no package"))?;
    let unpacked = scratch.path().join("x");
    run_in(
        step,
        &log,
        Command::new("dpkg-deb").arg("-x").arg(deb).arg(&unpacked),
    )?;
    unpack(
        place,
        step,
        &unpacked.join(format!("usr/src/{package}.tar.xz")),
        pristine,
    )
}

fn upstream_source(place: &Place, step: &Step, pristine: &Path) -> Result<()> {
    let url = place.kernel.get("UPSTREAM")?;
    let scratch = place.scratch()?;
    let tarball = scratch.path().join("linux.tar.xz");
    step.note(&format!("download {url}"));
    let mut curl = Command::new("curl");
    curl.args([
        "--fail",
        "--location",
        "--silent",
        "--show-error",
        "--output",
    ])
    .arg(&tarball)
    .arg(url);
    run_in(step, &place.log("upstream"), &mut curl)?;
    unpack(place, step, &tarball, pristine)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        write(&root.join(path), text.as_bytes(), 0o644).unwrap();
    }

    fn mtime(path: &Path) -> std::time::SystemTime {
        fs::metadata(path).unwrap().modified().unwrap()
    }

    #[test]
    fn a_tree_follows_the_repository_and_leaves_the_rest_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (repo, base) = (
            dir.path().join("repo"),
            dir.path().join("cache/linux/pristine"),
        );
        put(&repo, "KERNEL", "VERSION=7.3.4\n");
        put(&repo, "mm/freepage/zone.rs", "one\n");
        put(&repo, "mm/freepage/sub/gone.rs", "two\n");
        put(&repo, "patches/series", "0001.patch\n");
        put(
            &repo,
            "patches/0001.patch",
            "Subject: mm: b\n\nWhy.\n---\n--- a/mm/Makefile\n+++ b/mm/Makefile\n@@ -1 +1 @@\n-a\n+b\n",
        );
        put(&base, "mm/Makefile", "a\n");
        put(&base, "mm/slub.c", "s\n");
        let place = Place {
            repo: repo.clone(),
            cache: dir.path().join("cache"),
            kernel: crate::cache::Kernel::parse("VERSION=7.3.4").unwrap(),
        };
        let tree = Tree::new(
            dir.path().join("cache/linux"),
            base.clone(),
            Version::find("7.3.4").unwrap(),
        );
        let lay_out = || {
            let files = final_files(&place, &base)?;
            step("tree", |step| tree.lay_out(&place, step, &files))
        };
        let text = |path: &str| fs::read_to_string(tree.root().join(path)).ok();

        lay_out().unwrap();
        assert_eq!(text("mm/Makefile").as_deref(), Some("b\n"));
        assert_eq!(text("mm/freepage/zone.rs").as_deref(), Some("one\n"));
        let before = mtime(&tree.root().join("mm/Makefile"));

        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::remove_dir_all(repo.join("mm/freepage/sub")).unwrap();
        put(&repo, "mm/freepage/zone.rs", "three\n");
        lay_out().unwrap();
        assert_eq!(text("mm/freepage/zone.rs").as_deref(), Some("three\n"));
        assert!(!tree.root().join("mm/freepage/sub").exists());
        assert_eq!(mtime(&tree.root().join("mm/Makefile")), before);

        put(&repo, "patches/series", "");
        lay_out().unwrap();
        assert_eq!(text("mm/Makefile").as_deref(), Some("a\n"));
        assert!(mtime(&tree.root().join("mm/Makefile")) > before);
        assert_eq!(text("mm/slub.c").as_deref(), Some("s\n"));

        put(&repo, "mm/slub.c", "ours\n");
        let error = lay_out().unwrap_err().to_string();
        assert!(error.contains("mm/slub.c"), "{error}");
    }
}
