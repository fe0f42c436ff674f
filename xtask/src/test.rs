//! `cargo xtask test`: every check that there is, and a count at the end.
//!
//! Owns: the order of the steps, and the count. Must not: hide a skip.

use std::{
    env,
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::Instant,
};

use onacc_tests::skip::{SKIPS_VARIABLE, is_root};

use crate::{
    package,
    panics::Panics,
    setup::{self, Level},
    shell::{Result, agent_binary, cargo, run, shown},
    vm,
};

/// Results of test binaries, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: usize,
    failed: usize,
    skipped: usize,
}

/// What tells the property tests how long to run, in seconds.
const PROPERTY_VARIABLE: &str = "ONACC_PROPERTY_SECONDS";
const LONG: &str = "300";

/// Runs everything; `long`: the property tests as long as a night wants them.
pub fn command(long: bool, filter: Option<&str>) -> Result<()> {
    setup::ensure(Level::Test)?;
    let dir = tempfile::tempdir().map_err(|error| format!("a temporary directory: {error}"))?;
    let skips = dir.path().join("skips");
    let mut count = Count::default();
    let mut failures = Vec::new();

    let checks: [(&str, &[&str]); 4] = [
        ("format", &["fmt", "--all", "--check"]),
        (
            "format of the eBPF crate",
            &["fmt", "--manifest-path", "onacc-ebpf/Cargo.toml", "--check"],
        ),
        (
            "clippy",
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
        ),
        ("release build", &["build", "--release"]),
    ];
    for (name, args) in checks {
        if let Err(error) = step(name, cargo().args(args), run) {
            failures.push(format!("{name}: {error}"));
            count.failed += 1;
        }
    }

    let package = package::build();
    match &package {
        Ok(path) => println!("\n== package: {}", path.display()),
        Err(error) => {
            failures.push(format!("package: {error}"));
            count.failed += 1;
        }
    }

    if !is_root() {
        println!("\nNOT ROOT: the end-to-end tests are skipped");
    }
    let mut tests = cargo();
    tests
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(filter)
        .env("ONACC_BIN", agent_binary())
        .env(SKIPS_VARIABLE, &skips);
    if long && env::var_os(PROPERTY_VARIABLE).is_none() {
        tests.env(PROPERTY_VARIABLE, LONG);
    }
    if let Ok(path) = &package {
        tests.env("ONACC_DEB", path);
    }
    let mut said = Vec::new();
    let tested = step("tests", &mut tests, |command| {
        run_and_count(command, &mut count, &mut said)
    });
    if let Err(error) = tested {
        // A test that failed is counted; a test binary that was not built is not.
        count.failed = count.failed.max(1);
        failures.push(format!("tests: {error}"));
        failures.append(&mut said);
    }

    let missed = kernels(filter, &mut count, &mut failures);

    let skipped = fs::read_to_string(&skips).unwrap_or_default();
    let own = Count {
        skipped: skipped.lines().count(),
        ..Count::default()
    };
    let skipped = skipped + &missed;
    print!("\n{}", summary(&mut count, own, &skipped, &failures));
    if count.failed == 0 {
        Ok(())
    } else {
        Err(String::new())
    }
}

/// Runs the kernel matrix, as far as there is time for it here; says why if it cannot.
fn kernels(filter: Option<&str>, count: &mut Count, failures: &mut Vec<String>) -> String {
    println!("\n== other kernels: cargo xtask vm --short");
    let before = Instant::now();
    let ran = match setup::ensure(Level::Vm) {
        Ok(_) => vm::short(filter),
        Err(error) => {
            println!("NO OTHER KERNELS:\n{error}");
            count.skipped += 1;
            return format!("other kernels: {}\n", error.replace('\n', " "));
        }
    };
    match ran {
        Ok(summary) => {
            count.passed += summary.passed;
            count.failed += summary.failed;
            count.skipped += summary.skipped;
            if summary.failed > 0 {
                failures.push(format!("other kernels: {}, see the table", summary.failed));
                failures.extend(summary.said);
            }
        }
        Err(error) => {
            count.failed += 1;
            failures.push(format!("other kernels: {error}"));
        }
    }
    let took = before.elapsed().as_secs_f32();
    println!("== other kernels: {took:.1} s");
    String::new()
}

/// Runs one step between its name and its time.
fn step(
    name: &str,
    command: &mut Command,
    with: impl FnOnce(&mut Command) -> Result<()>,
) -> Result<()> {
    println!("\n== {name}: {}", shown(command));
    let before = Instant::now();
    let result = with(command);
    let took = before.elapsed().as_secs_f32();
    let how = if result.is_ok() { "ok" } else { "FAILED" };
    println!("== {name}: {how} after {took:.1} s");
    result
}

/// Runs `cargo test` with its output shown, and sums up its results; `said`: what
/// failing tests said.
fn run_and_count(command: &mut Command, count: &mut Count, said: &mut Vec<String>) -> Result<()> {
    let mut panics = Panics::default();
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cargo does not start: {error}"))?;
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output)
            .split(b'\n')
            .map_while(std::result::Result::ok)
        {
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            panics.line(&line);
            if let Some(more) = parse_result(&line) {
                count.passed += more.passed;
                count.failed += more.failed;
                count.skipped += more.skipped;
            }
        }
    }
    said.append(&mut panics.finish());
    let status = child.wait().map_err(|error| format!("waiting: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("failed ({status}): {}", shown(command)))
    }
}

/// `test result: ok. 4 passed; 0 failed; 1 ignored; …`
fn parse_result(line: &str) -> Option<Count> {
    let rest = line.trim().strip_prefix("test result: ")?;
    let (_, numbers) = rest.split_once(". ")?;
    let mut count = Count::default();
    for part in numbers.split("; ") {
        let mut words = part.split(' ');
        let number = words.next()?;
        match words.next()? {
            "passed" => count.passed = number.parse().ok()?,
            "failed" => count.failed = number.parse().ok()?,
            "ignored" => count.skipped = number.parse().ok()?,
            _ => {}
        }
    }
    Some(count)
}

/// The end of the output: skips with their reasons, failures, and the count. A
/// test that skipped itself has returned, so its harness took it for passed.
fn summary(count: &mut Count, own: Count, skips: &str, failures: &[String]) -> String {
    count.passed = count.passed.saturating_sub(own.skipped);
    count.skipped += own.skipped;
    let mut text = String::new();
    for line in skips.lines() {
        let _ = writeln!(text, "SKIPPED {line}");
    }
    for line in failures {
        let _ = writeln!(text, "FAILED {line}");
    }
    let _ = writeln!(
        text,
        "{} passed, {} failed, {} skipped",
        count.passed, count.failed, count.skipped
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_from_the_harness() {
        let line = "test result: ok. 19 passed; 2 failed; 1 ignored; 0 measured; \
                    3 filtered out; finished in 0.81s";
        let count = Count {
            passed: 19,
            failed: 2,
            skipped: 1,
        };
        assert_eq!(parse_result(line), Some(count));
        let failed = line.replace("ok.", "FAILED.");
        assert_eq!(parse_result(&failed), Some(count));
        assert_eq!(parse_result("test a_test ... ok"), None);
        assert_eq!(parse_result("test result: gibberish"), None);
    }

    #[test]
    fn a_test_that_skipped_itself_has_not_passed() {
        let mut count = Count {
            passed: 5,
            failed: 0,
            skipped: 1,
        };
        let own = Count {
            skipped: 2,
            ..Count::default()
        };
        let text = summary(
            &mut count,
            own,
            "a: no root\nb: no xfs\n",
            &["clippy: x".to_owned()],
        );
        assert_eq!(
            text,
            "SKIPPED a: no root\nSKIPPED b: no xfs\nFAILED clippy: x\n\
             3 passed, 0 failed, 3 skipped\n"
        );
    }
}
