//! Lines to standard output and error, which nobody may be reading.
//!
//! A pipe or terminal that takes nothing for a second is given up until it does
//! again: the log file goes on. Must not: be used by any thread but the
//! logger's. Tested here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::unistd::write;

use crate::kernel::wake::sleep;

/// How long a console that takes nothing is waited for, once.
const PATIENCE: Duration = Duration::from_secs(1);
/// What a pipe takes without blocking once it takes anything (`PIPE_BUF`).
const PIECE: usize = 4096;

/// The console.
#[derive(Debug, Default)]
pub struct Console {
    stuck: bool,
}

impl Console {
    /// Writes a line. False: nobody took it. A console that is gone is no fault.
    pub fn put(&mut self, line: &[u8], is_error: bool) -> bool {
        if is_error {
            self.put_to(io::stderr().as_fd(), line)
        } else {
            self.put_to(io::stdout().as_fd(), line)
        }
    }

    fn put_to(&mut self, stream: BorrowedFd<'_>, line: &[u8]) -> bool {
        let mut left = line;
        while !left.is_empty() {
            let now = Instant::now();
            let until = if self.stuck { now } else { now + PATIENCE };
            let ready = sleep([(stream, PollFlags::POLLOUT)], Some(until));
            self.stuck = !matches!(ready, Ok([true]));
            if self.stuck {
                return false;
            }
            let piece = &left[..left.len().min(PIECE)];
            match write(stream, piece) {
                Ok(count) => left = &left[count..],
                Err(nix::Error::EINTR | nix::Error::EAGAIN) => {}
                // Closed: whoever read it has gone.
                Err(_) => return true,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn a_pipe_that_nobody_reads_is_given_up_and_found_again() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut console = Console::default();
        let line = vec![b'x'; 10_000];
        let before = Instant::now();
        let taken = (0..100)
            .take_while(|_| console.put_to(writer.as_fd(), &line))
            .count();
        assert!(taken < 100);
        for _ in 0..100 {
            assert!(!console.put_to(writer.as_fd(), &line));
        }
        assert!(
            before.elapsed() < Duration::from_secs(10),
            "waited for once"
        );
        // Some of what it holds; a pipe that is read has room again.
        let mut buffer = vec![0; 32_768];
        reader.read_exact(&mut buffer).unwrap();
        assert!(console.put_to(writer.as_fd(), b"y"));
        drop(reader);
        assert!(console.put_to(writer.as_fd(), b"z"), "gone is no fault");
    }
}
