//! The thread that speaks with clamd and answers the openers.
//!
//! One loop, no lock, no wait but in `poll(2)`: takes jobs in, hands files to
//! clamd, answers as replies come, and at the deadline answers by the fail
//! policy. Answers first; marks, log and counters of it come after (invariant
//! 3). Must not: place marks or open a file. Tested by `tests/`.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use nix::poll::PollFlags;

use super::aftermath::{After, Aftermath};
use super::book::{Book, Due};
use super::versions::Versions;
use super::{Joined, ScanJob, Urgency, Work};
use crate::clamd::protocol::Reply;
use crate::clamd::{ConnectError, Received, Sent, Session, SessionError};
use crate::coverage::keeper::{CleanFile, KeeperMessage};
use crate::intake::ScannerIdentity;
use crate::kernel::fanotify::{Answer, WriterProbe};
use crate::kernel::file::{self, FileStat};
use crate::kernel::wake::{Mailbox, sleep};
use crate::observe::counters::Counters;
use crate::observe::heartbeat::Heartbeat;
use crate::policy::{Verdict, VerdictCache, lock, stamps};
use crate::respond::report::{self, Failure};

/// First pause after a failed connection; doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Silence, with scans under way, after which clamd is asked for a sign of life.
const SILENCE: Duration = Duration::from_millis(500);

/// How often clamd is asked for the version of its database.
const VERSION_EVERY: Duration = Duration::from_secs(5);

/// What the settings allow.
#[derive(Clone, Debug)]
pub struct Limits {
    /// clamd's socket.
    pub socket: PathBuf,
    /// The bound: no opener waits longer.
    pub bound: Duration,
    /// Further tries after a failed one.
    pub retries: u32,
    /// Scans under way at a time.
    pub max_scans: usize,
    /// What a failure becomes.
    pub on_failure: Answer,
    /// Longest time without a command that clamd suffers.
    pub read_timeout: Duration,
}

/// Whom the service speaks with.
pub struct Links {
    /// Work from the reader and the prescans.
    pub jobs: Mailbox<Work>,
    /// Clean files for the keeper of marks.
    pub keeper: Mailbox<KeeperMessage>,
    /// Told clamd's process id.
    pub scanner: Arc<ScannerIdentity>,
    /// Verdicts that still hold.
    pub verdicts: Arc<Mutex<VerdictCache>>,
    /// Counts.
    pub counters: Arc<Counters>,
    /// Asked whether a file has writers.
    pub writers: WriterProbe,
    /// Shows that the loop goes round.
    pub heartbeat: Heartbeat,
    /// Set when the loop is to end.
    pub stop: Arc<std::sync::atomic::AtomicBool>,
}

/// State of the loop.
pub struct Service {
    limits: Limits,
    links: Links,
    book: Book<ScanJob>,
    versions: Versions,
    /// Version of clamd and its database, as it last said.
    version: String,
    next_version: Instant,
    session: Option<Session>,
    /// No connection is tried before.
    next_connect: Instant,
    pause: Duration,
    /// The last failed connection was reported; one line an outage.
    outage_reported: bool,
    /// When clamd last sent anything, or had nothing to do.
    last_sign: Instant,
    /// An opener's time ran out while clamd gave no sign of life.
    stalled: bool,
    /// What is done after the answers.
    after: Aftermath,
}

impl Service {
    /// A service that has not begun.
    pub fn new(limits: Limits, links: Links) -> Self {
        let now = Instant::now();
        Self {
            book: Book::new(limits.max_scans),
            versions: Versions::default(),
            version: String::new(),
            next_version: now,
            limits,
            links,
            session: None,
            next_connect: now,
            pause: FIRST_PAUSE,
            outage_reported: false,
            last_sign: now,
            stalled: false,
            after: Aftermath::default(),
        }
    }

    /// Runs until told to stop; every job that is left is then answered by the
    /// fail policy, as its event is dropped.
    pub fn run(mut self) {
        let mut incoming = Vec::new();
        while !self.links.stop.load(std::sync::atomic::Ordering::Acquire) {
            self.links.heartbeat.beat();
            self.links.jobs.drain(&mut incoming);
            let now = Instant::now();
            for work in incoming.drain(..) {
                self.take_in(work, now);
            }
            self.receive();
            self.pump(Instant::now());
            self.expire(Instant::now());
            self.ask_for_sign(Instant::now());
            self.after.run(&self.links.keeper, self.limits.on_failure);
            self.rest();
        }
    }

    fn take_in(&mut self, work: Work, now: Instant) {
        match work {
            Work::Scan(job) if job.urgency == Urgency::Prescan => self.take_prescan(job),
            Work::Scan(job) => self.take_opener(job, now),
            Work::KnownInfected {
                path,
                links,
                signature,
            } => self.after.push(After::Known {
                path,
                links,
                signature,
            }),
        }
    }

    fn take_opener(&mut self, job: ScanJob, now: Instant) {
        if self.stalled {
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
            });
            return;
        }
        let token = self.book.add(job, deadline, self.limits.retries);
        self.versions.enter(key, token);
    }

    fn take_prescan(&mut self, job: ScanJob) {
        let key = job.stat.key;
        if self.stalled || self.versions.find(&job.stat, |_| true).is_some() {
            self.links.counters.prescans_skipped.up();
            return;
        }
        let token = self.book.add_prescan(job);
        self.versions.enter(key, token);
    }

    /// Sends as many waiting jobs as there are places.
    fn pump(&mut self, now: Instant) {
        if !self.book.has_waiting() {
            return;
        }
        if !self.connected(now) {
            return;
        }
        if self.book.under_way() == 0 {
            self.last_sign = now;
        }
        let generation = lock(&self.links.verdicts).generation();
        while let Some((token, job)) = self.book.next_to_send() {
            let (Some(file), Some(session)) = (job.event.file(), self.session.as_mut()) else {
                return;
            };
            let steady = job.stamps_tell && is_steady(&self.links, job, file.as_fd());
            let stat = job.stat;
            match session.scan(file.as_fd(), token, now) {
                Ok(Sent::Yes) => {
                    let began = steady.then_some((stat, generation));
                    self.versions.sent(stat.key, token, began);
                    self.book.sent(token);
                }
                Ok(Sent::Full) => return,
                Err(error) => return self.lose_session(&error, now),
            }
        }
    }

    /// Makes sure that there is a session; false: there is none for now.
    fn connected(&mut self, now: Instant) -> bool {
        if self.session.is_some() {
            return true;
        }
        let try_now = now >= self.next_connect;
        if try_now {
            match Session::connect(&self.limits.socket, now) {
                Ok(session) => {
                    self.session = Some(session);
                    self.last_sign = now;
                    self.links.counters.sessions.up();
                    return true;
                }
                Err(error) => self.connection_failed(&error, now),
            }
        }
        for (token, job) in self.book.unreachable(try_now) {
            self.versions.leave(job.stat.key, token);
            self.links.counters.unreachable.up();
            self.fail(job, Failure::Unreachable);
        }
        false
    }

    fn connection_failed(&mut self, error: &ConnectError, now: Instant) {
        self.next_connect = now + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        if !self.outage_reported {
            self.outage_reported = true;
            report::connection_failed(&self.limits.socket, error);
        }
    }

    fn lose_session(&mut self, error: &SessionError, now: Instant) {
        let proven = self.session.take().is_some_and(|old| old.has_replied());
        self.links.scanner.forget();
        self.stalled = false;
        report::session_lost(error);
        if !proven {
            // Who closes at once is no clamd, or a dying one: not in a loop.
            self.next_connect = now + self.pause;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
        let lost = self.book.session_lost();
        self.links.counters.retries.add(lost.again);
        for (token, job) in lost.unwanted {
            self.versions.leave(job.stat.key, token);
        }
        for (token, job) in lost.failed {
            self.versions.leave(job.stat.key, token);
            self.links.counters.scan_errors.up();
            self.fail(job, Failure::Scan("the session ended twice".into()));
        }
    }

    fn receive(&mut self) {
        let Some(mut session) = self.session.take() else {
            return;
        };
        let mut received = Vec::new();
        let result = session
            .flush()
            .and_then(|()| session.receive(|item| received.push(item)));
        if !received.is_empty() {
            self.last_sign = Instant::now();
        }
        if let Some(pid) = session.peer() {
            self.links.scanner.learn(pid);
        }
        if self.stalled && session.awaits_sign_since().is_none() {
            self.stalled = false;
            report::recovered();
        }
        self.session = Some(session);
        for item in received {
            match item {
                Received::Scan(token, reply) => self.complete(token, reply),
                Received::Version(version) => self.session_works(&version),
            }
        }
        if let Err(error) = result {
            self.lose_session(&error, Instant::now());
        }
    }

    fn session_works(&mut self, version: &str) {
        self.pause = FIRST_PAUSE;
        if version != self.version {
            if !self.version.is_empty() {
                self.new_database(version);
            }
            report::version(version);
            version.clone_into(&mut self.version);
        }
        if std::mem::take(&mut self.outage_reported) {
            report::reconnected();
        }
    }

    /// No verdict of the old database holds any more.
    fn new_database(&mut self, version: &str) {
        lock(&self.links.verdicts).new_generation();
        self.links.counters.generations.up();
        let why = "clamd has another signature database";
        self.links.keeper.send(KeeperMessage::Flush(why));
        report::new_database(version);
    }

    fn complete(&mut self, token: u64, reply: Reply) {
        if let Reply::Error(_) = reply
            && self.book.retry(token)
        {
            self.links.counters.retries.up();
            return;
        }
        let Some((mut job, late)) = self.book.done(token) else {
            return;
        };
        let began = self.versions.leave(job.stat.key, token);
        if late {
            self.links.counters.late_verdicts.up();
        }
        match reply {
            Reply::Clean => {
                job.answer(Answer::Allow);
                self.links.counters.clean.up();
                self.keep(job, Verdict::Clean, began);
            }
            Reply::Found(signature) => {
                job.answer(Answer::Deny);
                self.links.counters.infected.up();
                let signature: Arc<str> = signature.into();
                self.after.push(After::Infected {
                    paths: paths_of(&mut job),
                    links: job.stat.links,
                    signature: Arc::clone(&signature),
                    late,
                });
                self.keep(job, Verdict::Infected(signature), began);
            }
            Reply::Error(words) => {
                self.links.counters.scan_errors.up();
                self.fail(job, Failure::Scan(words));
            }
            Reply::Pong | Reply::Version(_) => {
                self.links.counters.scan_errors.up();
                self.fail(job, Failure::Scan("not an answer to a scan".into()));
            }
        }
    }

    /// Keeps a verdict if it is certain of which bytes it speaks: the file was
    /// steady when the scan began, and is the same now (invariant 6).
    fn keep(&mut self, job: ScanJob, verdict: Verdict, began: Option<(FileStat, u64)>) {
        let markable = job.markable && verdict == Verdict::Clean;
        let file = match job.beneath {
            Some(beneath) => Some(beneath),
            None => job.event.into_file(),
        };
        let (Some((stat, generation)), Some(file)) = (began, file) else {
            return;
        };
        let same = file::stat(file.as_fd()).is_ok_and(|now| stamps::same_version(&now, &stat));
        if !same {
            self.links.counters.unmarked_changed.up();
            return;
        }
        lock(&self.links.verdicts).insert(&stat, verdict, generation);
        if markable {
            self.after.push(After::Clean(CleanFile {
                file,
                stat,
                generation,
            }));
        }
    }

    /// Answers by the fail policy.
    fn fail(&mut self, mut job: ScanJob, failure: Failure) {
        let answer = self.failure_answer(job.event.tid());
        job.answer(answer);
        if job.urgency == Urgency::Prescan && job.joined.is_empty() {
            return;
        }
        self.after.push(After::Failed {
            path: std::mem::take(&mut job.path),
            failure,
        });
    }

    /// Under `OnAccessDenyOnError` clamd itself must still be able to start.
    fn failure_answer(&self, tid: i32) -> Answer {
        match self.limits.on_failure {
            Answer::Deny if self.session.is_none() && self.links.scanner.looks_like_clamd(tid) => {
                Answer::Allow
            }
            answer => answer,
        }
    }

    fn expire(&mut self, now: Instant) {
        let asked = self.session.as_ref().and_then(Session::awaits_sign_since);
        let no_sign = asked.is_some_and(|asked| now >= asked + self.limits.bound / 2);
        loop {
            let on_failure = self.limits.on_failure;
            let (path, waiting) = match self.book.next_due(now) {
                None => return,
                Some(Due::Waiting(token, mut job)) => {
                    self.versions.leave(job.stat.key, token);
                    job.answer(on_failure);
                    (std::mem::take(&mut job.path), true)
                }
                Some(Due::UnderWay(job)) => {
                    job.answer(on_failure);
                    (job.path.clone(), false)
                }
            };
            self.links.counters.timeouts.up();
            let failure = Failure::Timeout(self.limits.bound);
            self.after.push(After::Failed { path, failure });
            if no_sign && !waiting && !self.stalled {
                self.stalled = true;
                report::stalled(self.limits.bound);
            }
        }
    }

    /// Asks a clamd that is silent though it has scans under way, one that would
    /// close an idle session, and, now and then, for the version of its database.
    fn ask_for_sign(&mut self, now: Instant) {
        let (silence, keep_alive) = (self.silence(), self.keep_alive());
        let Some(session) = &mut self.session else {
            return;
        };
        if session.awaits_sign_since().is_some() {
            return;
        }
        let silent = self.book.under_way() > 0 && now >= self.last_sign + silence;
        let idle = now >= session.last_command() + keep_alive;
        if now < self.next_version && !silent && !idle {
            return;
        }
        self.next_version = now + VERSION_EVERY;
        if let Err(error) = session.ask_version(now) {
            self.lose_session(&error, now);
        }
    }

    fn silence(&self) -> Duration {
        SILENCE.min(self.limits.bound / 4)
    }

    fn keep_alive(&self) -> Duration {
        (self.limits.read_timeout / 4).clamp(Duration::from_secs(1), Duration::from_secs(30))
    }

    fn wake_at(&self) -> Option<Instant> {
        let mut times = [None; 5];
        times[0] = self.book.next_deadline();
        if let Some(session) = &self.session {
            if session.awaits_sign_since().is_none() {
                times[1] = Some(session.last_command() + self.keep_alive());
                times[4] = Some(self.next_version);
                if self.book.under_way() > 0 {
                    times[2] = Some(self.last_sign + self.silence());
                }
            }
        } else if self.book.has_waiting() {
            times[3] = Some(self.next_connect);
        }
        times.into_iter().flatten().min()
    }

    fn rest(&mut self) {
        if !self.links.jobs.begin_sleep() {
            return;
        }
        self.links.heartbeat.rest();
        let until = self.wake_at();
        let waker = self.links.jobs.waker().clone();
        let wake = (waker.as_fd(), PollFlags::POLLIN);
        let notified = if let Some(session) = &self.session {
            let mut flags = PollFlags::POLLIN;
            if session.wants_to_write() {
                flags |= PollFlags::POLLOUT;
            }
            sleep([wake, (session.as_fd(), flags)], until).map(|[notified, _]| notified)
        } else {
            sleep([wake], until).map(|[notified]| notified)
        };
        match notified {
            Ok(notified) => self.links.jobs.end_sleep(notified),
            // poll(2) fails for want of memory alone; the loop must not spin on it.
            Err(error) => {
                tracing::error!("onacc: {error}");
                std::thread::sleep(Duration::from_millis(10));
                self.links.jobs.end_sleep(true);
            }
        }
    }
}

/// Whether nothing can be stored into this file, from now on, without its stamps
/// changing: they are old enough, and nobody has a mapping that could take a
/// store without a page fault.
fn is_steady(links: &Links, job: &ScanJob, file: BorrowedFd<'_>) -> bool {
    if stamps::is_young(job.stat.changed, SystemTime::now()) {
        links.counters.unmarked_young.up();
        return false;
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

/// The paths that a job's openers used, each once.
fn paths_of(job: &mut ScanJob) -> Vec<Vec<u8>> {
    let mut paths = vec![std::mem::take(&mut job.path)];
    for other in &mut job.joined {
        let path = std::mem::take(&mut other.path);
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}
