//! Opening files under a watch without hanging the test.
//!
//! Owns: opens in threads of their own with a time limit, as any user. Must
//! not: block its caller beyond the limit. An open that hangs is freed when the
//! agent dies: that is the caller's part, and its guard's. Tested below.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::Path,
    process::{Command, Output, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use nix::errno::Errno;

use crate::{child, sys};

/// What came of an open.
#[derive(Debug)]
pub enum Outcome {
    /// It succeeded.
    Open(File),
    /// It failed with this error.
    Failed(Errno),
    /// It had not returned within the limit; its thread still waits.
    TimedOut,
}

/// An open that has ended, or was given up.
#[derive(Debug)]
pub struct Opened {
    /// What came of it.
    pub outcome: Outcome,
    /// How long it took, measured around the system call.
    pub took: Duration,
}

impl Opened {
    /// Whether the file was opened.
    pub fn is_open(&self) -> bool {
        matches!(self.outcome, Outcome::Open(_))
    }

    /// Whether the open was refused as the agent refuses: EPERM.
    pub fn is_refused(&self) -> bool {
        matches!(self.outcome, Outcome::Failed(Errno::EPERM))
    }

    /// Whether the limit passed.
    pub fn timed_out(&self) -> bool {
        matches!(self.outcome, Outcome::TimedOut)
    }

    /// The error, if it is one.
    pub fn errno(&self) -> Option<Errno> {
        match self.outcome {
            Outcome::Failed(errno) => Some(errno),
            _ => None,
        }
    }
}

/// An open under way in a thread of its own.
#[derive(Debug)]
pub struct Opening {
    receiver: Receiver<Opened>,
    started: Instant,
}

impl Opening {
    /// Starts to open a file for reading.
    pub fn start(path: &Path) -> Self {
        Self::start_with(path, OpenOptions::new().read(true), None)
    }

    /// Starts to open a file for reading as another user.
    pub fn start_as(uid: u32, gid: u32, path: &Path) -> Self {
        Self::start_with(path, OpenOptions::new().read(true), Some((uid, gid)))
    }

    /// Starts any open, as another user where one is given. The file is opened
    /// close-on-exec, and never waits for a writer if it is a FIFO.
    pub fn start_with(path: &Path, options: &OpenOptions, user: Option<(u32, u32)>) -> Self {
        let (sender, receiver) = mpsc::channel();
        let path = path.to_path_buf();
        let mut options = options.clone();
        options.custom_flags(libc::O_NONBLOCK);
        let started = Instant::now();
        thread::spawn(move || {
            if let Some((uid, gid)) = user {
                sys::become_user_on_this_thread(uid, gid).expect("changing the user needs root");
            }
            let before = Instant::now();
            let result = options.open(&path);
            let took = before.elapsed();
            let outcome = match result {
                Ok(file) => Outcome::Open(file),
                Err(error) => Outcome::Failed(errno_of(&error)),
            };
            // Nobody may be waiting any more.
            let _ = sender.send(Opened { outcome, took });
        });
        Self { receiver, started }
    }

    /// Waits for the outcome; `None` if there is none yet. It can be asked again.
    pub fn wait(&self, limit: Duration) -> Option<Opened> {
        self.receiver.recv_timeout(limit).ok()
    }

    /// Waits for the outcome; [`Outcome::TimedOut`] if there is none by then.
    pub fn within(self, limit: Duration) -> Opened {
        self.wait(limit).unwrap_or(Opened {
            outcome: Outcome::TimedOut,
            took: self.started.elapsed(),
        })
    }
}

/// Opens a file for reading, and gives up after the limit.
pub fn open_within(path: &Path, limit: Duration) -> Opened {
    Opening::start(path).within(limit)
}

/// Opens a file for reading as another user, in a thread whose ids alone change.
pub fn open_as(uid: u32, path: &Path, limit: Duration) -> Opened {
    Opening::start_as(uid, uid, path).within(limit)
}

/// What `cat` came to.
#[derive(Debug)]
pub enum Cat {
    /// It ended.
    Ended(Output),
    /// It was killed when the time was up.
    TimedOut,
}

impl Cat {
    /// What it printed, if it succeeded.
    pub fn content(&self) -> Option<&[u8]> {
        match self {
            Self::Ended(output) if output.status.success() => Some(&output.stdout),
            _ => None,
        }
    }

    /// Whether it failed with `Operation not permitted`.
    pub fn is_refused(&self) -> bool {
        match self {
            Self::Ended(output) => {
                String::from_utf8_lossy(&output.stderr).contains("Operation not permitted")
            }
            Self::TimedOut => false,
        }
    }
}

/// Runs `cat` on a file, in a process of its own.
pub fn cat(path: &Path, limit: Duration) -> Cat {
    run_cat(Command::new("cat").arg(path), limit)
}

/// Runs `cat` on a file as another user.
pub fn cat_as(uid: u32, path: &Path, limit: Duration) -> Cat {
    run_cat(Command::new("cat").arg(path).uid(uid).gid(uid), limit)
}

fn run_cat(command: &mut Command, limit: Duration) -> Cat {
    command
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut running = sys::die_with_parent(command).spawn().expect("cat starts");
    let drain = |pipe: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                let _ = pipe.read_to_end(&mut bytes);
            }
            bytes
        })
    };
    let stdout = drain(running.stdout.take().map(|pipe| Box::new(pipe) as _));
    let stderr = drain(running.stderr.take().map(|pipe| Box::new(pipe) as _));
    let Some(status) = child::wait_within(&mut running, limit) else {
        child::kill(&mut running);
        return Cat::TimedOut;
    };
    Cat::Ended(Output {
        status,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    })
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::require_root;

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn an_open_reports_the_file_or_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, b"content").unwrap();
        assert!(open_within(&path, LIMIT).is_open());
        let missing = open_within(&dir.path().join("b"), LIMIT);
        assert_eq!(missing.errno(), Some(Errno::ENOENT));
        assert!(!missing.is_refused() && !missing.timed_out());
        assert_eq!(cat(&path, LIMIT).content(), Some(b"content".as_slice()));
        assert!(!cat(&path, LIMIT).is_refused());
    }

    #[test]
    fn another_user_opens_in_a_thread_and_in_a_process() {
        require_root!();
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = dir.path().join("a");
        fs::write(&path, b"content").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(open_as(4711, &path, LIMIT).errno(), Some(Errno::EACCES));
        assert!(cat_as(4711, &path, LIMIT).content().is_none());
        assert!(
            open_within(&path, LIMIT).is_open(),
            "this thread is still root"
        );
        std::os::unix::fs::chown(&path, Some(4711), None).unwrap();
        assert!(open_as(4711, &path, LIMIT).is_open());
        assert!(cat_as(4711, &path, LIMIT).content().is_some());
    }
}
