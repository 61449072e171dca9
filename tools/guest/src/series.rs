// SPDX-License-Identifier: GPL-2.0

//! `patches/`: the edits of existing files, and which commit adds which file of the overlay.

use crate::cache::read;
use crate::tree::{Content, Files};
use anyhow::{Context, Result, bail};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

#[derive(Debug, PartialEq)]
pub struct Patch {
    pub file: PathBuf,
    pub subject: String,
    pub changelog: String,
    /// Globs of the overlay files that this commit adds.
    pub overlay: Vec<String>,
    /// Whether this commit adds our section of MAINTAINERS.
    pub maintainers: bool,
    pub diff: String,
}

pub struct Series {
    pub patches: Vec<Patch>,
}

impl Series {
    /// Reads `patches/series`; a repository without it has no patches.
    pub fn read(repo: &Path) -> Result<Self> {
        let folder = repo.join("patches");
        if !folder.join("series").is_file() {
            return Ok(Self {
                patches: Vec::new(),
            });
        }
        let list = read(&folder.join("series"))?;
        let names = list
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty() && !l.starts_with('#'));
        let patch = |name: &str| {
            let file = folder.join(name);
            Patch::parse(&Path::new("patches").join(name), &read(&file)?)
        };
        Ok(Self {
            patches: names.map(patch).collect::<Result<_>>()?,
        })
    }
}

impl Patch {
    pub fn parse(file: &Path, text: &str) -> Result<Self> {
        let name = file.display();
        let (head, diff) = match text.split_once("\n---\n") {
            Some((head, diff)) => (head, diff.to_string()),
            None => (text, String::new()),
        };
        let mut lines = head.lines().peekable();
        while lines.next_if(|line| line.starts_with('#')).is_some() {}
        let subject = lines
            .next()
            .and_then(|line| line.strip_prefix("Subject: "))
            .with_context(|| format!("{name}: the first line is not 'Subject: ...'"))?;
        let (mut overlay, mut maintainers, mut changelog) = (Vec::new(), false, Vec::new());
        for line in lines {
            if let Some(glob) = line.strip_prefix("Overlay:") {
                overlay.push(glob.trim().to_string());
            } else if line.trim_end() == "Maintainers: yes" {
                maintainers = true;
            } else {
                changelog.push(line);
            }
        }
        let changelog = changelog.join("\n").trim().to_string();
        if diff.trim().is_empty() && overlay.is_empty() && !maintainers {
            bail!("{name}: it has no diff, no 'Overlay:' and no 'Maintainers: yes'");
        }
        let subject = subject.trim().to_string();
        Ok(Self {
            file: file.to_path_buf(),
            subject,
            changelog,
            overlay,
            maintainers,
            diff,
        })
    }

    /// The existing files that the diff edits.
    pub fn edits(&self) -> Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        let mut lines = self.diff.lines().peekable();
        while let Some(line) = lines.next() {
            let (Some(old), Some(new)) = (
                line.strip_prefix("--- "),
                lines.peek().and_then(|l| l.strip_prefix("+++ ")),
            ) else {
                continue;
            };
            let path = |text: &str, prefix: &str| {
                let name = text.split('\t').next().unwrap_or_default().trim_end();
                name.strip_prefix(prefix).map(PathBuf::from)
            };
            match (path(old, "a/"), path(new, "b/")) {
                (Some(a), Some(b)) if a == b => paths.push(a),
                _ => bail!(
                    "{}: '{line}' does not edit a file in place; a new file belongs in the overlay",
                    self.file.display()
                ),
            }
        }
        Ok(paths)
    }

    /// Applies the diff to `files`, taking what is not there yet from `pristine`.
    pub fn apply(&self, pristine: &Path, files: &mut Files) -> Result<()> {
        let edits = self.edits()?;
        if edits.is_empty() {
            return Ok(());
        }
        let name = self.file.display();
        let scratch = tempfile::tempdir()?;
        for path in &edits {
            let from = pristine.join(path);
            if !files.contains_key(path) && !from.is_file() {
                bail!("{name}: {} does not exist in the kernel", path.display());
            }
            let content = files
                .get(path)
                .cloned()
                .map_or_else(|| Content::of(&from), Ok)?;
            content.put(&scratch.path().join(path))?;
        }
        // No fuzz: `git am` takes none, and whoever gets the series uses that.
        let mut child = Command::new("patch")
            .args([
                "-p1",
                "--fuzz=0",
                "--force",
                "--no-backup-if-mismatch",
                "-d",
            ])
            .arg(scratch.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start patch")?;
        let mut stdin = child.stdin.take().context("patch has no stdin")?;
        let diff = self.diff.clone();
        let writer = std::thread::spawn(move || stdin.write_all(diff.as_bytes()));
        let out = child.wait_with_output()?;
        let _ = writer.join();
        if !out.status.success() {
            bail!(
                "{name} does not apply:\n{}",
                failed_hunks(&String::from_utf8_lossy(&out.stdout))
            );
        }
        for path in edits {
            let content = Content::of(&scratch.path().join(&path))?;
            files.insert(path, content);
        }
        Ok(())
    }
}

/// The file and hunk of each failure in what patch(1) said.
fn failed_hunks(said: &str) -> String {
    let mut file = "";
    let mut failures = Vec::new();
    for line in said.lines() {
        if let Some(name) = line.strip_prefix("patching file ") {
            file = name.trim_matches('\'');
        } else if line.contains("FAILED") || line.contains("malformed") {
            failures.push(format!("  {file}: {line}"));
        }
    }
    if failures.is_empty() {
        said.trim().to_string()
    } else {
        failures.join("\n")
    }
}

/// Puts our section into the kernel's MAINTAINERS, where its title sorts.
pub fn insert_maintainers(text: &str, section: &str) -> Result<String> {
    let section: Vec<_> = section
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    let section = section.join("\n").trim().to_string();
    let title = section
        .lines()
        .next()
        .context("MAINTAINERS: the section is empty")?;
    let list = text
        .find("\nMaintainers List\n")
        .context("MAINTAINERS: no 'Maintainers List'")?;
    // A section's title is the line after an empty one that a 'M:', 'L:', 'S:' ... line follows.
    let mut offset = 0;
    let lines: Vec<_> = text
        .split_inclusive('\n')
        .map(|line| {
            offset += line.len();
            (offset - line.len(), line)
        })
        .collect();
    let is_tag = |line: &str| line.len() > 2 && line.as_bytes()[1] == b':';
    let sections: Vec<_> = lines
        .windows(3)
        .filter(|w| w[1].0 > list && w[0].1 == "\n" && is_tag(w[2].1))
        .map(|w| (w[1].0, w[1].1.trim_end().to_lowercase()))
        .collect();
    // The kernel's list is not quite sorted: what counts is the nearest title before ours.
    let ours = title.to_lowercase();
    let before = (0..sections.len())
        .filter(|&i| sections[i].1 < ours)
        .max_by_key(|&i| &sections[i].1);
    let place = sections
        .get(before.map_or(0, |i| i + 1))
        .map(|(offset, _)| *offset)
        .with_context(|| format!("MAINTAINERS: no section follows where '{title}' sorts"))?;
    Ok(format!("{}{section}\n\n{}", &text[..place], &text[place..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = "Subject: mm: pass the state to expand()\n\nBecause.\n\nOverlay: mm/freepage/*\n\
                         Maintainers: yes\n---\n--- a/mm/x.c\n+++ b/mm/x.c\n@@ -1,2 +1,2 @@\n one\n-two\n+2\n";

    fn parse(text: &str) -> Result<Patch> {
        Patch::parse(Path::new("patches/0001.patch"), text)
    }

    #[test]
    fn a_header_is_read() {
        let patch = parse(PATCH).unwrap();
        assert_eq!(patch.subject, "mm: pass the state to expand()");
        assert_eq!(patch.changelog, "Because.");
        assert_eq!(patch.overlay, ["mm/freepage/*"]);
        assert!(patch.maintainers);
        assert_eq!(patch.edits().unwrap(), [PathBuf::from("mm/x.c")]);
    }

    #[test]
    fn a_bad_header_is_an_error_that_names_the_patch() {
        for text in ["mm: x\n\nWhy.\n---\n", "Subject: x\n\nWhy.\n---\n"] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("0001.patch"), "{error}");
        }
    }

    #[test]
    fn a_new_file_in_a_patch_is_refused() {
        let text = "Subject: x\n\nWhy.\n---\n--- /dev/null\n+++ b/mm/new.c\n@@ -0,0 +1 @@\n+x\n";
        assert!(
            parse(text)
                .unwrap()
                .edits()
                .unwrap_err()
                .to_string()
                .contains("overlay")
        );
    }

    #[test]
    fn a_hunk_that_does_not_apply_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mm/x.c");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "one\ntwo\n").unwrap();
        let mut files = Files::new();
        parse(PATCH).unwrap().apply(dir.path(), &mut files).unwrap();
        assert_eq!(files[Path::new("mm/x.c")].bytes, b"one\n2\n");
        assert_eq!(std::fs::read(&file).unwrap(), b"one\ntwo\n");

        std::fs::write(&file, "one\nthree\n").unwrap();
        let error = parse(PATCH)
            .unwrap()
            .apply(dir.path(), &mut Files::new())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("0001.patch") && error.contains("mm/x.c: Hunk #1 FAILED"),
            "{error}"
        );
    }

    #[test]
    fn our_section_names_every_file() {
        let repo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let section = std::fs::read_to_string(repo.join("MAINTAINERS")).unwrap();
        let named: Vec<_> = section
            .lines()
            .filter_map(|line| line.strip_prefix("F:\t"))
            .collect();
        let is_named = |file: &str| {
            named
                .iter()
                .any(|name| *name == file || name.ends_with('/') && file.starts_with(name))
        };
        for file in crate::tree::overlay(&repo).unwrap().into_keys() {
            let file = file.to_string_lossy();
            assert!(is_named(&file), "MAINTAINERS has no F: line for {file}");
        }
        for name in named {
            assert!(repo.join(name).exists(), "MAINTAINERS: there is no {name}");
        }
    }

    /// The names that stand between `before` and `after` in a text.
    fn names<'a>(text: &'a str, before: &str, after: &str) -> Vec<&'a str> {
        text.split(before)
            .skip(1)
            .filter_map(|rest| rest.split_once(after))
            .map(|(name, _)| name)
            .filter(|name| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
            .collect()
    }

    #[test]
    fn what_users_see_is_documented() {
        let repo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let all = crate::tree::overlay(&repo).unwrap();
        let (mut abi, mut words) = (Vec::new(), String::new());
        for (path, content) in &all {
            let text = String::from_utf8_lossy(&content.bytes);
            if path.starts_with("Documentation/ABI") {
                let files = text.lines().filter(|line| line.contains("/sys/"));
                abi.extend(files.filter_map(|line| Some(line.rsplit_once('/')?.1.to_string())));
            } else if path.starts_with("Documentation") {
                words += &text;
            }
        }
        for patch in Series::read(&repo).unwrap().patches {
            if patch.diff.contains("+++ b/Documentation/") {
                words += &patch.diff;
            }
        }
        let mut seen = 0;
        for (path, content) in &all {
            let text = String::from_utf8_lossy(&content.bytes);
            if !path.starts_with("mm") || path.extension().is_none_or(|e| e != "c") {
                continue;
            }
            let mut files = names(&text, "&", "_attr.attr");
            files.extend(names(&text, "debugfs_create_file(\"", "\""));
            for file in files {
                seen += 1;
                let known = abi.iter().any(|name| name == file);
                assert!(known, "no ABI file has {file} of {}", path.display());
            }
            let mut parameters = names(&text, "module_param_cb(", ",");
            parameters.extend(names(&text, "early_param(\"", "\""));
            for parameter in parameters {
                seen += 1;
                let known = words.contains(&format!("{parameter}="))
                    || words.contains(&format!(".{parameter}``"));
                assert!(known, "no document has {parameter} of {}", path.display());
            }
        }
        assert!(seen > 40, "only {seen} names were found");
    }

    #[test]
    fn titles_sort_whatever_their_case_and_disorder() {
        // One title in lower case, and one that stands too early.
        let list = [
            "A DRIVER",
            "eBPF",
            "ZOO",
            "FREE BEER",
            "Gadgets",
            "Z DRIVER",
        ];
        let sections = list.map(|title| format!("{title}\nM:\tx\n\n")).concat();
        let text = format!("How to\n\nMaintainers List\n----\n\n{sections}");
        let got = insert_maintainers(&text, "FREE PAGES\nL:\ty\n").unwrap();
        assert!(
            got.contains("FREE BEER\nM:\tx\n\nFREE PAGES\nL:\ty\n\nGadgets\n"),
            "{got}"
        );
    }

    #[test]
    fn a_section_goes_where_its_title_sorts() {
        let text = "How to\n\nMaintainers List\n----\n\nA DRIVER\nM:\tx\n\nZ DRIVER\nM:\ty\n";
        let got = insert_maintainers(text, "# SPDX\n\nFREE PAGES\nM:\tz\n").unwrap();
        assert_eq!(
            got,
            "How to\n\nMaintainers List\n----\n\nA DRIVER\nM:\tx\n\nFREE PAGES\nM:\tz\n\nZ DRIVER\nM:\ty\n"
        );
    }
}
