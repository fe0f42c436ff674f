//! Single questions to a clamd, each on a connection of its own.
//!
//! For those who may wait: `--ping`, `--wait`, `--version`, and the names of all
//! signatures that match. Must not: be used on the way to an answer. Tested by
//! `tests/`.

use std::io;
use std::net::ToSocketAddrs as _;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use super::error::{ConnectError, SessionError, TlsError};
use super::protocol::{ProtocolError, ReplyReader};
use super::tls::TlsClient;
use super::wire::{Target, Wire};
use crate::config::servers::{Address, Host, Server};
use crate::kernel::SyscallError;
use crate::kernel::wake::sleep;

/// Records that one question may have for an answer.
const MOST_RECORDS: usize = 10_000;
/// How soon a full backlog is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// There is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Nothing came in time.
    #[error("no answer in time")]
    TimedOut,
    /// A system call.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
}

/// All places that a server may be reached at. May wait for a name server.
///
/// # Errors
/// The name does not resolve, or TLS cannot be set up.
pub fn targets(server: &Server) -> Result<Vec<Target>, AskError> {
    let (host, port) = match &server.address {
        Address::Unix(path) => return Ok(vec![Target::Unix(path.clone())]),
        Address::Tcp { host, port } => (host, *port),
    };
    let tls = match &server.tls {
        Some(tls) => Some(TlsClient::new(tls, host)?),
        None => None,
    };
    let addresses = match host {
        Host::Ip(ip) => vec![(*ip, port).into()],
        Host::Name(name) => (name.as_str(), port)
            .to_socket_addrs()
            .map_err(ConnectError::Name)?
            .collect(),
    };
    Ok(addresses
        .into_iter()
        .map(|address| Target::Tcp(address, tls.clone()))
        .collect())
}

/// Sends one command outside of any session and hands out the records of the
/// answer. A server has one answer, so the first place that gives one counts.
///
/// # Errors
/// The last place's reason.
pub fn ask(server: &Server, command: &[u8], until: Instant) -> Result<Vec<Vec<u8>>, AskError> {
    let mut last = AskError::Connect(ConnectError::Name(io::ErrorKind::NotFound.into()));
    for target in targets(server)? {
        match ask_one(&target, command, until) {
            Ok(records) => return Ok(records),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn ask_one(target: &Target, command: &[u8], until: Instant) -> Result<Vec<Vec<u8>>, AskError> {
    let mut wire = loop {
        match Wire::connect(target) {
            // The backlog is full: clamd is there and busy.
            Err(ConnectError::Refused(nix::errno::Errno::EAGAIN)) if Instant::now() < until => {
                std::thread::sleep(AGAIN);
            }
            result => break result?,
        }
    };
    wire.push(command);
    let mut replies = ReplyReader::default();
    let mut records = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        wire.flush()?;
        loop {
            match wire.receive(&mut buffer) {
                Ok(0) => break,
                Ok(got) => replies.push(&buffer[..got]),
                Err(SessionError::Closed) if !records.is_empty() => return Ok(records),
                Err(error) => return Err(error.into()),
            }
            while let Some(record) = replies.next_record().map_err(SessionError::from)? {
                records.push(record.to_vec());
            }
            if records.len() > MOST_RECORDS {
                return Err(SessionError::from(ProtocolError::TooLong).into());
            }
        }
        if Instant::now() >= until {
            return Err(AskError::TimedOut);
        }
        sleep([(wire.as_fd(), wire.flags())], Some(until))?;
    }
}
