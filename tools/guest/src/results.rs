// SPDX-License-Identifier: GPL-2.0

//! What a check found, for machines: JSON with every test case and JUnit XML, kept up to date step by
//! step, so that a check that was interrupted can be resumed.

use crate::cache::{Place, write};
use crate::ktap::{Status, Test};
use anyhow::{Context, Result};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    Pass,
    Fail,
    /// What it needs has not passed.
    Skip,
}

/// One step of a check.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Row {
    pub name: String,
    pub ending: Ending,
    /// What it says, or why it failed.
    pub note: String,
    pub seconds: f64,
    pub log: PathBuf,
    pub cases: Vec<Test>,
    /// From an earlier run.
    #[serde(skip)]
    pub resumed: bool,
}

/// Everything that a check depends on and that is in the repository, as a hash, and the source.
pub fn fingerprint(place: &Place) -> Result<String> {
    let mut paths = Vec::new();
    let walk = ignore::WalkBuilder::new(&place.repo)
        .hidden(false)
        .require_git(false)
        .build();
    for entry in walk {
        let path = entry?.into_path();
        if path.is_file() && !path.components().any(|part| part.as_os_str() == ".git") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update(bytes.len().to_le_bytes());
        hash.update(bytes);
    };
    for path in paths {
        add(path
            .strip_prefix(&place.repo)?
            .as_os_str()
            .as_encoded_bytes());
        add(&fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
        let executable = fs::metadata(&path)?.permissions().mode() & 0o100 != 0;
        add(&[u8::from(executable)]);
    }
    add(std::env::var_os("KSRC")
        .unwrap_or_default()
        .as_encoded_bytes());
    Ok(hex(&hash.finalize()))
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Default, Deserialize, Serialize)]
struct Saved {
    fingerprint: String,
    rows: Vec<Row>,
}

/// The rows of this check and, if nothing has changed since, of those before it.
pub struct Earlier {
    folder: PathBuf,
    saved: Saved,
    resume: bool,
    /// Whether there was something to resume, and it still holds.
    same: bool,
}

impl Earlier {
    pub fn open(place: &Place, fingerprint: &str, resume: bool) -> Result<Self> {
        Self::open_in(&place.cache.join("results"), fingerprint, resume)
    }

    fn open_in(folder: &Path, fingerprint: &str, resume: bool) -> Result<Self> {
        let bytes = fs::read(folder.join("check.json")).unwrap_or_default();
        let old: Saved = serde_json::from_slice(&bytes).unwrap_or_default();
        let same = old.fingerprint == fingerprint;
        let fingerprint = fingerprint.to_string();
        let rows = if same && resume { old.rows } else { Vec::new() };
        Ok(Self {
            folder: folder.to_path_buf(),
            saved: Saved { fingerprint, rows },
            resume,
            same,
        })
    }

    /// The row of a step that has passed, if that is to be trusted.
    pub fn passed(&self, name: &str) -> Option<Row> {
        let mut rows = self.saved.rows.iter().filter(|_| self.resume);
        let found = rows.find(|row| row.name == name && row.ending == Ending::Pass)?;
        Some(Row {
            resumed: true,
            ..found.clone()
        })
    }

    /// Takes a row, and writes the files.
    pub fn add(&mut self, row: &Row) -> Result<()> {
        self.saved.rows.retain(|old| old.name != row.name);
        self.saved.rows.push(row.clone());
        let json = serde_json::to_vec_pretty(&self.saved)?;
        write(&self.folder.join("check.json"), &json, 0o644)?;
        let xml = junit(&self.saved.rows).to_string()?;
        write(&self.folder.join("check.xml"), xml.as_bytes(), 0o644)
    }
}

impl std::fmt::Display for Earlier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rows = self.saved.rows.iter();
        let passed = rows.filter(|row| row.ending == Ending::Pass).count();
        match self.same {
            true => write!(
                f,
                "{passed} steps have passed before; tests among them are not run again"
            ),
            false => {
                f.write_str("nothing to resume, or the repository has changed: all steps are run")
            }
        }
    }
}

/// A suite for each step; a step without test cases of its own is one.
fn junit(rows: &[Row]) -> Report {
    let mut report = Report::new("freepage");
    for row in rows {
        let mut suite = TestSuite::new(row.name.as_str());
        let time = Duration::from_secs_f64(row.seconds);
        suite.set_time(time);
        row.cases
            .iter()
            .for_each(|test| add_cases(&mut suite, "", test));
        let failed = suite
            .test_cases
            .iter()
            .any(|case| matches!(case.status, TestCaseStatus::NonSuccess { .. }));
        // The step may fail for what no test case says: a report of the kernel's, for instance.
        if suite.test_cases.is_empty() || (row.ending == Ending::Fail && !failed) {
            let status = match row.ending {
                Ending::Pass => Status::Pass,
                Ending::Fail => Status::Fail,
                Ending::Skip => Status::Skip,
            };
            suite.add_test_case(case(&row.name, status, &row.note, time));
        }
        report.add_test_suite(suite);
    }
    report
}

fn add_cases(suite: &mut TestSuite, above: &str, test: &Test) {
    let name = match above {
        "" => test.name.clone(),
        _ => format!("{above}: {}", test.name),
    };
    for child in &test.children {
        add_cases(suite, &name, child);
    }
    // As it is counted: a test is what has none inside, or fails by itself.
    let inside_failed = crate::ktap::totals(&test.children).fail > 0;
    if test.children.is_empty() || (test.status == Status::Fail && !inside_failed) {
        let time = Duration::try_from_secs_f64(test.seconds).unwrap_or_default();
        suite.add_test_case(case(&name, test.status, "", time));
    }
}

fn case(name: &str, status: Status, message: &str, time: Duration) -> TestCase {
    let mut status = match status {
        Status::Pass => TestCaseStatus::success(),
        Status::Fail => TestCaseStatus::non_success(NonSuccessKind::Failure),
        Status::Skip => TestCaseStatus::skipped(),
    };
    if !message.is_empty() {
        status.set_message(message);
    }
    let mut case = TestCase::new(name, status);
    case.set_time(time);
    case
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, ending: Ending, cases: Vec<Test>) -> Row {
        Row {
            name: name.into(),
            ending,
            note: "because <x>".into(),
            seconds: 1.5,
            log: "/l".into(),
            cases,
            resumed: false,
        }
    }

    fn test(name: &str, status: Status, children: Vec<Test>) -> Test {
        Test {
            name: name.into(),
            status,
            seconds: 0.5,
            children,
        }
    }

    #[test]
    fn every_case_is_in_the_xml_once() {
        let inner = vec![
            test("one", Status::Pass, vec![]),
            test("two", Status::Skip, vec![]),
            test("three", Status::Fail, vec![]),
        ];
        let rows = [
            row("build", Ending::Pass, vec![]),
            row("lint", Ending::Fail, vec![]),
            row(
                "kselftest",
                Ending::Fail,
                vec![test("a.sh", Status::Fail, inner)],
            ),
            row(
                "kunit",
                Ending::Fail,
                vec![test("suite", Status::Pass, vec![])],
            ),
        ];
        let xml = junit(&rows).to_string().unwrap();
        for part in [
            r#"tests="7""#,
            r#"failures="3""#,
            "<skipped",
            r#"name="a.sh: three""#,
            "because &lt;x&gt;",
        ] {
            assert!(xml.contains(part), "{part}: {xml}");
        }
        assert!(!xml.contains(r#"name="a.sh""#), "{xml}");
    }

    #[test]
    fn what_passed_is_not_done_again_unless_something_changed() {
        let folder = tempfile::tempdir().unwrap();
        let open = |print, resume| Earlier::open_in(folder.path(), print, resume).unwrap();
        let mut first = open("one", false);
        first.add(&row("a", Ending::Pass, vec![])).unwrap();
        first.add(&row("b", Ending::Fail, vec![])).unwrap();
        assert!(first.passed("a").is_none());
        let again = open("one", true);
        assert!(again.passed("a").unwrap().resumed);
        assert!(again.passed("b").is_none() && again.passed("c").is_none());
        assert!(open("two", true).passed("a").is_none());
        assert!(open("one", false).passed("a").is_none());
        // A row that is done again takes the place of the old one.
        let mut again = open("one", true);
        again.add(&row("b", Ending::Pass, vec![])).unwrap();
        let last = open("one", true);
        assert!(last.passed("a").is_some() && last.passed("b").is_some());
        assert_eq!(last.saved.rows.len(), 2);
    }

    #[test]
    fn a_hash_is_lower_case_with_all_digits() {
        assert_eq!(hex(&[0, 10, 255]), "000aff");
    }
}
