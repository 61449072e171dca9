// SPDX-License-Identifier: GPL-2.0

//! Where things are: the repository, its `KERNEL` file and the cache folder.

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
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
        fs::create_dir_all(&cache)
            .with_context(|| format!("cannot create the cache folder {}", cache.display()))?;
        let cache = cache.canonicalize()?;
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

    /// A folder that goes with its owner; `make clean` removes what an interrupted run left.
    pub fn scratch(&self) -> Result<tempfile::TempDir> {
        let folder = self.cache.join("tmp");
        let made = fs::create_dir_all(&folder).and_then(|()| tempfile::tempdir_in(&folder));
        made.with_context(|| format!("cannot write to {}", folder.display()))
    }

    /// Commands that write to the cache take turns.
    pub fn lock(&self) -> Result<Flock<File>> {
        let path = self.cache.join("lock");
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(lock),
            Err((file, _)) => {
                eprintln!(
                    "waiting for another command that uses {}",
                    self.cache.display()
                );
                Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| {
                    anyhow::anyhow!("cannot lock {}: {errno}", path.display())
                })
            }
        }
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
    fn a_line_that_is_no_setting_is_named() {
        let error = Kernel::parse("VERSION 7.3.4").err().unwrap().to_string();
        assert!(error.contains("VERSION 7.3.4"), "{error}");
    }
}
