//! The first walk's second thread: marks, while the first places the watches.
//!
//! The two are separate groups of the kernel with a lock each, so that two
//! processors share the work. Only the first walk uses it, for directories that
//! nothing is known of, and waits for it before it looks at any event: what is
//! noted as marked is marked by then, or is looked at again. Must not: decide
//! anything, or keep an fd while it sleeps.

use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::tree::NodeId;
use super::{Directories, Marker, Visit};
use crate::kernel::directory::InDirectory;
use crate::kernel::fanotify::Group;
use crate::kernel::process;

/// Directories to be marked, by their names in another one.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) group: Arc<Group>,
    pub(super) directory: OwnedFd,
    pub(super) names: Vec<(NodeId, CString)>,
}

/// What became of a job.
#[derive(Debug)]
struct Placed {
    marks: u64,
    refused: Vec<NodeId>,
}

/// The thread, from the walk's side.
#[derive(Debug)]
pub(super) struct Aside {
    jobs: Sender<Job>,
    results: Receiver<Placed>,
    under_way: usize,
}

impl Aside {
    /// Starts it; it ends when this is dropped. None: no thread is to be had,
    /// the walk does it all.
    pub(super) fn start() -> Option<Self> {
        let (jobs, taken) = channel::<Job>();
        let (done, results) = channel();
        let body = move || {
            for job in taken {
                if done.send(place(job)).is_err() {
                    break;
                }
            }
        };
        process::spawn("onacc-marks", body).ok()?;
        Some(Self {
            jobs,
            results,
            under_way: 0,
        })
    }
}

/// Places the marks of a job.
fn place(job: Job) -> Placed {
    let inside = InDirectory::enter(job.directory.as_fd());
    let mut placed = Placed {
        marks: 0,
        refused: Vec::new(),
    };
    for (id, name) in job.names {
        match &inside {
            Ok(inside) if job.group.mark_directory_in(inside, &name).is_ok() => placed.marks += 1,
            _ => placed.refused.push(id),
        }
    }
    placed
}

impl<M: Marker> Directories<M> {
    /// Hands over the marks of these directories, which are noted as marked.
    pub(super) fn mark_aside(&mut self, directory: &OwnedFd, names: Vec<(NodeId, CString)>) {
        if names.is_empty() {
            return;
        }
        let group = self.marker.group_at(directory);
        let lost = match (&mut self.aside, directory.try_clone()) {
            (Some(aside), Ok(directory)) => {
                let job = Job {
                    group,
                    directory,
                    names,
                };
                match aside.jobs.send(job) {
                    Ok(()) => {
                        aside.under_way += 1;
                        return;
                    }
                    Err(lost) => lost.0.names,
                }
            }
            _ => names,
        };
        self.look_at_unmarked(lost.into_iter().map(|(id, _)| id));
    }

    /// Waits until all that was handed over is done.
    pub(super) fn join_aside(&mut self) {
        let Some(aside) = &mut self.aside else { return };
        let mut refused = Vec::new();
        while aside.under_way > 0 {
            let placed = aside
                .results
                .recv()
                .expect("the thread ends after its sender, and answers each job");
            self.links.counters.directory_marks.add(placed.marks);
            refused.extend(placed.refused);
            aside.under_way -= 1;
        }
        self.look_at_unmarked(refused);
    }

    fn look_at_unmarked(&mut self, ids: impl IntoIterator<Item = NodeId>) {
        for id in ids {
            if let Some(state) = self.tree.state_mut(id) {
                state.marked = false;
                state.settled = false;
            }
            self.push(Visit {
                id,
                deep: false,
                fresh: false,
                urgent: false,
            });
        }
    }
}
