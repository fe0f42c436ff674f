//! Child processes: waiting for one within a time limit, ending one for sure.
//!
//! Owns: bounded waiting. Must not: end a process that it was not given.
//! Tested below.

use std::{
    os::fd::AsFd,
    process::{Child, ExitStatus},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::sys::PidFd;

/// Waits for the end of a child; `None` when the time is up before.
pub fn wait_within(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    if let Some(status) = child.try_wait().expect("waiting for a child") {
        return Some(status);
    }
    let process = PidFd::open(child.id()).expect("a child that was not reaped has its id");
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(process.fd().as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) if Instant::now() >= deadline => {
                return child.try_wait().expect("waiting for a child");
            }
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Some(child.wait().expect("waiting for a child")),
            Err(error) => panic!("polling a pidfd: {error}"),
        }
    }
}

/// Kills a child by SIGKILL and reaps it; gives up after a few seconds, for a
/// process in an uninterruptible wait cannot be reaped.
pub fn kill(child: &mut Child) -> Option<ExitStatus> {
    let _ = child.kill();
    wait_within(child, Duration::from_secs(5))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn waiting_ends_with_the_child_or_with_the_time() {
        let mut child = Command::new("sleep").arg("0.1").spawn().unwrap();
        assert_eq!(wait_within(&mut child, Duration::from_millis(10)), None);
        assert!(
            wait_within(&mut child, Duration::from_secs(20))
                .unwrap()
                .success()
        );
        assert!(wait_within(&mut child, Duration::ZERO).unwrap().success());
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(!kill(&mut child).unwrap().success());
    }
}
