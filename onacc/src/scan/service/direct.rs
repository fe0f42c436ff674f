//! A reader's moment at the service's desk: it hands a file to clamd itself, and the
//! service is not woken before clamd has replied.
//!
//! For the usual case alone: a small file, nobody in line, a session by fd that has
//! room. Whatever else there is to do is left to the service. Must not: wait, answer
//! anybody, write a log line, or begin or end a session.

use std::time::{Duration, Instant};

use super::sessions::silence;
use super::{HUGE, LOOK_EVERY, Service};
use crate::config::servers::Transfer;
use crate::kernel::desk::Visit;
use crate::scan::ScanJob;
use crate::scan::queue::Class;

impl Service {
    /// Takes in what a reader brings, and sends it.
    pub(in crate::scan) fn take_at_once(&mut self, job: ScanJob) -> Visit<ScanJob> {
        if !self.goes_at_once(&job) {
            return Visit::Refused(job);
        }
        let now = Instant::now();
        self.busy = true;
        if self.book.next_deadline().is_none() {
            // Whoever is looked after has waited for a while.
            self.next_look = self.next_look.max(now + LOOK_EVERY);
        }
        let before = self.book.under_way();
        self.take_opener(job, now);
        self.pump(now);
        let sent = self.book.under_way() - before;
        self.links.counters.sent_at_once.add(sent as u64);
        let wakes_in_time = self
            .sleeps_until
            .is_some_and(|until| self.wake_at().is_none_or(|due| until <= due));
        if wakes_in_time && !self.wants_more() {
            Visit::Done
        } else {
            Visit::Unfinished
        }
    }

    fn goes_at_once(&self, job: &ScanJob) -> bool {
        if job.stat.size >= HUGE || !self.book.has_room() || self.pool.is_stalled() {
            return false;
        }
        let picked = self.pool.pick(Class::Small, None);
        picked.is_some_and(|pick| self.pool.servers[pick.server].transfer == Transfer::PassFd)
    }

    /// Whether a session wants something that only the service does.
    fn wants_more(&self) -> bool {
        let lines = self.pool.servers.iter().flat_map(|server| &server.lines);
        let mut lines =
            lines.filter(|line| line.failed.is_some() || !line.session.wire().is_idle());
        lines.next().is_some() || self.book.has_waiting()
    }

    /// How long the service sleeps at most while scans come and go.
    pub(super) fn watchful(&self) -> Duration {
        LOOK_EVERY.min(silence(&self.limits))
    }
}
