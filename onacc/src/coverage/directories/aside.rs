//! The first walk's second thread: looks and marks, while the first places the
//! watches.
//!
//! The two are separate groups of the kernel with a lock each, so that two
//! processors share the work. Only the first walk uses it, for directories that
//! nothing is known of, and waits for it before it acts on an event or a message:
//! what is noted as marked is marked by then, or is looked at again. Must not:
//! decide anything, or keep an fd while it sleeps.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::quick::Alike;
use super::tree::NodeId;
use super::{Directories, Marker, Visit};
use crate::kernel::directory::InDirectory;
use crate::kernel::fanotify::Group;
use crate::kernel::process;

/// Names that are worth waking a thread for.
const BATCH: usize = 128;
/// Directories that may be held open for it.
const MOST_UNDER_WAY: usize = 32;

/// Directories to be marked, by their names in another one.
#[derive(Debug)]
struct Job {
    group: Arc<Group>,
    directory: OwnedFd,
    alike: Alike,
    names: Vec<(NodeId, CString)>,
}

/// What became of jobs.
#[derive(Debug, Default)]
struct Placed {
    jobs: usize,
    /// Marked, and without sub-directories.
    leaves: Vec<NodeId>,
    /// Marked, and to be listed.
    others: Vec<NodeId>,
    refused: Vec<NodeId>,
}

impl Placed {
    fn has(&mut self, id: NodeId, found: Found) {
        match found {
            Found::Leaf => self.leaves.push(id),
            Found::Other => self.others.push(id),
            Found::Refused => self.refused.push(id),
        }
    }
}

/// What became of one directory.
#[derive(Clone, Copy)]
enum Found {
    Leaf,
    Other,
    Refused,
}

/// The thread, from the walk's side.
#[derive(Debug)]
pub(super) struct Aside {
    jobs: Sender<Vec<Job>>,
    results: Receiver<Placed>,
    /// What was not handed over yet, and how many names that is.
    gathered: Vec<Job>,
    names: usize,
    /// Jobs, gathered or handed over.
    under_way: usize,
}

impl Aside {
    /// Starts it; it ends when this is dropped. None: no thread is to be had,
    /// the walk does it all.
    pub(super) fn start() -> Option<Self> {
        let (jobs, taken) = channel::<Vec<Job>>();
        let (done, results) = channel();
        let body = move || {
            for batch in taken {
                let mut placed = Placed::default();
                for job in batch {
                    place(job, &mut placed);
                }
                if done.send(placed).is_err() {
                    break;
                }
            }
        };
        process::spawn("onacc-marks", body).ok()?;
        Some(Self {
            jobs,
            results,
            gathered: Vec::new(),
            names: 0,
            under_way: 0,
        })
    }

    fn gather(&mut self, job: Job) {
        self.names += job.names.len();
        self.under_way += 1;
        self.gathered.push(job);
        if self.names >= BATCH {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        if !self.gathered.is_empty() {
            self.names = 0;
            self.jobs
                .send(std::mem::take(&mut self.gathered))
                .expect("the thread ends after its sender");
        }
    }

    /// Waits for a result, if any is to come.
    fn wait(&mut self) -> Option<Placed> {
        if self.under_way == 0 {
            return None;
        }
        self.hand_over();
        let placed = self
            .results
            .recv()
            .expect("the thread ends after its sender, and answers each batch");
        self.under_way -= placed.jobs;
        Some(placed)
    }

    /// What is done already.
    fn poll(&mut self) -> Option<Placed> {
        let placed = self.results.try_recv().ok()?;
        self.under_way -= placed.jobs;
        Some(placed)
    }
}

/// Places the marks of a job.
fn place(job: Job, placed: &mut Placed) {
    placed.jobs += 1;
    let inside = InDirectory::enter(job.directory.as_fd());
    for (id, name) in job.names {
        let found = inside.as_ref().map_or(Found::Refused, |inside| {
            place_one(&job.group, job.alike, inside, &name)
        });
        placed.has(id, found);
    }
}

/// The directory is watched already: a sub-directory that is made now is told.
fn place_one(group: &Group, alike: Alike, inside: &InDirectory<'_>, name: &CStr) -> Found {
    match inside.stat(name) {
        Ok(stat) if stat.mount == alike.mount => {
            if group.mark_directory_in(inside, name).is_err() {
                Found::Refused
            } else if alike.is_leaf(&stat) {
                Found::Leaf
            } else {
                Found::Other
            }
        }
        _ => Found::Refused,
    }
}

impl<M: Marker> Directories<M> {
    /// Hands over these directories, which are watched: they are noted as marked
    /// and looked at when it is known what they are.
    pub(super) fn mark_aside(
        &mut self,
        directory: &OwnedFd,
        alike: Alike,
        names: Vec<(NodeId, CString)>,
    ) {
        if names.is_empty() {
            return;
        }
        let group = self.marker.group_at(directory);
        match (&mut self.aside, directory.try_clone()) {
            (Some(aside), Ok(directory)) => aside.gather(Job {
                group,
                directory,
                alike,
                names,
            }),
            _ => self.look_at_unmarked(names.into_iter().map(|(id, _)| id)),
        }
        while self.under_way_aside() > MOST_UNDER_WAY && self.wait_for_aside() {}
    }

    /// Notes what is done by now; if nothing else is to be done, waits for it.
    pub(super) fn follow_aside(&mut self) {
        while let Some(placed) = self.aside.as_mut().and_then(Aside::poll) {
            self.note_placed(placed);
        }
        while self.background.is_empty() && self.urgent.is_empty() && self.wait_for_aside() {}
    }

    /// Waits until all that was handed over is done.
    pub(super) fn join_aside(&mut self) {
        while self.wait_for_aside() {}
    }

    fn under_way_aside(&self) -> usize {
        self.aside.as_ref().map_or(0, |aside| aside.under_way)
    }

    /// False: nothing is under way.
    fn wait_for_aside(&mut self) -> bool {
        // It calls into filesystems.
        self.links.heartbeat.rest();
        let placed = self.aside.as_mut().and_then(Aside::wait);
        self.links.heartbeat.beat();
        let Some(placed) = placed else { return false };
        self.note_placed(placed);
        true
    }

    fn note_placed(&mut self, placed: Placed) {
        let marks = placed.leaves.len() + placed.others.len();
        let marks = u64::try_from(marks).unwrap_or(u64::MAX);
        self.links.counters.directory_marks.add(marks);
        for id in placed.leaves {
            if let Some(state) = self.tree.state_mut(id) {
                state.settled = true;
                state.whole = true;
            }
        }
        for id in placed.others {
            self.push(Visit::of_the_walk(id));
        }
        self.look_at_unmarked(placed.refused);
    }

    fn look_at_unmarked(&mut self, ids: impl IntoIterator<Item = NodeId>) {
        for id in ids {
            if let Some(state) = self.tree.state_mut(id) {
                state.marked = false;
                state.settled = false;
            }
            self.push(Visit::of_the_walk(id));
        }
    }
}
