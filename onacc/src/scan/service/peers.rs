//! Who serves a session on this host: asked when it stands, told to the reader.
//!
//! Opens that wait although they are clamd's own, because it was not known yet,
//! are let go as soon as it is. Must not: look for anybody itself.

use std::time::Instant;

use super::Service;
use crate::kernel::fanotify::{Answer, PendingEvent};
use crate::respond::report;
use crate::scan::behind::{Asked, Behind, End, From, is_local};
use crate::scan::pool::Pick;

impl Service {
    /// Asks who serves a session, if there is somebody to be found: when it stands,
    /// and again when clamd has replied (`heard`), for a proxy connects to it later
    /// than we to the proxy.
    pub(super) fn find_peers(&mut self, pick: Pick, heard: bool) {
        let Some(line) = self.pool.line(pick) else {
            return;
        };
        let (peers, wire) = (&mut line.peers, line.session.wire());
        let known = peers.settled || peers.asked_again || (peers.asked && !heard);
        if known || !wire.is_connected() {
            return;
        }
        let asked = Asked {
            line: line.id,
            heard,
        };
        if let Some(pid) = wire.peer() {
            (peers.asked, peers.asked_again) = (true, true);
            self.peer_spoke(asked, pid);
        } else if let Some((ours, theirs)) = wire.addresses() {
            (peers.asked, peers.asked_again) = (true, heard);
            peers.settled = !is_local(ours, theirs);
            if !peers.settled {
                self.look_for_peers(asked, From::Tcp { ours, theirs });
            }
        }
    }

    /// A process has spoken on a Unix socket: clamd, or a proxy.
    fn peer_spoke(&mut self, asked: Asked, pid: i32) {
        let is_clamd = self.links.scanner.looks_like_clamd(pid);
        let end = if is_clamd { End::Clamd } else { End::Itself };
        self.peer_found(asked, Behind::one(pid, end), Instant::now());
        if !is_clamd {
            self.look_for_peers(asked, From::Process(pid));
        }
    }

    fn look_for_peers(&mut self, asked: Asked, from: From) {
        if let Err(error) = self.finder.ask(asked, from) {
            tracing::warn!("onacc: who serves a session cannot be found out: {error}");
        }
    }

    /// It was found out who serves a session.
    pub(super) fn peer_found(&mut self, asked: Asked, behind: Behind, now: Instant) {
        let Some(pick) = self.pool.find(asked.line) else {
            return;
        };
        let Some(line) = self.pool.line(pick) else {
            return;
        };
        if line.peers.settled {
            return;
        }
        line.peers.settled = behind.end == End::Clamd;
        let lost = asked.heard && behind.end == End::Lost;
        let proxy = behind.proxies.first().copied();
        (line.peers.servers, line.peers.proxies) = (behind.servers, behind.proxies);
        let state = &mut self.pool.servers[pick.server];
        if lost && !std::mem::replace(&mut state.stranger_reported, true) {
            report::clamd_not_recognised(&state.name, proxy);
        }
        self.peers_changed(now);
    }

    /// Tells the reader who serves the sessions that there are now.
    pub(super) fn peers_changed(&mut self, now: Instant) {
        let (servers, proxies) = self.pool.peers();
        if self.links.scanner.set(&servers, &proxies) {
            self.let_scanners_go(now);
        }
    }

    fn let_scanners_go(&mut self, now: Instant) {
        let (identity, strangers) = (&self.links.scanner, &mut self.strangers);
        let counter = &self.links.counters.scanner;
        let mut goes = |event: &mut PendingEvent| {
            let own = event.is_blocked() && strangers.is_scanner(identity, event.tid(), now);
            if own {
                event.answer(Answer::Allow);
                counter.up();
            }
            own
        };
        let (left, _) = self.book.look_after((0, usize::MAX), |job| {
            job.joined.retain_mut(|other| !goes(&mut other.event));
            goes(&mut job.event) && job.joined.is_empty()
        });
        for (token, job) in left {
            self.versions.leave(job.stat.key, token);
        }
    }
}
