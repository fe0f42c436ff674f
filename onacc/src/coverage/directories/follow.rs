//! What sends the walk to a directory: events, a new policy.
//!
//! Must not: change the tree by what an event says; it only says where to look.

use std::sync::Arc;

use super::names::changed_points;
use super::tree::NodeId;
use super::{Directories, Marker, Visit};
use crate::kernel::inotify::{InotifyBuffer, InotifyEvent, WatchId};
use crate::policy::Policy;

impl<M: Marker> Directories<M> {
    /// Takes one buffer full of events.
    pub(super) fn take_events(&mut self) {
        let mut buffer = std::mem::replace(&mut self.buffer, InotifyBuffer::none());
        match self.marker.read(&mut buffer) {
            Ok(events) => {
                let mut events = events.peekable();
                if events.peek().is_some() {
                    self.join_aside();
                }
                events.for_each(|event| self.handle(&event));
            }
            Err(error) => self.upkeep.cannot_read(&error),
        }
        self.buffer = buffer;
    }

    /// One event.
    pub(super) fn handle(&mut self, event: &InotifyEvent<'_>) {
        if event.is_overflow() {
            self.upkeep.say_overflow();
            self.links.counters.directory_rescans.up();
            self.look_at_all(true);
        } else if event.is_end_of_watch() {
            self.lost(event.watch);
        } else if event.is_move() {
            for id in self.nodes_of(event.watch) {
                self.push(Visit::event(id));
            }
        } else if event.is_arrival() {
            self.arrived(event);
        } else if event.is_departure() {
            self.departed(event);
        }
    }

    fn nodes_of(&self, watch: WatchId) -> Vec<NodeId> {
        self.tree.nodes_of(watch).collect()
    }

    /// A name came into a directory. A file matters only where it is named.
    fn arrived(&mut self, event: &InotifyEvent<'_>) {
        for id in self.nodes_of(event.watch) {
            if self.tree.state(id).whole {
                if event.is_directory() {
                    self.look_in(id, event.name, true);
                }
                continue;
            }
            let mut path = Vec::new();
            self.tree.path_into(id, &mut path);
            if self.names.ways_from(&path).any(|name| name == event.name) {
                self.visit(Visit::event(id));
            }
        }
    }

    /// A name was moved out of a directory. Where it came to is told next, so
    /// that the look comes after: a directory that was moved within the scope
    /// is found at its new place first, with all that is known of it.
    fn departed(&mut self, event: &InotifyEvent<'_>) {
        for id in self.nodes_of(event.watch) {
            if let Some(child) = self.tree.child(id, event.name) {
                self.push(Visit::event(child));
            }
        }
    }

    /// Looks at what has this name in a directory.
    fn look_in(&mut self, parent: NodeId, name: &[u8], fresh: bool) {
        let known = self.tree.child(parent, name).is_some();
        let Some(id) = self.tree.add(parent, name) else {
            return;
        };
        if let Some(state) = self.tree.state_mut(id)
            && !known
        {
            state.fresh = fresh;
        }
        // At once, ahead of what waits: files are being put into it.
        self.visit(Visit {
            fresh,
            ..Visit::event(id)
        });
    }

    /// A watch is gone, with its directory or its filesystem.
    fn lost(&mut self, watch: WatchId) {
        self.leaving.remove(&watch);
        for id in self.nodes_of(watch) {
            self.tree.set_watch(id, None);
            self.push(Visit::event(id));
        }
    }

    /// Looks at every directory again, known or not. If that is under way, once
    /// more after it: events of parts already passed are lost too.
    pub(super) fn look_at_all(&mut self, fresh: bool) {
        if !self.background.is_empty() {
            self.upkeep.again = Some(fresh || self.upkeep.again == Some(true));
            return;
        }
        self.push(Visit {
            id: self.tree.root(),
            deep: true,
            fresh,
            urgent: false,
        });
    }

    /// The scope or the mounts have changed: looks where that matters.
    pub(super) fn follow_policy(&mut self, policy: Arc<Policy>) {
        let old = std::mem::replace(&mut self.policy, policy);
        let new = &self.policy;
        let same_mounts = old.mounts == new.mounts;
        if same_mounts && old.scope == new.scope && old.rules == new.rules {
            return;
        }
        if same_mounts || self.names.excludes_moved(&old.mounts, &new.mounts) {
            self.look_at_all(false);
            return;
        }
        let mut points: Vec<Vec<u8>> = changed_points(&old.mounts, &new.mounts)
            .filter(|point| self.names.concerns(point))
            .map(|point| point.as_os_str().as_encoded_bytes().to_vec())
            .collect();
        points.sort();
        points.dedup();
        for point in points {
            self.look_at_point(&point);
        }
    }

    fn look_at_point(&mut self, point: &[u8]) {
        let (id, missing) = self.tree.find(point);
        match missing {
            // Files of a filesystem that is mounted are not new: no prescans.
            None => self.push(Visit {
                id,
                deep: true,
                fresh: false,
                urgent: false,
            }),
            Some(name) if self.tree.state(id).whole => self.look_in(id, name, false),
            Some(_) => self.push(Visit {
                fresh: false,
                ..Visit::event(id)
            }),
        }
    }
}
