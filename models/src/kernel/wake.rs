//! A modelled eventfd: a count, and a poll that sleeps while it is 0.

use super::SyscallError;
use super::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// As `onacc::kernel::wake::Wake`.
#[derive(Clone, Debug)]
pub struct Wake(Arc<State>);

#[derive(Debug)]
struct State {
    count: Mutex<u64>,
    readable: loom::sync::Condvar,
}

impl Wake {
    /// A new eventfd.
    ///
    /// # Errors
    /// Never.
    pub fn new() -> Result<Self, SyscallError> {
        Ok(Self(Arc::new(State {
            count: Mutex::new(0),
            readable: loom::sync::Condvar::new(),
        })))
    }

    /// As `write(2)`.
    pub fn notify(&self) {
        *self.lock() += 1;
        self.0.readable.notify_all();
    }

    /// As `read(2)`.
    pub fn clear(&self) {
        *self.lock() = 0;
    }

    /// As `poll(2)` without a time limit: if nobody ever notifies, loom finds
    /// that no thread can go on, and fails.
    pub fn poll(&self) {
        let mut count = self.lock();
        while *count == 0 {
            count = self
                .0
                .readable
                .wait(count)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.0.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
