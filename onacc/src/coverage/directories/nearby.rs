//! Opening a directory of the tree in the one that is its parent there.
//!
//! The two that were opened last are kept for those in them: the walk goes from
//! sibling to sibling. Must not: keep an fd beyond a round.

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::opening::{is_gone, open_at, open_in};
use super::tree::NodeId;
use super::visit::name_of;
use super::{Directories, Marker};

/// Directories that are open.
#[derive(Debug, Default)]
pub(super) struct Nearby {
    /// The one that was looked at last.
    last: Option<(NodeId, OwnedFd)>,
    /// The parent of the one before.
    above: Option<(NodeId, OwnedFd)>,
}

impl Nearby {
    /// This one was looked at.
    pub(super) fn looked_at(&mut self, id: NodeId, fd: OwnedFd) {
        // Another directory may have come into its place meanwhile.
        self.above.take_if(|(above, _)| *above == id);
        self.last = Some((id, fd));
    }

    /// The parent of the directory that was opened last.
    pub(super) fn take_above(&mut self) -> Option<(NodeId, OwnedFd)> {
        self.above.take()
    }

    /// Closes them.
    pub(super) fn close(&mut self) {
        *self = Self::default();
    }

    /// Whether `id` is open, and is what [`Self::open_in`] opens in from now on.
    fn enter(&mut self, id: NodeId) -> bool {
        let is = |at: &Option<(NodeId, OwnedFd)>| at.as_ref().is_some_and(|(at, _)| *at == id);
        // The one looked at last is newer, should both be it.
        if is(&self.last) {
            self.above = self.last.take();
        }
        is(&self.above)
    }
}

/// What became of opening a directory.
pub(super) enum Opening {
    Found(OwnedFd),
    /// Its parent has it no more.
    Gone,
    /// Its parent, named here, is not where it was: that is looked at first.
    Doubtful(NodeId),
    Failed(Errno),
}

impl<M: Marker> Directories<M> {
    /// Opens a directory of the tree as `O_PATH`, in the very directory that is
    /// its parent in the tree. By path alone a directory that has just come into
    /// the place of the parent would be taken for it, and what is known below
    /// would be given up for gone. `self.path` is the path then.
    pub(super) fn open(&mut self, id: NodeId) -> Opening {
        let Some(parent) = self.tree.parent(id) else {
            self.tree.path_into(id, &mut self.path);
            return open_at(&self.path).map_or_else(Opening::Failed, Opening::Found);
        };
        if !self.nearby.enter(parent) {
            self.tree.path_into(parent, &mut self.path);
            self.nearby.above = match open_at(&self.path) {
                Ok(fd) if self.is_still(parent, &fd) => Some((parent, fd)),
                Ok(_) => return Opening::Doubtful(parent),
                Err(errno) if is_gone(errno) => return Opening::Doubtful(parent),
                Err(errno) => return Opening::Failed(errno),
            };
        }
        self.tree.path_into(id, &mut self.path);
        match &self.nearby.above {
            Some((_, fd)) => match open_in(fd, name_of(&self.path)) {
                Ok(fd) => Opening::Found(fd),
                Err(errno) if is_gone(errno) => Opening::Gone,
                Err(errno) => Opening::Failed(errno),
            },
            None => Opening::Doubtful(parent),
        }
    }

    /// Whether this is the directory that the tree knows. One without a watch
    /// cannot be told from another; it is compared at every poll.
    fn is_still(&mut self, id: NodeId, fd: &OwnedFd) -> bool {
        let Some(known) = self.tree.watch_of(id) else {
            return true;
        };
        match self.marker.watch(fd) {
            Ok(watch) if watch == known => true,
            Ok(watch) => {
                if self.tree.nodes_of(watch).next().is_none() {
                    self.let_go([watch]);
                }
                false
            }
            Err(_) => false,
        }
    }
}
