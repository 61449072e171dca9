// SPDX-License-Identifier: GPL-2.0

//! Where things are: the repository, its `KERNEL` file and the cache folder.

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// A dotted version, compared number by number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(Vec<u32>);

impl Version {
    /// The first dotted number in `text`, such as the 19.1.7 in "clang version 19.1.7 (3)".
    pub fn find(text: &str) -> Option<Self> {
        let number = regex::Regex::new(r"\d+(\.\d+)+").unwrap();
        let found = number.find(text)?;
        let parts = found.as_str().split('.');
        parts
            .map(|n| n.parse().ok())
            .collect::<Option<_>>()
            .map(Self)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<_> = self.0.iter().map(u32::to_string).collect();
        f.write_str(&parts.join("."))
    }
}

/// The `KERNEL` file: the base and the oldest tools.
pub struct Kernel(BTreeMap<String, String>);

impl Kernel {
    pub fn parse(text: &str) -> Result<Self> {
        let mut keys = BTreeMap::new();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (key, value) = line
                .split_once('=')
                .with_context(|| format!("KERNEL: '{line}' is not KEY=VALUE"))?;
            keys.insert(key.trim().to_string(), value.trim().to_string());
        }
        Ok(Self(keys))
    }

    pub fn get(&self, key: &str) -> Result<&str> {
        let value = self.0.get(key);
        value
            .map(String::as_str)
            .with_context(|| format!("KERNEL: there is no {key}= line"))
    }

    pub fn version(&self, key: &str) -> Result<Version> {
        let text = self.get(key)?;
        Version::find(text).with_context(|| format!("KERNEL: {key}={text} is not a version"))
    }

    /// Whether a kernel of `version` is one that the series is for: the same 7.3, and not older.
    pub fn accepts(&self, version: &Version) -> Result<bool> {
        let ours = self.version("VERSION")?;
        Ok(version.0.iter().take(2).eq(ours.0.iter().take(2)) && *version >= ours)
    }
}

/// The repository and the cache folder, which every command gets.
pub struct Place {
    pub repo: PathBuf,
    pub cache: PathBuf,
    pub kernel: Kernel,
}

impl Place {
    pub fn find() -> Result<Self> {
        let here = std::env::current_dir()?;
        let repo = here
            .ancestors()
            .find(|dir| dir.join("KERNEL").is_file() && dir.join("tools/guest").is_dir())
            .context("not inside the freepage repository: no KERNEL file here or above")?
            .to_path_buf();
        let env = |name| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        let cache = match (env("FREEPAGE_CACHE"), env("XDG_CACHE_HOME"), env("HOME")) {
            (Some(cache), ..) => cache,
            (_, Some(xdg), _) => xdg.join("freepage"),
            (_, _, Some(home)) => home.join(".cache/freepage"),
            _ => bail!("no place for the cache: set FREEPAGE_CACHE to a folder"),
        };
        usable(&cache)?;
        fs::create_dir_all(&cache)
            .with_context(|| format!("cannot create the cache folder {}", cache.display()))?;
        let cache = cache.canonicalize()?;
        usable(&cache)?;
        let kernel = Kernel::parse(&read(&repo.join("KERNEL"))?)?;
        Ok(Self {
            repo,
            cache,
            kernel,
        })
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.cache.join("logs").join(format!("{name}.log"))
    }

    /// A folder that goes with its owner. It has the owner's process id in its name: what an owner that
    /// was killed left is removed by `sweep`.
    pub fn scratch(&self) -> Result<tempfile::TempDir> {
        let folder = self.cache.join("tmp");
        let prefix = format!("{}-", std::process::id());
        let made = fs::create_dir_all(&folder)
            .and_then(|()| tempfile::Builder::new().prefix(&prefix).tempdir_in(&folder));
        made.with_context(|| format!("cannot write to {}", folder.display()))
    }

    /// Removes the scratch folders whose owners are gone.
    pub fn sweep(&self) {
        let entries = fs::read_dir(self.cache.join("tmp"));
        for entry in entries.into_iter().flatten().flatten() {
            let age = entry.metadata().and_then(|data| data.modified());
            let age = age
                .ok()
                .and_then(|time| SystemTime::now().duration_since(time).ok());
            let name = entry.file_name();
            if is_left(&name.to_string_lossy(), age.unwrap_or_default()) {
                // Not vital: it may belong to another user.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Commands that write to the cache take turns. Who waits is told for whom.
    pub fn lock(&self) -> Result<Flock<File>> {
        let path = self.cache.join("lock");
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, _)) => {
                let mut owner = String::new();
                let _ = file.read_to_string(&mut owner);
                let owner = match owner.trim() {
                    "" => "another command",
                    owner => owner,
                };
                eprintln!("waiting for {owner}, which uses {}", self.cache.display());
                Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| {
                    anyhow::anyhow!("cannot lock {}: {errno}", path.display())
                })?
            }
        };
        let target = std::env::var("FREEPAGE_TARGETS").unwrap_or_default();
        let owner = format!(
            "`make {}` in {} (process {})",
            target.trim(),
            self.repo.display(),
            std::process::id()
        );
        lock.set_len(0)?;
        lock.rewind()?;
        lock.write_all(owner.as_bytes())?;
        // Children hold it, too: if this process is killed, nobody else comes before they have ended.
        fcntl(&*lock, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(lock)
    }

    /// Free space of the cache's file system, in MiB.
    pub fn free_mib(&self) -> Result<u64> {
        let found = nix::sys::statvfs::statvfs(&self.cache)?;
        Ok((found.blocks_available() as u64 * found.fragment_size() as u64) >> 20)
    }

    /// There is room for what a first build needs, or for another one.
    pub fn check_space(&self) -> Result<()> {
        let whole = fs::read_dir(&self.cache)?.flatten().any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy().into_owned();
            (name.starts_with("linux-") || name.starts_with("ksrc-"))
                && entry.path().join("build").is_dir()
        });
        let needed = if whole { 1 << 10 } else { 10 << 10 };
        let free = self.free_mib()?;
        if free < needed {
            bail!(
                "{} has {free} MiB of free space, and {needed} MiB are needed: make room, or set \
                 FREEPAGE_CACHE to a folder on another disk",
                self.cache.display()
            );
        }
        Ok(())
    }
}

/// Whether the kernel's make can build in this folder.
fn usable(cache: &Path) -> Result<()> {
    let text = cache.to_string_lossy();
    if text.chars().any(|c| c.is_whitespace() || c == ':') {
        bail!(
            "FREEPAGE_CACHE={text}: the kernel cannot be built in a folder with a space or colon in \
             its path"
        );
    }
    Ok(())
}

/// Whether nobody owns a scratch folder of this name any more. One without a process id is of an older
/// version.
fn is_left(name: &str, age: Duration) -> bool {
    match name.split_once('-').map(|(id, _)| id.parse::<u32>()) {
        Some(Ok(id)) => !Path::new("/proc").join(id.to_string()).exists(),
        _ => age > Duration::from_secs(2 * 24 * 3600),
    }
}

pub fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a file whole or not at all, with the folders above it.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let dir = path.parent().context("a file has a folder")?;
    let put = || -> std::io::Result<()> {
        fs::create_dir_all(dir)?;
        let file = tempfile::NamedTempFile::new_in(dir)?;
        fs::write(file.path(), bytes)?;
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode))?;
        file.persist(path)?;
        Ok(())
    };
    put().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        let find = |text| Version::find(text).unwrap();
        assert!(find("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)") > find("9.20.1"));
        assert_eq!(find("bindgen 0.71.1").to_string(), "0.71.1");
        assert_eq!(Version::find("no version 7 here"), None);
    }

    #[test]
    fn only_later_releases_of_the_same_kernel_are_taken() {
        let kernel = Kernel::parse("# base\nVERSION=7.3.4\n").unwrap();
        let accepts = |text| kernel.accepts(&Version::find(text).unwrap()).unwrap();
        assert!(accepts("7.3.4") && accepts("7.3.12"));
        assert!(!accepts("7.3.3") && !accepts("7.4.0") && !accepts("6.3.9"));
    }

    #[test]
    fn a_path_that_make_cannot_take_is_refused() {
        usable(Path::new("/home/a/.cache/freepage")).unwrap();
        for path in ["/home/a b", "/c:/x", "/tab\there"] {
            let error = usable(Path::new(path)).unwrap_err().to_string();
            assert!(error.starts_with("FREEPAGE_CACHE="), "{error}");
        }
    }

    #[test]
    fn only_what_nobody_owns_is_swept() {
        let (new, old) = (Duration::from_secs(1), Duration::from_secs(1 << 20));
        assert!(!is_left(&format!("{}-abc", std::process::id()), old));
        // Above the largest process id.
        assert!(is_left("4194305-abc", new));
        assert!(!is_left(".tmpAbc", new) && is_left(".tmpAbc", old));
    }

    #[test]
    fn the_lock_says_whose_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place {
            repo: "/r".into(),
            cache: folder.path().into(),
            kernel: Kernel::parse("").unwrap(),
        };
        let lock = place.lock().unwrap();
        let text = fs::read_to_string(folder.path().join("lock")).unwrap();
        let process = format!("in /r (process {})", std::process::id());
        assert!(text.ends_with(&process), "{text}");
        drop(lock);
        place.lock().unwrap();
    }

    #[test]
    fn a_line_that_is_no_setting_is_named() {
        let error = Kernel::parse("VERSION 7.3.4").err().unwrap().to_string();
        assert!(error.contains("VERSION 7.3.4"), "{error}");
    }
}
