//! `cargo xtask fuzz`: libFuzzer on every parser of bytes from outside.
//!
//! Owns: the compiler's flags, where inputs come from and go to. Must not: know
//! what a target checks; `fuzz/harness` does. The targets are laid out as
//! cargo-fuzz wants them, but it is not needed: `-Z sanitizer` is the one flag
//! that a stable compiler has to be allowed, the rest is plain cargo.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    setup::{self, Level},
    shell::{Result, cargo, run, workspace},
};

/// What cargo-fuzz would set: coverage by counters and comparisons, the address
/// sanitizer, and the debug assertions of an optimised build.
const FLAGS: [&str; 9] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Zsanitizer=address",
    "-Ccodegen-units=1",
    "-Cdebug-assertions",
    "-Coverflow-checks",
];

/// Longest input; BTF of a kernel is larger, but has no more to it.
const LONGEST: usize = 8192;

/// Longest input that is checked in, but for those put there by hand.
const LONGEST_KEPT: usize = 256;

/// Fuzzes the targets whose names contain the filter, for this long each.
pub fn command(seconds: u64, minimise: bool, filter: Option<&str>) -> Result<()> {
    let all = targets()?;
    let chosen: Vec<&String> = all
        .iter()
        .filter(|name| filter.is_none_or(|filter| name.contains(filter)))
        .collect();
    if chosen.is_empty() {
        return Err(format!("no such target; there are: {}", all.join(", ")));
    }
    setup::ensure(Level::Test)?;
    let programs = build()?;
    let mut broken = Vec::new();
    for name in chosen {
        let target = Target::new(&programs, name)?;
        println!("\n== {name}: {seconds} s");
        if let Err(why) = target.fuzz(seconds) {
            broken.push(why);
        } else if minimise {
            target.minimise()?;
        }
    }
    if broken.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{}\nAn input that breaks a parser belongs into fuzz/corpus/TARGET: \
         `cargo test -p onacc-fuzz-harness` then fails until the parser is mended.",
        broken.join("\n")
    ))
}

/// The names of the targets, from their files.
fn targets() -> Result<Vec<String>> {
    let dir = workspace().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| Some(entry.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// Builds all targets; returns the directory that they are in.
fn build() -> Result<PathBuf> {
    let host = host()?;
    let target = workspace().join("fuzz/target");
    run(cargo()
        .current_dir(workspace().join("fuzz"))
        .args(["build", "--release", "--locked", "--target", &host])
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"))
        .env_remove("RUSTFLAGS")
        .env("RUSTC_BOOTSTRAP", "1"))?;
    Ok(target.join(host).join("release"))
}

/// Flags must not reach build scripts, which is what naming a target is for.
fn host() -> Result<String> {
    let output = Command::new("rustc")
        .arg("-vV")
        .current_dir(workspace())
        .output()
        .map_err(|error| format!("rustc does not start: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned)
        .ok_or_else(|| "rustc -vV names no host".to_owned())
}

struct Target {
    program: PathBuf,
    /// Checked in.
    corpus: PathBuf,
    /// What the fuzzer has found besides; not checked in.
    found: PathBuf,
    artifacts: PathBuf,
    name: String,
}

impl Target {
    fn new(programs: &Path, name: &str) -> Result<Self> {
        let fuzz = workspace().join("fuzz");
        let target = Self {
            program: programs.join(name),
            corpus: fuzz.join("corpus").join(name),
            found: fuzz.join("target/found").join(name),
            artifacts: fuzz.join("artifacts").join(name),
            name: name.to_owned(),
        };
        for dir in [&target.corpus, &target.found, &target.artifacts] {
            make(dir)?;
        }
        Ok(target)
    }

    fn fuzz(&self, seconds: u64) -> Result<()> {
        run(Command::new(&self.program)
            .args([
                &format!("-max_total_time={seconds}"),
                &format!("-max_len={LONGEST}"),
                "-timeout=10",
                "-rss_limit_mb=1024",
                "-print_final_stats=1",
                "-verbosity=0",
            ])
            .arg(format!("-artifact_prefix={}/", self.artifacts.display()))
            .arg(&self.found)
            .arg(&self.corpus)
            .current_dir(workspace())
            .stdin(Stdio::null()))
        .map_err(|_| {
            format!(
                "FAILED {}: the input is in {}",
                self.name,
                self.artifacts.display()
            )
        })
    }

    /// Writes the corpus anew: the fewest inputs that reach what all reach.
    fn minimise(&self) -> Result<()> {
        let merged = self.found.with_extension("merged");
        let _ = fs::remove_dir_all(&merged);
        make(&merged)?;
        run(Command::new(&self.program)
            .args(["-set_cover_merge=1", "-verbosity=0"])
            .arg(format!("-max_len={LONGEST_KEPT}"))
            .args([&merged, &self.corpus, &self.found])
            .stdin(Stdio::null()))?;
        let fail = |error| format!("{}: {error}", self.corpus.display());
        // What has a name of its own was put there by hand, and stays.
        for entry in fs::read_dir(&self.corpus).map_err(fail)?.flatten() {
            if is_hash(&entry.file_name().to_string_lossy()) {
                fs::remove_file(entry.path()).map_err(fail)?;
            }
        }
        for entry in fs::read_dir(&merged).map_err(fail)?.flatten() {
            fs::copy(entry.path(), self.corpus.join(entry.file_name())).map_err(fail)?;
        }
        Ok(())
    }
}

/// libFuzzer calls an input by its SHA-1.
fn is_hash(name: &str) -> bool {
    name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn make(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_corpus_and_is_declared() {
        let declared = fs::read_to_string(workspace().join("fuzz/Cargo.toml")).unwrap();
        let harness = fs::read_to_string(workspace().join("fuzz/harness/src/lib.rs")).unwrap();
        for name in targets().unwrap() {
            assert!(declared.contains(&format!("name = \"{name}\"")), "{name}");
            assert!(harness.contains(&format!("(\"{name}\", {name})")), "{name}");
            let corpus = workspace().join("fuzz/corpus").join(&name);
            assert!(fs::read_dir(corpus).unwrap().count() >= 5, "{name}");
        }
    }

    #[test]
    fn inputs_put_there_by_hand_are_told_from_the_fuzzers() {
        assert!(is_hash("0f1e2d3c4b5a69788796a5b4c3d2e1f001234567"));
        assert!(!is_hash("a-name-of-clamd"));
    }
}
