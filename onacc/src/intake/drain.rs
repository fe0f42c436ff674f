//! The thread that takes what eBPF tells of opens out of the kernel, and does
//! nothing else: the ring buffer holds some thousand records, a burst has more.
//!
//! Must not: wait for anybody, or look at a file. What the kernel had no room for
//! is taken by inode; what even that had none for is counted. Tested by `tests/`.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::backlog::{Backlog, Chunk};
use super::feed::FeedMessage;
use crate::kernel::bpf::OpenFeed;
use crate::kernel::wake::{Mailbox, sleep};

/// How long to wait for room in the backlog before looking again.
const NO_ROOM: Duration = Duration::from_millis(5);

/// Its state.
pub struct Drain {
    source: OpenFeed,
    backlog: Arc<Backlog>,
    feed: Mailbox<FeedMessage>,
}

impl Drain {
    /// Takes from `source`; records go to `feed` by way of the backlog.
    pub fn new(source: OpenFeed, backlog: Arc<Backlog>, feed: Mailbox<FeedMessage>) -> Self {
        Self {
            source,
            backlog,
            feed,
        }
    }

    /// Runs until the backlog is stopped.
    pub fn run(mut self) {
        while !self.backlog.is_stopped() {
            let has_room = self.backlog.has_room();
            let taken = has_room && self.take_records();
            let missed = self.take_missed();
            let lost = self.source.take_lost();
            if lost > 0 {
                self.feed.send(FeedMessage::Lost(lost));
            }
            if !taken && !missed {
                self.rest(has_room);
            }
        }
    }

    fn take_records(&mut self) -> bool {
        let mut chunk = Chunk::new(&self.backlog);
        while !chunk.is_full() && self.source.next(|record| chunk.push(record)) {}
        let taken = !chunk.is_empty();
        if taken {
            self.feed.send(FeedMessage::Told(chunk));
        }
        taken
    }

    fn take_missed(&mut self) -> bool {
        if !self.backlog.has_room_for_missed() {
            return false;
        }
        let missed = self.source.take_missed();
        let taken = !missed.is_empty();
        if self.backlog.note_missed(missed) {
            self.feed.send(FeedMessage::Missed);
        }
        taken
    }

    fn rest(&self, has_room: bool) {
        // What is there and has no room must not keep this thread running.
        let records = if has_room {
            PollFlags::POLLIN
        } else {
            PollFlags::empty()
        };
        let waits = !has_room || !self.backlog.has_room_for_missed();
        let until = waits.then(|| Instant::now() + NO_ROOM);
        let wake = (self.backlog.wake.as_fd(), PollFlags::POLLIN);
        if let Err(error) = sleep([wake, (self.source.as_fd(), records)], until) {
            tracing::debug!("onacc: {error}");
        }
    }
}
