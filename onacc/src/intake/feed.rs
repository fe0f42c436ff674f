//! Opens that eBPF tells of: the notify-only mode's source, and word of what the
//! kernel has refused by itself.
//!
//! The programs have dropped what needs no look (`onacc_common::filter`), `drain`
//! takes the rest out of the kernel at once; here each is looked at, one after the
//! other (`looker`). No opener waits for this thread. Files on filesystems whose
//! opens can block (FUSE, network) are looked at by a second thread, so that a
//! server that hangs costs its own files alone. Must not: answer anybody.
//! Tested by `tests/`.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::sync::Arc;

use nix::poll::PollFlags;
use onacc_common::opens::Access;

use super::backlog::{Backlog, Chunk};
use super::drain::Drain;
use super::find::Told;
use super::looker::{Event, FeedLinks, Looker};
use super::lost::Lost;
use crate::kernel::bpf::{Missed, OpenFeed, SignatureNames};
use crate::kernel::mounts::join;
use crate::kernel::wake::{Mailbox, sleep};
use crate::kernel::{SyscallError, memory, process};
use crate::policy::Policy;
use crate::respond::report;

/// What a record that waits for the second thread takes of memory, about.
const SLOW_BYTES: usize = 512;
/// Looks between two looks at the messages.
const BATCH: usize = 256;
/// Chunks that have waited, from which on their memory is given back.
const MANY_CHUNKS: usize = 16;

/// What the feed is told.
#[derive(Debug)]
pub enum FeedMessage {
    /// Decide by this from now on.
    Policy(Arc<Policy>),
    /// Opens were told.
    Told(Chunk),
    /// Files were opened that found no room in the ring buffer.
    Missed,
    /// So many opens found room nowhere.
    Lost(u64),
    /// End.
    Stop,
}

/// State of the first thread.
pub struct Feed {
    messages: Mailbox<FeedMessage>,
    signatures: SignatureNames,
    backlog: Arc<Backlog>,
    looker: Looker,
    slow: Mailbox<SlowMessage>,
    most_slow: usize,
    chunks: VecDeque<Chunk>,
    missed: Vec<Missed>,
    /// So many chunks have waited at a time since memory was given back.
    most_chunks: usize,
    lost: Lost,
    stopped: bool,
}

#[derive(Debug)]
enum SlowMessage {
    Event(Event),
    Policy(Arc<Policy>),
    Stop,
}

impl Feed {
    /// Starts the threads. They end when told so, and are not waited for: the
    /// second one may be waiting for a server.
    ///
    /// # Errors
    /// No thread or fd left.
    pub fn start(
        source: OpenFeed,
        messages: Mailbox<FeedMessage>,
        links: FeedLinks,
        policy: &Arc<Policy>,
    ) -> Result<std::thread::JoinHandle<()>, SyscallError> {
        let slow = Mailbox::new()?;
        let backlog = Backlog::new(links.backlog)?;
        let most_slow = links.backlog / SLOW_BYTES;
        let looker = Looker::new(links, Arc::clone(policy))?;
        let second = (looker.again()?, slow.clone());
        process::spawn("onacc-feed-slow", move || {
            let (looker, messages) = second;
            run_slow(looker, &messages);
        })?;
        let feed = Self {
            messages: messages.clone(),
            signatures: source.signatures().clone(),
            backlog: Arc::clone(&backlog),
            looker,
            slow,
            most_slow,
            chunks: VecDeque::new(),
            missed: Vec::new(),
            most_chunks: 0,
            lost: Lost::default(),
            stopped: false,
        };
        let drain = Drain::new(source, backlog, messages);
        process::spawn("onacc-drain", move || drain.run())?;
        process::spawn("onacc-feed", move || feed.run())
    }

    fn run(mut self) {
        let mut messages = Vec::new();
        while !self.stopped {
            self.messages.drain(&mut messages);
            for message in messages.drain(..) {
                self.hear(message);
            }
            let looked = self.look_at_some();
            let caught_up = self.catch_up_with_some();
            self.lost.say();
            if !looked && !caught_up {
                self.give_back_memory();
                self.rest();
            }
        }
        self.end();
    }

    fn hear(&mut self, message: FeedMessage) {
        match message {
            FeedMessage::Policy(policy) => {
                self.slow.send(SlowMessage::Policy(Arc::clone(&policy)));
                self.looker.follow(policy);
            }
            FeedMessage::Told(chunk) => {
                self.chunks.push_back(chunk);
                self.most_chunks = self.most_chunks.max(self.chunks.len());
            }
            // They are in the backlog.
            FeedMessage::Missed => {}
            FeedMessage::Lost(opens) => self.lose(opens),
            FeedMessage::Stop => self.stopped = true,
        }
    }

    /// Looks at records, up to a batch, so that messages are heard in a flood too.
    fn look_at_some(&mut self) -> bool {
        for looked in 0..BATCH {
            let Some(first) = self.chunks.front_mut() else {
                return looked > 0;
            };
            let Some(record) = first.next() else {
                self.chunks.pop_front();
                continue;
            };
            match record.access {
                Access::Open | Access::Exec => {
                    let event = Event::of(&record);
                    self.looker.links.counters.told_opens.up();
                    self.handle(event);
                }
                Access::DeniedOpen | Access::DeniedMap => {
                    let (told, signature) = (Told::of(&record), record.header.signature);
                    self.report_refusal(told, signature);
                }
            }
        }
        true
    }

    fn handle(&mut self, event: Event) {
        if self.looker.can_block(&event) {
            if self.slow.len() < self.most_slow {
                self.slow.send(SlowMessage::Event(event));
            } else {
                self.lose(1);
            }
        } else {
            self.looker.look_at(&event);
        }
    }

    /// What the kernel has refused by itself is reported like any other refusal.
    fn report_refusal(&self, told: Told, signature: u32) {
        self.looker.links.counters.denied_in_kernel.up();
        let mount = self.looker.policy().mounts.whole(told.key.dev);
        let path = match (mount, told.path) {
            (Some(mount), Some(path)) => join(&mount.point, Path::new(OsStr::from_bytes(&path)))
                .into_os_string()
                .into_vec(),
            (None, Some(path)) => [b"/", path.as_slice()].concat(),
            (_, None) => Vec::new(),
        };
        let name = self.signatures.name(signature);
        let name = name.as_deref().unwrap_or("(signature not known any more)");
        report::infected(&path, 1, name);
    }

    /// Looks at files whose opens found no room in the ring buffer, up to a batch.
    fn catch_up_with_some(&mut self) -> bool {
        if self.missed.is_empty() {
            self.missed = self.backlog.take_missed();
        }
        let some = self.missed.len().min(BATCH);
        for one in self.missed.split_off(self.missed.len() - some) {
            self.looker.links.counters.told_caught_up.up();
            self.handle(Event::of_missed(one));
        }
        some > 0
    }

    fn lose(&mut self, opens: u64) {
        self.looker.links.counters.told_lost.add(opens);
        self.lost.add(opens);
    }

    fn give_back_memory(&mut self) {
        if std::mem::take(&mut self.most_chunks) >= MANY_CHUNKS {
            memory::give_back();
        }
    }

    fn rest(&mut self) {
        if !self.messages.begin_sleep() {
            return;
        }
        let wake = self.messages.waker();
        let slept = sleep([(wake.as_fd(), PollFlags::POLLIN)], self.lost.when());
        self.messages
            .end_sleep(slept.is_ok_and(|[notified]| notified));
    }

    /// What waits is not looked at any more, and that is said.
    fn end(mut self) {
        self.backlog.stop();
        self.slow.send(SlowMessage::Stop);
        let mut waiting = self.missed.len() + self.backlog.take_missed().len();
        let mut messages = Vec::new();
        self.messages.drain(&mut messages);
        for message in messages {
            self.hear(message);
        }
        for chunk in self.chunks {
            waiting += chunk.count();
        }
        let left = self.lost.count() + u64::try_from(waiting).unwrap_or(u64::MAX);
        if left > 0 {
            tracing::warn!("onacc: stopping before {left} opens were looked at");
        }
    }
}

fn run_slow(mut looker: Looker, messages: &Mailbox<SlowMessage>) {
    let mut taken = Vec::new();
    loop {
        messages.drain(&mut taken);
        for message in taken.drain(..) {
            match message {
                SlowMessage::Event(event) => looker.look_at(&event),
                SlowMessage::Policy(policy) => looker.follow(policy),
                SlowMessage::Stop => return,
            }
        }
        if messages.begin_sleep() {
            let wake = messages.waker();
            let slept = sleep([(wake.as_fd(), PollFlags::POLLIN)], None);
            messages.end_sleep(slept.is_ok_and(|[notified]| notified));
        }
    }
}
