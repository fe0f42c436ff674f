//! What the agent does to its own process: limits, threads, signals, its end.
//!
//! Must not: be used by code that decides. Tested by `tests/`.

use std::os::fd::AsFd as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread::JoinHandle;

use nix::poll::PollFlags;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::SyscallError;
use super::wake::sleep;

/// Threads that an agent can have; there are about eight, and one for each
/// filesystem whose opens can block.
const MAX_THREADS: usize = 128;

/// Thread ids of the agent. Filled before the first mark is placed, read by the
/// reader for each event: an own open must never wait for an answer.
static OWN_THREADS: [AtomicI32; MAX_THREADS] = [const { AtomicI32::new(0) }; MAX_THREADS];
/// A place in the list whose thread has ended; 0 is one that was never used.
const ENDED: i32 = -1;

/// The calling thread.
pub fn thread_id() -> i32 {
    nix::unistd::gettid().as_raw()
}

/// Enters the calling thread into the list of own threads.
///
/// # Panics
/// If there are more than 128.
pub fn register_thread() {
    let tid = thread_id();
    let take = |slot: &AtomicI32, free| {
        slot.compare_exchange(free, tid, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    };
    let entered = OWN_THREADS
        .iter()
        .any(|slot| slot.load(Ordering::Relaxed) == tid || take(slot, ENDED) || take(slot, 0));
    assert!(entered, "more threads than the list of own threads holds");
}

/// Takes the calling thread out of the list before it ends: the kernel gives its
/// number to others.
fn forget_thread() {
    let tid = thread_id();
    for slot in &OWN_THREADS {
        let _others_stay = slot.compare_exchange(tid, ENDED, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// Whether a thread is one of ours. No system call.
pub fn is_own_thread(tid: i32) -> bool {
    tid > 0
        && OWN_THREADS
            .iter()
            .map(|slot| slot.load(Ordering::Acquire))
            .take_while(|own| *own != 0)
            .any(|own| own == tid)
}

/// Starts a thread of the agent: named, and known as own before it does anything.
///
/// # Errors
/// The system has no more threads.
pub fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, SyscallError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            register_thread();
            let result = body();
            forget_thread();
            result
        })
        .map_err(|source| SyscallError {
            call: "clone (a new thread)",
            source,
        })
}

/// Waits for a thread to end, until then; one that does not is left to the end
/// of the process.
pub fn wait_for(thread: &JoinHandle<()>, until: std::time::Instant) {
    while !thread.is_finished() && std::time::Instant::now() < until {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// Set by whoever ends the process first; the others leave it to that one.
static ENDING: AtomicBool = AtomicBool::new(false);
/// Writes a line to the log, and says whether it is there.
static LAST_WORDS: OnceLock<fn(&str) -> bool> = OnceLock::new();

/// From now on [`die`] says why in the log too. `write` waits for a bounded time.
pub fn set_last_words(write: fn(&str) -> bool) {
    // A second logger in one process (tests) writes to the same place.
    let _already_set = LAST_WORDS.set(write);
}

/// Ends the process at once. The groups are closed, which lets all openers go;
/// nothing is dumped, flushed or unwound.
pub fn stop_now() -> ! {
    let_all_go();
    exit()
}

/// Lets all openers go, says why in the log, or on stderr if that does not take it,
/// and ends the process: within two seconds, whoever reads them.
pub fn die(reason: &str) -> ! {
    // First: the log or stderr may be read by one who waits for an answer.
    let_all_go();
    let line = format!("onacc: {reason}");
    let written = LAST_WORDS.get().is_some_and(|write| write(&line));
    if !written {
        say_on_stderr(format!("ERROR: {line}\n").as_bytes());
    }
    exit()
}

/// Lets all openers go; does not return if another thread does already, which then
/// ends the process.
fn let_all_go() {
    if ENDING.swap(true, Ordering::SeqCst) {
        loop {
            std::thread::park();
        }
    }
    super::fanotify::close_all();
}

/// Only if stderr takes it at once: a pipe has room for a short line if it has any.
fn say_on_stderr(line: &[u8]) {
    let stderr = std::io::stderr();
    let wanted = [(stderr.as_fd(), PollFlags::POLLOUT)];
    if let Ok([true]) = sleep(wanted, Some(std::time::Instant::now())) {
        // It may be gone; the end must come all the same.
        let _gone = nix::unistd::write(&stderr, line);
    }
}

fn exit() -> ! {
    // SAFETY: _exit takes an integer and does not return; no destructor of ours
    // must run, that is the purpose.
    unsafe { libc::_exit(2) }
}

/// Raises the limit of open files as far as allowed and returns it.
///
/// # Errors
/// A failed `getrlimit`.
pub fn raise_open_files() -> Result<u64, SyscallError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(|errno| SyscallError::from_errno("getrlimit", errno))?;
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        return Ok(hard);
    }
    Ok(soft)
}

/// Asks the scheduler to prefer the agent: every opener waits for it. Threads
/// started later inherit it.
///
/// # Errors
/// `CAP_SYS_NICE` is missing.
pub fn be_urgent() -> Result<(), SyscallError> {
    // SAFETY: setpriority takes three integers; 0 is the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -10) } == 0 {
        Ok(())
    } else {
        Err(SyscallError::last("setpriority"))
    }
}

/// No core dumps: while one is written the group stays open, and the program
/// that takes it may itself wait for an answer.
///
/// # Errors
/// A failed `prctl`.
pub fn forbid_core_dumps() -> Result<(), SyscallError> {
    // SAFETY: PR_SET_DUMPABLE takes one integer.
    if unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } == 0 {
        Ok(())
    } else {
        Err(SyscallError::last("prctl(PR_SET_DUMPABLE)"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spawned_thread_is_own_and_another_is_not() {
        let own = || {
            let tid = nix::unistd::gettid().as_raw();
            (tid, is_own_thread(tid))
        };
        let (tid, known) = spawn("test", own).unwrap().join().unwrap();
        assert!(known);
        assert!(
            !is_own_thread(tid),
            "it has ended; its number may be another's"
        );
        assert!(!is_own_thread(0) && !is_own_thread(1) && !is_own_thread(-1));
        // Places are used again.
        for _ in 0..3 * MAX_THREADS {
            assert!(spawn("test", own).unwrap().join().unwrap().1);
        }
    }
}
