//! Agents that run on this machine, and what they were told.
//!
//! Owns: finding them in /proc. Must not: signal one. Tested by
//! `tests/tests/doctor.rs`.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::finding::Finding;
use crate::commands::cli::Cli;
use crate::config::{DEFAULT_FILE, DEFAULT_NATIVE_FILE};

/// An agent.
pub struct Running {
    /// Its process id.
    pub pid: u32,
    /// Its command line.
    pub cli: Cli,
    cwd: PathBuf,
}

impl Running {
    /// Whether it reads the files that a command line names.
    pub fn reads(&self, cli: &Cli) -> bool {
        let here = std::env::current_dir().unwrap_or_default();
        files(&self.cli, &self.cwd) == files(cli, &here)
    }

    /// Its limit of open files.
    pub fn open_files(&self) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/limits", self.pid)).ok()?;
        parse_open_files(&text)
    }
}

/// `Max open files            20000                20000                files`
fn parse_open_files(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// The files that settings come from, as they lead from a directory.
fn files(cli: &Cli, cwd: &Path) -> [PathBuf; 2] {
    let one = |named: &Option<PathBuf>, default: &str| {
        let path = cwd.join(named.as_deref().unwrap_or(Path::new(default)));
        path.canonicalize().unwrap_or(path)
    };
    [
        one(&cli.config_file, DEFAULT_FILE),
        one(&cli.settings, DEFAULT_NATIVE_FILE),
    ]
}

/// All agents: processes of a program called onacc that have a fanotify group.
pub fn find() -> Vec<Running> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let others = pids.filter(|pid| *pid != std::process::id());
    let mut found: Vec<Running> = others.filter_map(look).collect();
    found.sort_by_key(|agent| agent.pid);
    found
}

fn look(pid: u32) -> Option<Running> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let program = fs::read_link(dir.join("exe")).ok()?;
    // A replaced binary is called "onacc (deleted)".
    if !program.file_name()?.to_str()?.starts_with("onacc") {
        return None;
    }
    let mut fds = fs::read_dir(dir.join("fd")).ok()?.flatten();
    fds.find(|fd| {
        fs::read_link(fd.path()).is_ok_and(|what| what.as_os_str() == "anon_inode:[fanotify]")
    })?;
    let words = fs::read(dir.join("cmdline")).ok()?;
    let words = words.split(|byte| *byte == 0);
    let mut words: Vec<OsString> = words
        .map(|word| OsString::from_vec(word.to_vec()))
        .collect();
    // Each word ends with a NUL.
    words.pop();
    let cli = Cli::read(words).ok().filter(|cli| cli.command.is_none())?;
    let cwd = fs::read_link(dir.join("cwd")).ok()?;
    Some(Running { pid, cli, cwd })
}

/// What there is to say of them.
pub fn told(ours: &[&Running], all: usize) -> Finding {
    match ours {
        [] => {
            let others = if all == 0 {
                "no agent runs".to_owned()
            } else {
                format!("no agent runs with this configuration ({all} with others)")
            };
            Finding::problem("agent", others)
                .means("nothing is protected")
                .mend("start onacc; name its configuration here with --config-file=FILE and --settings=FILE")
        }
        [one] => Finding::ok("agent", format!("it runs as process {}", one.pid)),
        more => {
            let pids: Vec<String> = more.iter().map(|one| one.pid.to_string()).collect();
            Finding::note(
                "agent",
                format!(
                    "more than one agent runs with this configuration: {}",
                    pids.join(", ")
                ),
            )
            .means("every file is scanned by each of them")
            .mend("stop all but one")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_open_files_is_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units\n\
                    Max processes             1                    1                    processes\n\
                    Max open files            20000                30000                files\n";
        assert_eq!(parse_open_files(text), Some(20_000));
        assert_eq!(
            parse_open_files("Max open files   unlimited   unlimited   files"),
            Some(u64::MAX)
        );
        assert_eq!(parse_open_files(""), None);
    }

    #[test]
    fn the_files_of_a_command_line_are_told_apart() {
        let of = |words: &[&str]| {
            let cli = Cli::read([&["onacc"], words].concat()).unwrap();
            files(&cli, Path::new("/nowhere"))
        };
        assert_eq!(of(&[]), of(&["--foreground"]));
        assert_eq!(of(&["-c", "/a"]), of(&["--config-file=/a", "-v"]));
        assert_ne!(of(&["-c", "/a"]), of(&[]));
        assert_eq!(of(&["-c", "a"])[0], Path::new("/nowhere/a"));
    }
}
