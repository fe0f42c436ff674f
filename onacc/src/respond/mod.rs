//! What follows an answer: the report, and the quarantine.
//!
//! Must not: hold an opener up; everything here runs after the answer.

pub mod quarantine;
pub mod report;
