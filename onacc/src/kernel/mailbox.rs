//! Mailboxes: queues into threads that sleep in `poll(2)`.
//!
//! Must not: lose a wake-up, or wake a receiver that is awake. `models/` compiles
//! this very file against loom and tries every interleaving; `wake.rs` tests it
//! with threads.

use super::SyscallError;
use super::sync::{Arc, AtomicBool, Mutex, MutexGuard, Ordering, PoisonError};
use super::wake::Wake;

/// A queue into a thread that polls. Sending costs a short lock, and a system
/// call only if the receiver sleeps.
#[derive(Debug)]
pub struct Mailbox<T> {
    shared: Arc<Shared<T>>,
}

#[derive(Debug)]
struct Shared<T> {
    items: Mutex<Vec<T>>,
    asleep: AtomicBool,
    wake: Wake,
}

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<T> Mailbox<T> {
    /// An empty mailbox.
    ///
    /// # Errors
    /// No fd left.
    pub fn new() -> Result<Self, SyscallError> {
        Ok(Self {
            shared: Arc::new(Shared {
                items: Mutex::new(Vec::new()),
                asleep: AtomicBool::new(false),
                wake: Wake::new()?,
            }),
        })
    }

    /// Puts an item in. Never waits for the receiver.
    pub fn send(&self, item: T) {
        self.lock().push(item);
        // The lock orders this: either the receiver sees the item before it
        // sleeps, or this thread sees that it sleeps.
        if self.shared.asleep.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Wakes the receiver without an item.
    pub fn wake(&self) {
        if self.shared.asleep.swap(false, Ordering::SeqCst) {
            self.shared.wake.notify();
        }
    }

    /// What wakes the receiver; also used to tell it to stop.
    pub fn waker(&self) -> &Wake {
        &self.shared.wake
    }

    /// Moves everything that waits into `into`.
    pub fn drain(&self, into: &mut Vec<T>) {
        into.append(&mut self.lock());
    }

    /// How many items wait.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The receiver is about to sleep. False: items came in meanwhile, do not.
    pub fn begin_sleep(&self) -> bool {
        self.set_asleep(true);
        if self.is_empty() {
            return true;
        }
        self.set_asleep(false);
        false
    }

    /// The receiver is awake again. Call with whether the waker was readable.
    pub fn end_sleep(&self, notified: bool) {
        self.set_asleep(false);
        if notified {
            self.shared.wake.clear();
        }
    }

    /// A swap, which costs what a store costs here, and comes after a sender's
    /// swap for everybody: a store might not, for loom and on paper.
    fn set_asleep(&self, asleep: bool) {
        self.shared.asleep.swap(asleep, Ordering::SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        self.shared
            .items
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
