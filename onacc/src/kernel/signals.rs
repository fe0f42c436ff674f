//! Signals as something to poll for: blocked everywhere, read from a signalfd.
//!
//! Must be set up before any thread is started, which inherit the mask.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::SyscallError;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// TERM or INT.
    Stop,
    /// USR1.
    Counters,
    /// HUP, USR2: of no effect in this version.
    Nothing,
}

/// The blocked signals.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals for this thread and all that it will start.
    ///
    /// # Errors
    /// No fd left.
    pub fn block() -> Result<Self, SyscallError> {
        let mut set = SigSet::empty();
        for signal in [
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGHUP,
        ] {
            set.add(signal);
        }
        set.thread_block()
            .map_err(|errno| SyscallError::from_errno("sigprocmask", errno))?;
        SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map(Self)
            .map_err(|errno| SyscallError::from_errno("signalfd", errno))
    }

    /// The next signal that has come.
    pub fn take(&mut self) -> Option<Request> {
        let info = self.0.read_signal().ok().flatten()?;
        let number = i32::try_from(info.ssi_signo).ok()?;
        Some(match Signal::try_from(number) {
            Ok(Signal::SIGTERM | Signal::SIGINT) => Request::Stop,
            Ok(Signal::SIGUSR1) => Request::Counters,
            _ => Request::Nothing,
        })
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
