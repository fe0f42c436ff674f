//! One session with clamd over its Unix socket, non-blocking throughout.
//!
//! Owns: the socket, the numbers of commands under way and whom each belongs
//! to. Must not: wait, retry or connect again (`scan::service` does). Tested by
//! `tests/` against the real clamd and a scripted one.

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    UnixCredentials, connect, recvmsg, sendmsg, setsockopt, socket, sockopt,
};

use super::protocol::{self, Numbered, ProtocolError, Reply, ReplyReader};

/// clamd cannot be reached.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConnectError(#[from] Errno);

/// The session is over.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// clamd closed it.
    #[error("clamd closed the connection")]
    Closed,
    /// The socket failed.
    #[error("connection to clamd: {0}")]
    Socket(Errno),
    /// clamd does not speak the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// Whether a command was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Yes,
    /// The socket's buffer is full: try again when it is writable.
    Full,
}

/// A reply, with what its command was for.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// To the scan with this token.
    Scan(u64, Reply),
    /// To the version command.
    Version(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Scan(u64),
    Version,
}

/// A session.
#[derive(Debug)]
pub struct Session {
    socket: OwnedFd,
    replies: ReplyReader,
    commands: HashMap<u32, Command>,
    last_number: u32,
    last_command: Instant,
    sign_asked: Option<Instant>,
    /// Bytes of a command that the socket did not take.
    unsent: Vec<u8>,
    /// Process id of clamd, once it has answered.
    peer: Option<i32>,
    replied: bool,
    receive_buffer: Vec<u8>,
}

impl Session {
    /// Connects and opens the session; asks for the version, whose reply shows
    /// that clamd serves it.
    ///
    /// # Errors
    /// The socket is missing, refuses, or has no place in its backlog.
    pub fn connect(path: &Path, now: Instant) -> Result<Self, ConnectError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        // clamd's process id comes with its first reply: SO_PEERCRED would name
        // whoever called listen(2), with socket activation process 1.
        setsockopt(&socket, sockopt::PassCred, &true)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        let mut session = Self {
            socket,
            replies: ReplyReader::default(),
            commands: HashMap::new(),
            last_number: 0,
            last_command: now,
            sign_asked: None,
            unsent: protocol::OPEN_SESSION.to_vec(),
            peer: None,
            replied: false,
            receive_buffer: vec![0; 16 * 1024],
        };
        session.command(protocol::VERSION, Command::Version, now);
        session.flush().map_err(|error| match error {
            SessionError::Socket(errno) => errno,
            SessionError::Closed | SessionError::Protocol(_) => Errno::EPIPE,
        })?;
        Ok(session)
    }

    /// Process id of clamd as this socket's peer itself has shown it.
    pub fn peer(&self) -> Option<i32> {
        self.peer
    }

    /// Whether clamd has replied to anything.
    pub fn has_replied(&self) -> bool {
        self.replied
    }

    /// When the last command was sent.
    pub fn last_command(&self) -> Instant {
        self.last_command
    }

    /// Since when clamd owes an answer to a version command, which costs it
    /// nothing, if it does.
    pub fn awaits_sign_since(&self) -> Option<Instant> {
        self.sign_asked
    }

    /// Whether the socket is to be polled for room.
    pub fn wants_to_write(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends what the socket did not take before.
    ///
    /// # Errors
    /// The session is over.
    pub fn flush(&mut self) -> Result<(), SessionError> {
        while !self.unsent.is_empty() {
            match self.send(&self.unsent, &[])? {
                0 => break,
                sent => drop(self.unsent.drain(..sent)),
            }
        }
        Ok(())
    }

    /// Asks for the version, which is a sign of life as well.
    ///
    /// # Errors
    /// The session is over.
    pub fn ask_version(&mut self, now: Instant) -> Result<(), SessionError> {
        self.command(protocol::VERSION, Command::Version, now);
        self.flush()
    }

    fn command(&mut self, bytes: &[u8], command: Command, now: Instant) {
        self.unsent.extend_from_slice(bytes);
        self.sign_asked.get_or_insert(now);
        self.enter(command, now);
    }

    fn enter(&mut self, command: Command, now: Instant) {
        self.last_number = self.last_number.wrapping_add(1);
        self.commands.insert(self.last_number, command);
        self.last_command = now;
    }

    /// Hands clamd the file itself. `token` comes back with the reply.
    ///
    /// # Errors
    /// The session is over.
    pub fn scan(
        &mut self,
        file: BorrowedFd<'_>,
        token: u64,
        now: Instant,
    ) -> Result<Sent, SessionError> {
        self.flush()?;
        if self.wants_to_write() {
            return Ok(Sent::Full);
        }
        let fds = [file.as_raw_fd()];
        let sent = self.send(protocol::SCAN_FD, &[ControlMessage::ScmRights(&fds)])?;
        if sent == 0 {
            return Ok(Sent::Full);
        }
        // The fd went with the first byte; the rest follows without it.
        self.unsent.extend_from_slice(&protocol::SCAN_FD[sent..]);
        self.enter(Command::Scan(token), now);
        Ok(Sent::Yes)
    }

    /// Sends once; 0 means that there is no room.
    fn send(&self, bytes: &[u8], control: &[ControlMessage<'_>]) -> Result<usize, SessionError> {
        loop {
            let io = [IoSlice::new(bytes)];
            let flags = MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(self.socket.as_raw_fd(), &io, control, flags, None) {
                Ok(sent) => return Ok(sent),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(0),
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(SessionError::Closed),
                Err(errno) => return Err(SessionError::Socket(errno)),
            }
        }
    }

    /// Reads what has come and hands out each reply.
    ///
    /// # Errors
    /// The session is over. What came before was handed out.
    pub fn receive(&mut self, mut each: impl FnMut(Received)) -> Result<(), SessionError> {
        loop {
            let got = self.read_some()?;
            if got == 0 {
                return Ok(());
            }
            self.replies.push(&self.receive_buffer[..got]);
            while let Some(Numbered { number, reply }) = self.replies.next_reply()? {
                self.replied = true;
                let command = self.commands.remove(&number);
                if command == Some(Command::Version) {
                    self.sign_asked = None;
                }
                match (command, reply) {
                    (Some(Command::Scan(token)), reply) => each(Received::Scan(token, reply)),
                    (Some(Command::Version), Reply::Version(version)) => {
                        each(Received::Version(version));
                    }
                    // "COMMAND UNAVAILABLE" is a sign of life as well.
                    (Some(Command::Version), _) => each(Received::Version(String::new())),
                    (None, reply) => {
                        return Err(
                            ProtocolError::Unnumbered(format!("{number}: {reply:?}")).into()
                        );
                    }
                }
            }
            if got < self.receive_buffer.len() {
                return Ok(());
            }
        }
    }

    /// Reads once; 0 means that nothing waits.
    fn read_some(&mut self) -> Result<usize, SessionError> {
        let mut control = self.peer.is_none().then(|| cmsg_space!(UnixCredentials));
        loop {
            let mut io = [IoSliceMut::new(&mut self.receive_buffer)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let fd = self.socket.as_raw_fd();
            let message = match recvmsg::<()>(fd, &mut io, control.as_deref_mut(), flags) {
                Ok(message) if message.bytes == 0 => return Err(SessionError::Closed),
                Ok(message) => message,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Ok(0),
                Err(Errno::ECONNRESET) => return Err(SessionError::Closed),
                Err(errno) => return Err(SessionError::Socket(errno)),
            };
            let got = message.bytes;
            if self.peer.is_none() {
                let peer = message.cmsgs().ok().and_then(|mut list| {
                    list.find_map(|control| match control {
                        ControlMessageOwned::ScmCredentials(peer) => Some(peer.pid()),
                        _ => None,
                    })
                });
                self.peer = peer.filter(|pid| *pid > 1);
                // Once known, the kernel need not attach it any more.
                let _costs_a_little_if_it_fails =
                    setsockopt(&self.socket, sockopt::PassCred, &false);
            }
            return Ok(got);
        }
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
