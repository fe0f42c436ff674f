//! What the tests in a machine came to: read from their output, shown as a table.
//!
//! Owns: outcomes and their table. Must not: run anything: plain data in, plain
//! data out. Tested below.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::cases::Case;
use crate::shell::Result;

/// What became of one test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It held.
    Passed,
    /// It did not; or it never ended, or never ran.
    Failed,
    /// It could not be tried: why.
    Skipped(String),
}

/// Outcomes by `file::test`.
pub type Outcomes = BTreeMap<String, Outcome>;

/// Reads what a machine says, line by line, between the marks of its script.
#[derive(Debug, Default)]
pub struct Reading {
    file: String,
    summed_up: bool,
    ended: BTreeSet<String>,
    /// What is known so far.
    pub outcomes: Outcomes,
    /// Lines `onacc-vm: program NAME COUNT`.
    pub programs: Vec<(String, u64)>,
}

/// What the script says before a test file runs.
pub const BEGIN: &str = "onacc-vm: begin ";
/// What it says after that, with the status.
pub const END: &str = "onacc-vm: end ";
/// What it says of a skip.
pub const SKIP: &str = "onacc-vm: skip ";
/// What it says of an eBPF program.
pub const PROGRAM: &str = "onacc-vm: program ";

impl Reading {
    /// Takes in a line.
    pub fn line(&mut self, line: &str) {
        if let Some(file) = line.strip_prefix(BEGIN) {
            file.clone_into(&mut self.file);
            self.summed_up = false;
        } else if let Some(status) = line.strip_prefix(END) {
            self.ended.insert(self.file.clone());
            // A file that was killed, or crashed, has tests that nobody heard of.
            if !self.summed_up {
                let name = format!("{}::(ended early, status {status})", self.file);
                self.outcomes.insert(name, Outcome::Failed);
            }
        } else if let Some(skip) = line.strip_prefix(SKIP) {
            if let Some((test, reason)) = skip.split_once(": ") {
                let outcome = Outcome::Skipped(plain(reason));
                self.outcomes.insert(test.to_owned(), outcome);
            }
        } else if let Some(program) = line.strip_prefix(PROGRAM) {
            let parsed = program
                .split_once(' ')
                .and_then(|(name, count)| Some((name.to_owned(), count.parse().ok()?)));
            self.programs.extend(parsed);
        } else if line.starts_with("test result: ") {
            self.summed_up = true;
        } else if let Some((test, outcome)) = parse_test(line) {
            self.outcomes
                .insert(format!("{}::{test}", self.file), outcome);
        }
    }

    /// What was to run and was not heard of has failed, as when the machine died.
    pub fn finish(mut self, cases: &[Case]) -> Outcomes {
        for case in cases {
            for only in &case.only {
                let name = format!("{}::{only}", case.file);
                let left_out = case.left_out.iter().any(|(test, _)| test == only);
                if !left_out {
                    self.outcomes.entry(name).or_insert(Outcome::Failed);
                }
            }
            for (test, reason) in &case.left_out {
                let outcome = Outcome::Skipped(reason.clone());
                self.outcomes
                    .insert(format!("{}::{test}", case.file), outcome);
            }
            if !self.ended.contains(&case.file) {
                let name = format!("{}::(did not end)", case.file);
                self.outcomes.insert(name, Outcome::Failed);
            }
        }
        self.outcomes
    }
}

/// A reason without the names of temporary directories, so that equal ones are equal,
/// and not too long.
fn plain(reason: &str) -> String {
    const LONGEST: usize = 300;
    let words = reason.split(' ').map(|word| {
        let temporary = word.contains("/tmp/") || word.contains("/.tmp");
        if temporary { "/tmp/…" } else { word }
    });
    let text = words.collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// `test NAME ... ok`
fn parse_test(line: &str) -> Option<(&str, Outcome)> {
    let (name, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let outcome = match result.split(',').next()? {
        "ok" => Outcome::Passed,
        "FAILED" => Outcome::Failed,
        "ignored" => Outcome::Skipped("ignored".to_owned()),
        _ => return None,
    };
    (!name.contains(' ')).then_some((name, outcome))
}

/// One machine's column.
#[derive(Debug)]
pub struct Column {
    /// Its head: kernel and tier.
    pub head: String,
    /// What its tests came to; or why there was no machine.
    pub outcomes: Result<Outcomes>,
}

/// All of it: a row for each test, a column for each machine, reasons below.
pub fn table(columns: &[Column]) -> String {
    let known = columns
        .iter()
        .filter_map(|column| column.outcomes.as_ref().ok());
    let tests: BTreeSet<&String> = known.flat_map(BTreeMap::keys).collect();
    let width = tests.iter().map(|test| test.len()).max().unwrap_or(4);
    let mut reasons: Vec<&str> = Vec::new();
    let mut text = format!("{:width$}", "test");
    for column in columns {
        let _ = write!(text, "  {:>11}", column.head);
    }
    text.push('\n');
    for test in tests {
        let _ = write!(text, "{test:width$}");
        for column in columns {
            let outcome = column.outcomes.as_ref().ok().and_then(|all| all.get(test));
            let word = match outcome {
                Some(Outcome::Passed) => "passed".to_owned(),
                Some(Outcome::Failed) => "FAILED".to_owned(),
                Some(Outcome::Skipped(reason)) => {
                    format!("skipped {}", number(&mut reasons, reason))
                }
                None => "-".to_owned(),
            };
            let _ = write!(text, "  {word:>11}");
        }
        text.push('\n');
    }
    for (number, reason) in reasons.iter().enumerate() {
        let _ = writeln!(text, "skipped {}: {reason}", number + 1);
    }
    for column in columns {
        if let Err(reason) = &column.outcomes {
            let _ = writeln!(text, "{}: skipped: {reason}", column.head);
        }
    }
    text
}

/// The number of a reason, counted from 1.
fn number<'a>(reasons: &mut Vec<&'a str>, reason: &'a str) -> usize {
    if let Some(place) = reasons.iter().position(|known| *known == reason) {
        return place + 1;
    }
    reasons.push(reason);
    reasons.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(file: &str, only: &[&str], left_out: &[(&str, &str)]) -> Case {
        let pair = |(test, reason): &(&str, &str)| (test.to_string(), reason.to_string());
        Case {
            file: file.to_owned(),
            only: only.iter().map(ToString::to_string).collect(),
            left_out: left_out.iter().map(pair).collect(),
        }
    }

    fn read(said: &str, cases: &[Case]) -> Outcomes {
        let mut reading = Reading::default();
        said.lines().for_each(|line| reading.line(line));
        reading.finish(cases)
    }

    #[test]
    fn results_and_skips_are_read() {
        let said = "onacc-vm: begin notify\n\
                    running 4 tests\n\
                    test one ... ok\n\
                    SKIPPED notify::two: no xfs\n\
                    test two ... ok\n\
                    test three ... FAILED\n\
                    test four ... ignored, slow\n\
                    test result: FAILED. 2 passed; 1 failed; 1 ignored\n\
                    onacc-vm: end 101\n\
                    onacc-vm: skip notify::two: no xfs: none\n";
        let outcomes = read(said, &[case("notify", &[], &[("five", "no marks")])]);
        let skipped = |reason: &str| Outcome::Skipped(reason.to_owned());
        assert_eq!(
            outcomes.into_iter().collect::<Vec<_>>(),
            [
                ("notify::five".to_owned(), skipped("no marks")),
                ("notify::four".to_owned(), skipped("ignored")),
                ("notify::one".to_owned(), Outcome::Passed),
                ("notify::three".to_owned(), Outcome::Failed),
                ("notify::two".to_owned(), skipped("no xfs: none")),
            ]
        );
    }

    #[test]
    fn equal_reasons_are_shown_alike() {
        let one = plain("mount: /tmp/onacc-scratch.X0JuDB/mnt: failed");
        assert_eq!(one, plain("mount: /tmp/onacc-scratch.598Jyr/mnt: failed"));
        assert!(plain(&"x".repeat(5000)).chars().count() < 400);
    }

    #[test]
    fn what_never_ran_or_never_ended_has_failed() {
        let said = "onacc-vm: begin notify\ntest one ... ok\nonacc-vm: end 137\n\
                    onacc-vm: begin cache\ntest a ... ok\n";
        let cases = [
            case("notify", &[], &[]),
            case("cache", &["a", "b"], &[]),
            case("freshness", &[], &[]),
        ];
        let failed: Vec<String> = read(said, &cases)
            .into_iter()
            .filter(|(_, outcome)| *outcome == Outcome::Failed)
            .map(|(name, _)| name)
            .collect();
        assert_eq!(
            failed,
            [
                "cache::(did not end)",
                "cache::b",
                "freshness::(did not end)",
                "notify::(ended early, status 137)"
            ]
        );
    }

    #[test]
    fn the_table_shows_every_test_in_every_machine_and_all_reasons() {
        let first = Outcomes::from([
            ("f::a".to_owned(), Outcome::Passed),
            ("f::b".to_owned(), Outcome::Skipped("no marks".to_owned())),
        ]);
        let second = Outcomes::from([("f::b".to_owned(), Outcome::Failed)]);
        let columns = [
            Column {
                head: "6.1 lsm".to_owned(),
                outcomes: Ok(first),
            },
            Column {
                head: "6.1 off".to_owned(),
                outcomes: Ok(second),
            },
            Column {
                head: "6.12 lsm".to_owned(),
                outcomes: Err("no such kernel".to_owned()),
            },
        ];
        assert_eq!(
            table(&columns),
            "test      6.1 lsm      6.1 off     6.12 lsm\n\
             f::a       passed            -            -\n\
             f::b    skipped 1       FAILED            -\n\
             skipped 1: no marks\n\
             6.12 lsm: skipped: no such kernel\n"
        );
    }
}
