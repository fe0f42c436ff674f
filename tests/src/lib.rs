//! The kit of onacc's end-to-end tests: a real clamd, a scripted clamd, scratch
//! filesystems, the agent itself, and opens that cannot hang a test.
//!
//! Owns: starting and ending all of these safely. Must not: know how the agent
//! works inside. Tested by the unit tests here, and by every test that uses it.
//!
//! Three rules keep the machine usable. Only filesystems of a test's own are
//! ever watched. Every agent has a [`Guard`] that kills it by its id after a
//! bounded time, upon which the kernel lets every opener go. Every child dies
//! with the thread that started it, so start children on the test's own thread.

#![allow(
    clippy::missing_errors_doc,
    reason = "errors are sentences for the reader of a test's output"
)]

pub mod agent;
pub mod child;
pub mod clamd;
pub mod client;
pub mod fake_clamd;
pub mod freezer;
pub mod guard;
pub mod hanging_fs;
pub mod memory_group;
pub mod open;
pub mod scratch;
pub mod skip;
pub mod sys;
pub mod tls_proxy;
pub mod watches;

pub use agent::{Agent, Counters, Exited};
pub use clamd::{Clamd, eicar};
pub use fake_clamd::{Behaviour, FakeClamd, RequestInfo};
pub use freezer::Freezer;
pub use guard::{Guard, guard};
pub use hanging_fs::HangingFs;
pub use memory_group::MemoryGroup;
pub use open::{Opened, Opening, Outcome, cat, cat_as, open_as, open_within};
pub use scratch::ScratchFs;
pub use sys::SharedMapping;
pub use tls_proxy::TlsProxy;

/// Why a part of the kit could not do its work.
pub type Result<T, E = String> = std::result::Result<T, E>;

/// The root of the workspace.
pub fn workspace() -> std::path::PathBuf {
    let own = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_path_buf()
}
