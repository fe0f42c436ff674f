//! loom's locks and atomics, under the names that the agent's code uses. `Arc`
//! is std's: what it counts is never looked at.

pub use std::sync::{Arc, PoisonError};

pub use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
pub use loom::sync::{Mutex, MutexGuard};
