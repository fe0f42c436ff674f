//! The minimal agent: what scanning each open costs a program that does nothing
//! else. One thread takes events, has clamd scan each file over one session, and
//! answers by the reply. No scope, no limits, no deadlines, no cache, no marks but
//! the filesystem's, no counters, no log: no agent could be used like this.
//!
//! Owns: the loop. Must not: mark anything but a filesystem of the benchmark's
//! own. Tested below.

use std::{
    collections::HashMap,
    io::{IoSlice, Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{ControlMessage, MsgFlags, sendmsg},
    unistd::read,
};

use crate::{
    bench::{
        answerer::{Answerer, Event, answer, c_path},
        sys::{ContentGroup, own},
    },
    shell::Result,
};

/// Scans under way at most, so that clamd's receiving thread never waits.
const MOST: usize = 16;

/// Starts to have all opens scanned on the filesystem that this file is on.
pub fn start(file: &Path, socket: &Path) -> Result<Answerer> {
    let fail = |error: std::io::Error| format!("the minimal agent: {error}");
    let mut stream = UnixStream::connect(socket).map_err(fail)?;
    stream.write_all(b"zIDSESSION\0").map_err(fail)?;
    let group = ContentGroup::new().map_err(fail)?;
    // Last, for from here on somebody must answer.
    group.mark_filesystem(&c_path(file)?).map_err(fail)?;
    Answerer::start("the minimal agent", file, move |stop| {
        let mut agent = Loop {
            group,
            stream,
            under_way: HashMap::new(),
            last: 0,
            received: Vec::new(),
            scans: 0,
        };
        agent.run(stop)
    })
}

struct Loop {
    group: ContentGroup,
    stream: UnixStream,
    /// Files by the numbers of their scans.
    under_way: HashMap<u32, OwnedFd>,
    last: u32,
    received: Vec<u8>,
    scans: u64,
}

impl Loop {
    fn run(&mut self, stop: &AtomicBool) -> Result<u64> {
        while !(stop.load(Ordering::SeqCst) && self.under_way.is_empty()) {
            let wants = if self.under_way.len() < MOST {
                PollFlags::POLLIN
            } else {
                PollFlags::empty()
            };
            let mut fds = [
                PollFd::new(self.stream.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.group.as_fd(), wants),
            ];
            poll(&mut fds, PollTimeout::NONE).map_err(|error| format!("poll: {error}"))?;
            let [replies, events] = fds.map(|fd| fd.any().unwrap_or_default());
            if replies {
                self.take_replies()?;
            }
            if events {
                self.take_events()?;
            }
        }
        Ok(self.scans)
    }

    fn take_events(&mut self) -> Result<()> {
        // As many as there are places for: an event has 24 bytes.
        let mut buffer = [0; MOST * 24];
        let room = (MOST - self.under_way.len()) * 24;
        let length = read(&self.group, &mut buffer[..room])
            .map_err(|error| format!("reading events: {error}"))?;
        let mut rest = &buffer[..length];
        while let Some(event) = Event::parse(rest) {
            let file = own(event.fd);
            sendmsg::<()>(
                self.stream.as_raw_fd(),
                &[IoSlice::new(b"zFILDES\0\0")],
                &[ControlMessage::ScmRights(&[file.as_raw_fd()])],
                MsgFlags::MSG_NOSIGNAL,
                None,
            )
            .map_err(|error| format!("asking clamd: {error}"))?;
            self.last += 1;
            self.under_way.insert(self.last, file);
            rest = &rest[event.length..];
        }
        Ok(())
    }

    fn take_replies(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        let count = self.stream.read(&mut buffer);
        let count = count.map_err(|error| format!("clamd: {error}"))?;
        if count == 0 {
            return Err("clamd has closed the session".to_owned());
        }
        self.received.extend(&buffer[..count]);
        while let Some(end) = self.received.iter().position(|byte| *byte == 0) {
            let line = String::from_utf8_lossy(&self.received[..end]).into_owned();
            self.received.drain(..=end);
            let number = line.split_once(": ").and_then(|(id, _)| id.parse().ok());
            let file = number.and_then(|number: u32| self.under_way.remove(&number));
            let file = file.ok_or_else(|| format!("clamd says {line}"))?;
            let verdict = if line.ends_with(" OK") {
                libc::FAN_ALLOW
            } else {
                libc::FAN_DENY
            };
            answer(&self.group, &file, verdict)?;
            self.scans += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use onacc_tests::{Clamd, ScratchFs, eicar, or_skip, require_root};

    use super::*;

    #[test]
    fn it_has_every_open_scanned_and_ends() {
        require_root!();
        let scratch = or_skip!(ScratchFs::tmpfs(1));
        let clean = scratch.write("clean", b"x");
        let infected = scratch.write("infected", &eicar());
        or_skip!(Clamd::installed());
        let dir = tempfile::tempdir().unwrap();
        let clamd = Clamd::start(dir.path());
        let agent = or_skip!(start(&clean, &clamd.socket()));
        for _ in 0..20 {
            File::open(&clean).unwrap();
            File::open(&infected).unwrap_err();
        }
        // Whether the last one, which wakes the loop, is scanned is a race.
        let scans = agent.end().unwrap();
        assert!((40..=41).contains(&scans), "{scans}");
        File::open(&infected).unwrap();
    }
}
