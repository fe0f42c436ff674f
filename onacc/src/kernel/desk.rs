//! A desk: what one thread owns and works at, and where others may do a moment's
//! work while it sleeps, instead of waking it.
//!
//! The owner goes round: locks, empties the mailbox, works, begins to sleep, unlocks,
//! polls. Who has work for it does the work at once if the owner is not at it and
//! nothing waits in the mailbox, and leaves it there otherwise; nobody ever waits but
//! the owner, for somebody's moment. Must not: let later work overtake what waits in
//! the mailbox, or leave the owner asleep when there is something left to do. `models/`
//! compiles this very file against loom.

use super::mailbox::Mailbox;
use super::sync::{Mutex, MutexGuard, PoisonError};

/// The desk. `W` is what the mailbox carries.
#[derive(Debug)]
pub struct Desk<T, W> {
    /// `None`: the owner has not come yet, or is gone.
    state: Mutex<Option<T>>,
    mailbox: Mailbox<W>,
}

/// What came of somebody's work at the desk.
#[derive(Debug)]
pub enum Visit<J> {
    /// It is done.
    Done,
    /// It is done, and the owner has something to see to.
    Unfinished,
    /// It is the owner's to do.
    Refused(J),
}

impl<T, W> Desk<T, W> {
    /// A desk that nobody works at: all goes to the mailbox.
    pub fn new(mailbox: Mailbox<W>) -> Self {
        Self {
            state: Mutex::new(None),
            mailbox,
        }
    }

    /// The owner comes.
    pub fn open(&self, state: T) {
        *self.lock() = Some(state);
    }

    /// For the owner, who may have to wait for what others do in a moment.
    pub fn lock(&self) -> MutexGuard<'_, Option<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks something of the state, if nobody is at the desk.
    pub fn look<A>(&self, ask: impl FnOnce(&T) -> A) -> Option<A> {
        self.state.try_lock().ok()?.as_ref().map(ask)
    }

    /// What the owner has not taken in yet, and what wakes it.
    pub fn mailbox(&self) -> &Mailbox<W> {
        &self.mailbox
    }

    /// Has `work` done with a job at the desk, or leaves the job for the owner. Never
    /// waits.
    pub fn hand_over<J: Into<W>>(&self, job: J, work: impl FnOnce(&mut T, J) -> Visit<J>) {
        if let Some(job) = self.visit(job, work) {
            self.mailbox.send(job.into());
        }
    }

    /// The job, if it is left to do.
    fn visit<J>(&self, job: J, work: impl FnOnce(&mut T, J) -> Visit<J>) -> Option<J> {
        let Ok(mut state) = self.state.try_lock() else {
            return Some(job);
        };
        // Looked at under the lock: what the owner has taken out is in its state.
        let Some(state) = state.as_mut().filter(|_| self.mailbox.is_empty()) else {
            return Some(job);
        };
        match work(state, job) {
            Visit::Done => None,
            Visit::Unfinished => {
                // Under the lock, too: the owner either sleeps, or has not yet looked.
                self.mailbox.wake();
                None
            }
            Visit::Refused(job) => Some(job),
        }
    }
}
