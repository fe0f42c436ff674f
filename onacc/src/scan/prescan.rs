//! Scans that nobody waits for: what was there before a mark was, what has been
//! written and closed.
//!
//! Has a budget of its own, so that openers never wait for it. Must not: open
//! anything that is no regular file, or block on it. Tested by `tests/`.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::{ScanJob, Urgency, Work};
use crate::kernel::SyscallError;
use crate::kernel::fanotify::{FdBudget, PendingEvent};
use crate::kernel::file;
use crate::kernel::wake::Mailbox;
use crate::policy::Policy;

/// A file is not scanned ahead.
#[derive(Debug, thiserror::Error)]
pub enum PrescanRefused {
    /// Too many wait already; try again later.
    #[error("too many files wait to be scanned ahead")]
    Busy,
    /// The policy wants no scan of it: out of scope, too large, empty, no file.
    #[error("no scan of this file is wanted")]
    Unwanted,
    /// The file cannot be looked at.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
}

/// Hands files over to be scanned.
#[derive(Clone, Debug)]
pub struct Prescan {
    jobs: Mailbox<Work>,
    budget: Arc<FdBudget>,
}

impl Prescan {
    /// Jobs go to `jobs`; `budget` bounds how many wait.
    pub fn new(jobs: Mailbox<Work>, budget: Arc<FdBudget>) -> Self {
        Self { jobs, budget }
    }

    /// Has a file scanned, if the policy wants that. `file` may be `O_PATH`; it
    /// is opened for reading only if it is a regular file, in scope, and so on.
    /// Must be called on a thread of the agent (its opens are let through).
    ///
    /// # Errors
    /// [`PrescanRefused`] says why not.
    pub fn scan(&self, policy: &Policy, file: &OwnedFd) -> Result<(), PrescanRefused> {
        let stat = file::stat(file.as_fd())?;
        if policy.by_file(&stat).is_some() {
            return Err(PrescanRefused::Unwanted);
        }
        let mut path = Vec::new();
        let placed = file::path_of(file.as_fd(), &mut path).map(|()| &path[..]);
        if policy.by_place(&stat, placed).is_some() {
            return Err(PrescanRefused::Unwanted);
        }
        let permit = self.budget.try_take().ok_or(PrescanRefused::Busy)?;
        let opened = file::reopen(file.as_fd())?;
        self.jobs.send(Work::Scan(ScanJob {
            event: PendingEvent::unsolicited(opened, permit),
            path,
            stat,
            markable: policy.may_mark(&stat),
            stamps_tell: policy.stamps_tell(&stat),
            arrived: Instant::now(),
            urgency: Urgency::Prescan,
            joined: Vec::new(),
        }));
        Ok(())
    }
}
