//! The fd budget: how many events may be in flight (invariant 5).
//!
//! If an event's fd cannot be installed, the kernel denies the open
//! (facts/kernel.md, fanotify 7). So a reader reserves places before it reads;
//! what has no place waits in the kernel's queue. Several readers share one
//! budget. Tested in `budget_tests.rs`; `models/` compiles this very file against loom.

use crate::kernel::sync::{Arc, AtomicBool, AtomicUsize, Mutex, MutexGuard, Ordering, PoisonError};
use crate::kernel::wake::Wake;

/// The budget.
#[derive(Debug)]
pub struct FdBudget {
    limit: usize,
    used: AtomicUsize,
    somebody_waits: AtomicBool,
    waiting: Mutex<Vec<Wake>>,
}

impl FdBudget {
    /// A budget of `limit` fds, at least 1.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit: limit.max(1),
            used: AtomicUsize::new(0),
            somebody_waits: AtomicBool::new(false),
            waiting: Mutex::new(Vec::new()),
        })
    }

    /// Places that are free now.
    pub fn room(&self) -> usize {
        self.limit.saturating_sub(self.used.load(Ordering::SeqCst))
    }

    /// Whether nothing is in flight, nor about to be read, beyond so many places
    /// that are reserved.
    pub fn is_unused_beyond(&self, reserved: usize) -> bool {
        self.used.load(Ordering::SeqCst) <= reserved
    }

    /// All places.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether less than half of the budget is in use: enough for what nobody
    /// waits for.
    pub fn is_ample(&self) -> bool {
        self.room() > self.limit / 2
    }

    /// Reserves up to `wanted` places, as many as are free.
    pub fn reserve(self: &Arc<Self>, wanted: usize) -> Reservation {
        let mut places = 0;
        // The closure always returns `Some`, so that this cannot fail.
        let _always_updates = self
            .used
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |used| {
                places = wanted.min(self.limit.saturating_sub(used));
                Some(used + places)
            });
        Reservation {
            budget: Arc::clone(self),
            places,
        }
    }

    /// One place, if one is free.
    pub fn try_take(self: &Arc<Self>) -> Option<Permit> {
        self.reserve(1).take()
    }

    /// A reader found no room and is about to sleep; `wake` is notified when
    /// there is some. True: there is room after all, do not sleep.
    pub fn begin_wait(&self, wake: &Wake) -> bool {
        self.lock().push(wake.clone());
        self.somebody_waits.swap(true, Ordering::SeqCst);
        // Adding nothing reads the latest count, and whoever gives a place back
        // after it sees that somebody waits.
        self.used.fetch_add(0, Ordering::SeqCst) < self.limit
    }

    fn give_back(&self, places: usize) {
        self.used.fetch_sub(places, Ordering::SeqCst);
        if places > 0
            && self.somebody_waits.load(Ordering::SeqCst)
            && self.somebody_waits.swap(false, Ordering::SeqCst)
        {
            for wake in std::mem::take(&mut *self.lock()) {
                wake.notify();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Wake>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Places that a reader holds for what it is about to read. What is not taken
/// out is given back when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<FdBudget>,
    places: usize,
}

impl Reservation {
    /// How many places it holds.
    pub fn places(&self) -> usize {
        self.places
    }

    /// Takes one place out.
    pub fn take(&mut self) -> Option<Permit> {
        self.places = self.places.checked_sub(1)?;
        Some(Permit(Arc::clone(&self.budget)))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give_back(self.places);
    }
}

/// One place in the budget; given back when dropped.
#[derive(Debug)]
pub struct Permit(Arc<FdBudget>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.give_back(1);
    }
}
