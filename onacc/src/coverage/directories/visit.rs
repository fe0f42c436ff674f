//! Looking at one directory, and putting right what is found.
//!
//! Whatever the reason for the look, the same is done: open it, judge it, watch
//! it, mark it, and compare what it holds with the tree. Must not: block on
//! anything but the filesystem, or trust what an event said.

use std::os::fd::{AsFd as _, OwnedFd};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{SFlag, fstatat};

use super::names::{self, LeftOut, Plan};
use super::nearby::Opening;
use super::opening::{is_gone, open_at};
use super::quick::Alike;
use super::tree::{NodeId, State};
use super::{Directories, Marker, Visit};
use crate::kernel::fanotify::MarkError;
use crate::kernel::file::{self, FileStat};
use crate::kernel::inotify::{WatchError, open_for_listing};
use crate::observe::printable;
use crate::policy::Side;

/// How a directory relates to what was known under its name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Identity {
    /// The same directory.
    Same,
    /// Another one, which carried a watch of ours already.
    Known,
    /// Another one.
    New,
}

/// How a directory is listed.
#[derive(Clone, Copy)]
struct Listing {
    /// Its files are scanned ahead.
    prescan: bool,
    /// New sub-directories are judged like itself.
    alike: Option<Alike>,
}

impl<M: Marker> Directories<M> {
    /// Looks at a directory that is (or was, or may be) in the tree.
    pub(super) fn visit(&mut self, visit: Visit) {
        if !self.tree.contains(visit.id) {
            return;
        }
        // A call into a filesystem may take as long as it likes.
        self.links.heartbeat.rest();
        match self.open(visit.id) {
            Opening::Found(fd) => match file::stat(fd.as_fd()) {
                Ok(stat) => self.settle(visit, fd, &stat),
                Err(error) => self.trouble(visit.id, &error),
            },
            Opening::Gone => self.leave(visit.id),
            Opening::Doubtful(parent) => {
                self.push(Visit::event(parent));
                self.push(Visit {
                    urgent: true,
                    ..visit
                });
            }
            Opening::Failed(errno) => self.trouble(visit.id, &errno.desc()),
        }
        self.links.heartbeat.beat();
    }

    fn settle(&mut self, visit: Visit, fd: OwnedFd, stat: &FileStat) {
        let id = visit.id;
        let before = self.tree.state(id);
        let Some(plan) = self.plan(stat) else {
            if before.unwatched {
                // No watch leads to it later.
                self.marker.unmark(&fd);
            }
            return self.leave(id);
        };
        if let Some(state) = self.tree.state_mut(id) {
            state.troubled = false;
            state.unwatched = false;
        }
        let identity = match self.marker.watch(&fd) {
            Ok(watch) => {
                if plan.whole
                    && self.tree.watch_of(id) != Some(watch)
                    && let Some(moved) = self.moved_here(watch, id, stat)
                {
                    return self.settle_moved(visit, (moved, plan), fd);
                }
                self.identify(watch, id)
            }
            Err(WatchError::Other(error)) if error.errno() == libc::ENOTDIR => {
                return self.not_a_directory(id, &fd, stat);
            }
            Err(error) => {
                self.no_watch(id, &error);
                Identity::New
            }
        };
        // A moment ago, by its parent's listing (`quick`).
        let just_marked = before.marked && !before.settled && identity == Identity::Same;
        if !just_marked || !plan.mark {
            self.place_mark(id, plan, &fd);
        }
        let unwatched = self.tree.state(id).unwatched;
        let list = identity != Identity::Same
            || visit.deep
            || !before.settled
            || before.unwatched
            || before.troubled
            || before.whole != plan.whole;
        if plan.whole && list {
            let below = Visit {
                // Under another directory than before all is to be compared.
                deep: visit.deep
                    || (before.settled
                        && identity != Identity::Same
                        && !before.unwatched
                        && !unwatched),
                fresh: visit.fresh || before.fresh,
                ..visit
            };
            let listing = Listing {
                prescan: before.fresh && identity != Identity::Known,
                alike: self.all_alike_below(below, stat),
            };
            self.list(below, &fd, listing);
        } else if !plan.whole {
            self.follow_ways(visit);
        }
        if let Some(state) = self.tree.state_mut(id) {
            state.settled = true;
            state.whole = plan.whole;
            state.fresh = false;
        }
        self.nearby.looked_at(id, fd);
    }

    /// What becomes of the directory at `self.path`. One that cannot be placed
    /// is taken for inside.
    fn plan(&self, stat: &FileStat) -> Option<Plan> {
        let mounts = &self.policy.mounts;
        let (side, left_out) = match mounts.get(stat.mount) {
            Some(mount) => (
                self.policy.side_of_directory(mount, &self.path),
                names::left_out(mount, mounts),
            ),
            None => (None, LeftOut::No),
        };
        self.names
            .plan(&self.path, side.unwrap_or(Side::Inside), left_out)
    }

    /// Notes the watch of a directory, and whether it is the one that was known.
    fn identify(&mut self, watch: i32, id: NodeId) -> Identity {
        let was_leaving = self.leaving.remove(&watch);
        if self.tree.watch_of(id) == Some(watch) {
            return Identity::Same;
        }
        let known = was_leaving || self.tree.nodes_of(watch).next().is_some();
        let released = self.tree.set_watch(id, Some(watch));
        self.let_go(released);
        if known {
            Identity::Known
        } else {
            Identity::New
        }
    }

    /// The directory of the tree that has been moved to the place of `id`: it
    /// has this watch, is complete, and its former path does not lead to it.
    fn moved_here(&mut self, watch: i32, id: NodeId, stat: &FileStat) -> Option<NodeId> {
        let candidates: Vec<NodeId> = self.tree.nodes_of(watch).collect();
        let mut path = Vec::new();
        candidates.into_iter().find(|other| {
            let state = self.tree.state(*other);
            if *other == id || !state.whole || !state.settled {
                return false;
            }
            self.tree.path_into(*other, &mut path);
            let there = open_at(&path).and_then(|fd| {
                file::stat(fd.as_fd()).map_err(|error| Errno::from_raw(error.errno()))
            });
            match there {
                // Seen at both places: a bind mount.
                Ok(there) => there.key != stat.key,
                Err(errno) => is_gone(errno),
            }
        })
    }

    /// Puts a moved directory, with all below it, to where it is now. Its marks
    /// and watches stay as they are.
    fn settle_moved(&mut self, visit: Visit, (moved, plan): (NodeId, Plan), fd: OwnedFd) {
        let mut old = Vec::new();
        self.tree.path_into(moved, &mut old);
        let (Some(parent), Some(above)) = (self.tree.parent(visit.id), self.tree.parent(moved))
        else {
            return;
        };
        let name = name_of(&self.path).to_owned();
        self.leave(visit.id);
        if !self.tree.move_to(moved, parent, &name) {
            // What was known of the two contradicts what is there (one moved
            // into the other): both are looked at as new.
            self.leave(moved);
            for id in [above, parent] {
                let deep = true;
                self.push(Visit { id, deep, ..visit });
            }
            return;
        }
        self.place_mark(moved, plan, &fd);
        // Another may have come into its former place, and been taken for it.
        if let Some(id) = self.tree.add(above, name_of(&old)) {
            self.note_fresh(id);
            self.push(Visit::event(id));
        }
        // Where not all is alike, and where a comparison is under way that may
        // have passed here already, each directory below is looked at.
        let mounts = &self.policy.mounts;
        let mixed = [&old[..], &self.path]
            .into_iter()
            .any(|path| self.names.names_something_below(path) || names::has_mounts(mounts, path));
        if mixed || visit.deep || !self.background.is_empty() {
            self.push(Visit {
                id: moved,
                deep: true,
                ..visit
            });
        }
        self.nearby.looked_at(moved, fd);
    }

    fn place_mark(&mut self, id: NodeId, plan: Plan, fd: &OwnedFd) {
        let marked = self.tree.state(id).marked;
        if !plan.mark {
            // A directory may be marked for a file in it that is named.
            if marked && (plan.whole || !self.names.names_something_in(&self.path)) {
                self.marker.unmark(fd);
                self.note_mark(id, false);
            }
            return;
        }
        match self.marker.mark(fd) {
            Ok(()) => {
                if !marked {
                    self.links.counters.directory_marks.up();
                }
                self.note_mark(id, true);
            }
            Err(error) => {
                self.note_mark(id, false);
                self.trouble_with_mark(id, &error);
            }
        }
    }

    fn note_fresh(&mut self, id: NodeId) {
        if let Some(state) = self.tree.state_mut(id) {
            state.fresh = !state.settled;
        }
    }

    fn note_mark(&mut self, id: NodeId, marked: bool) {
        if let Some(state) = self.tree.state_mut(id) {
            state.marked = marked;
        }
    }

    /// A filesystem that takes no marks is said once, not for each directory.
    fn trouble_with_mark(&mut self, id: NodeId, error: &MarkError) {
        if matches!(error, MarkError::Refused) {
            let above = self.tree.parent(id).map(|parent| self.tree.state(parent));
            if above.is_some_and(|above| above.whole && !above.marked) {
                tracing::debug!("onacc: {} is not protected", printable(&self.path));
                return;
            }
        }
        self.trouble(id, error);
    }

    /// A path that leads to no directory: perhaps a file that is named. Then its
    /// directory carries the mark: a file that is put in its place by a rename
    /// is protected at once, and clean marks can stand beside it.
    fn not_a_directory(&mut self, id: NodeId, fd: &OwnedFd, stat: &FileStat) {
        let named = stat.regular && self.names.is_named(&self.path);
        self.leave(id);
        let above = if named {
            self.nearby.take_above()
        } else {
            None
        };
        let Some((parent, above)) = above else {
            return;
        };
        // What is mounted on a file's name is another matter (`mounted_files`).
        match self.marker.mark(&above) {
            Ok(()) => {
                self.note_mark(parent, true);
                if self.upkeep.walked {
                    let name = name_of(&self.path).to_owned();
                    self.prescan(parent, &name, fd);
                }
            }
            Err(error) => self.trouble(parent, &error),
        }
    }

    /// Compares what a directory holds with what is known of it.
    fn list(&mut self, visit: Visit, fd: &OwnedFd, listing: Listing) {
        let dir = open_for_listing(fd.as_fd()).and_then(Dir::from_fd);
        let dir = match dir {
            Ok(dir) => dir,
            Err(errno) if is_gone(errno) => return,
            Err(errno) => return self.trouble(visit.id, &errno.desc()),
        };
        let comparison = self.tree.begin_comparison();
        let mut new = Vec::new();
        let mut failed = None;
        for entry in dir {
            let entry = match entry {
                Ok(entry) => entry,
                Err(errno) => {
                    failed = Some(errno);
                    break;
                }
            };
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            match entry.file_type().or_else(|| type_of(fd, name)) {
                Some(Type::Directory) => match self.listed(visit, name, comparison) {
                    Some(child) if listing.alike.is_some() => {
                        new.push((child, entry.file_name().to_owned()));
                    }
                    Some(id) => self.push(Visit { id, ..visit }),
                    None => {}
                },
                Some(Type::File) if listing.prescan => self.prescan_in(visit.id, name, fd),
                _ => {}
            }
        }
        if let Some(alike) = listing.alike {
            self.place_new(visit, fd, alike, new);
        }
        match failed {
            None => {
                for gone in self.tree.unseen(visit.id, comparison) {
                    self.leave(gone);
                }
            }
            // Deleted while it was read.
            Some(Errno::ENOENT) => {}
            Some(errno) => self.trouble(visit.id, &errno.desc()),
        }
    }

    /// A sub-directory was seen. Returns it if it was not known.
    fn listed(&mut self, visit: Visit, name: &[u8], comparison: u32) -> Option<NodeId> {
        if let Some(child) = self.tree.child(visit.id, name) {
            self.tree.seen(child, comparison);
            if visit.deep {
                self.push(Visit { id: child, ..visit });
            }
            return None;
        }
        let child = self.tree.add(visit.id, name)?;
        self.tree.seen(child, comparison);
        if let Some(state) = self.tree.state_mut(child) {
            state.fresh = visit.fresh;
        }
        Some(child)
    }

    /// Looks at the next directories on the way to the include paths, and lets
    /// go what does not lead there.
    fn follow_ways(&mut self, visit: Visit) {
        let path = std::mem::take(&mut self.path);
        let comparison = self.tree.begin_comparison();
        let mut next = Vec::new();
        for name in self.names.ways_from(&path) {
            let known = self.tree.child(visit.id, name).is_some();
            if let Some(child) = self.tree.add(visit.id, name) {
                self.tree.seen(child, comparison);
                next.push((child, known));
            }
        }
        self.path = path;
        for (child, known) in next {
            if let Some(state) = self.tree.state_mut(child)
                && !known
            {
                state.fresh = visit.fresh;
            }
            self.push(Visit { id: child, ..visit });
        }
        for gone in self.tree.unseen(visit.id, comparison) {
            self.leave(gone);
        }
    }

    /// Drops a directory with all below it. Marks go a little later (`upkeep`).
    pub(super) fn leave(&mut self, id: NodeId) {
        let mut released = Vec::new();
        self.tree.remove(id, &mut released);
        self.let_go(released);
    }

    /// Something failed at `self.path`: said once, tried again.
    pub(super) fn trouble(&mut self, id: NodeId, error: &dyn std::fmt::Display) {
        self.links.counters.directory_errors.up();
        let Some(state) = self.tree.state_mut(id) else {
            return;
        };
        state.troubled = true;
        let said = std::mem::replace(&mut state.complained, true);
        let shown = printable(&self.path);
        if said {
            tracing::debug!("onacc: {shown}: {error}");
        } else {
            tracing::warn!("onacc: {shown}: {error}; this directory is tried again");
        }
        self.look_again_at(id);
    }

    fn no_watch(&mut self, id: NodeId, error: &WatchError) {
        let released = self.tree.set_watch(id, None);
        self.let_go(released);
        if let Some(state) = self.tree.state_mut(id) {
            state.unwatched = true;
        }
        match error {
            WatchError::Exhausted => {
                self.upkeep.exhausted();
                self.look_again_at(id);
            }
            WatchError::Other(error) => self.trouble(id, error),
        }
    }

    fn look_again_at(&mut self, id: NodeId) {
        if let Some(State { polled, .. }) = self.tree.state_mut(id)
            && !std::mem::replace(polled, true)
        {
            self.upkeep.polled.push_back(id);
        }
    }
}

/// The last name of a path.
pub(super) fn name_of(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// What an entry is, on filesystems whose listings do not say it.
fn type_of(directory: &OwnedFd, name: &[u8]) -> Option<Type> {
    let stat = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
    match SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT) {
        SFlag::S_IFDIR => Some(Type::Directory),
        SFlag::S_IFREG => Some(Type::File),
        _ => None,
    }
}
