//! The bytes of one connection to a clamd: Unix socket, TCP, or TLS over TCP.
//!
//! Non-blocking throughout; what the peer does not take is kept here, and the
//! caller sends no more until it has gone. Must not: know commands or replies.
//! Tested by `tests/` against the real clamd, a scripted one and a TLS proxy.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    SockaddrStorage, UnixAddr, UnixCredentials, connect, recvmsg, sendmsg, setsockopt, socket,
    sockopt,
};
use rustls::ClientConnection;

use super::error::{ConnectError, SessionError};
use super::tls::TlsClient;

/// Plain text that is kept for the peer to take: two chunks of a stream.
const TLS_BUFFER: usize = 160 * 1024;

/// Where to connect to.
#[derive(Clone, Debug)]
pub enum Target {
    /// A Unix socket.
    Unix(PathBuf),
    /// TCP, with TLS or without.
    Tcp(SocketAddr, Option<TlsClient>),
}

/// An fd to be polled, which stays open for as long.
pub type Polled = Arc<dyn AsFd + Send + Sync>;

/// A connection.
#[derive(Debug)]
pub struct Wire {
    socket: Socket,
    /// What the socket did not take. Plain text for TLS goes to rustls instead.
    unsent: Vec<u8>,
    /// Process id of the peer, as its own messages show it. Unix sockets alone.
    peer: Option<i32>,
}

#[derive(Debug)]
enum Socket {
    Unix(Arc<OwnedFd>),
    Tcp {
        stream: Arc<TcpStream>,
        connecting: bool,
        tls: Option<Box<ClientConnection>>,
    },
}

impl Wire {
    /// Begins to connect.
    ///
    /// # Errors
    /// It is known at once that nothing comes of it.
    pub fn connect(target: &Target) -> Result<Self, ConnectError> {
        let socket = match target {
            Target::Unix(path) => unix(path)?,
            Target::Tcp(address, tls) => tcp(*address, tls.as_ref())?,
        };
        Ok(Self {
            socket,
            unsent: Vec::new(),
            peer: None,
        })
    }

    /// Its socket, for a thread that polls while others may use the connection.
    pub fn polled(&self) -> Polled {
        match &self.socket {
            Socket::Unix(fd) => Arc::clone(fd) as Polled,
            Socket::Tcp { stream, .. } => Arc::clone(stream) as Polled,
        }
    }

    /// Whether the connection stands (TLS may still be negotiating).
    pub fn is_connected(&self) -> bool {
        !matches!(
            self.socket,
            Socket::Tcp {
                connecting: true,
                ..
            }
        )
    }

    /// Process id of the peer, once it has said anything.
    pub fn peer(&self) -> Option<i32> {
        self.peer
    }

    /// Local and remote address of a TCP connection that stands.
    pub fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        match &self.socket {
            Socket::Tcp { stream, .. } => {
                Some((stream.local_addr().ok()?, stream.peer_addr().ok()?))
            }
            Socket::Unix(_) => None,
        }
    }

    /// Whether all that was pushed is with the kernel.
    pub fn is_idle(&self) -> bool {
        self.unsent.is_empty()
            && match &self.socket {
                Socket::Tcp { tls: Some(tls), .. } => !tls.wants_write() && !tls.is_handshaking(),
                Socket::Tcp { connecting, .. } => !connecting,
                Socket::Unix(_) => true,
            }
    }

    /// Whether bytes may have been taken from the socket that `receive` has not
    /// given out yet: it is to be called until it gives 0.
    pub fn keeps_bytes_back(&self) -> bool {
        matches!(self.socket, Socket::Tcp { tls: Some(_), .. })
    }

    /// What to poll for.
    pub fn flags(&self) -> PollFlags {
        let write = !self.unsent.is_empty()
            || match &self.socket {
                Socket::Tcp {
                    connecting, tls, ..
                } => *connecting || tls.as_ref().is_some_and(|tls| tls.wants_write()),
                Socket::Unix(_) => false,
            };
        if write {
            PollFlags::POLLIN | PollFlags::POLLOUT
        } else {
            PollFlags::POLLIN
        }
    }

    /// Takes in bytes for the peer; `flush` sends them.
    pub fn push(&mut self, bytes: &[u8]) {
        if let Socket::Tcp { tls: Some(tls), .. } = &mut self.socket
            && self.unsent.is_empty()
        {
            // Takes what fits; cannot fail but by the buffer's limit.
            let taken = tls.writer().write(bytes).unwrap_or(0);
            self.unsent.extend_from_slice(&bytes[taken..]);
            return;
        }
        self.unsent.extend_from_slice(bytes);
    }

    /// Sends what the socket takes.
    ///
    /// # Errors
    /// The connection is over.
    pub fn flush(&mut self) -> Result<(), SessionError> {
        match &mut self.socket {
            Socket::Unix(fd) => {
                while !self.unsent.is_empty() {
                    match send(fd, &self.unsent, &[])? {
                        0 => break,
                        sent => drop(self.unsent.drain(..sent)),
                    }
                }
            }
            Socket::Tcp {
                stream,
                connecting,
                tls,
            } => {
                if *connecting {
                    if let Some(error) = stream.take_error()? {
                        return Err(error.into());
                    }
                    if stream.peer_addr().is_err() {
                        return Ok(());
                    }
                    *connecting = false;
                }
                match tls {
                    Some(tls) => flush_tls(&mut &**stream, tls, &mut self.unsent)?,
                    None => flush_tcp(&mut &**stream, &mut self.unsent)?,
                }
            }
        }
        Ok(())
    }

    /// Sends these bytes and an open file with the first of them; false: there is
    /// no room. Unix sockets alone.
    ///
    /// # Errors
    /// The connection is over.
    pub fn send_file(&mut self, bytes: &[u8], file: BorrowedFd<'_>) -> Result<bool, SessionError> {
        self.flush()?;
        let Socket::Unix(fd) = &self.socket else {
            return Err(SessionError::Socket(Errno::EAFNOSUPPORT));
        };
        if !self.unsent.is_empty() {
            return Ok(false);
        }
        let fds = [file.as_raw_fd()];
        let sent = send(fd, bytes, &[ControlMessage::ScmRights(&fds)])?;
        if sent == 0 {
            return Ok(false);
        }
        // The file went with the first byte; the rest follows without it.
        self.unsent.extend_from_slice(&bytes[sent..]);
        Ok(true)
    }

    /// Reads once; 0 means that nothing waits.
    ///
    /// # Errors
    /// The connection is over.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Result<usize, SessionError> {
        match &mut self.socket {
            Socket::Unix(fd) => receive_unix(fd, &mut self.peer, buffer),
            Socket::Tcp {
                connecting: true, ..
            } => Ok(0),
            Socket::Tcp {
                stream, tls: None, ..
            } => match (&**stream).read(buffer) {
                Ok(0) => Err(SessionError::Closed),
                got => none_yet(got),
            },
            Socket::Tcp {
                stream,
                tls: Some(tls),
                ..
            } => receive_tls(&mut &**stream, tls, buffer),
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Unix(fd) => fd.as_fd(),
            Socket::Tcp { stream, .. } => stream.as_fd(),
        }
    }
}

fn unix(path: &Path) -> Result<Socket, ConnectError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // clamd's process id comes with its first reply: SO_PEERCRED would name
    // whoever called listen(2), with socket activation process 1.
    setsockopt(&fd, sockopt::PassCred, &true)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(Socket::Unix(Arc::new(fd)))
}

fn tcp(address: SocketAddr, tls: Option<&TlsClient>) -> Result<Socket, ConnectError> {
    let tls = match tls {
        Some(tls) => {
            let mut connection = tls.connection()?;
            connection.set_buffer_limit(Some(TLS_BUFFER));
            Some(Box::new(connection))
        }
        None => None,
    };
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    let storage = match address {
        SocketAddr::V4(address) => SockaddrStorage::from(address),
        SocketAddr::V6(address) => SockaddrStorage::from(address),
    };
    let connecting = match connect(fd.as_raw_fd(), &storage) {
        Ok(()) => false,
        Err(Errno::EINPROGRESS) => true,
        Err(errno) => return Err(errno.into()),
    };
    Ok(Socket::Tcp {
        stream: Arc::new(TcpStream::from(fd)),
        connecting,
        tls,
    })
}

/// Sends once; 0 means that there is no room.
fn send(fd: &OwnedFd, bytes: &[u8], control: &[ControlMessage<'_>]) -> Result<usize, SessionError> {
    loop {
        let parts = [IoSlice::new(bytes)];
        match sendmsg::<()>(
            fd.as_raw_fd(),
            &parts,
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Ok(sent) => return Ok(sent),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(0),
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(SessionError::Closed),
            Err(errno) => return Err(SessionError::Socket(errno)),
        }
    }
}

fn flush_tcp(stream: &mut &TcpStream, unsent: &mut Vec<u8>) -> Result<(), SessionError> {
    let mut done = 0;
    while done < unsent.len() {
        match none_yet(stream.write(&unsent[done..]))? {
            0 => break,
            sent => done += sent,
        }
    }
    unsent.drain(..done);
    Ok(())
}

fn flush_tls(
    stream: &mut &TcpStream,
    tls: &mut ClientConnection,
    unsent: &mut Vec<u8>,
) -> Result<(), SessionError> {
    loop {
        while tls.wants_write() {
            if none_yet(tls.write_tls(stream))? == 0 {
                return Ok(());
            }
        }
        if unsent.is_empty() {
            return Ok(());
        }
        let taken = tls.writer().write(unsent).unwrap_or(0);
        unsent.drain(..taken);
        if taken == 0 {
            return Ok(());
        }
    }
}

fn receive_tls(
    stream: &mut &TcpStream,
    tls: &mut ClientConnection,
    buffer: &mut [u8],
) -> Result<usize, SessionError> {
    loop {
        match tls.reader().read(buffer) {
            Ok(0) => return Err(SessionError::Closed),
            Ok(got) => return Ok(got),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        let got = match tls.read_tls(stream) {
            // rustls then says by `read` whether the peer ended it properly.
            Ok(0) if tls.is_handshaking() => return Err(SessionError::Closed),
            got => got,
        };
        let ended = matches!(got, Ok(0));
        if none_yet(got)? == 0 && !ended {
            return Ok(0);
        }
        if let Err(error) = tls.process_new_packets() {
            // The peer is told why, if it still listens.
            let _it_may_be_gone = tls.write_tls(stream);
            return Err(error.into());
        }
        while tls.wants_write() {
            if none_yet(tls.write_tls(stream))? == 0 {
                break;
            }
        }
    }
}

/// Nothing yet is 0.
fn none_yet(result: io::Result<usize>) -> Result<usize, SessionError> {
    match result {
        Ok(count) => Ok(count),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(0)
        }
        Err(error) => Err(error.into()),
    }
}

fn receive_unix(
    fd: &OwnedFd,
    peer: &mut Option<i32>,
    buffer: &mut [u8],
) -> Result<usize, SessionError> {
    let mut control = peer.is_none().then(|| cmsg_space!(UnixCredentials));
    loop {
        let mut parts = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<()>(fd.as_raw_fd(), &mut parts, control.as_deref_mut(), flags)
        {
            Ok(message) if message.bytes == 0 => return Err(SessionError::Closed),
            Ok(message) => message,
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => return Ok(0),
            Err(Errno::ECONNRESET) => return Err(SessionError::Closed),
            Err(errno) => return Err(SessionError::Socket(errno)),
        };
        if peer.is_none() {
            let pid = message.cmsgs().ok().and_then(|mut list| {
                list.find_map(|control| match control {
                    ControlMessageOwned::ScmCredentials(peer) => Some(peer.pid()),
                    _ => None,
                })
            });
            *peer = pid.filter(|pid| *pid > 1);
            // Once known, the kernel need not attach it any more.
            let _costs_a_little_if_it_fails = setsockopt(fd, sockopt::PassCred, &false);
        }
        return Ok(message.bytes);
    }
}
