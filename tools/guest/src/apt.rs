// SPDX-License-Identifier: GPL-2.0

//! Packages of newer suites of this Debian's own mirror, without root and without touching the
//! system.

use crate::cache::{Place, read};
use crate::progress::{Step, run_in};
use crate::setup::find_program;
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// apt with folders of its own.
pub struct PrivateApt {
    folder: PathBuf,
    log: PathBuf,
    target: String,
}

impl PrivateApt {
    pub fn new(place: &Place) -> Result<Self> {
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        if find_program("apt-get").is_none() || !Path::new(keyring).is_file() {
            bail!("not a Debian system");
        }
        let uri = system_mirror()?;
        let suites = place.kernel.get("SUITES")?;
        let folder = place.cache.join("apt");
        for sub in ["lists/partial", "cache/archives/partial", "etc"] {
            fs::create_dir_all(folder.join(sub))?;
        }
        // Nothing is installed here, so that every package that QEMU needs is fetched.
        fs::write(folder.join("status"), "")?;
        fs::write(
            folder.join("etc/debian.sources"),
            format!(
                "Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: {keyring}\n"
            ),
        )?;
        let target = suites
            .split_whitespace()
            .last()
            .context("KERNEL: SUITES= is empty")?
            .to_string();
        Ok(Self {
            folder,
            log: place.log("private-apt"),
            target,
        })
    }

    pub fn archives(&self) -> PathBuf {
        self.folder.join("cache/archives")
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new("apt-get");
        let mut option = |key: &str, value: &str| {
            command.arg("-o").arg(format!("{key}={value}"));
        };
        let path = |sub: &str| self.folder.join(sub).display().to_string();
        option("Dir::State", &path(""));
        option("Dir::State::status", &path("status"));
        option("Dir::State::lists", &path("lists"));
        option("Dir::Cache", &path("cache"));
        option("Dir::Etc::sourcelist", "/dev/null");
        option("Dir::Etc::sourceparts", &path("etc"));
        option("Dir::Etc::preferencesparts", "/dev/null");
        option("APT::Sandbox::User", "root");
        option("APT::Install-Recommends", "false");
        command.args(["-t", &self.target]);
        command
    }

    pub fn update(&self, step: &Step) -> Result<()> {
        fs::create_dir_all(self.archives().join("partial"))?;
        run_in(step, &self.log, self.command().arg("update"))
    }
}

/// The archive that this Debian installs from, in either form of its sources list.
fn system_mirror() -> Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(dir) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(dir.flatten().map(|entry| entry.path()));
    }
    let texts = files.iter().filter_map(|file| read(file).ok());
    let codename = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = codename
        .lines()
        .find_map(|l| l.strip_prefix("VERSION_CODENAME="))
        .unwrap_or("stable");
    texts
        .flat_map(|text| archives(&text))
        .find(|(_, suites)| {
            suites
                .iter()
                .any(|suite| suite == codename || suite == "stable")
        })
        .map(|(uri, _)| uri)
        .with_context(|| {
            format!("no entry for {codename} in /etc/apt/sources.list or sources.list.d")
        })
}

/// The (URI, suites) of a sources list that have the component main, deb822 or one line each.
fn archives(text: &str) -> Vec<(String, Vec<String>)> {
    let words = |text: &str| {
        text.split_whitespace()
            .map(String::from)
            .collect::<Vec<_>>()
    };
    let text: Vec<_> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .collect();
    let mut found = Vec::new();
    for line in &text {
        let Some(rest) = line.trim().strip_prefix("deb ") else {
            continue;
        };
        let rest = match rest.trim().strip_prefix('[') {
            Some(options) => options.split_once(']').map_or("", |(_, rest)| rest),
            None => rest,
        };
        if let [uri, suite, components @ ..] = &words(rest)[..] {
            if components.iter().any(|c| c == "main") {
                found.push((uri.clone(), vec![suite.clone()]));
            }
        }
    }
    for stanza in text.join("\n").split("\n\n") {
        let field = |key: &str| {
            let line = stanza
                .lines()
                .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
            words(line.unwrap_or_default())
        };
        let debs = field("Types").iter().any(|t| t == "deb");
        if debs && field("Components").iter().any(|c| c == "main") {
            found.extend(
                field("URIs")
                    .first()
                    .map(|uri| (uri.clone(), field("Suites"))),
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_sources_list_are_read() {
        let lines = "# deb http://old/ a main\ndeb [arch=amd64 signed-by=/k] http://one/d bookworm main contrib\n\
                     deb http://two/d other nonfree\n";
        assert_eq!(
            archives(lines),
            [("http://one/d".into(), vec!["bookworm".to_string()])]
        );
        let stanzas = "Types: deb\n# a comment\nURIs: http://three/d\nSuites: trixie trixie-updates\n\
                       Components: main\n\nTypes: deb\nURIs: http://four/d\nSuites: x\nComponents: node\n";
        let suites = vec!["trixie".to_string(), "trixie-updates".to_string()];
        assert_eq!(archives(stanzas), [("http://three/d".into(), suites)]);
    }
}
