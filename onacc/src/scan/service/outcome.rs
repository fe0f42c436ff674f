//! What becomes of a job: a verdict, a failure, a deadline, an opener that is gone.
//!
//! Answers first. Must not: send anything.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Instant;

use super::{LOOK_AT, LOOK_EVERY, Service};
use crate::clamd::protocol::Reply;
use crate::coverage::keeper::{CleanFile, InfectedFile};
use crate::kernel::fanotify::{Answer, EventFile, PendingEvent};
use crate::kernel::file::{self, DELETED};
use crate::kernel::handle::name_left;
use crate::observe::latency::{Latencies, Span};
use crate::policy::{Verdict, lock, stamps};
use crate::respond::report::Failure;
use crate::scan::aftermath::{After, Infected};
use crate::scan::book::Due;
use crate::scan::openers::Openers;
use crate::scan::versions::Began;
use crate::scan::{ScanJob, Urgency};

impl Service {
    /// A clamd has replied to a scan.
    pub(super) fn complete(&mut self, token: u64, reply: Reply, (server, line): (usize, u64)) {
        let counters = &self.links.servers[server];
        match &reply {
            Reply::Clean => counters.clean.up(),
            Reply::Found(_) => counters.infected.up(),
            Reply::Error(_) | Reply::Pong | Reply::Version(_) => counters.errors.up(),
        }
        if let Reply::Error(_) = reply
            && self.book.retry(token, line, server)
        {
            self.links.counters.retries.up();
            return;
        }
        let Some(done) = self.book.done(token, line) else {
            return;
        };
        let (mut job, late) = (done.job, done.late);
        let began = self.versions.leave(job.stat.key, token);
        if late {
            self.links.counters.late_verdicts.up();
        }
        match reply {
            Reply::Clean => {
                let kept = self.remember(&job, &Verdict::Clean, began);
                job.answer(Answer::Allow);
                measure(&self.links.latencies, &job, late, done.sent);
                self.links.counters.clean.up();
                drop(self.hand_on(job, Verdict::Clean, kept));
            }
            Reply::Found(signature) => {
                let signature: Arc<str> = signature.into();
                let verdict = Verdict::Infected(Arc::clone(&signature));
                let kept = self.remember(&job, &verdict, began);
                let openers = Openers::of_job(&job);
                job.answer(Answer::Deny);
                measure(&self.links.latencies, &job, late, done.sent);
                self.links.counters.infected.up();
                let (paths, stat) = (paths_of(&mut job), job.stat);
                let file = self.hand_on(job, verdict, kept);
                self.after.push(After::Infected(Infected {
                    paths,
                    stat,
                    signature,
                    openers,
                    file,
                }));
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

    /// Keeps a verdict in memory if it is certain of which bytes it speaks: the
    /// file was steady when the scan began, and is the same now (invariant 6).
    /// Before the answer, upon which the same opener may come again at once; one
    /// `statx` beside a scan.
    fn remember(&self, job: &ScanJob, verdict: &Verdict, began: Option<Began>) -> Option<Began> {
        let began = began?;
        let stat = began.stat;
        let file = job.beneath.as_ref().or(job.event.file())?;
        let same = || file::stat(file.as_fd()).is_ok_and(|now| stamps::same_version(&now, &stat));
        // A server could be asked for the stamps; if they are others now, no later open
        // finds this verdict.
        if began.closes.is_none() && !same() {
            self.links.counters.unmarked_changed.up();
            return None;
        }
        let mut verdicts = lock(&self.links.verdicts);
        let written = |closes| verdicts.was_written_since(stat.key, closes);
        if began.closes.is_some_and(written) {
            self.links.counters.unmarked_changed.up();
            return None;
        }
        verdicts.insert(&stat, verdict.clone(), began.generation);
        Some(began)
    }

    /// Hands a file whose verdict was kept to the keeper, to be marked or refused
    /// in the kernel. Gives the opened file back unless it went there.
    fn hand_on(
        &mut self,
        job: ScanJob,
        verdict: Verdict,
        kept: Option<Began>,
    ) -> Option<EventFile> {
        let markable = job.markable && verdict == Verdict::Clean;
        let opened = job.event.into_file()?;
        // What the kernel keeps goes by stamps.
        let Some(Began {
            stat,
            generation,
            closes: None,
        }) = kept
        else {
            return Some(opened);
        };
        if let Verdict::Infected(signature) = verdict {
            // What the kernel refuses by itself never comes to the quarantine again.
            if self.links.quarantine.is_some() {
                return Some(opened);
            }
            self.after.push(After::Refuse(InfectedFile {
                file: job.beneath.unwrap_or(opened),
                stat,
                signature,
                generation,
            }));
            return None;
        }
        if !markable {
            return Some(opened);
        }
        self.after.push(After::Clean(CleanFile {
            file: opened,
            stat,
            generation,
        }));
        None
    }

    /// Answers by the fail policy.
    pub(super) fn fail(&mut self, mut job: ScanJob, failure: Failure) {
        let answer = self.answer_without_verdict(&mut job);
        if job.urgency == Urgency::Prescan && job.joined.is_empty() {
            return;
        }
        self.after.push(After::Failed {
            path: std::mem::take(&mut job.path),
            failure,
            answer,
        });
    }

    /// Under `OnAccessDenyOnError` clamd itself must still be able to start.
    fn answer_without_verdict(&self, job: &mut ScanJob) -> Answer {
        let denies = job.event.on_failure() == Some(Answer::Deny);
        let tid = job.event.tid();
        if denies && !self.pool.has_session() && self.links.scanner.looks_like_clamd(tid) {
            job.answer(Answer::Allow);
            return Answer::Allow;
        }
        job.fail().unwrap_or(self.limits.on_failure)
    }

    /// The file is longer than clamd takes in a stream: nothing that a try could mend.
    pub(super) fn too_long(&mut self, token: u64) {
        self.links.counters.too_long_to_stream.up();
        self.give_up(
            token,
            "longer than StreamMaxLength, it cannot be sent to clamd",
        );
    }

    /// A job that no reply will come for, for a reason of its own.
    pub(super) fn give_up(&mut self, token: u64, why: &str) {
        if let Some(job) = self.book.remove(token) {
            self.versions.leave(job.stat.key, token);
            self.links.counters.scan_errors.up();
            self.fail(job, Failure::Scan(why.to_owned()));
        }
    }

    /// Answers by the fail policy whoever has waited for the bound.
    pub(super) fn expire(&mut self, now: Instant) {
        let on_failure = self.limits.on_failure;
        loop {
            self.links.heartbeat.beat();
            let (path, answer, waiting) = match self.book.next_due(now) {
                None => return,
                Some(Due::Waiting(token, mut job)) => {
                    self.versions.leave(job.stat.key, token);
                    let answer = job.fail().unwrap_or(on_failure);
                    measure(&self.links.latencies, &job, false, None);
                    (std::mem::take(&mut job.path), answer, true)
                }
                Some(Due::UnderWay(job)) => {
                    let answer = job.fail().unwrap_or(on_failure);
                    measure(&self.links.latencies, job, false, None);
                    (job.path.clone(), answer, false)
                }
            };
            self.links.counters.timeouts.up();
            let failure = Failure::Timeout(self.limits.bound);
            self.after.push(After::Failed {
                path,
                failure,
                answer,
            });
            if !waiting {
                self.note_stalled(now);
            }
        }
    }

    /// Openers that were killed need no answer: what they waited for leaves the
    /// line. The kernel does not tell, so that they are looked after now and then.
    pub(super) fn look_after_openers(&mut self, now: Instant) {
        if now < self.next_look || self.book.next_deadline().is_none() {
            return;
        }
        self.next_look = now + LOOK_EVERY;
        let links = &self.links;
        let mut killed = 0;
        let (left, next) = self.book.look_after((self.look_from, LOOK_AT), |job| {
            if now < job.arrived + LOOK_EVERY {
                return false;
            }
            let is_gone = |event: &PendingEvent| {
                event.is_blocked() && event.tid() != 0 && links.proc.has_ended(event.tid())
            };
            let before = job.joined.len();
            job.joined.retain(|other| !is_gone(&other.event));
            killed += before - job.joined.len();
            let first = is_gone(&job.event);
            let gone = first && job.joined.is_empty();
            killed += usize::from(gone);
            gone
        });
        self.look_from = next;
        links.counters.cancelled.add(killed as u64);
        for (token, job) in left {
            self.versions.leave(job.stat.key, token);
        }
    }
}

/// After the answer: how long it took. `late`: the openers were answered before.
fn measure(latencies: &Latencies, job: &ScanJob, late: bool, sent: Option<Instant>) {
    let now = Instant::now();
    if let Some(sent) = sent {
        latencies.record(Span::Scan, now.saturating_duration_since(sent));
    }
    if late {
        return;
    }
    let joined = job.joined.iter().map(|other| other.arrived);
    let first = (job.urgency == Urgency::Opener).then_some(job.arrived);
    for arrived in first.into_iter().chain(joined) {
        latencies.record(Span::OpenerWait, now.saturating_duration_since(arrived));
    }
}

/// The paths that a job's openers used, each once.
fn paths_of(job: &mut ScanJob) -> Vec<Vec<u8>> {
    let mut path = std::mem::take(&mut job.path);
    if path.ends_with(DELETED)
        && let Some(name) = job.event.file().and_then(|file| name_left(file.as_fd()))
    {
        // Linked while it was scanned: whoever reads the report must find it.
        path = name;
    }
    let mut paths = vec![path];
    for other in &mut job.joined {
        let path = std::mem::take(&mut other.path);
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}
