//! The groups that are open, for an end that cannot wait.
//!
//! The kernel closes a group when the last thread of the process has ended, and a
//! thread whose close of a FUSE file hangs does not end, not even by SIGKILL. So
//! whoever ends the process at once closes the groups first, which lets all
//! openers go. Must not: be used by a process that goes on.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, Ordering};

/// More than there are lanes.
const PLACES: usize = 80;
const FREE: RawFd = -1;

static OPEN: [AtomicI32; PLACES] = [const { AtomicI32::new(FREE) }; PLACES];

/// A group is open. One that finds no place is closed by the kernel alone.
pub(super) fn enter(fd: RawFd) {
    let _place = OPEN.iter().find(|place| {
        let entered = place.compare_exchange(FREE, fd, Ordering::SeqCst, Ordering::SeqCst);
        entered.is_ok()
    });
}

/// A group is about to be closed.
pub(super) fn leave(fd: RawFd) {
    for place in &OPEN {
        let _other = place.compare_exchange(fd, FREE, Ordering::SeqCst, Ordering::SeqCst);
    }
}

/// Closes all of them: every opener that waits goes on.
pub(in crate::kernel) fn close_all() {
    for place in &OPEN {
        let fd = place.swap(FREE, Ordering::SeqCst);
        if fd != FREE {
            // SAFETY: an fd of ours; the process ends before anybody could use it
            // again, or be given the same number by mistake.
            unsafe { libc::close(fd) };
        }
    }
}
