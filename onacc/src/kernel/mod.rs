//! All system calls and all `unsafe` of the agent.
//!
//! Owns: what the kernel is asked, and the types that own what it hands out
//! (fds, marks, maps). Must not: decide anything; `policy/` does. The parsers
//! of kernel bytes in here (`fanotify::event`, `btf`, `mounts`) are pure and
//! have unit and property tests beside them; the rest is tested by `tests/`
//! on the running kernel.

pub mod accounts;
pub mod bpf;
pub mod btf;
pub mod daemon;
pub mod database;
pub mod desk;
pub mod directory;
pub mod fanotify;
pub mod file;
pub mod handle;
pub mod inotify;
pub mod mailbox;
pub mod memory;
pub mod mounts;
pub mod opener;
pub mod overlay;
pub mod pid_file;
pub mod process;
pub mod procfs;
pub mod ram;
pub mod signals;
pub mod sync;
pub mod unix_peers;
pub mod wake;

/// A system call failed.
#[derive(Debug, thiserror::Error)]
#[error("{call}: {source}")]
pub struct SyscallError {
    /// The call, with what tells it apart from others of its kind.
    pub call: &'static str,
    /// What the kernel answered.
    #[source]
    pub source: std::io::Error,
}

impl SyscallError {
    /// The error of the system call that this thread made last.
    pub fn last(call: &'static str) -> Self {
        Self {
            call,
            source: std::io::Error::last_os_error(),
        }
    }

    /// From a `nix` error number.
    pub fn from_errno(call: &'static str, errno: nix::errno::Errno) -> Self {
        Self {
            call,
            source: errno.into(),
        }
    }

    /// The error number.
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }
}
