//! Lanes: groups and readers for filesystems whose opens open others.
//!
//! To hand out an event the kernel opens the file for the reader, in the
//! reader's own `read(2)`. On an overlay that opens a file of a layer below; on
//! FUSE and network filesystems it waits for somebody. If that raised an event
//! in the same group, the reader would wait for itself. So such filesystems get a
//! group and a reader of their own: a reader may wait for a reader below it,
//! never for itself. Must not: put two filesystems into one lane of which one may
//! lie on the other. The lane below may not be held up by those above: only the
//! first lane is watched by the watchdog; whoever closes a file of such a lane may
//! hang as well, so that a thread of its own does, and what hangs there takes the
//! lane's own places of the fd budget. Tested by `tests/`.

use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::reader::{Control, Reader, ReaderLinks, ReaderOwn};
use crate::kernel::fanotify::{
    FdBudget, Group, GroupKind, InitError, Reservation, Wanted, WriterProbe,
};
use crate::kernel::mounts::{Mount, MountTable};
use crate::kernel::procfs::Proc;
use crate::kernel::wake::{Mailbox, Wake};
use crate::kernel::{SyscallError, process};
use crate::observe::heartbeat::Heartbeat;
use crate::policy::{LaneId, Policy, lane_of};

/// Lanes beside the first: each has two threads and three fds.
const MOST_LANES: usize = 64;
/// Events of one filesystem whose opens can block that may be in flight. All such
/// lanes together never have more than half of the budget.
const MOST_OF_LANE: usize = 32;
const LEAST_OF_LANE: usize = 2;

/// A lane cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// There are too many.
    #[error("more than {MOST_LANES} filesystems whose opens can block")]
    TooMany,
    /// The group cannot be made.
    #[error(transparent)]
    Group(#[from] InitError),
    /// Thread or fd cannot be had.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
}

struct Lane {
    id: LaneId,
    group: Arc<Group>,
    control: Mailbox<Control>,
    thread: JoinHandle<()>,
    /// Its part of the fd budget, and what that takes from everybody's.
    own: Option<(Arc<FdBudget>, Reservation)>,
}

/// Told when a reader has ended that must not.
#[derive(Clone)]
pub struct Ended {
    /// Notified.
    pub wake: Wake,
    /// Why; the first reason counts.
    pub reason: Arc<OnceLock<String>>,
}

/// All lanes.
pub struct Lanes {
    kind: GroupKind,
    wanted: Wanted,
    links: ReaderLinks,
    ended: Ended,
    all: Vec<Lane>,
    policy: Arc<Policy>,
}

impl Lanes {
    /// Starts the first lane, on a group that is already there.
    ///
    /// # Errors
    /// [`LaneError`].
    pub fn start(
        group: Arc<Group>,
        links: ReaderLinks,
        (policy, heartbeat): (Arc<Policy>, Heartbeat),
        ended: Ended,
    ) -> Result<Self, LaneError> {
        let mut lanes = Self {
            kind: group.kind(),
            wanted: group.wanted(),
            links,
            ended,
            all: Vec::new(),
            policy,
        };
        lanes.add(LaneId::Plain, group, (heartbeat, None))?;
        Ok(lanes)
    }

    fn add(
        &mut self,
        id: LaneId,
        group: Arc<Group>,
        (heartbeat, part): (Heartbeat, Option<(Arc<FdBudget>, Reservation)>),
    ) -> Result<(), LaneError> {
        let control = Mailbox::new()?;
        let mut links = self.links.clone();
        if let Some((budget, _)) = &part {
            links.budget = Arc::clone(budget);
        }
        let own = ReaderOwn {
            group: Arc::clone(&group),
            control: control.clone(),
            heartbeat,
            proc: Proc::open()?,
            writers: self.links.asks_writers.then(WriterProbe::new).transpose()?,
        };
        let at_rest = own.heartbeat.clone();
        let reader = Reader::new(links, own, Arc::clone(&self.policy));
        let ended = self.ended.clone();
        let thread = process::spawn("onacc-reader", move || {
            if let Err(error) = reader.run() {
                let _first_one_counts = ended.reason.set(error.to_string());
                ended.wake.notify();
            }
            at_rest.end();
        })?;
        self.all.push(Lane {
            id,
            group,
            control,
            thread,
            own: part,
        });
        Ok(())
    }

    /// The group for a filesystem; its lane is made if there is none.
    ///
    /// # Errors
    /// [`LaneError`].
    pub fn group_for(
        &mut self,
        mount: &Mount,
        mounts: &MountTable,
    ) -> Result<Arc<Group>, LaneError> {
        let id = lane_of(mount, mounts);
        if let Some(lane) = self.all.iter().find(|lane| lane.id == id) {
            return Ok(Arc::clone(&lane.group));
        }
        if self.all.len() > MOST_LANES {
            return Err(LaneError::TooMany);
        }
        let (group, part) = if let LaneId::Own(_) = id {
            let group = Group::closing_elsewhere(self.kind, self.wanted)?;
            (group, Some(self.part_of_budget()))
        } else {
            (Group::wanting(self.kind, self.wanted)?, None)
        };
        let heartbeat = Heartbeat::new("further reader");
        self.add(id, Arc::clone(&group), (heartbeat, part))?;
        Ok(group)
    }

    /// Places for a lane whose files may never be closed.
    fn part_of_budget(&self) -> (Arc<FdBudget>, Reservation) {
        let all = &self.links.budget;
        let share = all.limit() / (2 * MOST_LANES);
        let reserved = all.reserve(share.clamp(LEAST_OF_LANE, MOST_OF_LANE));
        (FdBudget::new(reserved.places()), reserved)
    }

    /// Whether nothing is in flight in any lane.
    fn is_unused(&self) -> bool {
        let parts = || self.all.iter().filter_map(|lane| lane.own.as_ref());
        let reserved = parts().map(|(_, reserved)| reserved.places()).sum();
        self.links.budget.is_unused_beyond(reserved)
            && parts().all(|(budget, _)| budget.is_unused_beyond(0))
    }

    /// Ends the lanes of filesystems that are gone; `present` says which are not.
    pub fn let_go(&mut self, present: impl Fn(u32) -> bool) {
        self.all.retain(|lane| match lane.id {
            LaneId::Own(dev) if !present(dev) => {
                lane.control.send(Control::Stop);
                lane.control.waker().notify();
                false
            }
            _ => true,
        });
    }

    /// Every reader decides by this from now on.
    pub fn set_policy(&mut self, policy: &Arc<Policy>) {
        self.policy = Arc::clone(policy);
        for lane in &self.all {
            lane.control.send(Control::Policy(Arc::clone(policy)));
        }
    }

    /// Takes all marks away, and waits until then for everybody to be answered
    /// who waits already.
    pub fn drain(&self, until: Instant) {
        for lane in &self.all {
            if let Err(error) = lane.group.flush_all_marks() {
                tracing::warn!("onacc: marks stay until a reader has ended: {error}");
            }
        }
        // In this order: what has left a queue has a place in the budget.
        let is_idle = || self.all.iter().all(|lane| lane.group.queued() == 0) && self.is_unused();
        while !is_idle() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Tells all readers to end, and waits for them until then. Whether they have.
    pub fn stop(self, until: Instant) -> bool {
        for lane in &self.all {
            lane.control.send(Control::Stop);
            lane.control.waker().notify();
        }
        for lane in &self.all {
            process::wait_for(&lane.thread, until);
        }
        self.all.iter().all(|lane| lane.thread.is_finished())
    }
}
