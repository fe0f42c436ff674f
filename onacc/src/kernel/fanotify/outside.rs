//! Ignore marks on directories out of scope, and word of their moves.
//!
//! The ignore mark keeps every open of a directory's direct files in the kernel
//! under a filesystem mark (facts/kernel.md, fanotify 3). It must go when the
//! directory, or one above it, is moved: `MoveWatch` tells. Must not: know the
//! scope (`coverage::outside` does). Tested by `tests/`.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use super::group::Group;
use super::marks::{At, MarkError, mark, mark_raw};
use crate::kernel::SyscallError;

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

/// Tells when one of the watched directories is moved. A group of its own:
/// permission groups report no moves.
#[derive(Debug)]
pub struct MoveWatch(OwnedFd);

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
        // SAFETY: the kernel just gave this fd to us alone.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Tells of moves of this directory from now on. Not `pinned`: until the
    /// kernel drops the inode from memory.
    ///
    /// # Errors
    /// The filesystem has no file handles; then its directories must not be ignored.
    pub fn watch(&self, directory: BorrowedFd<'_>, pinned: bool) -> Result<(), SyscallError> {
        let evictable = if pinned {
            0
        } else {
            super::marks::FAN_MARK_EVICTABLE
        };
        let flags = libc::FAN_MARK_ADD | evictable;
        let mask = libc::FAN_MOVE_SELF | libc::FAN_ONDIR;
        mark_raw(self.0.as_raw_fd(), flags, mask, At::ProcFd(directory))
    }

    /// Watches nothing any more.
    ///
    /// # Errors
    /// A failed `fanotify_mark`.
    pub fn flush(&self) -> Result<(), SyscallError> {
        // SAFETY: with FAN_MARK_FLUSH the path is not looked at.
        let result = unsafe {
            libc::fanotify_mark(
                self.0.as_raw_fd(),
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
            let got =
                unsafe { libc::read(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
            if got <= 0 {
                return moved;
            }
            // No event of a FID group carries an fd, so nothing has to be closed.
            moved = true;
        }
    }
}

impl AsFd for MoveWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
