//! The agent's own memory: where it is allocated, that it is given back, that it
//! stays in memory.
//!
//! Must not: be used by code that decides. Tested below, by `tests/tests/memory.rs`
//! and by the chaos fault `memory-short`.

use std::sync::{Mutex, PoisonError};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::SyscallError;

/// Whether memory is locked; held while that changes.
static LOCKED: Mutex<bool> = Mutex::new(false);

/// All threads allocate from one place (glibc: one arena). Called before there is
/// a second thread. Else each thread has an arena of its own, in which the little
/// that stays holds the much that was freed: after a few reloads, each of which
/// reads the kernel's BTF, 100 MiB instead of 3. Small allocations come from the
/// threads' own caches either way, and permission events make none.
pub fn share() {
    // SAFETY: mallopt takes two integers. That it was refused costs memory alone.
    #[cfg(target_env = "gnu")]
    let _done = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Keeps every page in memory from its first use on: code, data, stacks. A page that
/// the kernel takes back, because its control group or the host is short of memory,
/// must be read again while openers wait, from a disk that others keep busy. Nothing
/// is read ahead of its use, so that this costs no memory at first.
///
/// # Errors
/// `CAP_IPC_LOCK` is missing. Then nothing is locked: within `RLIMIT_MEMLOCK` a later
/// thread could not have its stack.
pub fn stay() -> Result<(), SyscallError> {
    let mut locked = LOCKED.lock().unwrap_or_else(PoisonError::into_inner);
    lock_all_if_unlimited()?;
    *locked = true;
    Ok(())
}

/// Gives freed memory back to the system. Loading the eBPF programs needs
/// 16 MiB for a moment (two readings of the kernel's BTF), which the allocator
/// would keep for ever.
pub fn give_back() {
    let mut locked = LOCKED.lock().unwrap_or_else(PoisonError::into_inner);
    if *locked {
        // From the middle of the heap the kernel takes nothing back that is locked.
        // SAFETY: no argument; pages stay as they are.
        unsafe { libc::munlockall() };
    }
    // SAFETY: malloc_trim takes one integer and may be called at any time.
    // Whether anything was given back is of no consequence.
    #[cfg(target_env = "gnu")]
    let _any = unsafe { libc::malloc_trim(0) };
    if *locked && let Err(error) = lock_all_if_unlimited() {
        *locked = false;
        tracing::warn!("onacc: {error}; the agent may be paged out from now on");
    }
}

/// Locks under a limit of nothing, which only those pass whom no limit binds.
fn lock_all_if_unlimited() -> Result<(), SyscallError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)
        .map_err(|errno| SyscallError::from_errno("getrlimit", errno))?;
    let is_limited = soft != libc::RLIM_INFINITY;
    if is_limited {
        set_limit(0, hard)?;
    }
    // SAFETY: mlockall takes flags and changes no content.
    let failed =
        unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) };
    let error = (failed != 0).then(|| SyscallError::last("mlockall"));
    if is_limited {
        set_limit(soft, hard)?;
    }
    error.map_or(Ok(()), Err)
}

fn set_limit(soft: u64, hard: u64) -> Result<(), SyscallError> {
    setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard)
        .map_err(|errno| SyscallError::from_errno("setrlimit(RLIMIT_MEMLOCK)", errno))
}
