//! All servers: which one gets the next scan, when each is connected to.
//!
//! By load and weight; one that has answered goes before one that has not, and
//! one that has just failed the same job comes last. Must not: know jobs beyond
//! their tokens, or wait. Tested here and by `tests/`.

use std::time::{Duration, Instant};

use super::queue::Class;
use super::resolver::Resolver;
use super::server::{Line, ServerState};
use crate::clamd::ConnectError;
use crate::config::servers::Transfer;

/// The servers.
#[derive(Debug)]
pub struct Pool {
    /// In the order of the settings. Never empty.
    pub servers: Vec<ServerState>,
    resolver: Option<Resolver>,
    last_line: u64,
}

/// What came of connecting.
#[derive(Debug)]
pub enum Connecting {
    /// It has begun.
    Begun(usize),
    /// It is known at once that nothing comes of it.
    Failed(usize, ConnectError),
}

/// Where a job goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// The server.
    pub server: usize,
    /// Its session, by place.
    pub line: usize,
}

impl Pool {
    /// Servers that were not spoken to yet.
    pub fn new(servers: Vec<ServerState>, resolver: Option<Resolver>) -> Self {
        Self {
            servers,
            resolver,
            last_line: 0,
        }
    }

    /// Whether files are streamed to any of them.
    pub fn streams(&self) -> bool {
        self.servers
            .iter()
            .any(|server| server.transfer == Transfer::Stream)
    }

    /// Where a job of this class goes; not to `avoid` if there is another.
    pub fn pick(&self, class: Class, avoid: Option<usize>) -> Option<Pick> {
        let free = self
            .servers
            .iter()
            .enumerate()
            .filter_map(|(index, server)| {
                if server.stalled {
                    return None;
                }
                let line = server.free_line(class)?;
                let share = Share {
                    load: server.load() + 1,
                    weight: server.weight,
                };
                let rank = (avoid == Some(index), !server.is_proven(), share);
                let pick = Pick {
                    server: index,
                    line,
                };
                Some((rank, pick))
            });
        free.min_by(|(one, _), (other, _)| one.cmp(other))
            .map(|(_, pick)| pick)
    }

    /// Whether a server has room for a job of this class.
    pub fn has_room(&self, class: Class) -> bool {
        self.servers
            .iter()
            .any(|server| !server.stalled && server.free_line(class).is_some())
    }

    /// A session by its id: the server's place and the session's.
    pub fn find(&self, id: u64) -> Option<Pick> {
        self.servers.iter().enumerate().find_map(|(server, state)| {
            let line = state.lines.iter().position(|line| line.id == id)?;
            Some(Pick { server, line })
        })
    }

    /// The session itself.
    pub fn line(&mut self, pick: Pick) -> Option<&mut Line> {
        self.servers.get_mut(pick.server)?.lines.get_mut(pick.line)
    }

    /// All sessions, by place, from the last to the first: one may be taken out
    /// meanwhile.
    pub fn picks(&self) -> Vec<Pick> {
        let all = self.servers.iter().enumerate();
        all.flat_map(|(server, state)| {
            (0..state.lines.len()).map(move |line| Pick { server, line })
        })
        .rev()
        .collect()
    }

    /// Connects to each server that should be and may be by now.
    pub fn connect_due(&mut self, waited_for: bool, now: Instant) -> Vec<Connecting> {
        let mut all = Vec::new();
        for (index, server) in self.servers.iter_mut().enumerate() {
            let first = server.lines.is_empty();
            let wanted = server.wants_line() && (first || waited_for);
            if !wanted || now < server.may_connect_at(waited_for) {
                continue;
            }
            self.last_line += 1;
            let id = (index, self.last_line);
            match server.connect(id, self.resolver.as_ref(), now) {
                Ok(Some(_)) => all.push(Connecting::Begun(index)),
                Ok(None) => {}
                Err(error) => {
                    server.failed(now);
                    all.push(Connecting::Failed(index, error));
                }
            }
        }
        all
    }

    /// The processes of this host that serve sessions, and those that pass the
    /// bytes of sessions on.
    pub fn peers(&self) -> (Vec<i32>, Vec<i32>) {
        let lines = || self.servers.iter().flat_map(|server| &server.lines);
        let servers = lines().flat_map(|line| &line.peers.servers).copied();
        let proxies = lines().flat_map(|line| &line.peers.proxies).copied();
        (servers.collect(), proxies.collect())
    }

    /// Whether there is a session, or one may come without a pause.
    pub fn is_reachable(&self) -> bool {
        self.servers
            .iter()
            .any(|server| !server.lines.is_empty() || server.is_on_the_way())
    }

    /// Whether there is a session with anybody.
    pub fn has_session(&self) -> bool {
        self.servers.iter().any(|server| !server.lines.is_empty())
    }

    /// Whether nobody who could be asked gives signs of life.
    pub fn is_stalled(&self) -> bool {
        let mut stalled = false;
        for server in self
            .servers
            .iter()
            .filter(|server| !server.lines.is_empty())
        {
            if !server.stalled {
                return false;
            }
            stalled = true;
        }
        stalled
    }

    /// Whether another server than this one has replied and is no further behind
    /// with its replies than `long`.
    pub fn has_other(&self, server: usize, long: Duration, now: Instant) -> bool {
        self.servers.iter().enumerate().any(|(index, other)| {
            index != server
                && other.is_proven()
                && !other.stalled
                && !other.is_silent_for(long, now)
        })
    }

    /// When the next connection may be tried, if one is wanted.
    pub fn next_connect(&self, waited_for: bool) -> Option<Instant> {
        self.servers
            .iter()
            .filter(|server| server.wants_line() && (server.lines.is_empty() || waited_for))
            .filter(|server| !server.is_resolving())
            .map(|server| server.may_connect_at(waited_for))
            .min()
    }
}

/// Load beside weight; the smaller one gets the next job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    load: usize,
    weight: u32,
}

impl Ord for Share {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let here = self.load as u128 * u128::from(other.weight);
        let there = other.load as u128 * u128::from(self.weight);
        here.cmp(&there)
    }
}

impl PartialOrd for Share {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whoever has the smallest share is served, so that loads come to stand
        /// as the weights do.
        #[test]
        fn loads_follow_weights(weights in proptest::collection::vec(1u32..20, 1..6)) {
            let mut loads = vec![0usize; weights.len()];
            let rounds = 50 * weights.iter().sum::<u32>();
            for _ in 0..rounds {
                let next = (0..weights.len())
                    .min_by_key(|at| Share { load: loads[*at] + 1, weight: weights[*at] })
                    .unwrap();
                loads[next] += 1;
            }
            for (load, weight) in loads.iter().zip(&weights) {
                let wanted = 50 * *weight as usize;
                prop_assert!(load.abs_diff(wanted) <= 1, "{:?} {:?}", loads, weights);
            }
        }
    }
}
