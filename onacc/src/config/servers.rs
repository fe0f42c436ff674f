//! The clamds that are asked, and how each is reached.
//!
//! Owns the types alone: who fills them in is `settings/reader.rs` for
//! clamd.conf, and whoever reads further files. Must not resolve names, read
//! certificates or open sockets: `clamd/` does. Tested below.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// The weight of a server that has none of its own.
pub const USUAL_WEIGHT: u32 = 100;
/// The largest weight.
pub const LARGEST_WEIGHT: u32 = 10_000;
/// The most servers that one agent speaks with.
pub const MOST_SERVERS: usize = 16;

/// What fits a socket address, without its closing NUL, in bytes.
pub const LONGEST_SOCKET: usize = 107;

/// One clamd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where it listens.
    pub address: Address,
    /// How files get there. Over TCP it is always [`Transfer::Stream`].
    pub transfer: Transfer,
    /// TLS, for a clamd behind a TLS proxy. Over TCP alone.
    pub tls: Option<Tls>,
    /// Its share of the scans beside the other servers': with twice the weight
    /// it gets twice as many. From 1 to [`LARGEST_WEIGHT`].
    pub weight: u32,
}

/// Where a clamd listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket. Absolute, and fits a socket address.
    Unix(PathBuf),
    /// TCP.
    Tcp {
        /// The machine.
        host: Host,
        /// The port. Not 0.
        port: u16,
    },
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address: nothing is to be looked up.
    Ip(IpAddr),
    /// A name, looked up away from where anybody waits, and again after failures.
    Name(String),
}

/// Not an address, and not a name that a machine can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an address or a host name")]
pub struct NoHost;

/// How a file gets to clamd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// The open file itself is passed (`FILDES`): Unix sockets alone.
    PassFd,
    /// Its content is sent (`INSTREAM`).
    Stream,
}

/// How TLS is spoken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The name that the server's certificate must bear; the host if there is none.
    pub server_name: Option<String>,
    /// A PEM file with the certificates of those who may vouch for the server.
    /// `None`: the system's.
    pub ca: Option<PathBuf>,
    /// A PEM file with the certificate that we show, and those that vouch for it.
    pub certificate: Option<PathBuf>,
    /// A PEM file with the key of that certificate. Set if and only if the
    /// certificate is.
    pub key: Option<PathBuf>,
}

impl Server {
    /// A clamd on a Unix socket that takes open files.
    pub fn unix(path: PathBuf) -> Self {
        Self {
            address: Address::Unix(path),
            transfer: Transfer::PassFd,
            tls: None,
            weight: USUAL_WEIGHT,
        }
    }

    /// A clamd on a TCP port, without TLS.
    pub fn tcp(host: Host, port: u16) -> Self {
        Self {
            address: Address::Tcp { host, port },
            transfer: Transfer::Stream,
            tls: None,
            weight: USUAL_WEIGHT,
        }
    }
}

impl Host {
    /// Whether this is a machine that can be called: clamd may listen on "any"
    /// address, but somebody who calls needs one.
    pub fn is_callable(&self) -> bool {
        match self {
            Self::Ip(ip) => !ip.is_unspecified() && !ip.is_multicast(),
            Self::Name(name) => !name.eq_ignore_ascii_case("any"),
        }
    }

    /// What was to be reached by TLS is called so in certificates.
    pub fn name(&self) -> String {
        match self {
            Self::Ip(ip) => ip.to_string(),
            Self::Name(name) => name.clone(),
        }
    }
}

impl FromStr for Host {
    type Err = NoHost;

    /// IPv4, IPv6 with or without brackets, or a name.
    fn from_str(text: &str) -> Result<Self, NoHost> {
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(text);
        if let Ok(ip) = bare.parse() {
            return Ok(Self::Ip(ip));
        }
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        let name = text.strip_suffix('.').unwrap_or(text);
        let numbers_only = name
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
        if name.len() > 253 || numbers_only || !name.split('.').all(label) {
            return Err(NoHost);
        }
        Ok(Self::Name(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => {
                crate::observe::printable(path.as_os_str().as_encoded_bytes()).fmt(f)
            }
            Self::Tcp {
                host: Host::Ip(IpAddr::V6(ip)),
                port,
            } => write!(f, "[{ip}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{}:{port}", host.name()),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)?;
        if self.tls.is_some() {
            f.write_str(" (TLS)")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_addresses_or_names() {
        for (text, ip) in [
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "::1"),
            ("[fe80::2]", "fe80::2"),
        ] {
            assert_eq!(text.parse(), Ok(Host::Ip(ip.parse().unwrap())), "{text}");
        }
        for name in ["localhost", "av-1.example.org", "a_b", "av.example.org."] {
            assert_eq!(name.parse(), Ok(Host::Name(name.into())), "{name}");
        }
        for wrong in [
            "",
            ".",
            "a..b",
            "a b",
            "127.0.0",
            "1.2.3.4.5",
            "http://x",
            "a:1",
            "[x]",
            "any/",
        ] {
            assert_eq!(wrong.parse::<Host>(), Err(NoHost), "{wrong}");
        }
        assert_eq!("a.".repeat(128).parse::<Host>(), Err(NoHost));
    }

    #[test]
    fn servers_are_shown_as_they_are_written() {
        let shown = |host: &str| Server::tcp(host.parse().unwrap(), 3310).to_string();
        assert_eq!(shown("::1"), "[::1]:3310");
        assert_eq!(shown("10.0.0.1"), "10.0.0.1:3310");
        let server = Server {
            tls: Some(Tls::default()),
            ..Server::tcp("av.example.org".parse().unwrap(), 3311)
        };
        assert_eq!(server.to_string(), "av.example.org:3311 (TLS)");
        assert_eq!(Server::unix("/run/c".into()).to_string(), "/run/c");
    }
}
