//! The reader: takes events in, answers what needs no scan, hands over the rest.
//! And the feed, which does the like for opens that eBPF tells of.
//!
//! The reader must not: wait for anything but events (invariant 2): not for a lock that is
//! held across a system call, no name service, no file, no log line.

mod arrears;
mod arrivals;
mod backlog;
mod drain;
mod feed;
mod find;
mod judge;
mod lanes;
mod looker;
mod lost;
mod place;
mod processes;
mod reader;

use crate::observe::counters::Counters;
use crate::policy::Unscanned;

pub use arrivals::{Arrivals, ArrivalsMessage};
pub use feed::{Feed, FeedMessage};
pub use find::is_keyed;
pub use lanes::{Ended, LaneError, Lanes};
pub use looker::FeedLinks;
pub use reader::{Control, Reader, ReaderLinks, ReaderOwn};

fn count(counters: &Counters, reason: Unscanned) {
    match reason {
        Unscanned::OwnThread => counters.own_thread.up(),
        Unscanned::Scanner => counters.scanner.up(),
        Unscanned::ExcludedUid => counters.excluded_uid.up(),
        Unscanned::NotRegular => counters.not_regular.up(),
        Unscanned::OutOfScope => counters.out_of_scope.up(),
        Unscanned::ExcludedFile => counters.excluded_file.up(),
        Unscanned::ExcludedProcess => counters.excluded_process.up(),
        Unscanned::TooLarge => counters.too_large.up(),
        Unscanned::Empty => counters.empty.up(),
    }
}
