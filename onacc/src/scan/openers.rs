//! Who opened an infected file, asked while they are blocked.
//!
//! The only thing that is done before the answer: the openers are denied anyway,
//! and once they have their answer they may be gone. Must not: be asked for a
//! clean file, or for more than a few of many.

use super::ScanJob;
use crate::kernel::fanotify::PendingEvent;
use crate::kernel::opener::Opener;
use crate::respond::report::{self, Outcome};

/// Openers of one file that are asked; others are counted.
const MOST_ASKED: usize = 16;

/// The openers of an infected file.
#[derive(Debug, Default)]
pub struct Openers {
    list: Vec<Who>,
    more: usize,
}

#[derive(Debug)]
struct Who {
    path: Vec<u8>,
    opener: Option<Opener>,
    outcome: Outcome,
}

impl Openers {
    /// The one opener of an event.
    pub fn of_event(event: &PendingEvent, path: &[u8]) -> Self {
        let mut openers = Self::default();
        openers.ask(event, path);
        openers
    }

    /// All who wait for a job.
    pub fn of_job(job: &ScanJob) -> Self {
        let mut openers = Self::of_event(&job.event, &job.path);
        for other in &job.joined {
            openers.ask(&other.event, &other.path);
        }
        openers
    }

    fn ask(&mut self, event: &PendingEvent, path: &[u8]) {
        let outcome = if event.is_blocked() {
            Outcome::Refused
        } else if event.is_permission() {
            Outcome::Late
        } else if event.is_open() {
            Outcome::Reported
        } else {
            return;
        };
        if self.list.len() == MOST_ASKED {
            self.more += 1;
            return;
        }
        self.list.push(Who {
            path: path.to_vec(),
            opener: Opener::of(event.tid()),
            outcome,
        });
    }

    /// The lines that follow the verdict line. `links`: names that the file has.
    pub fn report(&self, links: u32) {
        for who in &self.list {
            report::opener(&who.path, links, who.opener.as_ref(), who.outcome);
        }
        if self.more > 0 {
            tracing::info!("onacc: {} more opens of it at the same time", self.more);
        }
        if let Some(who) = self.list.iter().find(|who| who.outcome == Outcome::Late) {
            report::late(&who.path);
        }
    }

    /// Those of whom something is known.
    pub fn known(self) -> Vec<Opener> {
        self.list.into_iter().filter_map(|who| who.opener).collect()
    }
}
