//! One clamd: how it is reached, its sessions, how it does.
//!
//! Must not: choose between servers (`pool` does), or know jobs beyond their
//! tokens. Tested by `tests/`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::backoff::Backoff;
use super::queue::Class;
use super::resolver::Resolver;
use crate::clamd::{ConnectError, Session, SessionError, Target, TlsClient};
use crate::config::servers::{Address, Host, Server, Transfer};

/// Connections for streams to one server: one file at a time on each.
pub const MOST_STREAMS: usize = 4;
/// How much longer than usual the pause between connections is while nobody waits.
const IDLE_PAUSE: Duration = Duration::from_secs(4);

/// A session, and since when.
#[derive(Debug)]
pub struct Line {
    /// Never used twice.
    pub id: u64,
    /// The session.
    pub session: Session,
    /// When it was begun.
    pub since: Instant,
    /// poll(2) has just found nothing to read, and nothing to send on.
    pub quiet: bool,
    /// When the server last sent anything on it, or had nothing to do.
    pub last_sign: Instant,
    /// Who serves it on this host, as far as that is known.
    pub peers: Peers,
    /// Sending has failed: it is to be ended.
    pub failed: Option<SessionError>,
}

/// Who serves a session on this host.
#[derive(Debug, Default)]
pub struct Peers {
    /// It was asked when the connection stood.
    pub asked: bool,
    /// It was asked when clamd had replied.
    pub asked_again: bool,
    /// Processes that serve it.
    pub servers: Vec<i32>,
    /// Processes that pass its bytes on.
    pub proxies: Vec<i32>,
    /// Nothing more is to be found out.
    pub settled: bool,
}

/// Where a server listens.
#[derive(Debug)]
enum Place {
    Known(Target),
    Named {
        host: String,
        port: u16,
        tls: Option<TlsClient>,
        /// What the name led to and was not tried yet.
        untried: Vec<SocketAddr>,
        asked: bool,
    },
}

/// A clamd.
#[derive(Debug)]
pub struct ServerState {
    /// As it is shown.
    pub name: String,
    /// How files get there.
    pub transfer: Transfer,
    /// Its share.
    pub weight: u32,
    /// Its sessions: one where files are passed, several where they are streamed.
    pub lines: Vec<Line>,
    /// Version of engine and database as it last said.
    pub version: String,
    /// An opener's time ran out while it gave no sign of life.
    pub stalled: bool,
    /// The last failed connection was reported; one line an outage.
    pub outage_reported: bool,
    /// That its clamd is not recognised was said.
    pub stranger_reported: bool,
    backoff: Backoff,
    /// No connection is tried before.
    next_connect: Instant,
    /// As long as nobody waits.
    next_idle_connect: Instant,
    place: Place,
    /// Scans that it may have at a time, so that its receiving thread never waits.
    cap: usize,
}

impl ServerState {
    /// A server that was not spoken to yet.
    pub fn new(server: &Server, tls: Option<TlsClient>, cap: usize, now: Instant) -> Self {
        let place = match &server.address {
            Address::Unix(path) => Place::Known(Target::Unix(path.clone())),
            Address::Tcp {
                host: Host::Ip(ip),
                port,
            } => Place::Known(Target::Tcp((*ip, *port).into(), tls)),
            Address::Tcp {
                host: Host::Name(name),
                port,
            } => Place::Named {
                host: name.clone(),
                port: *port,
                tls,
                untried: Vec::new(),
                asked: false,
            },
        };
        Self {
            name: server.to_string(),
            transfer: server.transfer,
            weight: server.weight.max(1),
            lines: Vec::new(),
            version: String::new(),
            stalled: false,
            outage_reported: false,
            stranger_reported: false,
            next_connect: now,
            next_idle_connect: now,
            backoff: Backoff::default(),
            place,
            cap: cap.max(1),
        }
    }

    /// Scans that it has not replied to.
    pub fn load(&self) -> usize {
        self.lines.iter().map(|line| line.session.in_flight()).sum()
    }

    /// Whether it has replied to anything in a session that still stands.
    pub fn is_proven(&self) -> bool {
        self.lines.iter().any(|line| line.session.has_replied())
    }

    /// Since when it owes a sign of life.
    pub fn silent_since(&self) -> Option<Instant> {
        self.lines
            .iter()
            .filter_map(|line| line.session.awaits_sign_since())
            .min()
    }

    /// The session that can take a job of this class now.
    pub fn free_line(&self, class: Class) -> Option<usize> {
        if self.load() >= self.cap {
            return None;
        }
        match self.transfer {
            Transfer::PassFd => self.lines.first()?.failed.is_none().then_some(0),
            Transfer::Stream => {
                let free = |line: &Line| line.failed.is_none() && line.session.can_stream();
                let busy = self.lines.iter().filter(|line| !free(line)).count();
                // Of the connections one is kept for short files.
                if class != Class::Small && busy + 1 >= MOST_STREAMS {
                    return None;
                }
                self.lines.iter().position(free)
            }
        }
    }

    /// Whether a further connection would be of use.
    pub fn wants_line(&self) -> bool {
        match self.transfer {
            Transfer::PassFd => self.lines.is_empty(),
            Transfer::Stream => {
                self.lines.len() < MOST_STREAMS
                    && !self
                        .lines
                        .iter()
                        .any(|line| line.session.streaming().is_none())
            }
        }
    }

    /// Begins to connect. `Ok(None)`: the name is being resolved.
    ///
    /// # Errors
    /// It is known at once that nothing comes of it.
    pub fn connect(
        &mut self,
        (index, id): (usize, u64),
        resolver: Option<&Resolver>,
        now: Instant,
    ) -> Result<Option<&mut Line>, ConnectError> {
        let target = match &mut self.place {
            Place::Known(target) => target.clone(),
            Place::Named {
                host,
                port,
                tls,
                untried,
                asked,
            } => {
                let Some(address) = untried.pop() else {
                    if let Some(resolver) = resolver
                        && !std::mem::replace(asked, true)
                    {
                        resolver.resolve(index, host, *port);
                    }
                    return Ok(None);
                };
                Target::Tcp(address, tls.clone())
            }
        };
        let session = Session::connect(&target, now)?;
        self.lines.push(Line {
            id,
            session,
            since: now,
            quiet: false,
            last_sign: now,
            peers: Peers::default(),
            failed: None,
        });
        Ok(self.lines.last_mut())
    }

    /// What the name led to.
    pub fn resolved(&mut self, mut addresses: Vec<SocketAddr>) {
        if let Place::Named { untried, asked, .. } = &mut self.place {
            *asked = false;
            addresses.reverse();
            *untried = addresses;
        }
    }

    /// Whether its name is being resolved.
    pub fn is_resolving(&self) -> bool {
        matches!(&self.place, Place::Named { asked: true, .. })
    }

    /// Whether something may still come of connecting, without a pause.
    pub fn is_on_the_way(&self) -> bool {
        let named = match &self.place {
            Place::Known(_) => false,
            Place::Named { untried, asked, .. } => *asked || !untried.is_empty(),
        };
        named || self.lines.iter().any(|line| !line.session.has_replied())
    }

    /// A connection failed: the next one comes after a pause, or at once if the
    /// name led to further addresses.
    pub fn failed(&mut self, now: Instant) {
        let more = matches!(&self.place, Place::Named { untried, .. } if !untried.is_empty());
        if more {
            self.next_connect = now;
            self.next_idle_connect = now;
            return;
        }
        let pause = self.backoff.failed();
        self.next_connect = now + pause;
        self.next_idle_connect = now + pause + IDLE_PAUSE;
    }

    /// It serves: the next failure is a first one.
    pub fn works(&mut self) {
        self.backoff.worked();
    }

    /// When it may be connected to; `waited_for`: jobs wait.
    pub fn may_connect_at(&self, waited_for: bool) -> Instant {
        if waited_for {
            self.next_connect
        } else {
            self.next_idle_connect
        }
    }

    /// Whether it owes a sign of life for so long.
    pub fn is_silent_for(&self, long: Duration, now: Instant) -> bool {
        self.silent_since().is_some_and(|since| now >= since + long)
    }
}
