//! Ignore marks on directories out of scope, and word of their moves.
//!
//! The ignore mark keeps every open of a directory's direct files in the kernel
//! under a filesystem mark (facts/kernel.md, fanotify 3). It must go when the
//! directory, or one above it, is moved: `MoveWatch` tells. Must not: know the
//! scope (`coverage::outside` does). Tested here and by `tests/`.

use std::cell::{OnceCell, RefCell};
use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use super::event::Events;
use super::group::Group;
use super::marks::{At, MarkError, mark, mark_raw};
use crate::kernel::SyscallError;
use crate::kernel::inotify::{Inotify, InotifyBuffer, WatchError, WatchId};

/// `FAN_MARK_IGNORE | FAN_MARK_IGNORED_SURV_MODIFY` (include/uapi/linux/fanotify.h,
/// since 6.0): the ignore mask heeds `FAN_EVENT_ON_CHILD`.
const FAN_MARK_IGNORE_SURV: u32 = 0x400 | libc::FAN_MARK_IGNORED_SURV_MODIFY;

impl Group {
    /// Opens of the files directly in this directory raise no events any more.
    /// The mark goes with the inode when memory is short.
    ///
    /// # Errors
    /// `EINVAL` before 6.0.
    pub fn ignore_directory(&self, directory: BorrowedFd<'_>) -> Result<(), MarkError> {
        let flags = libc::FAN_MARK_ADD | FAN_MARK_IGNORE_SURV | super::marks::FAN_MARK_EVICTABLE;
        let mask = self.event_mask() | libc::FAN_EVENT_ON_CHILD | libc::FAN_ONDIR;
        Ok(mark(self, flags, mask, At::ProcFd(directory))?)
    }

    /// Takes that mark away.
    ///
    /// # Errors
    /// A failed `fanotify_mark`.
    pub fn unignore_directory(&self, directory: BorrowedFd<'_>) -> Result<(), MarkError> {
        let flags = libc::FAN_MARK_REMOVE | FAN_MARK_IGNORE_SURV;
        let mask = self.event_mask() | libc::FAN_EVENT_ON_CHILD | libc::FAN_ONDIR;
        Ok(mark(self, flags, mask, At::ProcFd(directory))?)
    }
}

/// Watches where a filesystem gives fanotify no handles to report; each keeps an
/// inode in memory.
const MOST_BY_INOTIFY: usize = 4096;

/// What is told of a watched directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Its own move.
    Itself,
    /// Also when a directory in it goes, or another comes into its place: a
    /// path that the settings name leads elsewhere then. Files come and go
    /// untold, but for a wake-up.
    Entries,
}

/// Tells when one of the watched directories is moved. A group of its own:
/// permission groups report no moves. On subvolumes of btrfs, of which a group
/// that reports handles takes no marks, inotify does it.
#[derive(Debug)]
pub struct MoveWatch {
    group: OwnedFd,
    /// Made when it is needed: a user has 128 of them.
    inotify: OnceCell<Inotify>,
    watched: RefCell<HashSet<WatchId>>,
}

impl MoveWatch {
    /// Makes the group.
    ///
    /// # Errors
    /// A failed `fanotify_init`.
    pub fn new() -> Result<Self, SyscallError> {
        let flags = libc::FAN_CLASS_NOTIF
            | libc::FAN_REPORT_FID
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_UNLIMITED_MARKS;
        // SAFETY: fanotify_init takes two integers and touches no memory of ours.
        let fd = unsafe { libc::fanotify_init(flags, 0) };
        if fd < 0 {
            return Err(SyscallError::last("fanotify_init(FAN_REPORT_FID)"));
        }
        Ok(Self {
            // SAFETY: the kernel just gave this fd to us alone.
            group: unsafe { OwnedFd::from_raw_fd(fd) },
            inotify: OnceCell::new(),
            watched: RefCell::default(),
        })
    }

    /// Tells of this directory from now on. Not `pinned`: until the kernel drops
    /// the inode from memory.
    ///
    /// # Errors
    /// The filesystem has no file handles; then its directories must not be ignored.
    pub fn watch(
        &self,
        directory: BorrowedFd<'_>,
        told: Told,
        pinned: bool,
    ) -> Result<(), SyscallError> {
        let evictable = if pinned {
            0
        } else {
            super::marks::FAN_MARK_EVICTABLE
        };
        let flags = libc::FAN_MARK_ADD | evictable;
        let entries = match told {
            Told::Itself => 0,
            Told::Entries => libc::FAN_DELETE | libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO,
        };
        let mask = libc::FAN_MOVE_SELF | libc::FAN_ONDIR | entries;
        match mark_raw(self.group.as_raw_fd(), flags, mask, At::ProcFd(directory)) {
            Err(error) if error.errno() == libc::EXDEV => self.watch_by_inotify(directory, told),
            result => result,
        }
    }

    fn watch_by_inotify(&self, directory: BorrowedFd<'_>, told: Told) -> Result<(), SyscallError> {
        let full = || SyscallError::from_errno("inotify_add_watch", nix::errno::Errno::ENOSPC);
        let mut watched = self.watched.borrow_mut();
        if watched.len() >= MOST_BY_INOTIFY {
            return Err(full());
        }
        let inotify = if let Some(inotify) = self.inotify.get() {
            inotify
        } else {
            let new = Inotify::new()?;
            self.inotify.get_or_init(|| new)
        };
        let watch = inotify
            .watch_moves(directory, told == Told::Entries)
            .map_err(|error| match error {
                WatchError::Exhausted => full(),
                WatchError::Other(error) => error,
            })?;
        watched.insert(watch);
        Ok(())
    }

    /// Watches nothing any more, or as little as costs nothing.
    ///
    /// # Errors
    /// A failed `fanotify_mark`.
    pub fn flush(&self, pinned: bool) -> Result<(), SyscallError> {
        let watched = self.watched.take();
        if let Some(inotify) = self.inotify.get() {
            for watch in watched {
                inotify.unwatch(watch);
            }
        }
        if !pinned {
            return Ok(());
        }
        // SAFETY: with FAN_MARK_FLUSH the path is not looked at.
        let result = unsafe {
            libc::fanotify_mark(
                self.group.as_raw_fd(),
                libc::FAN_MARK_FLUSH,
                0,
                libc::AT_FDCWD,
                std::ptr::null(),
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(SyscallError::last("fanotify_mark(FAN_MARK_FLUSH)"))
        }
    }

    /// Whether anything was moved since the last call (or events were lost).
    pub fn moved(&self) -> bool {
        let mut buffer = [0u8; 4096];
        let mut moved = false;
        loop {
            // SAFETY: the pointer and length are those of a live, writable array.
            let got = unsafe {
                libc::read(
                    self.group.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                )
            };
            // No event of a FID group carries an fd, so nothing has to be closed.
            match usize::try_from(got) {
                Ok(got) if got > 0 => moved |= tells_of_a_move(&buffer[..got]),
                _ => return moved | self.moved_by_inotify(),
            }
        }
    }

    fn moved_by_inotify(&self) -> bool {
        let Some(inotify) = self.inotify.get() else {
            return false;
        };
        let mut buffer = InotifyBuffer::new();
        let mut moved = false;
        loop {
            // What cannot be read may be a move.
            let Ok(events) = inotify.read(&mut buffer) else {
                return true;
            };
            let mut any = false;
            for event in events {
                any = true;
                if event.is_end_of_watch() {
                    self.watched.borrow_mut().remove(&event.watch);
                }
                let entry = event.is_directory() && !event.is_end_of_watch();
                moved |= event.is_overflow() || event.is_move() || entry;
            }
            if !any {
                return moved;
            }
        }
    }

    /// Readable when there is something to be told; the same twice without inotify.
    pub fn fds(&self) -> [BorrowedFd<'_>; 2] {
        let inotify = self.inotify.get().map(Inotify::as_fd);
        [self.group.as_fd(), inotify.unwrap_or(self.group.as_fd())]
    }
}

/// Whether one of these events is more than a file's coming or going. What
/// cannot be understood may be.
fn tells_of_a_move(events: &[u8]) -> bool {
    let moves = libc::FAN_MOVE_SELF | libc::FAN_ONDIR | libc::FAN_Q_OVERFLOW;
    Events::new(events).any(|event| event.map_or(true, |event| event.mask & moves != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(mask: u64, length: u32) -> Vec<u8> {
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend([3, 0, 24, 0]);
        bytes.extend(mask.to_ne_bytes());
        bytes.extend([0xff; 8]);
        bytes.resize(bytes.len().max(length as usize), 0);
        bytes
    }

    #[test]
    fn only_directories_and_lost_events_count() {
        let file = event(libc::FAN_DELETE | libc::FAN_MOVED_TO, 44);
        assert!(!tells_of_a_move(&[file.clone(), file.clone()].concat()));
        for mask in [
            libc::FAN_DELETE | libc::FAN_ONDIR,
            libc::FAN_MOVE_SELF | libc::FAN_ONDIR,
            libc::FAN_Q_OVERFLOW,
        ] {
            assert!(tells_of_a_move(&[file.clone(), event(mask, 24)].concat()));
        }
        // Damaged: rather once too often.
        assert!(tells_of_a_move(&file[..20]));
        assert!(tells_of_a_move(&event(libc::FAN_DELETE, 3)));
    }

    #[test]
    fn a_directory_that_goes_is_told_and_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir_all(root.join("named/below")).unwrap();
        std::fs::write(root.join("file"), "x").unwrap();
        let fd = std::fs::File::open(root).unwrap();
        let watch = match MoveWatch::new() {
            Ok(watch) => watch,
            Err(error) => {
                assert_ne!(nix::unistd::geteuid().as_raw(), 0, "{error}");
                println!("SKIPPED: {error}");
                return;
            }
        };
        // Both ways, whatever the filesystem of the temporary directory.
        watch.watch(fd.as_fd(), Told::Entries, false).unwrap();
        watch.watch_by_inotify(fd.as_fd(), Told::Entries).unwrap();
        std::fs::rename(root.join("file"), root.join("other")).unwrap();
        std::fs::remove_file(root.join("other")).unwrap();
        std::fs::remove_dir(root.join("named/below")).unwrap();
        assert!(!watch.moved());
        std::fs::rename(root.join("named"), root.join("away")).unwrap();
        assert!(watch.moved());
        assert!(!watch.moved());
        std::fs::rename(root.join("away"), root.join("named")).unwrap();
        assert!(watch.moved());
        std::fs::remove_dir(root.join("named")).unwrap();
        assert!(watch.moved());
        watch.flush(true).unwrap();
        std::fs::create_dir(root.join("named")).unwrap();
        std::fs::remove_dir(root.join("named")).unwrap();
        assert!(!watch.moved());
    }
}
