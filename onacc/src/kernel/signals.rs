//! Signals as something to poll for: blocked everywhere, read from a signalfd.
//!
//! Must be set up before any thread is started, which inherit the mask.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::SyscallError;

/// What would end or stop the process unasked. A Ctrl-Z in particular would
/// leave every opener waiting. PIPE is ignored by Rust's start-up code; what a
/// fault raises stays deadly.
const BLOCKED: [Signal; 17] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGPWR,
    Signal::SIGSTKFLT,
    Signal::SIGXCPU,
    Signal::SIGXFSZ,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// TERM, INT or QUIT.
    Stop,
    /// USR1.
    Counters,
    /// HUP.
    Reload,
    /// Any other: it would end the process, or stop it with openers waiting.
    Nothing(i32),
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
        let set: SigSet = BLOCKED.into_iter().collect();
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
            Ok(Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT) => Request::Stop,
            Ok(Signal::SIGUSR1) => Request::Counters,
            Ok(Signal::SIGHUP) => Request::Reload,
            _ => Request::Nothing(number),
        })
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
