//! Which kind of coverage is in force, and its parts.
//!
//! Chosen once, at start: by the command line, by `OnAccessDisableDDD`, or by
//! what the kernel can do. Must not: judge an event.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::directories::{Directories, DirectoriesLinks, DirectoriesMessage, Reach};
use super::mount_marks::MountMarks;
use super::paths::RealPaths;
use crate::config::modes::CoverageMode;
use crate::kernel::fanotify::{Group, ProbedFeatures};
use crate::kernel::mounts::MountTable;
use crate::kernel::wake::Mailbox;
use crate::kernel::{SyscallError, process};
use crate::observe::counters::Counters;
use crate::observe::heartbeat::Heartbeat;
use crate::observe::printable;
use crate::policy::Policy;
use crate::scan::Prescan;

/// How long start-up waits for the first walk.
const FIRST_WALK: Duration = Duration::from_mins(1);

/// The kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One mark a filesystem.
    Filesystem,
    /// One mark and one watch a directory, with those below or the named alone.
    Directory(Reach),
    /// One mark a mount.
    Mount,
}

impl Kind {
    /// Chooses, and says why.
    pub fn choose(wanted: CoverageMode, listed_alone: bool, features: ProbedFeatures) -> Self {
        let (kind, why) = match wanted {
            CoverageMode::Filesystem => (Self::Filesystem, "--coverage"),
            CoverageMode::Directory => (Self::Directory(Reach::Whole), "--coverage"),
            CoverageMode::Listed => (Self::Directory(Reach::NamedAlone), "--coverage"),
            CoverageMode::Mount => (Self::Mount, "--coverage"),
            CoverageMode::Auto if listed_alone => {
                (Self::Directory(Reach::NamedAlone), "OnAccessDisableDDD")
            }
            CoverageMode::Auto if features.directory_ignore_marks => {
                (Self::Filesystem, "the kernel has what it needs")
            }
            CoverageMode::Auto => (
                Self::Directory(Reach::Whole),
                "this kernel has no ignore marks on directories",
            ),
        };
        tracing::info!("onacc: tier: coverage: {}: {why}", kind.name());
        kind
    }

    /// What it is, in a few words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Filesystem => "filesystem (one mark each)",
            Self::Directory(Reach::Whole) => "directory (a mark and an inotify watch each)",
            Self::Directory(Reach::NamedAlone) => "listed (the named directories alone)",
            Self::Mount => "mount (one mark each; other mounts of a filesystem are not seen)",
        }
    }
}

/// The parts of the kind in force.
#[derive(Debug)]
pub enum Coverage {
    /// The agent marks filesystems itself (`filesystems`).
    Filesystem,
    /// A thread keeps the directories.
    Directory {
        /// Where it is told things.
        messages: Mailbox<DirectoriesMessage>,
        /// The thread, and what it found first.
        thread: JoinHandle<()>,
        /// The paths that it knows.
        paths: RealPaths,
    },
    /// Marks on mounts.
    Mount(MountMarks),
}

/// What a thread that keeps directories is made of.
pub struct DirectoryParts {
    /// Where marks are placed.
    pub group: Arc<Group>,
    /// Where marks on overlays are placed, if there are any in scope.
    pub overlays: Option<Arc<Group>>,
    /// Where files go that were there before a mark.
    pub prescan: Prescan,
    /// Counts.
    pub counters: Arc<Counters>,
    /// Include and exclude paths.
    pub paths: RealPaths,
}

impl Coverage {
    /// Starts the thread that keeps directories, and waits for its first walk:
    /// protection of a directory begins as the walk comes by.
    ///
    /// # Errors
    /// No inotify instance or thread is left.
    pub fn directories(
        parts: DirectoryParts,
        reach: Reach,
        policy: Arc<Policy>,
    ) -> Result<Self, SyscallError> {
        let messages = Mailbox::new()?;
        if let Some(group) = parts.overlays {
            messages.send(DirectoriesMessage::Overlays(group));
        }
        let paths = parts.paths.clone();
        let links = DirectoriesLinks {
            group: parts.group,
            messages: messages.clone(),
            prescan: parts.prescan,
            counters: parts.counters,
            heartbeat: Heartbeat::new("directories"),
            include_paths: parts.paths.includes,
            exclude_paths: parts.paths.excludes,
            reach,
        };
        let mut directories = Directories::new(links, policy)?;
        let (done, walked) = std::sync::mpsc::channel();
        let thread = process::spawn("onacc-tree", move || {
            let first = directories.first_walk();
            // The agent is starting and listens; if it has given up, nobody does.
            let _nobody_listens = done.send(first);
            directories.run();
        })?;
        if let Ok(first) = walked.recv_timeout(FIRST_WALK) {
            tracing::info!(
                "onacc: directories marked: {}; without a watch: {}; not to be looked at: {}",
                first.marked,
                first.unwatched,
                first.troubled
            );
        } else {
            // A filesystem that hangs must not keep the others from protection.
            tracing::warn!(
                "onacc: the first walk takes longer than {} s and goes on; what it has not reached is not protected yet",
                FIRST_WALK.as_secs()
            );
        }
        Ok(Self::Directory {
            messages,
            thread,
            paths,
        })
    }

    /// Marks on overlays go there from now on.
    pub fn use_for_overlays(&self, group: &Arc<Group>) {
        if let Self::Directory { messages, .. } = self {
            messages.send(DirectoriesMessage::Overlays(Arc::clone(group)));
        }
    }

    /// Scope, mounts or paths have changed, or the kernel says that mounts did.
    pub fn follow(&mut self, policy: &Arc<Policy>, now: &RealPaths, table: &MountTable) {
        match self {
            Self::Filesystem => {}
            Self::Directory {
                messages, paths, ..
            } => {
                messages.send(DirectoriesMessage::Policy(Arc::clone(policy)));
                if paths != now {
                    messages.send(DirectoriesMessage::Paths {
                        includes: now.includes.clone(),
                        excludes: now.excludes.clone(),
                    });
                    paths.clone_from(now);
                }
            }
            Self::Mount(marks) => {
                for new in marks.follow(&now.includes, table) {
                    let point = printable(new.mount.point.as_os_str().as_encoded_bytes());
                    match new.result {
                        Ok(()) => tracing::debug!("onacc: marked the mount {point}"),
                        Err(error) => {
                            tracing::warn!("onacc: the mount {point} is not protected: {error}");
                        }
                    }
                }
            }
        }
    }

    /// Ends what runs, until then.
    pub fn stop(self, until: std::time::Instant) {
        if let Self::Directory {
            messages, thread, ..
        } = self
        {
            messages.send(DirectoriesMessage::Stop);
            process::wait_for(&thread, until);
        }
    }
}
