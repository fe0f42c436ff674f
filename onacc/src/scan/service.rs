//! The thread that speaks with the clamds and answers the openers.
//!
//! One loop, no wait but in `poll(2)`: takes jobs in, hands files to a clamd,
//! answers as replies come, and at the deadline answers by the fail policy.
//! Answers first; marks, log and counters of it come after (invariant 3). Names
//! and cold files are read by other threads. Must not: place marks or open a
//! file. What becomes of a job stands in `service/outcome.rs`, sessions in
//! `service/sessions.rs`, who serves them in `service/peers.rs`, what readers do by
//! themselves in `service/direct.rs`. Tested by `tests/`.

mod direct;
mod outcome;
mod peers;
mod sessions;

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags};

use super::aftermath::{After, Aftermath, Infected};
use super::behind::Finder;
use super::book::{Book, Place};
use super::feeder::{Feeders, SLOW_READS};
use super::handover::Handover;
use super::matches::Matcher;
use super::openers::Openers;
use super::pool::Pool;
use super::scanner::{ScannerIdentity, Strangers};
use super::versions::{Began, Versions};
use super::{Joined, ScanJob, Urgency, Work};
use crate::clamd::{Polled, Sent};
use crate::config::servers::Transfer;
use crate::coverage::keeper::KeeperMessage;
use crate::kernel::fanotify::{Answer, WriterProbe};
use crate::kernel::procfs::Proc;
use crate::kernel::wake::{Mailbox, is_ready, sleep_on};
use crate::observe::counters::{Counters, ServerCounters};
use crate::observe::heartbeat::Heartbeat;
use crate::observe::latency::{Latencies, Span};
use crate::policy::{Hold, VerdictCache, lock, stamps};
use crate::respond::quarantine::Quarantine;
use crate::respond::report::Failure;

/// A scan of a file from this size on takes long: short ones go first.
const HUGE: u64 = 1 << 20;
/// How often openers that wait are looked after, in case they were killed.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Openers that are looked after at a time.
const LOOK_AT: usize = 256;

/// What the settings allow.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The bound: no opener waits longer.
    pub bound: Duration,
    /// How long one try may take.
    pub try_timeout: Duration,
    /// Further tries after a failed one.
    pub retries: u32,
    /// Scans under way at a time.
    pub max_scans: usize,
    /// What a failure becomes.
    pub on_failure: Answer,
    /// Longest time without a command that clamd suffers.
    pub read_timeout: Duration,
    /// Bytes of one file that may be sent in a stream.
    pub stream_max_length: u64,
}

/// Whom the service speaks with.
pub struct Links {
    /// Work from the reader and the prescans.
    pub jobs: Mailbox<Work>,
    /// Clean files for the keeper of marks.
    pub keeper: Mailbox<KeeperMessage>,
    /// What deals with infected files, if anything is to.
    pub quarantine: Option<Quarantine>,
    /// Told the clamds' process ids.
    pub scanner: Arc<ScannerIdentity>,
    /// Verdicts that still hold.
    pub verdicts: Arc<Mutex<VerdictCache>>,
    /// Counts.
    pub counters: Arc<Counters>,
    /// Counts of each server.
    pub servers: Arc<Vec<ServerCounters>>,
    /// How long things take.
    pub latencies: Arc<Latencies>,
    /// Asked whether a file has writers.
    pub writers: WriterProbe,
    /// Shows that the loop goes round.
    pub heartbeat: Heartbeat,
    /// Set when the loop is to end.
    pub stop: Arc<std::sync::atomic::AtomicBool>,
    /// Where it asks about openers.
    pub proc: Proc,
    /// Read what is not in memory; there if files are streamed.
    pub feeders: Option<Feeders>,
    /// Names all matches, where that is wanted.
    pub matcher: Option<Matcher>,
}

/// State of the loop.
pub struct Service {
    limits: Limits,
    links: Links,
    book: Book<ScanJob>,
    versions: Versions,
    pool: Pool,
    next_version: Instant,
    /// Openers are looked after then, from there on.
    next_look: Instant,
    look_from: usize,
    /// What is done after the answers.
    after: Aftermath,
    finder: Finder,
    /// Asked when a clamd becomes known.
    strangers: Strangers,
    /// Files are sent in chunks to some server.
    streams: bool,
    /// It wakes then, whatever comes.
    sleeps_until: Option<Instant>,
    /// Something has come since it slept last.
    busy: bool,
}

/// Scans at a time of files that may hold up whoever reads them: as many threads of
/// clamd, or readers of ours, may hang, and the others serve everybody else.
fn slow_scans(limits: &Limits, pool: &Pool) -> usize {
    let half = limits.max_scans / 2;
    if pool.streams() {
        half.min(SLOW_READS)
    } else {
        half
    }
}

impl Service {
    /// A service that has not begun.
    pub fn new(limits: Limits, pool: Pool, mut links: Links) -> Self {
        let now = Instant::now();
        Self {
            book: Book::new(limits.max_scans, slow_scans(&limits, &pool)),
            versions: Versions::default(),
            streams: pool.streams(),
            pool,
            next_version: now,
            next_look: now,
            look_from: 0,
            limits,
            after: Aftermath::new(links.matcher.take()),
            finder: Finder::new(links.jobs.clone()),
            strangers: Strangers::default(),
            sleeps_until: None,
            busy: false,
            links,
        }
    }

    /// Works at the desk until told to stop; every job that is left is then answered
    /// by the fail policy, as its event is dropped.
    pub fn run(self, handover: &Handover) {
        let desk = handover.desk();
        let (heartbeat, stop) = (self.links.heartbeat.clone(), Arc::clone(&self.links.stop));
        heartbeat.begin();
        desk.open(self);
        let mut incoming = Vec::new();
        let mut sleep = Sleep::default();
        loop {
            // Before the lock: who does not give it back is found by the watchdog.
            heartbeat.beat();
            let mut state = desk.lock();
            let Some(service) = state.as_mut() else {
                return;
            };
            if stop.load(std::sync::atomic::Ordering::Acquire) {
                *state = None;
                return;
            }
            service.take_note(&sleep);
            service.round(&mut incoming);
            let rests = service.prepare(&mut sleep);
            drop(state);
            if rests {
                heartbeat.rest();
                sleep.sleep(desk.mailbox());
            }
        }
    }

    /// Whether it sleeps longer than it meant to.
    pub(super) fn is_overdue(&self) -> bool {
        self.sleeps_until
            .is_some_and(|until| Instant::now() > until)
    }

    fn round(&mut self, incoming: &mut Vec<Work>) {
        self.links.jobs.drain(incoming);
        let now = Instant::now();
        self.busy |= !incoming.is_empty();
        for work in incoming.drain(..) {
            self.links.heartbeat.beat();
            let opener = matches!(&work, Work::Scan(job) if job.urgency == Urgency::Opener);
            self.take_in(work, now);
            if opener {
                // Where nobody else is in line it does not matter whose turn it is.
                self.pump(now);
            }
        }
        if self.has_failed_lines() {
            self.lose_failed(now);
        }
        self.receive_all();
        let now = Instant::now();
        self.connect(now);
        self.pump(now);
        if self.streams {
            self.feed_all(now);
        }
        self.expire(now);
        self.look_after_openers(now);
        self.ask_for_signs(now);
        self.after.run(&self.links);
    }

    fn take_in(&mut self, work: Work, now: Instant) {
        match work {
            Work::Scan(job) if job.urgency == Urgency::Prescan => self.take_prescan(job),
            Work::Scan(job) => self.take_opener(job, now),
            Work::TooLarge { path, size } => self.after.push(After::TooLarge { path, size }),
            Work::KnownInfected {
                mut event,
                path,
                stat,
                signature,
            } => {
                let openers = Openers::of_event(&event, &path);
                event.answer(Answer::Deny);
                self.after.push(After::Infected(Infected {
                    openers,
                    paths: vec![path],
                    stat,
                    signature,
                    file: event.into_file(),
                }));
            }
            Work::Resolved(server, found) => self.resolved(server, found, now),
            Work::Peer(asked, behind) => self.peer_found(asked, behind, now),
            Work::Chunk(chunk) => self.hand_in(&chunk, now),
        }
    }

    fn take_opener(&mut self, job: ScanJob, now: Instant) {
        if self.pool.is_stalled() {
            // Whoever comes now would only wait for what the others waited in vain.
            self.links.counters.stalled.up();
            self.fail(job, Failure::Stalled);
            return;
        }
        let deadline = (job.arrived + self.limits.bound).max(now);
        let key = job.stat.key;
        let found = self
            .versions
            .find(&job.stat, |token| self.book.waits(token));
        if let Some(token) = found
            && let Some(other) = self.book.join(token, deadline)
        {
            self.links.counters.joined.up();
            other.stat = job.stat;
            other.joined.push(Joined {
                event: job.event,
                path: job.path,
                arrived: job.arrived,
            });
            return;
        }
        let place = self.place_of(&job);
        let token = self.book.add(job, place, deadline, self.limits.retries);
        self.versions.enter(key, token);
    }

    /// Who opened it matters only where there is a line to stand in.
    fn place_of(&self, job: &ScanJob) -> Place {
        let tid = job.event.tid();
        let process = if self.book.has_room() {
            None
        } else {
            self.links.proc.process_of(tid)
        };
        Place {
            opener: u64::from(process.unwrap_or(tid).unsigned_abs()),
            huge: job.stat.size >= HUGE,
            slow: job.slow,
        }
    }

    fn take_prescan(&mut self, job: ScanJob) {
        let key = job.stat.key;
        let stalled = self.pool.is_stalled();
        if stalled || self.versions.find(&job.stat, |_| true).is_some() {
            self.links.counters.prescans_skipped.up();
            return;
        }
        let place = Place {
            opener: 0,
            huge: job.stat.size >= HUGE,
            slow: job.slow,
        };
        let token = self.book.add_prescan(job, place);
        self.versions.enter(key, token);
    }

    /// Sends as many waiting jobs as there are places.
    fn pump(&mut self, now: Instant) {
        if !self.book.has_waiting() {
            return;
        }
        let (generation, closes) = {
            let verdicts = lock(&self.links.verdicts);
            (verdicts.generation(), verdicts.closes())
        };
        loop {
            let pool = &self.pool;
            let next = self.book.next_to_send(|class| pool.has_room(class));
            let Some((token, class, job, avoid)) = next else {
                return;
            };
            let Some(pick) = self.pool.pick(class, avoid) else {
                return;
            };
            let transfer = self.pool.servers[pick.server].transfer;
            let Some(file) = job.event.file() else {
                return;
            };
            if transfer == Transfer::Stream && job.stat.size > self.limits.stream_max_length {
                self.too_long(token);
                continue;
            }
            let hold = job.hold;
            let steady = is_steady(&self.links, job, file.as_fd());
            let (stat, arrived, first) = (job.stat, job.arrived, avoid.is_none());
            let Some(line) = self.pool.line(pick) else {
                return;
            };
            let id = line.id;
            if !line.session.has_scans() {
                line.last_sign = now;
            }
            let sent = match transfer {
                Transfer::PassFd => line.session.scan_file(file.as_fd(), token, now),
                Transfer::Stream => {
                    let limit = self.limits.stream_max_length;
                    line.session.begin_stream(token, limit, now);
                    Ok(Sent::Yes)
                }
            };
            match sent {
                Ok(Sent::Yes) => {
                    let began = steady.then_some(Began {
                        stat,
                        generation,
                        closes: (hold == Hold::NoWriters).then_some(closes),
                    });
                    self.versions.sent(stat.key, token, began);
                    self.book.sent(token, id, now);
                    if first {
                        let waited = now.saturating_duration_since(arrived);
                        self.links.latencies.record(Span::QueueWait, waited);
                    }
                }
                Ok(Sent::Full) => return,
                // Not taken away here: its fd may be polled at this moment.
                Err(error) => line.failed = Some(error),
            }
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        let waiting = self.book.has_waiting();
        [
            self.book.next_deadline(),
            self.book
                .next_deadline()
                .is_some()
                .then_some(self.next_look),
            self.pool.next_connect(waiting),
            self.next_sign_due(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What it sleeps on. False: something has come meanwhile.
    fn prepare(&mut self, sleep: &mut Sleep) -> bool {
        sleep.clear();
        if self.has_failed_lines() || !self.links.jobs.begin_sleep() {
            return false;
        }
        let due = self.wake_at();
        // While scans come and go it looks up as often as it would for one of them, so
        // that who leaves it one need not wake it for its deadline.
        let soon = std::mem::take(&mut self.busy).then(|| Instant::now() + self.watchful());
        self.sleeps_until = due.into_iter().chain(soon).min();
        sleep.until = self.sleeps_until;
        for server in &self.pool.servers {
            for line in &server.lines {
                sleep
                    .sockets
                    .push((line.session.wire().polled(), line.session.flags()));
            }
        }
        true
    }

    /// What poll(2) has found, of the same sessions in the same order: only this thread
    /// begins and ends sessions.
    fn take_note(&mut self, sleep: &Sleep) {
        let lines = self.pool.servers.iter_mut();
        let lines = lines.flat_map(|server| &mut server.lines);
        for (line, ready) in lines.zip(&sleep.ready) {
            line.quiet = !ready;
        }
    }
}

/// The service's sleep, for which it has left the desk.
#[derive(Default)]
struct Sleep {
    sockets: Vec<(Polled, PollFlags)>,
    until: Option<Instant>,
    /// For each socket whether something is there; empty if nobody has looked.
    ready: Vec<bool>,
}

impl Sleep {
    fn clear(&mut self) {
        self.sockets.clear();
        self.ready.clear();
    }

    fn sleep(&mut self, mailbox: &Mailbox<Work>) {
        let mut fds = Vec::with_capacity(1 + self.sockets.len());
        fds.push(PollFd::new(mailbox.waker().as_fd(), PollFlags::POLLIN));
        let sockets = self.sockets.iter();
        fds.extend(sockets.map(|(fd, flags)| PollFd::new(fd.as_fd(), *flags)));
        match sleep_on(&mut fds, self.until) {
            Ok(()) => {
                mailbox.end_sleep(is_ready(&fds[0]));
                self.ready.extend(fds[1..].iter().map(is_ready));
            }
            // poll(2) fails for want of memory alone; the loop must not spin on it.
            Err(error) => {
                tracing::error!("onacc: {error}");
                std::thread::sleep(Duration::from_millis(10));
                mailbox.end_sleep(true);
            }
        }
    }
}

/// Whether nothing can be stored into this file, from now on, without its stamps
/// changing: they are old enough, and nobody has a mapping that could take a
/// store without a page fault. Where writers' closes tell of stores, writers are asked
/// for when the verdict is used; here that could mean to wait for a server.
fn is_steady(links: &Links, job: &ScanJob, file: BorrowedFd<'_>) -> bool {
    if job.hold == Hold::Not {
        return false;
    }
    if stamps::is_young(job.stat.changed, SystemTime::now()) {
        links.counters.unmarked_young.up();
        return false;
    }
    if job.hold == Hold::NoWriters {
        return true;
    }
    let writers = match &job.beneath {
        Some(beneath) => links.writers.has_writers_by_path(beneath.as_fd()),
        None => links.writers.has_writers(file),
    };
    let writers = writers.unwrap_or(true);
    if writers {
        links.counters.unmarked_writers.up();
    }
    !writers
}
