//! From an event that needs a verdict to its answer: order, limits, deadlines.
//!
//! `book` keeps the jobs and `queue` their order (pure), `service` is the thread
//! that speaks with the clamds and answers, `handover` the way to it, `pool` knows
//! which clamd is to be asked.
//! `resolver`, `behind` and `feeder` are threads for what the service must not wait
//! for. Must not: place marks (`coverage/`) or write logs on the way to an answer
//! (invariant 3).

mod aftermath;
mod backoff;
mod behind;
mod book;
mod feeder;
mod handover;
mod matches;
mod openers;
#[cfg(test)]
mod orders;
mod pool;
mod prescan;
mod queue;
mod resolver;
mod scanner;
mod server;
mod service;
mod versions;

use std::sync::Arc;
use std::time::Instant;

use crate::kernel::fanotify::{Answer, EventFile, PendingEvent};
use crate::kernel::file::FileStat;
use crate::policy::Hold;

pub use behind::{Asked, Behind, socket_inode};
pub use feeder::{Chunk, Feeders};
pub use handover::Handover;
pub use matches::Matcher;
pub use pool::Pool;
pub use prescan::{Prescan, PrescanMessage, PrescanRefused, Prescanner, Written};
pub use resolver::Resolver;
pub use scanner::{ScannerIdentity, Strangers};
pub use server::{MOST_STREAMS, ServerState};
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
    /// How long a verdict holds.
    pub hold: Hold,
    /// Whether who reads the file may have to wait for its server, for ever maybe.
    pub slow: bool,
    /// When the reader saw the event.
    pub arrived: Instant,
    /// How urgent it is.
    pub urgency: Urgency,
    /// Others who wait for the same scan.
    pub joined: Vec<Joined>,
}

impl ScanJob {
    /// Answers everybody who waits for this job by their fail policies. What the
    /// first of them got.
    pub fn fail(&mut self) -> Option<Answer> {
        let answer = self.event.on_failure();
        self.event.fail();
        for other in &mut self.joined {
            other.event.fail();
        }
        answer
    }

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
    /// When the reader saw the event.
    pub arrived: Instant,
}

/// What the reader, the prescans and the service's own helpers hand over.
#[derive(Debug)]
pub enum Work {
    /// To be scanned.
    Scan(ScanJob),
    /// Answered already: larger than the settings want scanned. To be told.
    TooLarge {
        /// The path, as in [`ScanJob`].
        path: Vec<u8>,
        /// Its size, in bytes.
        size: u64,
    },
    /// To be denied: the verdict of this very version is known. The reader does
    /// not do it, for who opens is asked before the answer.
    KnownInfected {
        /// The event.
        event: PendingEvent,
        /// The path, as in [`ScanJob`].
        path: Vec<u8>,
        /// The file.
        stat: FileStat,
        /// The signature's name.
        signature: Arc<str>,
    },
    /// The name of a server, by its number, was looked up.
    Resolved(usize, std::io::Result<Vec<std::net::SocketAddr>>),
    /// Who serves a session on this host.
    Peer(Asked, Behind),
    /// A piece of a file that was not in memory.
    Chunk(Chunk),
}

impl From<ScanJob> for Work {
    fn from(job: ScanJob) -> Self {
        Self::Scan(job)
    }
}

/// How urgent a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Somebody waits, or opened the file just now.
    Opener,
    /// Nobody waits: comes after all openers.
    Prescan,
}
