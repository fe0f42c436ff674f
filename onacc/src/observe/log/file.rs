//! The log file: opened, locked, limited and rotated as clamd does with its own.
//!
//! Measured on clamd 1.4.6: before a line is written, a file that is larger than
//! `LogFileMaxSize` is renamed, `name.log` to `name-YYYYMMDD_HHMMSS.log` in local
//! time, also without `LogRotate`, then with two lines about it. Differs in one
//! thing: clamd overwrites a file that it renamed within the same second. Must
//! not: be used by any thread but the logger's. Tested here.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Zoned;

use super::LogError;
use crate::kernel::pid_file::try_lock;

/// The log file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    /// Bytes; `u64::MAX`: no limit.
    max_size: u64,
    rotate: bool,
    /// A line that was not written to its end comes before.
    torn: bool,
}

impl LogFile {
    /// Opens and locks a log file as clamonacc does: appending, mode 0640, never
    /// through a symlink.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(path: &Path) -> Result<Self, LogError> {
        let file = open(path)?;
        lock(&file, path)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            max_size: u64::MAX,
            rotate: false,
            torn: false,
        })
    }

    /// Sets when the file is rotated, and whether that is wanted.
    pub fn limit(&mut self, max_size: u64, rotate: bool) {
        self.max_size = max_size;
        self.rotate = rotate;
    }

    /// Opens the file again under its name, for it may have been moved. If that
    /// fails the former file stays in use.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn reopen(&mut self, path: &Path) -> Result<(), LogError> {
        let file = open(path)?;
        let same = |one: &File, other: &File| {
            let (one, other) = (one.metadata()?, other.metadata()?);
            Ok::<_, io::Error>((one.dev(), one.ino()) == (other.dev(), other.ino()))
        };
        if !same(&file, &self.file).unwrap_or(false) {
            lock(&file, path)?;
            self.file = file;
            self.torn = false;
        }
        path.clone_into(&mut self.path);
        Ok(())
    }

    /// Writes a line. False: the disk did not take all of it.
    pub fn put(&mut self, line: &[u8], now: &Zoned) -> bool {
        let rotated = self.rotate_if_large(now);
        let torn = std::mem::take(&mut self.torn);
        let written = if torn {
            self.file
                .write_all(b"\n")
                .and_then(|()| self.file.write_all(line))
        } else {
            self.file.write_all(line)
        };
        self.torn = written.is_err();
        written.is_ok() && rotated.is_ok()
    }

    fn rotate_if_large(&mut self, now: &Zoned) -> io::Result<()> {
        if self.max_size == u64::MAX {
            return Ok(());
        }
        let size = self.file.metadata()?.len();
        if size <= self.max_size {
            return Ok(());
        }
        if !self.rotate {
            self.rotate = true;
            let why = format!(
                "Log size = {size}, max = {}\nWARNING: Log size limit met but log file rotation turned off. Forcing log file rotation anyways.\n",
                self.max_size
            );
            self.file.write_all(why.as_bytes())?;
        }
        fs::rename(&self.path, rotated_name(&self.path, now))?;
        let file = open(&self.path).map_err(io::Error::other)?;
        lock(&file, &self.path).map_err(io::Error::other)?;
        self.file = file;
        Ok(())
    }
}

/// The name of a rotated file; one that is not there yet.
fn rotated_name(path: &Path, now: &Zoned) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default();
    let extension = path.extension();
    let name = |number: u32| {
        let mut name = stem.to_owned();
        name.push(now.strftime("-%Y%m%d_%H%M%S").to_string());
        if number > 0 {
            name.push(format!(".{number}"));
        }
        if let Some(extension) = extension {
            name.push(".");
            name.push(extension);
        }
        path.with_file_name(name)
    };
    let free = (0..1000)
        .map(name)
        .find(|path| path.symlink_metadata().is_err());
    free.unwrap_or_else(|| name(1000))
}

fn open(path: &Path) -> Result<File, LogError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NOCTTY)
        .open(path)
        .map_err(|source| LogError::Open {
            path: path.display().to_string(),
            source,
        })
}

/// Locks the whole file, against clamonacc and clamd too (`fcntl`), until it is
/// closed.
fn lock(file: &File, path: &Path) -> Result<(), LogError> {
    let shown = || path.display().to_string();
    match try_lock(file) {
        Ok(true) => Ok(()),
        Ok(false) => Err(LogError::Locked(shown())),
        Err(source) => Err(LogError::Open {
            path: shown(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u8) -> Zoned {
        format!("2026-11-24T12:30:{second:02}[UTC]")
            .parse()
            .unwrap()
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn a_locked_or_linked_log_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let first = LogFile::open(&path).unwrap();
        assert!(matches!(LogFile::open(&path), Err(LogError::Locked(_))));
        drop(first);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(LogFile::open(&link), Err(LogError::Open { .. })));
    }

    #[test]
    fn a_large_file_gets_the_name_that_clamd_gives_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("onacc.log");
        let mut log = LogFile::open(&path).unwrap();
        log.limit(10, true);
        assert!(log.put(b"0123456789", &at(1)), "as large as allowed");
        assert!(log.put(b"a", &at(1)) && log.put(b"0123456789b", &at(1)));
        assert!(log.put(b"c", &at(1)), "within the same second");
        assert!(log.put(b"0123456789d", &at(2)) && log.put(b"e", &at(2)));
        assert_eq!(
            names(dir.path()),
            [
                "onacc-20261124_123001.1.log",
                "onacc-20261124_123001.log",
                "onacc-20261124_123002.log",
                "onacc.log"
            ]
        );
        let read = |name| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("onacc-20261124_123001.log"), "0123456789a");
        assert_eq!(read("onacc-20261124_123001.1.log"), "0123456789b");
        assert_eq!(read("onacc-20261124_123002.log"), "c0123456789d");
        assert_eq!(read("onacc.log"), "e");
        // The new file is locked like the first.
        assert!(matches!(LogFile::open(&path), Err(LogError::Locked(_))));
    }

    #[test]
    fn without_logrotate_it_says_so_and_rotates_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("onacc");
        let mut log = LogFile::open(&path).unwrap();
        log.limit(3, false);
        assert!(log.put(b"1234\n", &at(1)) && log.put(b"5\n", &at(1)));
        let old = fs::read_to_string(dir.path().join("onacc-20261124_123001")).unwrap();
        assert_eq!(
            old,
            "1234\nLog size = 5, max = 3\nWARNING: Log size limit met but log file rotation turned off. Forcing log file rotation anyways.\n"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "5\n");
    }

    #[test]
    fn a_file_that_was_moved_away_is_made_anew_and_a_failure_keeps_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("log"), dir.path().join("log.1"));
        let mut log = LogFile::open(&path).unwrap();
        log.reopen(&path).expect("it is the same file");
        assert!(log.put(b"1\n", &at(1)));
        fs::rename(&path, &moved).unwrap();
        assert!(log.put(b"2\n", &at(1)));
        log.reopen(&path).unwrap();
        assert!(log.put(b"3\n", &at(1)));
        assert!(log.reopen(&dir.path().join("none/log")).is_err());
        assert!(log.put(b"4\n", &at(1)));
        assert_eq!(fs::read_to_string(&moved).unwrap(), "1\n2\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "3\n4\n");
    }
}
