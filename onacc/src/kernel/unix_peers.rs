//! Which Unix socket is connected to which: asked of the kernel's `sock_diag`.
//!
//! `/proc/net/unix` does not say it. One question and its answer for each socket;
//! the kernel answers before the send returns, so that nothing waits. Must not:
//! be asked on the way of an event. Tested here.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send};

use super::SyscallError;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const SHOW_NAME: u32 = 1;
const SHOW_PEER: u32 = 4;
const ATTRIBUTE_NAME: u16 = 0;
const ATTRIBUTE_PEER: u16 = 2;
const HEADER: usize = 16;
const MESSAGE: usize = 16;
const ATTRIBUTE: usize = 4;
const STREAM: u8 = 1;

/// What the kernel tells of a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixSocket {
    /// Its own inode.
    pub inode: u32,
    /// Inode of the socket at the other end; 0: it is not connected.
    pub peer: u32,
    /// Whether it has a name: it listens, or was accepted by one that does.
    pub named: bool,
    /// Whether it is a stream.
    pub stream: bool,
}

/// A way to ask.
#[derive(Debug)]
pub struct UnixPeers(OwnedFd);

impl UnixPeers {
    /// Opens the way.
    ///
    /// # Errors
    /// The kernel has no `sock_diag`.
    pub fn open() -> Result<Self, SyscallError> {
        let socket = nix::sys::socket::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        );
        socket
            .map(Self)
            .map_err(|errno| SyscallError::from_errno("socket(NETLINK_SOCK_DIAG)", errno))
    }

    /// Asks about the socket with this inode. `None`: it is no Unix socket, or of
    /// another network namespace.
    ///
    /// # Errors
    /// The kernel does not answer such questions.
    pub fn ask(&self, inode: u32) -> Result<Option<UnixSocket>, SyscallError> {
        let failed = |call| move |errno| SyscallError::from_errno(call, errno);
        send(self.0.as_raw_fd(), &question(inode), MsgFlags::empty())
            .map_err(failed("send(NETLINK_SOCK_DIAG)"))?;
        let mut buffer = [0; 1024];
        let got = loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EINTR) => {}
                got => break got.map_err(failed("recv(NETLINK_SOCK_DIAG)"))?,
            }
        };
        Ok(parse(&buffer[..got]).filter(|socket| socket.inode == inode))
    }
}

/// `nlmsghdr` and `unix_diag_req` (`linux/unix_diag.h`).
fn question(inode: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40);
    bytes.extend(40u32.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence, sender.
    bytes.extend([0; 8]);
    let family = u8::try_from(libc::AF_UNIX).unwrap_or_default();
    bytes.extend([family, 0, 0, 0]);
    // All states; the inode; what to show; any cookie.
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(inode.to_ne_bytes());
    bytes.extend((SHOW_NAME | SHOW_PEER).to_ne_bytes());
    bytes.extend([0xff; 8]);
    bytes
}

/// Takes the socket out of an answer; `None` if it tells of none.
pub fn parse(bytes: &[u8]) -> Option<UnixSocket> {
    let (header, rest) = bytes.split_at_checked(HEADER)?;
    let length = u32::from_ne_bytes(header[..4].try_into().ok()?) as usize;
    if u16::from_ne_bytes([header[4], header[5]]) != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    let rest = rest.get(..length.checked_sub(HEADER)?)?;
    let (message, mut rest) = rest.split_at_checked(MESSAGE)?;
    let mut socket = UnixSocket {
        inode: u32::from_ne_bytes(message[4..8].try_into().ok()?),
        peer: 0,
        named: false,
        stream: message[1] == STREAM,
    };
    while let Some((head, _)) = rest.split_at_checked(ATTRIBUTE) {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = rest.get(ATTRIBUTE..length)?;
        match u16::from_ne_bytes([head[2], head[3]]) {
            ATTRIBUTE_NAME => socket.named = !value.is_empty(),
            ATTRIBUTE_PEER => socket.peer = u32::from_ne_bytes(value.try_into().ok()?),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::MetadataExt as _;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn inode(fd: &impl std::os::fd::AsRawFd) -> u32 {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        u32::try_from(std::fs::metadata(path).unwrap().ino()).unwrap()
    }

    #[test]
    fn both_ends_of_a_connection_name_each_other() {
        let peers = UnixPeers::open().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        let (server, _) = listener.accept().unwrap();
        let (client, server) = (inode(&client), inode(&server));
        let told = |of| match peers.ask(of) {
            Ok(told) => told,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(
            told(client),
            Some(UnixSocket {
                inode: client,
                peer: server,
                named: false,
                stream: true
            })
        );
        let far = told(server).unwrap();
        assert!(far.peer == client && far.named && far.stream, "{far:?}");
        assert_eq!(told(inode(&listener)).unwrap().peer, 0);
        // What is no Unix socket.
        let file = std::fs::File::open("/").unwrap();
        assert_eq!(told(inode(&file)), None);
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = parse(&bytes);
            let length = u32::try_from(16 + bytes.len()).unwrap_or_default();
            let mut like_an_answer = vec![0; 16];
            like_an_answer[..4].copy_from_slice(&length.to_ne_bytes());
            like_an_answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
            like_an_answer.extend(bytes);
            let _ = parse(&like_an_answer);
        }
    }
}
