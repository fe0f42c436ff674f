//! What follows an answer: clean marks, verdict lines, the quarantine, lines about failures.
//!
//! Nobody waits for it (invariant 3). Must not: answer anybody.

use std::collections::VecDeque;
use std::sync::Arc;

use super::matches::{Found, Matcher};
use crate::coverage::keeper::{CleanFile, InfectedFile, KeeperMessage};
use crate::kernel::fanotify::{Answer, EventFile};
use crate::kernel::file::FileStat;
use crate::respond::quarantine::Request;
use crate::respond::report::{self, Failure, FailureLines};
use crate::scan::openers::Openers;
use crate::scan::service::Links;

/// One thing to do.
pub enum After {
    /// A clean file for the keeper.
    Clean(CleanFile),
    /// An infected file for the keeper.
    Refuse(InfectedFile),
    /// A verdict to report, and to act on.
    Infected(Infected),
    /// An opener that was answered without a verdict.
    Failed {
        /// The path that it used.
        path: Vec<u8>,
        /// Why.
        failure: Failure,
        /// What it got.
        answer: Answer,
    },
    /// A file that was too large.
    TooLarge {
        /// The path that the opener used.
        path: Vec<u8>,
        /// Its size, in bytes.
        size: u64,
    },
}

/// An infected file.
pub struct Infected {
    /// The paths that its openers used, each once.
    pub paths: Vec<Vec<u8>>,
    /// What it was before the scan.
    pub stat: FileStat,
    /// The signature's name.
    pub signature: Arc<str>,
    /// Its openers; none if it was found before anyone opened it.
    pub openers: Openers,
    /// The file, for the quarantine.
    pub file: Option<EventFile>,
}

/// What is still to be done.
pub struct Aftermath {
    list: VecDeque<After>,
    /// clamd's version and that of its database, for the quarantine's records.
    database: Arc<str>,
    failures: FailureLines,
    /// Names all matches, where that is wanted.
    matcher: Option<Matcher>,
}

impl Aftermath {
    /// Nothing is to be done yet.
    pub fn new(matcher: Option<Matcher>) -> Self {
        Self {
            matcher,
            ..Self::default()
        }
    }

    /// Something for when the answers are out.
    pub fn push(&mut self, after: After) {
        self.list.push_back(after);
    }

    /// clamd says what it is.
    pub fn set_database(&mut self, version: &str) {
        self.database = version.into();
    }

    /// Does all that waits.
    pub fn run(&mut self, links: &Links) {
        while let Some(after) = self.list.pop_front() {
            match after {
                After::Clean(clean) => links.keeper.send(KeeperMessage::Clean(clean)),
                After::Refuse(infected) => links.keeper.send(KeeperMessage::Infected(infected)),
                After::Infected(infected) => self.infected(infected, links),
                After::Failed {
                    path,
                    failure,
                    answer,
                } => self.failures.report(&path, &failure, answer),
                After::TooLarge { path, size } => report::too_large(&path, size),
            }
        }
    }

    fn infected(&self, infected: Infected, links: &Links) {
        let names = infected.stat.links;
        for path in &infected.paths {
            report::infected(path, names, &infected.signature);
        }
        infected.openers.report(names);
        if let Some(matcher) = &self.matcher {
            matcher.tell_more(Found {
                paths: infected.paths.clone(),
                stat: infected.stat,
                signature: Arc::clone(&infected.signature),
            });
        }
        if let (Some(quarantine), Some(file)) = (&links.quarantine, infected.file) {
            quarantine.send(Request {
                file,
                paths: infected.paths,
                stat: infected.stat,
                signature: infected.signature,
                database: Arc::clone(&self.database),
                openers: infected.openers.known(),
            });
        }
    }
}

impl Default for Aftermath {
    fn default() -> Self {
        Self {
            list: VecDeque::new(),
            database: "".into(),
            failures: FailureLines::default(),
            matcher: None,
        }
    }
}
