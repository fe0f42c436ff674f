//! The sessions: begun, fed, listened to, asked for signs of life, lost.
//!
//! Must not: answer an opener but by what stands in `outcome`.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use super::{Limits, Service};
use crate::clamd::{ConnectError, Fed, Received, SessionError};
use crate::coverage::keeper::KeeperMessage;
use crate::policy::lock;
use crate::respond::report::{self, Failure};
use crate::scan::book::Blame;
use crate::scan::feeder::{Chunk, Request};
use crate::scan::pool::{Connecting, Pick};
use crate::scan::resolver::some_address;
use crate::scan::server::MOST_STREAMS;

/// As [`silence`], at most.
const SILENCE: Duration = Duration::from_millis(500);
/// How often clamd is asked for the version of its database.
const VERSION_EVERY: Duration = Duration::from_secs(5);
/// How long a session without scans may be silent while another server is well.
const IDLE_PATIENCE: Duration = Duration::from_secs(5);
/// Bounds, since it was sent, after which a scan without reply counts as unanswered.
const UNANSWERED: u32 = 4;
/// No scan that is worth a place takes longer (clamd's `MaxScanTime`, and some).
const LONGEST_SCAN: Duration = Duration::from_secs(150);
/// How long a connection may take to come about, at most.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

impl Service {
    /// Makes sure that there are sessions; without any, who waits is told.
    pub(super) fn connect(&mut self, now: Instant) {
        let waiting = self.book.has_waiting();
        let mut tried = false;
        for came in self.pool.connect_due(waiting, now) {
            tried = true;
            match came {
                Connecting::Begun(server) => {
                    self.links.counters.sessions.up();
                    self.links.servers[server].sessions.up();
                }
                Connecting::Failed(server, error) => self.connection_failed(server, &error),
            }
        }
        if waiting && !self.pool.is_reachable() {
            self.nobody_there(tried);
        }
    }

    fn nobody_there(&mut self, tried: bool) {
        for (token, job) in self.book.unreachable(tried) {
            self.versions.leave(job.stat.key, token);
            self.links.counters.unreachable.up();
            self.fail(job, Failure::Unreachable);
        }
    }

    fn connection_failed(&mut self, server: usize, error: &ConnectError) {
        self.links.counters.connect_failures.up();
        let state = &mut self.pool.servers[server];
        if !std::mem::replace(&mut state.outage_reported, true) {
            report::connection_failed(&state.name, error);
        }
    }

    /// The name service has answered.
    pub(super) fn resolved(
        &mut self,
        server: usize,
        found: io::Result<Vec<SocketAddr>>,
        now: Instant,
    ) {
        let found = some_address(found);
        let state = &mut self.pool.servers[server];
        match found {
            Ok(addresses) => state.resolved(addresses),
            Err(error) => {
                state.resolved(Vec::new());
                state.failed(now);
                self.connection_failed(server, &ConnectError::Name(error));
            }
        }
    }

    /// A session is over: what it had under way is sent again, elsewhere if there
    /// is anybody else.
    pub(super) fn lose(&mut self, pick: Pick, error: &SessionError, now: Instant) {
        let state = &mut self.pool.servers[pick.server];
        if pick.line >= state.lines.len() {
            return;
        }
        let line = state.lines.remove(pick.line);
        let proven = line.session.has_replied();
        if state.lines.is_empty() {
            state.stalled = false;
        }
        let blame = match error {
            SessionError::StreamRefused(_)
            | SessionError::Silent
            | SessionError::Unanswered { .. } => Blame::Nobody,
            _ => Blame::Jobs,
        };
        if !proven {
            // Who closes at once is no clamd, or a dying one: not in a loop.
            state.failed(now);
        }
        if proven || !line.session.wire().is_connected() || blame == Blame::Jobs {
            self.links.counters.sessions_lost.up();
            self.links.servers[pick.server].lost.up();
        }
        if proven {
            report::session_lost(&state.name, error);
        } else if !std::mem::replace(&mut state.outage_reported, true) {
            report::connection_failed(&state.name, error);
        }
        drop(line.session);
        self.peers_changed(now);
        let lost = self.book.session_lost(line.id, pick.server, blame);
        self.links.counters.retries.add(lost.again);
        if matches!(error, SessionError::Silent) {
            self.links.counters.failed_over.add(lost.again);
        }
        for (token, job) in lost.unwanted {
            self.versions.leave(job.stat.key, token);
        }
        for (token, job) in lost.failed {
            self.versions.leave(job.stat.key, token);
            self.links.counters.scan_errors.up();
            self.fail(job, Failure::Scan("the session ended twice".into()));
        }
        if let SessionError::Protocol(crate::clamd::protocol::ProtocolError::TakenBack(_)) = error {
            self.links.counters.taken_back.up();
            self.forget_verdicts("clamd took a reply back");
        }
    }

    /// Ends the sessions that could not be sent on.
    pub(super) fn lose_failed(&mut self, now: Instant) {
        for pick in self.pool.picks() {
            let failed = self.pool.line(pick).and_then(|line| line.failed.take());
            if let Some(error) = failed {
                self.lose(pick, &error, now);
            }
        }
    }

    /// Whether there are such sessions.
    pub(super) fn has_failed_lines(&self) -> bool {
        let mut lines = self.pool.servers.iter().flat_map(|server| &server.lines);
        lines.any(|line| line.failed.is_some())
    }

    /// Reads what has come in all sessions and acts on it.
    pub(super) fn receive_all(&mut self) {
        let mut received = Vec::new();
        for pick in self.pool.picks() {
            let Some(line) = self.pool.line(pick) else {
                continue;
            };
            if std::mem::take(&mut line.quiet) {
                continue;
            }
            let id = line.id;
            let result = line
                .session
                .flush()
                .and_then(|()| line.session.receive(&mut |item| received.push(item)));
            let heard = !received.is_empty();
            if heard {
                line.last_sign = Instant::now();
                self.hear(pick);
            }
            self.find_peers(pick, heard);
            for item in received.drain(..) {
                self.links.heartbeat.beat();
                match item {
                    Received::Scan(token, reply) => self.complete(token, reply, (pick.server, id)),
                    Received::Version(version) => self.session_works(pick.server, &version),
                }
            }
            if let Err(error) = result {
                self.lose(pick, &error, Instant::now());
            }
        }
    }

    /// A server shows that it is there.
    fn hear(&mut self, pick: Pick) {
        let state = &mut self.pool.servers[pick.server];
        if state.stalled && state.silent_since().is_none() {
            state.stalled = false;
            report::recovered(&state.name);
        }
    }

    fn session_works(&mut self, server: usize, version: &str) {
        let state = &mut self.pool.servers[server];
        state.works();
        let other = version != state.version;
        let first = state.version.is_empty();
        if std::mem::take(&mut state.outage_reported) {
            report::reconnected(&state.name);
        }
        if !other {
            return;
        }
        report::version(&state.name, version);
        self.after.set_database(version);
        version.clone_into(&mut state.version);
        if !first {
            self.links.counters.generations.up();
            self.forget_verdicts("clamd has another signature database");
            report::new_database(version);
        }
    }

    /// No verdict so far holds any more.
    fn forget_verdicts(&self, why: &'static str) {
        lock(&self.links.verdicts).new_generation();
        self.links.keeper.send(KeeperMessage::Flush(why));
    }

    /// Goes on with the files that are on their way in chunks.
    pub(super) fn feed_all(&mut self, now: Instant) {
        for pick in self.pool.picks() {
            let Some(line) = self.pool.line(pick) else {
                continue;
            };
            if !line.session.wants_feed() {
                continue;
            }
            let (id, token) = (line.id, line.session.streaming());
            let file = token
                .and_then(|token| self.book.get(token))
                .and_then(|job| job.event.file());
            let mut sent = 0;
            let fed = match file {
                Some(file) => line.session.feed(file.as_fd(), now, &mut sent),
                // Its job has left the book: nobody wants the verdict.
                None => line.session.abandon_stream().map(|()| Fed::Done),
            };
            self.links.counters.streamed_bytes.add(sent);
            self.links.servers[pick.server].bytes.add(sent);
            if let Some(token) = token {
                self.fed(pick, (id, token), fed, now);
            }
        }
    }

    /// A chunk that did not come from memory.
    pub(super) fn hand_in(&mut self, chunk: &Chunk, now: Instant) {
        let Some(pick) = self.pool.find(chunk.line) else {
            return;
        };
        let Some(line) = self.pool.line(pick) else {
            return;
        };
        let fed = match &chunk.bytes {
            Ok(bytes) => {
                self.links.counters.streamed_bytes.add(bytes.len() as u64);
                self.links.servers[pick.server]
                    .bytes
                    .add(bytes.len() as u64);
                line.session.hand_in(chunk.token, bytes, now)
            }
            Err(errno) if line.session.streaming() == Some(chunk.token) => {
                let error = crate::kernel::SyscallError::from_errno("pread", *errno);
                line.session
                    .abandon_stream()
                    .map(|()| Fed::Unreadable(error))
            }
            Err(_) => Ok(Fed::Wait),
        };
        self.fed(pick, (chunk.line, chunk.token), fed, now);
    }

    fn fed(
        &mut self,
        pick: Pick,
        (line, token): (u64, u64),
        fed: Result<Fed, SessionError>,
        now: Instant,
    ) {
        match fed {
            Ok(Fed::Wait | Fed::Done) => {}
            Ok(Fed::Cold(offset)) => self.read_elsewhere(pick, (line, token), offset),
            Ok(Fed::TooLong) => self.too_long(token),
            Ok(Fed::Unreadable(error)) => self.give_up(token, &error.to_string()),
            Err(error) => self.lose(pick, &error, now),
        }
    }

    fn read_elsewhere(&mut self, pick: Pick, (line, token): (u64, u64), offset: u64) {
        self.links.counters.cold_reads.up();
        let job = self.book.get(token);
        let slow = job.is_some_and(|job| job.slow);
        let file = job
            .and_then(|job| job.event.file())
            .map(|file| file.as_fd().try_clone_to_owned());
        match (&self.links.feeders, file) {
            (Some(feeders), Some(Ok(file))) => feeders.read(Request {
                line,
                token,
                file,
                offset,
                slow,
            }),
            (_, file) => {
                let why = match file {
                    Some(Err(error)) => format!("its file cannot be read on: {error}"),
                    _ => "its file cannot be read on".to_owned(),
                };
                let ended = self
                    .pool
                    .line(pick)
                    .map(|line| line.session.abandon_stream());
                self.give_up(token, &why);
                if let Some(Err(error)) = ended {
                    self.lose(pick, &error, Instant::now());
                }
            }
        }
    }

    /// At a deadline: who has not given a sign of life for half of the bound has
    /// stalled.
    pub(super) fn note_stalled(&mut self, now: Instant) {
        let half = self.limits.bound / 2;
        for state in &mut self.pool.servers {
            if !state.stalled && state.is_silent_for(half, now) {
                state.stalled = true;
                report::stalled(&state.name, self.limits.bound);
            }
        }
    }

    /// Asks a clamd that is silent though it has scans under way, one that would
    /// close an idle session, and, now and then, for the version of its database.
    /// Gives up connections that come to nothing, and the silent one of several.
    pub(super) fn ask_for_signs(&mut self, now: Instant) {
        if self.next_sign_due().is_none_or(|due| now < due) {
            return;
        }
        let (silence, keep_alive) = (silence(&self.limits), self.keep_alive());
        let polls = now >= self.next_version;
        if polls {
            self.next_version = now + VERSION_EVERY;
            self.free_places(now);
        }
        for pick in self.pool.picks() {
            let others = self.pool.has_other(pick.server, self.failover_after(), now);
            let (failover, connect) = (self.failover_after(), self.connect_limit());
            let Some(line) = self.pool.line(pick) else {
                continue;
            };
            let session = &mut line.session;
            let ended = if !session.wire().is_connected() && now >= line.since + connect {
                Err(SessionError::ConnectTimedOut(connect))
            } else if others
                && session
                    .awaits_sign_since()
                    .is_some_and(|since| now >= since + patience(session.has_scans(), failover))
            {
                Err(SessionError::Silent)
            } else if session.awaits_sign_since().is_some() {
                Ok(())
            } else {
                let silent = session.has_scans() && now >= line.last_sign + silence;
                let idle = now >= session.last_command() + keep_alive;
                if silent || idle || (polls && pick.line == 0) {
                    session.ask_version(now)
                } else {
                    Ok(())
                }
            };
            if let Err(error) = ended {
                self.lose(pick, &error, now);
            }
        }
    }

    /// Scans that clamd does not reply to keep their places, for the verdict that may
    /// come. When that is half of all, or for far too long, their sessions are begun
    /// anew: what somebody waits for is sent again.
    fn free_places(&mut self, now: Instant) {
        let Some(then) = now.checked_sub(UNANSWERED * self.limits.bound) else {
            return;
        };
        let unanswered = self.book.unanswered(then);
        let most = if self.streams {
            self.book.limit().min(MOST_STREAMS)
        } else {
            self.book.limit()
        };
        let many = 2 * unanswered.len() >= most;
        let long = LONGEST_SCAN.max(2 * UNANSWERED * self.limits.bound);
        let too_long = |sent: Instant| many || now >= sent + long;
        let mut lost: Vec<u64> = unanswered
            .iter()
            .filter(|(_, sent)| too_long(*sent))
            .map(|(session, _)| *session)
            .collect();
        lost.sort_unstable();
        lost.dedup();
        for session in lost {
            let Some(pick) = self.pool.find(session) else {
                continue;
            };
            let of_it = unanswered.iter().filter(|(other, _)| *other == session);
            let scans = of_it.count();
            self.links.counters.scans_unanswered.add(scans as u64);
            self.book.give_up_unanswered(session, then);
            let long = UNANSWERED * self.limits.bound;
            self.lose(pick, &SessionError::Unanswered { scans, long }, now);
        }
    }

    /// When [`Self::ask_for_signs`] has something to do.
    pub(super) fn next_sign_due(&self) -> Option<Instant> {
        let (silence, keep_alive) = (silence(&self.limits), self.keep_alive());
        let several = self.pool.servers.len() > 1;
        let lines = self.pool.servers.iter().flat_map(|server| &server.lines);
        lines
            .map(|line| {
                let session = &line.session;
                let mut next = self.next_version;
                if !session.wire().is_connected() {
                    next = next.min(line.since + self.connect_limit());
                }
                match session.awaits_sign_since() {
                    Some(since) if several => {
                        next.min(since + patience(session.has_scans(), self.failover_after()))
                    }
                    Some(_) => next,
                    None => {
                        if session.has_scans() {
                            next = next.min(line.last_sign + silence);
                        }
                        next.min(session.last_command() + keep_alive)
                    }
                }
            })
            .min()
    }

    /// Silence, after a question that costs nothing, that makes another server do
    /// the work: early enough for it to do so within the bound.
    fn failover_after(&self) -> Duration {
        self.limits.bound / 4
    }

    fn connect_limit(&self) -> Duration {
        CONNECT_LIMIT
            .min(self.limits.try_timeout)
            .min(self.limits.bound / 3)
    }

    fn keep_alive(&self) -> Duration {
        (self.limits.read_timeout / 4).clamp(Duration::from_secs(1), Duration::from_secs(30))
    }
}

/// Silence, with scans under way, after which clamd is asked for a sign of life.
pub(super) fn silence(limits: &Limits) -> Duration {
    SILENCE.min(limits.bound / 8)
}

/// How long a silent session is kept while another server is well. One without
/// scans is only tried anew: what it was asked may have been lost.
fn patience(has_scans: bool, failover: Duration) -> Duration {
    if has_scans {
        failover
    } else {
        failover.max(IDLE_PATIENCE)
    }
}
