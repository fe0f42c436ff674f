//! Many new sub-directories at once: the first walk's way through a large tree.
//!
//! A directory of which nothing is known and in which all is alike (nothing
//! mounted or named below it) is watched, marked and looked at by its name in
//! its parent, three system calls without a path. What has no sub-directories
//! needs no listing; all that is not as plain as that is left to `visit`. Must
//! not: report trouble (`visit` meets it again and does).

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, OwnedFd};

use super::names;
use super::tree::NodeId;
use super::{Directories, Marker, Visit};
use crate::kernel::directory::{InDirectory, NamedStat};
use crate::kernel::file::FileStat;
use crate::kernel::mounts::Mount;

/// Filesystems on which the number of a directory's links tells how many
/// sub-directories it has (btrfs and overlayfs say 1).
const COUNTED: [&str; 5] = ["ext2", "ext3", "ext4", "xfs", "tmpfs"];

/// Directories between two signs of life.
const BEAT_EVERY: usize = 256;

/// The directory whose new sub-directories are placed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alike {
    pub(super) mount: u64,
    /// Two links mean: no sub-directory.
    counted: bool,
}

impl Alike {
    /// Whether a directory has no sub-directories, as far as its links tell.
    pub(super) fn is_leaf(self, stat: &NamedStat) -> bool {
        self.counted && stat.links == 2
    }
}

/// How far a directory is protected.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Placed {
    /// All is done.
    Done,
    /// It is watched, look and mark are owed.
    Watched,
    /// `visit` is to look at it.
    Not,
}

impl<M: Marker> Directories<M> {
    /// Whether all that is below the directory at `self.path`, which is followed
    /// as a whole, is judged like itself.
    pub(super) fn all_alike_below(&self, visit: Visit, stat: &FileStat) -> Option<Alike> {
        // Files of a fresh one are scanned, known ones are compared: by `visit`.
        // Without a watch nothing would tell of a change while this goes on.
        if visit.fresh || visit.deep || self.tree.watch_of(visit.id).is_none() {
            return None;
        }
        let mounts = &self.policy.mounts;
        let counted = |mount: &Mount| COUNTED.contains(&mount.kind.as_str());
        let alike = !self.policy.rules.speak_of_directories()
            && !self.names.names_something_deeper(&self.path)
            && !names::has_mounts_deeper(mounts, &self.path);
        alike.then_some(Alike {
            mount: stat.mount,
            counted: mounts.get(stat.mount).is_some_and(counted),
        })
    }

    /// Places marks and watches on new sub-directories of the directory `fd`.
    /// They are in the tree already.
    pub(super) fn place_new(
        &mut self,
        visit: Visit,
        fd: &OwnedFd,
        alike: Alike,
        new: Vec<(NodeId, CString)>,
    ) {
        if new.is_empty() {
            return;
        }
        let inside = match InDirectory::enter(fd.as_fd()) {
            Ok(inside) => Some(inside),
            Err(error) => {
                tracing::debug!("onacc: directories are marked one by one: {error}");
                None
            }
        };
        let mut to_mark = Vec::new();
        for (count, (id, name)) in new.into_iter().enumerate() {
            if count % BEAT_EVERY == 0 {
                self.links.heartbeat.beat();
                self.links.heartbeat.rest();
            }
            let placed = inside.as_ref().map_or(Placed::Not, |inside| {
                self.place_one(inside, alike, id, &name)
            });
            match placed {
                Placed::Done => {}
                Placed::Watched => to_mark.push((id, name)),
                Placed::Not => self.push(Visit { id, ..visit }),
            }
        }
        self.mark_aside(fd, alike, to_mark);
    }

    /// Watches one directory, then looks at it and marks it, or leaves that to
    /// [`super::aside`].
    fn place_one(
        &mut self,
        inside: &InDirectory<'_>,
        alike: Alike,
        id: NodeId,
        name: &CStr,
    ) -> Placed {
        let Ok(watch) = self.marker.watch_in(inside, name) else {
            return Placed::Not;
        };
        // Seen before: bind mounts, moves. `visit` knows what to do.
        if self.leaving.contains(&watch) || self.tree.nodes_of(watch).next().is_some() {
            return Placed::Not;
        }
        let mut leaf = false;
        if self.aside.is_none() {
            // After the watch: a sub-directory that is made now is told by it.
            match inside.stat(name) {
                Ok(stat) if stat.mount == alike.mount => leaf = alike.is_leaf(&stat),
                _ => return Placed::Not,
            }
            if self.marker.mark_in(inside, name).is_err() {
                return Placed::Not;
            }
            self.links.counters.directory_marks.up();
        }
        self.tree.set_watch(id, Some(watch));
        if let Some(state) = self.tree.state_mut(id) {
            state.marked = true;
            state.settled = leaf;
            state.whole = leaf;
        }
        match (&self.aside, leaf) {
            (Some(_), _) => Placed::Watched,
            (None, true) => Placed::Done,
            (None, false) => Placed::Not,
        }
    }
}
