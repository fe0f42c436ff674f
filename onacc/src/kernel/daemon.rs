//! Going into the background: the parent stays until protection has begun, and
//! its exit status says whether it did.
//!
//! Must be called before any thread is started. Tested by `tests/`.

use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;

use nix::fcntl::OFlag;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, fork, pipe2, setsid};

use super::SyscallError;

/// The child's end of the line to the waiting parent.
#[derive(Debug)]
pub struct Readiness(std::fs::File);

impl Readiness {
    /// Protection has begun: the parent exits with 0, and the standard streams
    /// go to `/dev/null`.
    pub fn report(mut self) {
        // The parent is about to end; that must not end us any more.
        let _an_integer_cannot_be_wrong = set_pdeathsig(None::<Signal>);
        // If the parent is gone there is nobody to tell.
        let _ = self.0.write_all(&[0]);
        if let Ok(null) = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
        {
            for stream in 0..=2 {
                // SAFETY: dup2 on the standard streams' numbers, which std
                // never closes; `null` is open.
                unsafe { libc::dup2(null.as_raw_fd(), stream) };
            }
        }
    }
}

/// Forks. Returns in the child, which leads a session of its own. The parent
/// waits: it exits with 0 when the child reports, else with the child's status.
///
/// # Errors
/// The system has no more processes or fds.
pub fn background() -> Result<Readiness, SyscallError> {
    let (read, write) =
        pipe2(OFlag::O_CLOEXEC).map_err(|errno| SyscallError::from_errno("pipe", errno))?;
    // SAFETY: no thread has been started yet, so the child finds no lock held.
    match unsafe { fork() }.map_err(|errno| SyscallError::from_errno("fork", errno))? {
        ForkResult::Child => {
            drop(read);
            // Whoever ends the waiting parent does not want us to begin.
            set_pdeathsig(Signal::SIGKILL)
                .map_err(|errno| SyscallError::from_errno("prctl(PR_SET_PDEATHSIG)", errno))?;
            setsid().map_err(|errno| SyscallError::from_errno("setsid", errno))?;
            // "/" can never keep a filesystem from being unmounted.
            std::env::set_current_dir("/").map_err(|source| SyscallError {
                call: "chdir to /",
                source,
            })?;
            Ok(Readiness(write.into()))
        }
        ForkResult::Parent { child } => {
            drop(write);
            let mut byte = [0u8; 1];
            let told = std::fs::File::from(read).read(&mut byte).unwrap_or(0);
            if told == 1 {
                std::process::exit(0);
            }
            let status = match nix::sys::wait::waitpid(child, None) {
                Ok(nix::sys::wait::WaitStatus::Exited(_, status)) => status,
                _ => 2,
            };
            std::process::exit(status);
        }
    }
}
