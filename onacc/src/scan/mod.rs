//! From an event that needs a verdict to its answer: order, limits, deadlines.
//!
//! `book` keeps the jobs (pure), `service` is the thread that speaks with clamd
//! and answers. Must not: place marks (`coverage/`) or write logs on the way to
//! an answer (invariant 3).

mod aftermath;
mod book;
mod prescan;
mod service;
mod versions;

use std::sync::Arc;
use std::time::Instant;

use crate::kernel::fanotify::{Answer, EventFile, PendingEvent};
use crate::kernel::file::FileStat;

pub use book::Book;
pub use prescan::{Prescan, PrescanMessage, PrescanRefused, Prescanner, Written};
pub use service::{Limits, Links, Service};

/// An event on its way to clamd.
#[derive(Debug)]
pub struct ScanJob {
    /// The event, with the file and the answer that is owed.
    pub event: PendingEvent,
    /// The path as the kernel gave it, for the log; empty if it gave none.
    pub path: Vec<u8>,
    /// The file, before anything of it was scanned.
    pub stat: FileStat,
    /// Of a file on an overlay: the file beneath, which `stat` speaks of then.
    pub beneath: Option<EventFile>,
    /// Whether a clean verdict may become a clean mark.
    pub markable: bool,
    /// Whether each store into the file changes its stamps.
    pub stamps_tell: bool,
    /// When the reader saw the event.
    pub arrived: Instant,
    /// How urgent it is.
    pub urgency: Urgency,
    /// Others who wait for the same scan.
    pub joined: Vec<Joined>,
}

impl ScanJob {
    /// Answers everybody who waits for this job.
    pub fn answer(&mut self, answer: Answer) {
        self.event.answer(answer);
        for other in &mut self.joined {
            other.event.answer(answer);
        }
    }
}

/// A further event that one scan serves.
#[derive(Debug)]
pub struct Joined {
    /// The event.
    pub event: PendingEvent,
    /// The path that this opener used.
    pub path: Vec<u8>,
}

/// What the reader and the prescans hand over.
#[derive(Debug)]
pub enum Work {
    /// To be scanned.
    Scan(ScanJob),
    /// Answered already: the verdict of this very version is known.
    KnownInfected {
        /// The path, as in [`ScanJob`].
        path: Vec<u8>,
        /// Names that the file has.
        links: u32,
        /// The signature's name.
        signature: Arc<str>,
    },
}

/// How urgent a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Somebody waits, or opened the file just now.
    Opener,
    /// Nobody waits: comes after all openers.
    Prescan,
}
