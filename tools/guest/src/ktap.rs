// SPDX-License-Identifier: GPL-2.0

//! KTAP, as KUnit and run_kselftest.sh print it: a nested test's lines come before its result,
//! indented (KUnit) or behind "# " (kselftest).

use crate::console::without_stamp;
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Pass,
    Fail,
    Skip,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Test {
    pub name: String,
    pub status: Status,
    /// In seconds, from when its first line came, or the result before it.
    pub seconds: f64,
    pub children: Vec<Test>,
}

struct Level {
    plan: Option<usize>,
    tests: Vec<Test>,
    since: Instant,
}

impl Default for Level {
    fn default() -> Self {
        Self {
            plan: None,
            tests: Vec::new(),
            since: Instant::now(),
        }
    }
}

/// The results so far; lines are taken one by one, anything that is not KTAP is passed over.
#[derive(Default)]
pub struct Ktap {
    levels: Vec<Level>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    pub pass: usize,
    pub fail: usize,
    pub skip: usize,
}

static RESULT: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^((?:# |  )*)(not ok|ok) \d+(?: - | )?(.*)$").unwrap());
static PLAN: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^((?:# |  )*)1\.\.(\d+)\b").unwrap());
static DIRECTIVE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?i)^(.*?)\s*# (SKIP|XFAIL|TODO)\b").unwrap());

/// KUnit indents by four spaces, kselftest prefixes by "# ".
fn depth(prefix: &str) -> usize {
    prefix.matches('#').count() + prefix.replace("# ", "").len() / 4
}

impl Ktap {
    /// Takes a line; the test, if the line is a result.
    pub fn line(&mut self, line: &str) -> Option<(usize, &Test)> {
        let line = without_stamp(line).trim_end();
        if let Some(found) = PLAN.captures(line) {
            let depth = depth(&found[1]);
            self.level(depth).plan = found[2].parse().ok();
            return None;
        }
        let found = RESULT.captures(line)?;
        let depth = depth(&found[1]);
        let (name, directive) = match DIRECTIVE.captures(&found[3]) {
            Some(parts) => (parts[1].to_string(), parts[2].to_ascii_uppercase()),
            None => (found[3].to_string(), String::new()),
        };
        let status = match (&found[2], directive.as_str()) {
            (_, "SKIP") => Status::Skip,
            ("ok", _) | (_, "XFAIL" | "TODO") => Status::Pass,
            _ => Status::Fail,
        };
        let children = self.close(depth + 1);
        let level = self.level(depth);
        let time = std::mem::replace(&mut level.since, Instant::now()).elapsed();
        level.tests.push(Test {
            name,
            status,
            seconds: Duration::as_secs_f64(&time),
            children,
        });
        level.tests.last().map(|test| (depth, test))
    }

    fn level(&mut self, depth: usize) -> &mut Level {
        if self.levels.len() <= depth {
            self.levels.resize_with(depth + 1, Level::default);
        }
        &mut self.levels[depth]
    }

    /// Takes off the levels from `depth` down. A plan that was not kept is a failure.
    fn close(&mut self, depth: usize) -> Vec<Test> {
        let mut tests = Vec::new();
        while self.levels.len() > depth {
            let mut level = self.levels.pop().unwrap_or_default();
            let done = level.tests.len();
            if level.plan.is_some_and(|plan| plan != done) {
                let plan = level.plan.unwrap_or_default();
                let name = format!("(planned {plan} tests, saw {done})");
                level.tests.push(Test {
                    name,
                    status: Status::Fail,
                    seconds: 0.0,
                    children: Vec::new(),
                });
            }
            level.tests.append(&mut tests);
            tests = level.tests;
        }
        tests
    }

    pub fn finish(mut self) -> Vec<Test> {
        self.close(0)
    }
}

/// Counts the tests that have none inside; and a failed one that has only good ones inside.
pub fn totals(tests: &[Test]) -> Totals {
    let mut sum = Totals::default();
    for test in tests {
        let inside = totals(&test.children);
        sum.pass += inside.pass;
        sum.fail += inside.fail;
        sum.skip += inside.skip;
        match test.status {
            Status::Fail if inside.fail == 0 => sum.fail += 1,
            Status::Pass if test.children.is_empty() => sum.pass += 1,
            Status::Skip if test.children.is_empty() => sum.skip += 1,
            _ => {}
        }
    }
    sum
}

/// The names of what failed, outermost first.
pub fn failures(tests: &[Test]) -> Vec<String> {
    let mut names = Vec::new();
    for test in tests {
        let inside = failures(&test.children);
        if inside.is_empty() && test.status == Status::Fail {
            names.push(test.name.clone());
        }
        names.extend(
            inside
                .into_iter()
                .map(|name| format!("{}: {name}", test.name)),
        );
    }
    names
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.pass, self.fail, self.skip
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Vec<Test> {
        let mut ktap = Ktap::default();
        for line in text.lines() {
            ktap.line(line);
        }
        ktap.finish()
    }

    fn counts(text: &str) -> (usize, usize, usize) {
        let Totals { pass, fail, skip } = totals(&parse(text));
        (pass, fail, skip)
    }

    const KSELFTEST: &str = "TAP version 13\n1..3\n# timeout set to 45\n# selftests: freepage: a\n\
        # TAP version 13\n# 1..3\n# ok 1 one\n# ok 2 two # SKIP no balloon\n# not ok 3 three\n# # Totals: x\n\
        not ok 1 selftests: freepage: a # exit=1\nok 2 selftests: freepage: b\n\
        ok 3 selftests: freepage: c # SKIP\n";

    #[test]
    fn kselftest_results_nest() {
        assert_eq!(counts(KSELFTEST), (2, 1, 2));
        assert_eq!(
            failures(&parse(KSELFTEST)),
            ["selftests: freepage: a # exit=1: three"]
        );
    }

    #[test]
    fn kunit_results_nest_behind_printk_stamps() {
        let text = "[    0.50] KTAP version 1\n[    0.50] 1..1\n[    0.50]     KTAP version 1\n\
            [    0.50]     # Subtest: engine\n[    0.50]     1..2\n[    0.50]     ok 1 budget\n\
            [    0.50]         KTAP version 1\n[    0.50]         # Subtest: p\n\
            [    0.50]         ok 1 order 0\n[    0.50]         ok 2 order 9\n\
            [    0.50]     ok 2 p\n[    0.50] # engine: pass:2\n[    0.50] ok 1 engine\n";
        assert_eq!(counts(text), (3, 0, 0));
    }

    #[test]
    fn a_test_that_never_ended_fails_the_plan() {
        assert_eq!(counts("TAP version 13\n1..2\nok 1 a\n"), (1, 1, 0));
        let died = KSELFTEST.replace("# not ok 3 three\n", "");
        let names = failures(&parse(&died));
        assert_eq!(
            names,
            ["selftests: freepage: a # exit=1: (planned 3 tests, saw 2)"]
        );
    }

    #[test]
    fn a_program_that_fails_after_good_results_counts() {
        assert_eq!(
            counts("1..1\n# 1..1\n# ok 1 fine\nnot ok 1 prog # exit=139\n"),
            (1, 1, 0)
        );
    }

    #[test]
    fn other_lines_are_passed_over() {
        assert_eq!(
            counts("ok, so what\n# ok computer\nnotok 1\n[    1.0] ok 1 real\n"),
            (1, 0, 0)
        );
    }
}
