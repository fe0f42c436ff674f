//! The groups that are open, for an end that cannot wait.
//!
//! The kernel closes a group when the last thread of the process has ended, and a
//! thread whose close of a FUSE file hangs does not end, not even by SIGKILL. So
//! whoever ends the process at once closes the groups first, which lets all
//! openers go. Must not: be used by a process that goes on.

use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use nix::fcntl::OFlag;

/// More than there are lanes.
const PLACES: usize = 80;
const FREE: RawFd = -1;

static OPEN: [AtomicI32; PLACES] = [const { AtomicI32::new(FREE) }; PLACES];

static CLOSED: AtomicBool = AtomicBool::new(false);

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

/// Whether [`close_all`] was called: answers find no group any more.
pub(super) fn are_closed() -> bool {
    CLOSED.load(Ordering::SeqCst)
}

/// Closes all of them: every opener that waits goes on. Their numbers stay taken, by
/// a pipe that is never written to: other threads may use them until the process ends.
pub(in crate::kernel) fn close_all() {
    CLOSED.store(true, Ordering::SeqCst);
    // Without a free fd nothing can be opened by that number meanwhile, either.
    let stand_in = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok();
    for place in &OPEN {
        let fd = place.swap(FREE, Ordering::SeqCst);
        if fd == FREE {
            continue;
        }
        match &stand_in {
            // SAFETY: both are fds of ours; a group that is in use by another thread
            // at this moment becomes a pipe that has nothing to read.
            Some((empty, _)) => unsafe { libc::dup3(empty.as_raw_fd(), fd, libc::O_CLOEXEC) },
            // SAFETY: an fd of ours; the process ends now.
            None => unsafe { libc::close(fd) },
        };
    }
    // Open to the end, so that the pipe stays silent.
    std::mem::forget(stand_in);
}
