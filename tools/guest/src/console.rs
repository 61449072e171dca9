// SPDX-License-Identifier: GPL-2.0

//! Reports of trouble in what a guest's kernel prints.

use regex::Regex;
use std::sync::LazyLock;

/// Lines shown around the one that gave a report away.
const BEFORE: usize = 5;
const AFTER: usize = 150;

/// A printk prefix, "[    1.234567] " or "[    1.234567][  T123] ". It is looked for anywhere in
/// the line, as the kernel may print in the middle of what a program prints.
const STAMP: &str = r"\[ *\d+\.\d+\](?:\[[^\]]*\])? ";

static REPORT: LazyLock<Regex> = LazyLock::new(|| {
    let kinds = [
        r"(?:watchdog: )?BUG:",
        "kernel BUG at",
        "WARNING:",
        "Oops",
        "general protection fault",
        "Kernel panic",
        "UBSAN:",
        "KCSAN:",
        "KFENCE:",
        "INFO: possible",
        "INFO: inconsistent",
        "INFO: trying to register non-static key",
        r".*inconsistent lock state",
        r".*sleeping function called from invalid context",
        r".*suspicious RCU usage",
        r"(?:rcu: )?INFO: rcu\w* .*stall",
        r"rcu: .*self-detected stall",
        r"INFO: task .* blocked for more than",
        "DEBUG_LOCKS_WARN_ON",
        r"page:.* is uninitialized and poisoned",
        r"list_(?:add|del) corruption",
        "Out of memory and no killable processes",
        "Unable to handle kernel",
        "SMP alternatives: .*corrupt",
    ];
    Regex::new(&format!("{STAMP}(?:{})", kinds.join("|"))).unwrap()
});

static END: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(&format!(r"{STAMP}(?:---\[ end|=====+$)")).unwrap());

static PREFIX: LazyLock<Regex> = LazyLock::new(|| Regex::new(&format!("^{STAMP}")).unwrap());

pub fn is_report(line: &str) -> bool {
    REPORT.is_match(line)
}

/// The line without its printk prefix.
pub fn without_stamp(line: &str) -> &str {
    PREFIX.find(line).map_or(line, |found| &line[found.end()..])
}

/// Terminal sequences and carriage returns are no part of a line.
pub fn clean(line: &str) -> String {
    static ESCAPES: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\x1b\[[0-9;?=]*[A-Za-z]|\r").unwrap());
    ESCAPES.replace_all(line, "").into_owned()
}

/// The reports in a console log, each with the lines around it.
pub fn reports(lines: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(first) = lines[at..]
        .iter()
        .position(|line| is_report(line))
        .map(|n| at + n)
    {
        let limit = lines.len().min(first + AFTER);
        // The line of a KASAN or lockdep report that names it stands right below its first rule.
        let end = lines[first + 1..limit]
            .iter()
            .skip(2)
            .position(|line| END.is_match(line))
            .map_or(limit, |n| (first + n + 4).min(limit));
        found.push(lines[first.saturating_sub(BEFORE)..end].join("\n"));
        at = end;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(String::from).collect()
    }

    #[test]
    fn every_kind_of_report_is_seen() {
        for text in [
            "WARNING: CPU: 0 PID: 1 at mm/page_alloc.c:1 x+0x1/0x2",
            "BUG: KASAN: slab-use-after-free in x+0x1/0x2",
            "BUG: Bad page state in process x  pfn:1",
            "BUG: kernel NULL pointer dereference, address: 0",
            "BUG: sleeping function called from invalid context at x",
            "Oops: 0002 [#1] SMP",
            "Kernel panic - not syncing: x",
            "UBSAN: shift-out-of-bounds in x",
            "WARNING: possible circular locking dependency detected",
            "WARNING: inconsistent lock state",
            "INFO: possible recursive locking detected",
            "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            "INFO: task kworker/0:1:8 blocked for more than 120 seconds.",
            "watchdog: BUG: soft lockup - CPU#0 stuck for 22s!",
            "list_add corruption. prev->next should be next",
        ] {
            assert!(is_report(&format!("[    1.234567] {text}")), "{text}");
            assert!(
                is_report(&format!("# half a li[   12.234567][    T1] {text}")),
                "{text}"
            );
        }
    }

    #[test]
    fn programs_may_say_warning() {
        assert!(!is_report("# WARNING: this test needs a balloon"));
        assert!(!is_report("[    1.000000] Free page reporting enabled"));
        assert!(!is_report("[    0.000000] BUGs: none"));
    }

    #[test]
    fn a_report_comes_with_its_lines() {
        let mut log =
            lines("a\nb\nc\nd\ne\nf\n[    1.0] WARNING: CPU: 0\n[    1.0] RIP: x\n[    1.0] RSP\n");
        log.extend(lines(
            "[    1.0] ---[ end trace 0 ]---\nok 1 next\nok 2\n[    2.0] BUG: second\nz\n",
        ));
        let found = reports(&log);
        assert_eq!(found.len(), 2);
        assert!(
            found[0].starts_with("b\nc\nd\ne\nf\n[    1.0] WARNING"),
            "{}",
            found[0]
        );
        assert!(found[0].ends_with("end trace 0 ]---"), "{}", found[0]);
        assert!(
            found[1].ends_with("[    2.0] BUG: second\nz"),
            "{}",
            found[1]
        );
    }

    #[test]
    fn a_line_is_cleaned() {
        assert_eq!(clean("\x1b[1;31mok 1\x1b[0m\r"), "ok 1");
        assert_eq!(clean("\x1b[2J\x1b[=3hBdsDxe"), "BdsDxe");
        assert_eq!(without_stamp("[    0.512] ok 1 x"), "ok 1 x");
        assert_eq!(
            without_stamp("[    0.512][    T1]     ok 1 x"),
            "    ok 1 x"
        );
    }
}
