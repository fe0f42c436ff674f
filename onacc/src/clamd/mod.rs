//! clamd: its words (`protocol`, pure) and the session that speaks them.
//!
//! Must not: know of openers or verdict policies (`scan/` does).

pub mod protocol;
mod session;

pub use session::{ConnectError, Received, Sent, Session, SessionError};
