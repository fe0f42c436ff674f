//! Why there is no connection to a clamd, or none any more.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;

use super::protocol::ProtocolError;

/// clamd cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The socket is missing, refuses, or has no place in its backlog.
    #[error("{0}")]
    Refused(#[from] Errno),
    /// The name leads to no address.
    #[error("the name cannot be resolved: {0}")]
    Name(io::Error),
    /// Nothing came of it in time.
    #[error("no connection within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The TLS client cannot be set up.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// The session is over.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// clamd closed it.
    #[error("clamd closed the connection")]
    Closed,
    /// The socket failed.
    #[error("connection to clamd: {0}")]
    Socket(Errno),
    /// TLS failed: a certificate that does not hold, most often.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// clamd does not speak the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// clamd gave up in the middle of a stream, so that nothing more can be said.
    #[error("clamd refused a stream: {0}")]
    StreamRefused(String),
    /// It gives no sign of life, and another server can do its work.
    #[error("clamd gives no sign of life")]
    Silent,
    /// It replies, but not to these scans.
    #[error("clamd has not replied to {scans} scans for {} s", .long.as_secs())]
    Unanswered {
        /// How many.
        scans: usize,
        /// For so long at least.
        long: Duration,
    },
    /// No connection came of it in time.
    #[error("no connection within {} ms", .0.as_millis())]
    ConnectTimedOut(Duration),
}

impl From<io::Error> for SessionError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Socket(Errno::from_raw(error.raw_os_error().unwrap_or(0))),
        }
    }
}

/// TLS was asked for and cannot be set up; the agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file.
    #[error("{}: {source}; it must be a PEM file that root can read", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why it cannot be used.
        source: rustls::pki_types::pem::Error,
    },
    /// A file without what it is for.
    #[error("{}: there is no {what} in it", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What should be there.
        what: &'static str,
    },
    /// The system has no certificates.
    #[error(
        "the system has no certificate authorities ({0}): install ca-certificates, or name the server's own CA"
    )]
    NoAuthorities(String),
    /// A name that no certificate can bear.
    #[error("'{0}' is not a name that a certificate can bear")]
    ServerName(String),
    /// Certificate and key.
    #[error("the client certificate cannot be used: {0}")]
    Client(rustls::Error),
    /// TLS itself.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}
