//! What follows an answer: the report. (Quarantine comes with a later issue.)
//!
//! Must not: hold an opener up; everything here runs after the answer.

pub mod report;
