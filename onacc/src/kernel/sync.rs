//! What threads share memory by. `models/` has a file of the same name that
//! takes these from loom, so that it can compile `mailbox.rs`, `desk.rs` and
//! `fanotify/budget.rs` as they are. Owns nothing.

pub use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
pub use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
