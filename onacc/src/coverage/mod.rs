//! Which marks stand where, and why.
//!
//! `paths` turns configured paths into real ones, `filesystems` keeps a mark on
//! each filesystem in scope, `keeper` keeps the clean marks honest. Must not:
//! answer an opener.

pub mod directories;
pub mod filesystems;
pub mod keeper;
pub mod mount_marks;
pub mod outside;
pub mod paths;
pub mod tiers;

#[cfg(test)]
mod scratch;
