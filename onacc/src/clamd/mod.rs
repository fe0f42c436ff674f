//! clamd: its words (`protocol`, pure), the bytes of a connection (`wire`, `tls`),
//! the session that speaks them, and single questions (`ask`).
//!
//! Must not: know of openers or verdict policies (`scan/` does).

pub mod ask;
mod error;
pub mod protocol;
mod session;
mod tls;
mod upload;
mod wire;

pub use error::{ConnectError, SessionError, TlsError};
pub use session::{Received, Sent, Session};
pub use tls::TlsClient;
pub use upload::Fed;
pub use wire::{Polled, Target, Wire};
