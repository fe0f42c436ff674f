//! Names to addresses, in a thread of its own: the name service opens files and
//! waits for networks, and no opener must wait for that.
//!
//! It also finds out which process of this host is behind a TCP connection, so
//! that a clamd (or a TLS proxy) on this host is let through to its own files.
//! Tested here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::mpsc;

use super::Work;
use crate::kernel::wake::Mailbox;
use crate::kernel::{SyscallError, process};

/// Processes whose open files are looked through at most.
const MOST_PROCESSES: usize = 65_536;

/// How to ask it.
#[derive(Clone, Debug)]
pub struct Resolver(mpsc::Sender<Question>);

#[derive(Debug)]
enum Question {
    Name {
        server: usize,
        host: String,
        port: u16,
    },
    Peer {
        server: usize,
        ours: SocketAddr,
        theirs: SocketAddr,
    },
}

impl Resolver {
    /// Starts the thread; answers go to `answers`. It is never joined: the name
    /// service may keep it.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(answers: Mailbox<Work>) -> Result<Self, SyscallError> {
        let (sender, questions) = mpsc::channel();
        process::spawn("onacc-names", move || {
            for question in questions {
                match question {
                    Question::Name { server, host, port } => {
                        let found = (host.as_str(), port)
                            .to_socket_addrs()
                            .map(Iterator::collect);
                        answers.send(Work::Resolved(server, found));
                    }
                    Question::Peer {
                        server,
                        ours,
                        theirs,
                    } => {
                        if let Some(pid) = process_behind(ours, theirs) {
                            answers.send(Work::Peer(server, pid));
                        }
                    }
                }
            }
        })?;
        Ok(Self(sender))
    }

    /// Asks for the addresses of a name.
    pub fn resolve(&self, server: usize, host: &str, port: u16) {
        // The thread lives as long as this sender.
        let _never_fails = self.0.send(Question::Name {
            server,
            host: host.to_owned(),
            port,
        });
    }

    /// Asks which process of this host holds the other end, if one does.
    pub fn find_peer(&self, server: usize, ours: SocketAddr, theirs: SocketAddr) {
        if ours.ip() == theirs.ip() || theirs.ip().is_loopback() {
            let _never_fails = self.0.send(Question::Peer {
                server,
                ours,
                theirs,
            });
        }
    }
}

/// The process that holds the other end of a TCP connection within this host.
fn process_behind(ours: SocketAddr, theirs: SocketAddr) -> Option<i32> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .find_map(|table| socket_inode(&table, theirs, ours))?;
    let wanted = format!("socket:[{inode}]");
    let processes = std::fs::read_dir("/proc").ok()?;
    for process in processes.flatten().take(MOST_PROCESSES) {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let holds = files.flatten().any(|file| {
            std::fs::read_link(file.path())
                .is_ok_and(|target| target.as_os_str().as_bytes() == wanted.as_bytes())
        });
        if holds && pid > 1 {
            return Some(pid);
        }
    }
    None
}

/// Looks a connection up in `/proc/net/tcp` or `tcp6` (`proc_net_tcp` in the
/// kernel's documentation): the inode of the socket that is bound to `local`.
pub fn socket_inode(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (here, there) = (fields.nth(1)?, fields.next()?);
        if parse_address(here)? != plain(local) || parse_address(there)? != plain(remote) {
            return None;
        }
        fields.nth(6)?.parse().ok().filter(|inode| *inode != 0)
    })
}

/// An IPv4 address that is written as an IPv6 one is the IPv4 one.
fn plain(address: SocketAddr) -> SocketAddr {
    (address.ip().to_canonical(), address.port()).into()
}

/// `0100007F:0CEE`: 32-bit words in the machine's own order, in hexadecimal.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..ip.len()).step_by(8) {
        let word = u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = if let Ok(four) = <[u8; 4]>::try_from(bytes.as_slice()) {
        IpAddr::V4(Ipv4Addr::from(four))
    } else {
        let sixteen = <[u8; 16]>::try_from(bytes.as_slice()).ok()?;
        IpAddr::V6(Ipv6Addr::from(sixteen)).to_canonical()
    };
    Some((ip, port).into())
}

/// No address is a failure like others.
pub fn some_address(found: io::Result<Vec<SocketAddr>>) -> io::Result<Vec<SocketAddr>> {
    match found {
        Ok(found) if found.is_empty() => Err(io::Error::other("it has no address")),
        found => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_process_behind_a_connection_is_found() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(host) else {
                eprintln!("{host} cannot be had here");
                continue;
            };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (_server, _) = listener.accept().unwrap();
            let (ours, theirs) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            let own = nix::unistd::getpid().as_raw();
            assert_eq!(process_behind(ours, theirs), Some(own), "{host}");
            let other = SocketAddr::new(theirs.ip(), 1);
            assert_eq!(process_behind(ours, other), None);
        }
    }

    #[test]
    fn nonsense_in_the_table_is_no_connection() {
        let here: SocketAddr = "127.0.0.1:3310".parse().unwrap();
        for line in [
            "",
            ":",
            "0: :x",
            "0: 0100007F:0CEE",
            "0: 010:0 0:0 01 0 0 0 0 0 5",
        ] {
            assert_eq!(socket_inode(&format!("head\n{line}"), here, here), None);
        }
    }
}
