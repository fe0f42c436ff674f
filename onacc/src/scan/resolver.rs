//! Names to addresses, in a thread of its own: the name service opens files and
//! waits for networks, and no opener must wait for that. Tested by `tests/`.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::mpsc;

use super::Work;
use crate::kernel::wake::Mailbox;
use crate::kernel::{SyscallError, process};

/// How to ask it.
#[derive(Clone, Debug)]
pub struct Resolver(mpsc::Sender<Question>);

#[derive(Debug)]
struct Question {
    server: usize,
    host: String,
    port: u16,
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
            for Question { server, host, port } in questions {
                let found = (host.as_str(), port)
                    .to_socket_addrs()
                    .map(Iterator::collect);
                answers.send(Work::Resolved(server, found));
            }
        })?;
        Ok(Self(sender))
    }

    /// Asks for the addresses of a name.
    pub fn resolve(&self, server: usize, host: &str, port: u16) {
        // The thread lives as long as this sender.
        let _never_fails = self.0.send(Question {
            server,
            host: host.to_owned(),
            port,
        });
    }
}

/// No address is a failure like others.
pub fn some_address(found: io::Result<Vec<SocketAddr>>) -> io::Result<Vec<SocketAddr>> {
    match found {
        Ok(found) if found.is_empty() => Err(io::Error::other("it has no address")),
        found => found,
    }
}
