//! Names with any byte in them: refused, reported in one line, quarantined, listed
//! as JSON and put back, each under its own name.
//!
//! Must not: repeat what `feed.rs` does with them in notify-only mode.

mod common;

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use common::{LIMIT, Site, assert_refused, infected};
use onacc_tests::{agent::binary, clamd::wait_until, or_skip, require_root, sys};
use serde_json::Value;

fn names() -> Vec<Vec<u8>> {
    let every: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    vec![
        b"two\nlines: Forged FOUND".to_vec(),
        b"a \"quoted\" 'name' \\ with\ttabs".to_vec(),
        b"not \xff\xfe UTF-8 \xc3".to_vec(),
        b"\x1b[2J\x07\x08\x7f".to_vec(),
        "turned \u{202e}round".as_bytes().to_vec(),
        vec![b'x'; 255],
        vec![0xff; 255],
        b" ".to_vec(),
        b"-rf".to_vec(),
        b"%s%n{}$(id)`id`".to_vec(),
        every,
    ]
}

fn quarantine(dir: &Path, args: &[&OsStr]) -> String {
    let mut command = Command::new(binary());
    command.arg("quarantine").arg("--directory").arg(dir);
    command.args(args).stdin(Stdio::null());
    let output = sys::die_with_parent(&mut command).output();
    let output = output.expect("onacc starts");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Whether nothing in a text could forge a line or speak to a terminal.
fn is_plain(line: &str) -> bool {
    line.chars()
        .all(|character| !character.is_control() && character != '\u{202e}')
}

#[test]
fn names_with_any_byte_are_one_line_each_and_come_back_as_they_were() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let dir = tempfile::tempdir().unwrap();
    // Before the agent is there: it scans what is written, and moves it.
    let paths: Vec<PathBuf> = names()
        .iter()
        .map(|name| site.write(OsStr::from_bytes(name), &infected()))
        .collect();
    let agent = site
        .agent()
        .arg(&format!("--move={}", dir.path().display()))
        .start();
    for path in &paths {
        assert_refused(path);
    }
    let moved = || paths.iter().all(|path| fs::symlink_metadata(path).is_err());
    assert!(wait_until(LIMIT, moved), "{}", agent.output());
    let said = || agent.output().matches(": moved to '").count();
    assert!(wait_until(LIMIT, || said() == paths.len()));
    let output = agent.output();
    let found = output
        .lines()
        .filter(|line| line.ends_with(" FOUND"))
        .count();
    assert!(found >= paths.len(), "{output}");
    for line in output.lines() {
        assert!(is_plain(line), "{line:?}");
        assert!(!line.starts_with("lines: Forged"), "{line:?}");
    }

    let text = quarantine(dir.path(), &["list".as_ref()]);
    assert_eq!(text.lines().count(), paths.len(), "{text:?}");
    for line in text.lines() {
        assert!(is_plain(&line.replace('\t', " ")), "{line:?}");
    }
    let json = quarantine(dir.path(), &["list".as_ref(), "--json".as_ref()]);
    let Value::Array(list) = serde_json::from_str(&json).expect("JSON") else {
        panic!("no list: {json}");
    };
    assert_eq!(list.len(), paths.len(), "{json}");
    drop(agent);
    // Named as the directory names them: their bytes are the files' own.
    let kept: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| !name.as_bytes().ends_with(b".onacc.json"))
        .collect();
    assert_eq!(kept.len(), paths.len(), "{kept:?}");
    for name in &kept {
        quarantine(
            dir.path(),
            &["restore".as_ref(), "--".as_ref(), name.as_ref()],
        );
    }
    for path in &paths {
        assert_eq!(fs::read(path).unwrap(), infected(), "{}", path.display());
    }
}
