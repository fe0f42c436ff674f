//! Waking a thread that sleeps in `poll(2)`: eventfd and poll.
//!
//! Must not: wake a thread that is awake anyway; a wake-up is a system call and
//! often a context switch. Tested here.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::SyscallError;
pub use super::mailbox::Mailbox;

/// An eventfd, shared: whoever has a clone can wake who polls it.
#[derive(Clone, Debug)]
pub struct Wake(Arc<EventFd>);

impl Wake {
    /// A new eventfd.
    ///
    /// # Errors
    /// No fd left.
    pub fn new() -> Result<Self, SyscallError> {
        EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map(|fd| Self(Arc::new(fd)))
            .map_err(|errno| SyscallError::from_errno("eventfd", errno))
    }

    /// Wakes the poller. Never blocks: a full counter wakes as well.
    pub fn notify(&self) {
        // EAGAIN means the counter is full, so the poller is awake or about to be.
        let _full_counter_wakes_too = self.0.write(1);
    }

    /// Takes back all notifications.
    pub fn clear(&self) {
        // EAGAIN means there was none.
        let _none_is_fine = self.0.read();
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sleeps until one of `fds` has what it asks for, or `until`. Returns, for
/// each, whether something is there. A signal ends the sleep early.
///
/// # Errors
/// A failed `poll(2)`.
pub fn sleep<const N: usize>(
    fds: [(BorrowedFd<'_>, PollFlags); N],
    until: Option<Instant>,
) -> Result<[bool; N], SyscallError> {
    let mut polled = fds.map(|(fd, flags)| PollFd::new(fd, flags));
    sleep_on(&mut polled, until)?;
    Ok(std::array::from_fn(|at| is_ready(&polled[at])))
}

/// As [`sleep`], for fds whose number is not known before.
///
/// # Errors
/// A failed `poll(2)`.
pub fn sleep_on(fds: &mut [PollFd<'_>], until: Option<Instant>) -> Result<(), SyscallError> {
    let timeout = until.map_or(PollTimeout::NONE, |until| {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up: a timer that wakes before its time would spin.
        let millis =
            u64::try_from((left + Duration::from_micros(999)).as_millis()).unwrap_or(u64::MAX);
        PollTimeout::try_from(millis.min(60_000)).unwrap_or(PollTimeout::MAX)
    });
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(SyscallError::from_errno("poll", errno)),
    }
}

/// Whether an fd has what was asked for, or has failed.
pub fn is_ready(fd: &PollFd<'_>) -> bool {
    fd.revents().is_some_and(|got| !got.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_sent_is_lost_between_two_threads() {
        let mailbox = Mailbox::new().unwrap();
        let sender = mailbox.clone();
        let thread = std::thread::spawn(move || {
            for item in 0..20_000u32 {
                sender.send(item);
            }
        });
        let mut got = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        while got.len() < 20_000 && Instant::now() < deadline {
            mailbox.drain(&mut got);
            if got.len() < 20_000 && mailbox.begin_sleep() {
                let [notified] = sleep(
                    [(mailbox.waker().as_fd(), PollFlags::POLLIN)],
                    Some(deadline),
                )
                .unwrap();
                mailbox.end_sleep(notified);
            }
        }
        thread.join().unwrap();
        assert!(got.into_iter().eq(0..20_000));
    }

    #[test]
    fn a_timer_does_not_wake_early() {
        let wake = Wake::new().unwrap();
        let until = Instant::now() + Duration::from_millis(30);
        let [notified] = sleep([(wake.as_fd(), PollFlags::POLLIN)], Some(until)).unwrap();
        assert!(!notified && Instant::now() >= until);
        wake.notify();
        let [notified] = sleep([(wake.as_fd(), PollFlags::POLLIN)], None).unwrap();
        assert!(notified);
    }
}
