//! The reader: takes events in, answers what needs no scan, hands over the rest.
//!
//! Must not: wait for anything but events (invariant 2): no lock that is held
//! across a system call, no name service, no file, no log line.

mod arrears;
mod lanes;
mod reader;
mod scanner;

pub use lanes::{Ended, LaneError, Lanes, opens_can_block};
pub use reader::{Control, Reader, ReaderLinks, ReaderOwn};
pub use scanner::ScannerIdentity;
