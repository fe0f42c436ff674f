//! Skipping a test, loudly.
//!
//! Owns: how a skip is said and recorded. Must not: decide what is skipped.
//! `cargo xtask test` counts the lines of the file named by `ONACC_SKIPS`.

use std::{env, fs::OpenOptions, io::Write};

/// The variable that names the file of skips.
pub const SKIPS_VARIABLE: &str = "ONACC_SKIPS";

/// Skips the running test, which must return `()`: `skip!("no mkfs.{kind}")`.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        #[allow(clippy::items_after_statements, reason = "it names the function it stands in")]
        fn here() {}
        $crate::skip::record($crate::skip::function_name(&here), &format!($($reason)*));
        return;
    }};
}

/// Unwraps a `Result`, or skips the running test with the error as its reason.
#[macro_export]
macro_rules! or_skip {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(reason) => $crate::skip!("{reason}"),
        }
    };
}

/// Skips the running test unless it runs as root.
#[macro_export]
macro_rules! require_root {
    () => {
        if !$crate::skip::is_root() {
            $crate::skip!("it needs root: run cargo xtask test as root");
        }
    };
}

/// Whether the process runs as root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The path of the function in which a nested function `here` stands.
pub fn function_name<T>(_here: &T) -> &'static str {
    let name = std::any::type_name::<T>();
    name.strip_suffix("::here").unwrap_or(name)
}

/// Says a skip on stderr, past the capture of the test harness, and records it.
pub fn record(test: &str, reason: &str) {
    let line = format!("{test}: {}\n", reason.replace('\n', " "));
    let _ = std::io::stderr()
        .lock()
        .write_all(format!("SKIPPED {line}").as_bytes());
    if let Some(path) = env::var_os(SKIPS_VARIABLE) {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .expect("the file named by ONACC_SKIPS can be written");
        file.write_all(line.as_bytes())
            .expect("the file named by ONACC_SKIPS can be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_that_of_the_enclosing_function() {
        fn here() {}
        assert!(function_name(&here).ends_with("the_name_is_that_of_the_enclosing_function"));
    }
}
