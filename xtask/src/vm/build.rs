//! What goes into the machine: the end-to-end tests, built and stripped here.
//!
//! Owns: building them and finding what was built. Must not: boot anything. The
//! reading of cargo's words is tested below.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::initramfs::Root;
use crate::shell::{Result, cargo, run_quietly, shown};

/// The end-to-end tests as built.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tests {
    /// Test files by their names, and the binaries.
    pub files: Vec<(String, PathBuf)>,
    /// Programs that they run, by their paths.
    pub helpers: Vec<PathBuf>,
}

impl Tests {
    /// Builds them.
    pub fn build() -> Result<Self> {
        let mut build = cargo();
        build
            .args(["test", "--package", "onacc-tests", "--no-run", "--quiet"])
            .arg("--message-format=json-render-diagnostics")
            .stderr(Stdio::inherit());
        let output = build
            .output()
            .map_err(|error| format!("cargo does not start: {error}"))?;
        if !output.status.success() {
            return Err(format!("failed ({}): {}", output.status, shown(&build)));
        }
        let tests = parse(&String::from_utf8_lossy(&output.stdout));
        if tests.files.is_empty() {
            return Err(format!("no test was built by: {}", shown(&build)));
        }
        Ok(tests)
    }

    /// The names of the test files.
    pub fn names(&self) -> Vec<String> {
        self.files.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Puts the named ones, and what they run, into a machine.
    pub fn add_to(&self, root: &mut Root, names: &[String]) -> Result<()> {
        let dir = tempfile::tempdir().map_err(|error| format!("a temporary directory: {error}"))?;
        let chosen = self.files.iter().filter(|(name, _)| names.contains(name));
        for (name, binary) in chosen {
            let stripped = strip(binary, &dir.path().join(name))?;
            root.add(&stripped, &Path::new("/vm/tests").join(name))?;
        }
        for helper in &self.helpers {
            root.add(helper, helper)?;
        }
        Ok(())
    }
}

/// A copy without debug information, which is most of it.
pub fn strip(binary: &Path, into: &Path) -> Result<PathBuf> {
    run_quietly(
        Command::new("strip")
            .args(["--strip-debug", "-o"])
            .args([into, binary]),
    )?;
    Ok(into.to_path_buf())
}

/// Cargo's messages, one JSON object a line.
fn parse(said: &str) -> Tests {
    let mut tests = Tests::default();
    for line in said.lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else {
            continue;
        };
        let Some(executable) = message["executable"].as_str() else {
            continue;
        };
        let name = message["target"]["name"].as_str().unwrap_or_default();
        let is = |kind: &str| {
            let kinds = message["target"]["kind"].as_array();
            kinds.is_some_and(|kinds| kinds.iter().any(|has| has == kind))
        };
        if is("test") {
            tests.files.push((name.to_owned(), executable.into()));
        } else if is("bin") && message["profile"]["test"] == false {
            tests.helpers.push(executable.into());
        }
    }
    tests.files.sort();
    tests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_files_and_helpers_are_found_in_what_cargo_says() {
        let said = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"onacc_tests"},"profile":{"test":true},"executable":"/t/kit"}
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"libc"},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"notify"},"profile":{"test":true},"executable":"/t/notify-1"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"cache"},"profile":{"test":true},"executable":"/t/cache-1"}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"mapper"},"profile":{"test":true},"executable":"/t/mapper-1"}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"mapper"},"profile":{"test":false},"executable":"/t/mapper"}
not json
{"reason":"build-finished","success":true}"#;
        let wanted = Tests {
            files: vec![
                ("cache".to_owned(), "/t/cache-1".into()),
                ("notify".to_owned(), "/t/notify-1".into()),
            ],
            helpers: vec!["/t/mapper".into()],
        };
        assert_eq!(parse(said), wanted);
    }
}
