//! The pid file: one agent for each, told by a lock and not by a number.
//!
//! A file that a killed agent left behind holds no lock, and is taken over. Must
//! not: follow a symlink, or remove a file that is not ours any more. Tested here
//! and by `tests/tests/lifecycle.rs`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};

/// The pid file cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    /// An agent runs with it.
    #[error(
        "{path}: another onacc runs with this pid file (process {pid}); stop it, or choose another file with --pid-file=FILE"
    )]
    Taken {
        /// The file.
        path: String,
        /// What it says.
        pid: String,
    },
    /// It cannot be opened or written.
    #[error(
        "{path}: cannot write the pid file: {source}; choose another file with --pid-file=FILE"
    )]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// A pid file with our number; removed when dropped.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    file: File,
}

impl PidFile {
    /// Takes the file, and writes our process id into it.
    ///
    /// # Errors
    /// [`PidFileError`].
    pub fn take(path: &Path) -> Result<Self, PidFileError> {
        let shown = || path.display().to_string();
        let io_error = |source| PidFileError::Io {
            path: shown(),
            source,
        };
        loop {
            let mut file = open(path).map_err(io_error)?;
            if !try_lock(&file).map_err(io_error)? {
                let mut pid = String::new();
                let _unknown_then = file.read_to_string(&mut pid);
                let digits = pid.trim().bytes().all(|byte| byte.is_ascii_digit());
                let pid = if digits && !pid.trim().is_empty() {
                    pid.trim()
                } else {
                    "unknown"
                };
                return Err(PidFileError::Taken {
                    path: shown(),
                    pid: pid.to_owned(),
                });
            }
            // Its former owner may have removed it between opening and locking.
            if !is_at(&file, path) {
                continue;
            }
            file.set_len(0).map_err(io_error)?;
            file.rewind().map_err(io_error)?;
            writeln!(file, "{}", std::process::id()).map_err(io_error)?;
            return Ok(Self {
                path: path.to_owned(),
                file,
            });
        }
    }
}

impl PidFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // While the lock is held: nobody else can have taken it.
        if is_at(&self.file, &self.path) {
            let _left_behind_it_is_stale = fs::remove_file(&self.path);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// Whether this is the file that is found under the path now.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(there)) = (file.metadata(), path.symlink_metadata()) else {
        return false;
    };
    (ours.dev(), ours.ino()) == (there.dev(), there.ino())
}

/// A lock that goes when the file is closed, and with the process. Whether it
/// was free.
///
/// # Errors
/// The filesystem has no locks.
pub fn try_lock(file: &File) -> io::Result<bool> {
    let whole = libc::flock {
        l_type: i16::try_from(libc::F_WRLCK).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => Ok(true),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_and_what_a_dead_one_left_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let own = format!("{}\n", std::process::id());
        fs::write(&path, "12345678 and more\n").unwrap();
        let held = PidFile::take(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), own);
        let error = PidFile::take(&path).unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {})", own.trim())),
            "{error}"
        );
        drop(held);
        assert!(!path.exists());
        let held = PidFile::take(&path).unwrap();
        // Somebody has put another file there: it stays.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another\n").unwrap();
        drop(held);
        assert!(path.exists());
    }

    #[test]
    fn no_symlink_is_followed_and_the_error_names_file_and_flag() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("victim"), dir.path().join("pid"));
        fs::write(&path, "precious").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let error = PidFile::take(&link).unwrap_err().to_string();
        assert!(
            error.contains("pid: ") && error.contains("--pid-file="),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
