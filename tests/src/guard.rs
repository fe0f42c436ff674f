//! The watchdog of an agent: a thread that kills it after a bounded time.
//!
//! Owns: the promise that no test can hold up openers for ever. Must not: open
//! a file once it runs, for that open might be the one that hangs. Tested below.

use std::{
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::sys::PidFd;

/// Kills a process by its id when the time is up, unless it is dropped before.
#[derive(Debug)]
pub struct Guard {
    done: Arc<(Mutex<bool>, Condvar)>,
    fired: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Starts a watchdog for the process with this id.
pub fn guard(pid: u32, limit: Duration) -> Guard {
    let process = PidFd::open(pid).expect("the guarded process is there");
    let done = Arc::new((Mutex::new(false), Condvar::new()));
    let fired = Arc::new(AtomicBool::new(false));
    let (waited, killed) = (Arc::clone(&done), Arc::clone(&fired));
    let thread = thread::spawn(move || {
        let (flag, changed) = &*waited;
        let flag = flag.lock().unwrap_or_else(PoisonError::into_inner);
        let (flag, _) = changed
            .wait_timeout_while(flag, limit, |done| !*done)
            .unwrap_or_else(PoisonError::into_inner);
        if !*flag && process.signal(Signal::SIGKILL).is_ok() {
            killed.store(true, Ordering::SeqCst);
            eprintln!("guard: killed process {pid} after {limit:?}");
        }
    });
    Guard {
        done,
        fired,
        thread: Some(thread),
    }
}

impl Guard {
    /// Whether the time was up and the process has been killed.
    pub fn fired(&self) -> bool {
        self.fired.load(Ordering::SeqCst)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        *self.done.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.done.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::Command};

    use super::*;

    #[test]
    fn a_guard_kills_after_its_time_and_not_when_dropped_before() {
        let mut slow = Command::new("sleep").arg("60").spawn().unwrap();
        let armed = guard(slow.id(), Duration::from_millis(50));
        let status = slow.wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        // The flag is set just after the signal: dropping waits for the thread.
        let fired = Arc::clone(&armed.fired);
        drop(armed);
        assert!(fired.load(Ordering::SeqCst));

        let mut brief = Command::new("sleep").arg("0.2").spawn().unwrap();
        drop(guard(brief.id(), Duration::from_millis(20)));
        let held = guard(brief.id(), Duration::from_mins(1));
        assert!(brief.wait().unwrap().success() || held.fired());
    }
}
