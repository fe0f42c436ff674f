//! Tells when clamd's signature database is changed or read: an inotify watch
//! on its directory.
//!
//! Must not: look into the files, or know what a change means
//! (`policy::Database` does). Tested here.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::SyscallError;

/// What happened to the files since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// One came, went, or was written.
    pub changed: bool,
    /// One was read to its end, by whomever.
    pub read: bool,
}

/// The watch. The directory may be missing; then there is nothing to tell until
/// it is there.
#[derive(Debug)]
pub struct DatabaseWatch {
    inotify: Inotify,
    directory: PathBuf,
    watching: bool,
}

impl DatabaseWatch {
    /// Begins to watch.
    ///
    /// # Errors
    /// No inotify instance left (`fs.inotify.max_user_instances`).
    pub fn new(directory: &Path) -> Result<Self, SyscallError> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(|errno| SyscallError::from_errno("inotify_init", errno))?;
        let mut watch = Self {
            inotify,
            directory: directory.to_owned(),
            watching: false,
        };
        watch.begin();
        Ok(watch)
    }

    /// Watches a directory that was missing. Whether it is there now.
    fn begin(&mut self) -> bool {
        let mask = AddWatchFlags::IN_ONLYDIR
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CLOSE_NOWRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE_SELF;
        self.watching = self.inotify.add_watch(&self.directory, mask).is_ok();
        self.watching
    }

    /// Watches another directory from now on, if it is another one.
    pub fn follow(&mut self, directory: &Path) {
        if *directory == *self.directory {
            return;
        }
        match Self::new(directory) {
            Ok(other) => *self = other,
            Err(error) => tracing::warn!("onacc: {}: {error}", directory.display()),
        }
    }

    /// What happened since the last call.
    pub fn touched(&mut self) -> Touched {
        let mut touched = Touched::default();
        while let Ok(events) = self.inotify.read_events() {
            for event in events {
                let mask = event.mask;
                if mask.intersects(AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_MOVE_SELF) {
                    self.watching = false;
                    touched.changed = true;
                } else if mask.contains(AddWatchFlags::IN_ISDIR) {
                    // freshclam's temporary directories, a listing.
                } else if mask.contains(AddWatchFlags::IN_CLOSE_NOWRITE) {
                    touched.read = true;
                } else {
                    // Also an overflow: anything may have happened.
                    touched.changed = true;
                }
            }
        }
        if !self.watching && self.begin() {
            touched.changed = true;
        }
        touched
    }
}

impl AsFd for DatabaseWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_and_readers_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("db");
        let mut watch = DatabaseWatch::new(&place).unwrap();
        assert_eq!(watch.touched(), Touched::default());
        std::fs::create_dir(&place).unwrap();
        let file = place.join("local.ndb");
        std::fs::write(&file, "x").unwrap();
        let changed = Touched {
            changed: true,
            read: false,
        };
        assert_eq!(watch.touched(), changed, "the directory has come");
        std::fs::read(&file).unwrap();
        let read = Touched {
            changed: false,
            read: true,
        };
        assert_eq!(watch.touched(), read);
        std::fs::read_dir(&place).unwrap().count();
        assert_eq!(watch.touched(), Touched::default(), "a listing");
        std::fs::write(&file, "y").unwrap();
        assert_eq!(watch.touched(), changed);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(watch.touched(), changed);
        std::fs::rename(&place, dir.path().join("other")).unwrap();
        assert_eq!(watch.touched(), changed);
        assert_eq!(watch.touched(), Touched::default());
        std::fs::create_dir(&place).unwrap();
        assert_eq!(watch.touched(), changed, "another one has come");
    }
}
