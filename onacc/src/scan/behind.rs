//! Who serves a connection within this host: clamd itself, or proxies before it.
//!
//! clamd's own opens must never wait for clamd, nor those of a proxy that its
//! bytes pass through. So the processes from the other end of a connection to
//! clamd are looked for, in a thread of its own: that reads much of `/proc`. A
//! process is gone on from only to what it has connected *to*: whoever has
//! connected to a proxy is nobody to it. Must not: take anything for clamd that
//! is not called so, by a program that root alone can change; go on through a
//! process that is connected to several. Tested here and by `tests/`.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::mpsc;

use super::Work;
use crate::kernel::SyscallError;
use crate::kernel::process;
use crate::kernel::procfs::Proc;
use crate::kernel::unix_peers::UnixPeers;
use crate::kernel::wake::Mailbox;

/// Processes whose open files are looked through at most.
const MOST_PROCESSES: usize = 65_536;
/// Sockets of one process that are followed at most.
const MOST_SOCKETS: usize = 4096;
/// Proxies one after the other.
const MOST_PROXIES: usize = 3;
/// clamds behind one proxy.
const MOST_CLAMDS: usize = 8;
/// States in `/proc/net/tcp`.
const ESTABLISHED: u8 = 1;
const LISTENING: u8 = 10;

/// A question, as it comes back with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The session.
    pub line: u64,
    /// Clamd has replied in it: all that is between stands by now.
    pub heard: bool,
}

/// From where on to look.
#[derive(Clone, Copy, Debug)]
pub enum From {
    /// The other end of our TCP connection.
    Tcp {
        /// Our end.
        ours: SocketAddr,
        /// The other.
        theirs: SocketAddr,
    },
    /// This process.
    Process(i32),
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    /// Processes that pass its bytes on, from the other end on.
    pub proxies: Vec<i32>,
    /// Processes that serve it.
    pub servers: Vec<i32>,
    /// What stands at the end.
    pub end: End,
}

impl Behind {
    /// The process at the other end is the server itself.
    pub fn one(pid: i32, end: End) -> Self {
        Self {
            proxies: Vec::new(),
            servers: vec![pid],
            end,
        }
    }
}

/// What stands at the end of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// clamd.
    Clamd,
    /// A process that is not called clamd and is connected to nothing: it is
    /// the server itself, by another name.
    Itself,
    /// Something else; where clamd is was not found.
    Lost,
}

/// How to ask. The thread starts with the first question, and lives as long.
#[derive(Debug)]
pub struct Finder {
    answers: Mailbox<Work>,
    questions: Option<mpsc::Sender<(Asked, From)>>,
}

impl Finder {
    /// Answers will go to `answers`.
    pub fn new(answers: Mailbox<Work>) -> Self {
        Self {
            answers,
            questions: None,
        }
    }

    /// Asks for whoever serves this session; `Work::Peer` brings the answer.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn ask(&mut self, asked: Asked, from: From) -> Result<(), SyscallError> {
        if self.questions.is_none() {
            let (sender, questions) = mpsc::channel::<(Asked, From)>();
            let (answers, proc) = (self.answers.clone(), Proc::open()?);
            process::spawn("onacc-peers", move || {
                for (asked, from) in questions {
                    answers.send(Work::Peer(asked, find(&proc, from)));
                }
            })?;
            self.questions = Some(sender);
        }
        if let Some(questions) = &self.questions {
            // The thread lives as long as the sender.
            let _never_fails = questions.send((asked, from));
        }
        Ok(())
    }
}

/// Whether both ends of a TCP connection are on this host.
pub fn is_local(ours: SocketAddr, theirs: SocketAddr) -> bool {
    ours.ip() == theirs.ip() || theirs.ip().to_canonical().is_loopback()
}

fn find(proc: &Proc, from: From) -> Behind {
    let start = match from {
        From::Process(pid) => Some(pid),
        From::Tcp { ours, theirs } => holder_of_connection(proc, ours, theirs),
    };
    let ours = match from {
        From::Tcp { ours, .. } => Some(ours),
        From::Process(_) => None,
    };
    let Some(start) = start else {
        return Behind {
            proxies: Vec::new(),
            servers: Vec::new(),
            end: End::Lost,
        };
    };
    follow(proc, start, ours)
}

fn follow(proc: &Proc, start: i32, ours: Option<SocketAddr>) -> Behind {
    if proc.is_clamd(start) {
        return Behind::one(start, End::Clamd);
    }
    // What lies on a way that leads nowhere is nobody.
    let lost = Behind {
        proxies: vec![start],
        servers: Vec::new(),
        end: End::Lost,
    };
    let mut way = vec![start];
    for _ in 0..MOST_PROXIES {
        let to = connected_to(way[way.len() - 1], ours);
        if to.is_empty() && way.len() == 1 {
            return Behind::one(start, End::Itself);
        }
        let known = to.iter().flatten().copied().collect();
        let holders = holders(proc, &known);
        let mut clamds: Vec<i32> = holders
            .values()
            .copied()
            .filter(|pid| proc.is_clamd(*pid))
            .collect();
        clamds.sort_unstable();
        clamds.dedup();
        clamds.truncate(MOST_CLAMDS);
        if !clamds.is_empty() {
            return Behind {
                proxies: way,
                servers: clamds,
                end: End::Clamd,
            };
        }
        let all: Option<HashSet<i32>> = to
            .iter()
            .map(|inode| inode.and_then(|inode| holders.get(&inode).copied()))
            .collect();
        // It is connected to several: which of them has to do with us?
        match all.map(Vec::from_iter).as_deref() {
            Some([next]) if !way.contains(next) => way.push(*next),
            _ => return lost,
        }
    }
    lost
}

/// The sockets at the other ends of the connections that a process has begun;
/// `None` for an end that is not to be found here.
fn connected_to(pid: i32, ours: Option<SocketAddr>) -> Vec<Option<u64>> {
    let own: HashSet<u64> = sockets_of(pid).take(MOST_SOCKETS).collect();
    // In the network namespace of that process.
    let rows = tcp_rows(&format!("/proc/{pid}/net"));
    let mut ends = begun(&rows, &own, ours);
    let tcp: HashSet<u64> = rows.iter().map(|row| row.inode).collect();
    let Ok(peers) = UnixPeers::open() else {
        return ends;
    };
    let ask = |inode: u64| peers.ask(u32::try_from(inode).ok()?).ok().flatten();
    for inode in own.difference(&tcp) {
        let Some(socket) = ask(*inode).filter(|socket| socket.stream) else {
            continue;
        };
        if socket.peer == 0 || socket.named {
            continue;
        }
        // Two ends without a name are a socketpair.
        if ask(u64::from(socket.peer)).is_none_or(|far| far.named) {
            ends.push(Some(u64::from(socket.peer)));
        }
    }
    ends
}

/// One line of `/proc/net/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    local: SocketAddr,
    remote: SocketAddr,
    state: u8,
    inode: u64,
}

/// Of the TCP connections of these sockets, those that were begun by them: nobody
/// listens where they start from.
fn begun(rows: &[Row], own: &HashSet<u64>, ours: Option<SocketAddr>) -> Vec<Option<u64>> {
    let accepted = |local: SocketAddr| {
        rows.iter().any(|row| {
            row.state == LISTENING
                && row.local.port() == local.port()
                && (row.local.ip().is_unspecified() || row.local.ip() == local.ip())
        })
    };
    rows.iter()
        .filter(|row| row.state == ESTABLISHED && own.contains(&row.inode))
        .filter(|row| !accepted(row.local) && Some(row.remote) != ours.map(plain))
        .map(|row| {
            let far = rows
                .iter()
                .find(|far| far.local == row.remote && far.remote == row.local);
            far.map(|far| far.inode).filter(|inode| *inode != 0)
        })
        .collect()
}

fn tcp_rows(net: &str) -> Vec<Row> {
    tcp_tables(net)
        .flat_map(|table| parse_table(&table).collect::<Vec<_>>())
        .collect()
}

fn tcp_tables(net: &str) -> impl Iterator<Item = String> {
    ["tcp", "tcp6"]
        .into_iter()
        .filter_map(move |name| std::fs::read_to_string(format!("{net}/{name}")).ok())
}

/// The process that holds the other end of a TCP connection within this host.
fn holder_of_connection(proc: &Proc, ours: SocketAddr, theirs: SocketAddr) -> Option<i32> {
    let inode = tcp_tables("/proc/net").find_map(|table| socket_inode(&table, theirs, ours))?;
    holders(proc, &HashSet::from([inode])).remove(&inode)
}

/// Who holds these sockets: of several processes the one that started first, which
/// is the one that the others inherited it from.
fn holders(proc: &Proc, wanted: &HashSet<u64>) -> HashMap<u64, i32> {
    let mut found: HashMap<u64, (u64, i32)> = HashMap::new();
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return HashMap::new();
    };
    for process in processes.flatten().take(MOST_PROCESSES) {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if pid <= 1 {
            continue;
        }
        for inode in sockets_of(pid).filter(|inode| wanted.contains(inode)) {
            let Some(stat) = proc.thread_stat(pid) else {
                continue;
            };
            let this = (stat.started, pid);
            let first = found.entry(inode).or_insert(this);
            *first = this.min(*first);
        }
    }
    found
        .into_iter()
        .map(|(inode, (_, pid))| (inode, pid))
        .collect()
}

/// Inodes of the sockets that a process has open.
fn sockets_of(pid: i32) -> impl Iterator<Item = u64> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd"));
    files.into_iter().flatten().flatten().filter_map(|file| {
        let target = std::fs::read_link(file.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?;
        inode.strip_suffix(']')?.parse().ok()
    })
}

/// Looks a connection up in `/proc/net/tcp` or `tcp6` (`proc_net_tcp` in the
/// kernel's documentation): the inode of the socket that is bound to `local`.
pub fn socket_inode(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let (local, remote) = (plain(local), plain(remote));
    parse_table(table)
        .find(|row| row.local == local && row.remote == remote && row.inode != 0)
        .map(|row| row.inode)
}

fn parse_table(table: &str) -> impl Iterator<Item = Row> {
    table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (local, remote) = (fields.nth(1)?, fields.next()?);
        Some(Row {
            local: parse_address(local)?,
            remote: parse_address(remote)?,
            state: u8::from_str_radix(fields.next()?, 16).ok()?,
            inode: fields.nth(5)?.parse().ok()?,
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixListener;

    fn own() -> i32 {
        nix::unistd::getpid().as_raw()
    }

    #[test]
    fn the_process_behind_a_connection_is_found() {
        let proc = Proc::open().unwrap();
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(host) else {
                eprintln!("{host} cannot be had here");
                continue;
            };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            let (ours, theirs) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            assert!(is_local(ours, theirs));
            assert_eq!(holder_of_connection(&proc, ours, theirs), Some(own()));
            let other = SocketAddr::new(theirs.ip(), 1);
            assert_eq!(holder_of_connection(&proc, ours, other), None);
            // Nobody is behind it that is called clamd.
            let found = find(&proc, From::Tcp { ours, theirs });
            assert_ne!(found.end, End::Clamd);
            assert_eq!([found.proxies, found.servers].concat(), [own()]);
            // What was begun here is gone on from, what was accepted is not.
            let (far, near) = (inode_of(&server), inode_of(&client));
            let rows = tcp_rows("/proc/self/net");
            assert_eq!(begun(&rows, &HashSet::from([near]), None), [Some(far)]);
            assert_eq!(begun(&rows, &HashSet::from([far]), None), []);
            // Not even where nobody listens any more, if it is our own connection.
            drop(listener);
            let rows = tcp_rows("/proc/self/net");
            assert_eq!(begun(&rows, &HashSet::from([far]), Some(ours)), []);
        }
    }

    fn inode_of(fd: &impl std::os::fd::AsRawFd) -> u64 {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap())
    }

    #[test]
    fn a_connection_by_unix_socket_is_gone_on_from_by_who_began_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let (server, _) = listener.accept().unwrap();
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let ends = connected_to(own(), None);
        assert!(ends.contains(&Some(inode_of(&server))));
        for not in [&client, &one, &other] {
            assert!(!ends.contains(&Some(inode_of(not))));
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
