//! One event on its way, as a value that owns its fd.
//!
//! Invariant 1 lives here: a permission event is answered exactly once, because
//! answering takes the right to answer out of the value and dropping the value
//! answers by the fail policy. Invariant 5 too: an event's fd holds a permit of
//! the budget until it is closed.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::budget::Permit;
use super::closer::Closer;
use super::event::RawEvent;
use super::group::Group;

/// What the kernel is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The open goes on.
    Allow,
    /// The open fails with EPERM.
    Deny,
}

/// The file of an event: the kernel's own fd for the inode that is being
/// opened, whatever becomes of its path. Opening and reading it raises no
/// events (`FMODE_NONOTIFY`). Closes the fd and gives back the permit on drop, or
/// has that done where a close may hang.
#[derive(Debug)]
pub struct EventFile {
    /// There until the drop.
    held: Option<HeldFd>,
    closer: Option<Closer>,
}

/// An fd and its place in the budget.
#[derive(Debug)]
pub(super) struct HeldFd {
    // Before the permit: the fd must be closed when its place is given back.
    fd: OwnedFd,
    _permit: Permit,
}

impl EventFile {
    /// An fd that takes a place of the budget as long as it is open.
    pub fn new(fd: OwnedFd, permit: Permit) -> Self {
        Self {
            held: Some(HeldFd {
                fd,
                _permit: permit,
            }),
            closer: None,
        }
    }

    /// The same, closed by somebody who may hang.
    pub(super) fn closed_by(mut self, closer: Option<&Closer>) -> Self {
        self.closer = closer.cloned();
        self
    }
}

impl AsFd for EventFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let held = self.held.as_ref();
        held.expect("the fd is there until the drop").fd.as_fd()
    }
}

impl Drop for EventFile {
    fn drop(&mut self) {
        if let (Some(held), Some(closer)) = (self.held.take(), &self.closer) {
            closer.close(held);
        }
    }
}

/// An event that still owes an answer, if its kind wants one.
#[derive(Debug)]
pub struct PendingEvent {
    owed: Option<Owed>,
    file: Option<EventFile>,
    mask: u64,
    tid: i32,
}

#[derive(Debug)]
struct Owed {
    group: Arc<Group>,
    on_drop: Answer,
}

impl PendingEvent {
    pub(super) fn new(
        group: &Arc<Group>,
        event: RawEvent,
        file: Option<EventFile>,
        on_drop: Answer,
    ) -> Self {
        const PERMISSION: u64 =
            libc::FAN_OPEN_PERM | libc::FAN_OPEN_EXEC_PERM | libc::FAN_ACCESS_PERM;
        let permission = event.mask & PERMISSION != 0;
        let owed = (permission && file.is_some()).then(|| Owed {
            group: Arc::clone(group),
            on_drop,
        });
        Self {
            owed,
            file,
            mask: event.mask,
            tid: event.tid,
        }
    }

    /// A file that the agent itself wants to have scanned: nobody waits for it.
    pub fn unsolicited(file: OwnedFd, permit: Permit) -> Self {
        Self {
            owed: None,
            file: Some(EventFile::new(file, permit)),
            mask: 0,
            tid: 0,
        }
    }

    /// An open that eBPF told of, after the fact: the opener does not wait.
    pub fn told(file: OwnedFd, permit: Permit, tid: i32) -> Self {
        let mut event = Self::unsolicited(file, permit);
        event.mask = libc::FAN_OPEN;
        event.tid = tid;
        event
    }

    /// Thread id of the opener, 0 if it lives in a pid namespace that is no child of ours.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Whether the kernel's queue overflowed: events were lost (notify-only).
    pub fn is_overflow(&self) -> bool {
        self.mask & libc::FAN_Q_OVERFLOW != 0
    }

    /// Whether the event tells of a file that was open for writing and is closed now.
    pub fn is_close_after_write(&self) -> bool {
        self.mask & libc::FAN_CLOSE_WRITE != 0
    }

    /// The opened file, unless the event has none (overflow).
    pub fn file(&self) -> Option<&EventFile> {
        self.file.as_ref()
    }

    /// Whether it is of a kind that openers wait for.
    pub fn is_permission(&self) -> bool {
        self.mask & (libc::FAN_OPEN_PERM | libc::FAN_ACCESS_PERM) != 0
    }

    /// Whether it tells of an open.
    pub fn is_open(&self) -> bool {
        self.is_permission() || self.mask & libc::FAN_OPEN != 0
    }

    /// Whether an opener waits for the answer.
    pub fn is_blocked(&self) -> bool {
        self.owed.is_some()
    }

    /// Answers, if that has not been done and the event wants it. The file stays.
    pub fn answer(&mut self, answer: Answer) {
        let (Some(owed), Some(file)) = (self.owed.take(), self.file.as_ref()) else {
            return;
        };
        if let Err(error) = owed.group.respond(file.as_fd().as_raw_fd(), answer) {
            // Nothing better can be done here: the kernel holds the opener
            // until the group is closed. The watchdog must not be needed for
            // it, so the process ends, which closes the group.
            tracing::error!("onacc: {error}; an opener could not be answered, stopping");
            crate::kernel::process::stop_now();
        }
    }

    /// The fail policy of this event from now on.
    pub fn fail_with(&mut self, answer: Answer) {
        if let Some(owed) = &mut self.owed {
            owed.on_drop = answer;
        }
    }

    /// Its fail policy: what it is answered with if it comes to no verdict.
    /// `None` if no answer is owed.
    pub fn on_failure(&self) -> Option<Answer> {
        self.owed.as_ref().map(|owed| owed.on_drop)
    }

    /// Answers by the fail policy, if that has not been done and the event wants it.
    pub fn fail(&mut self) {
        self.answer_by_policy();
    }

    /// Gives up the event for its file; an answer still owed is given by the fail policy.
    pub fn into_file(mut self) -> Option<EventFile> {
        self.answer_by_policy();
        self.file.take()
    }

    fn answer_by_policy(&mut self) {
        if let Some(on_drop) = self.owed.as_ref().map(|owed| owed.on_drop) {
            self.answer(on_drop);
        }
    }
}

impl Drop for PendingEvent {
    fn drop(&mut self) {
        self.answer_by_policy();
    }
}
