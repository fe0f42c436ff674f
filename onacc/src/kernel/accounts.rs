//! Tells when the account database changes: an inotify watch on `/etc`.
//!
//! Editors and `useradd` replace the files by rename, so the directory is
//! watched. Must not: read the files; names are resolved by the name service.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::SyscallError;

/// Files whose change can give a name another uid.
const FILES: [&str; 2] = ["passwd", "nsswitch.conf"];

/// The watch. Where no watch can be had (`fs.inotify.max_user_watches`) it is
/// tried again with each look.
#[derive(Debug)]
pub struct AccountWatch {
    inotify: Inotify,
    watching: bool,
}

impl AccountWatch {
    /// Begins to watch.
    ///
    /// # Errors
    /// No inotify instance left (`fs.inotify.max_user_instances`).
    pub fn new() -> Result<Self, SyscallError> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(|errno| SyscallError::from_errno("inotify_init", errno))?;
        let mut watch = Self {
            inotify,
            watching: false,
        };
        if let Err(error) = watch.begin() {
            tracing::warn!("onacc: {error}; new uids of users are noticed once a minute");
        }
        Ok(watch)
    }

    fn begin(&mut self) -> Result<(), SyscallError> {
        let mask = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO;
        self.inotify
            .add_watch("/etc", mask)
            .map_err(|errno| SyscallError::from_errno("inotify_add_watch of /etc", errno))?;
        self.watching = true;
        Ok(())
    }

    /// Whether one of the files has changed since the last call.
    pub fn changed(&mut self) -> bool {
        if !self.watching {
            return self.begin().is_ok();
        }
        let mut changed = false;
        while let Ok(events) = self.inotify.read_events() {
            // An event without a name is an overflow: anything may have changed.
            changed |= events.iter().any(|event| {
                event
                    .name
                    .as_ref()
                    .is_none_or(|name| FILES.iter().any(|file| name == file))
            });
        }
        changed
    }
}

impl AsFd for AccountWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
