//! fanotify: the group, its events, its answers, its marks.
//!
//! `event` parses (pure), `group` holds the fd, `pending` makes sure that each
//! permission event is answered exactly once, `marks` places and removes marks.
//! Must not: know the scope or a verdict.

mod arrivals;
mod budget;
#[cfg(test)]
mod budget_tests;
mod closer;
pub mod event;
mod group;
mod marks;
mod open_groups;
mod outside;
mod pending;

pub use arrivals::{Arrival, ArrivalWatch, FilesystemId, parse as parse_arrivals};
pub use budget::{FdBudget, Permit, Reservation};
pub use group::{Group, GroupKind, InitError, Opens, ReadBuffer, ReadError, Taken, Wanted};
pub use marks::{MarkError, ProbedFeatures, WriterProbe};
pub(super) use open_groups::close_all;
pub use outside::{MoveWatch, Told};
pub use pending::{Answer, EventFile, PendingEvent};
