//! What follows an answer: clean marks, verdict lines, lines about failures.
//!
//! Nobody waits for it (invariant 3). Must not: answer anybody.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::coverage::keeper::{CleanFile, InfectedFile, KeeperMessage};
use crate::kernel::fanotify::Answer;
use crate::kernel::wake::Mailbox;
use crate::respond::report::{self, Failure, FailureLines};

/// One thing to do.
pub enum After {
    /// A clean file for the keeper.
    Clean(CleanFile),
    /// An infected file for the keeper.
    Refuse(InfectedFile),
    /// A verdict to report.
    Infected {
        /// The paths that its openers used.
        paths: Vec<Vec<u8>>,
        /// Names that the file has.
        links: u32,
        /// The signature's name.
        signature: Arc<str>,
        /// The openers had been answered before.
        late: bool,
    },
    /// A verdict that was known, to report.
    Known {
        /// The path that the opener used.
        path: Vec<u8>,
        /// Names that the file has.
        links: u32,
        /// The signature's name.
        signature: Arc<str>,
    },
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

/// What is still to be done.
#[derive(Default)]
pub struct Aftermath {
    list: VecDeque<After>,
    failures: FailureLines,
}

impl Aftermath {
    /// Something for when the answers are out.
    pub fn push(&mut self, after: After) {
        self.list.push_back(after);
    }

    /// Does all that waits.
    pub fn run(&mut self, keeper: &Mailbox<KeeperMessage>) {
        while let Some(after) = self.list.pop_front() {
            match after {
                After::Clean(clean) => keeper.send(KeeperMessage::Clean(clean)),
                After::Refuse(infected) => keeper.send(KeeperMessage::Infected(infected)),
                After::Infected {
                    paths,
                    links,
                    signature,
                    late,
                } => {
                    for path in &paths {
                        report::infected(path, links, &signature);
                    }
                    if late {
                        report::late(paths.first().map_or(&[], Vec::as_slice));
                    }
                }
                After::Known {
                    path,
                    links,
                    signature,
                } => report::infected(&path, links, &signature),
                After::Failed {
                    path,
                    failure,
                    answer,
                } => self.failures.report(&path, &failure, answer),
                After::TooLarge { path, size } => report::too_large(&path, size),
            }
        }
    }
}
