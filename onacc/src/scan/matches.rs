//! `--allmatch`: the names of all signatures that match a file, after the answer.
//!
//! The verdict comes from the open file itself; clamd names all matches by path
//! alone (`ALLMATCHSCAN`), so that the path must still lead to the same file, and
//! clamd must be able to read it. If not, no more than the first name is told. A
//! thread of its own: it may wait. Must not: decide anything. Tested by `tests/`.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::os::fd::AsFd as _;

use crate::clamd::ask;
use crate::clamd::protocol::{self, Matches};
use crate::config::servers::{Address, Server};
use crate::kernel::file::{self, FileStat};
use crate::kernel::{SyscallError, process};
use crate::respond::report;

/// Files that wait; of more than these no further names are told.
const MOST_WAITING: usize = 1024;

/// An infected file whose first name has been told.
#[derive(Debug)]
pub struct Found {
    /// The paths that its openers used.
    pub paths: Vec<Vec<u8>>,
    /// What it was when it was scanned.
    pub stat: FileStat,
    /// The signature that is known.
    pub signature: Arc<str>,
}

/// How to ask for the names.
#[derive(Debug)]
pub struct Matcher(SyncSender<Found>);

impl Matcher {
    /// Starts the thread; `None` if no server is on this host's paths.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start<'a>(
        servers: impl IntoIterator<Item = &'a Server>,
        limit: Duration,
    ) -> Result<Option<Self>, SyscallError> {
        let local = servers
            .into_iter()
            .find(|server| matches!(server.address, Address::Unix(_)))
            .cloned();
        let Some(server) = local else {
            return Ok(None);
        };
        let (sender, infected) = sync_channel::<Found>(MOST_WAITING);
        // Never joined: it ends when the sender does.
        process::spawn("onacc-matches", move || {
            for file in infected {
                tell(&file, &names(&server, &file, Instant::now() + limit));
            }
        })?;
        Ok(Some(Self(sender)))
    }

    /// The further names of this file are told soon.
    pub fn tell_more(&self, file: Found) {
        if self.0.try_send(file).is_err() {
            tracing::debug!("onacc: too many files wait for the names of all their matches");
        }
    }
}

fn tell(file: &Found, names: &[String]) {
    for path in &file.paths {
        for name in names.iter().filter(|name| ***name != *file.signature) {
            report::infected(path, file.stat.links, name);
        }
    }
}

fn names(server: &Server, file: &Found, until: Instant) -> Vec<String> {
    for path in &file.paths {
        let Some(command) = protocol::scan_all_matches(path).filter(|_| leads_to(path, file))
        else {
            continue;
        };
        match ask::ask(server, &command, until) {
            Ok(records) => {
                let mut matches = Matches::default();
                for record in records {
                    matches.take(protocol::parse_path_record(&record, path));
                }
                if let Some(words) = &matches.error {
                    tracing::debug!("onacc: ALLMATCHSCAN: {words}");
                }
                // The path may have come to lead elsewhere meanwhile.
                if leads_to(path, file) {
                    return matches.signatures;
                }
            }
            Err(error) => tracing::debug!("onacc: ALLMATCHSCAN: {error}"),
        }
    }
    Vec::new()
}

fn leads_to(path: &[u8], file: &Found) -> bool {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty())
        .ok()
        .and_then(|fd| file::stat(fd.as_fd()).ok())
        .is_some_and(|stat| stat.key == file.stat.key && stat.changed == file.stat.changed)
}
