//! Which marks stand where, and why.
//!
//! `kind` chooses what carries the marks: filesystems (`filesystems`, with
//! `outside` for the directories out of scope), directories (`directories`) or
//! mounts (`mount_marks`). `paths` turns configured paths into real ones,
//! `keeper` keeps the clean marks honest, `tiers` says what the kernel grants.
//! Must not: answer an opener.

pub mod clean_marks;
pub mod directories;
pub mod filesystems;
pub mod keeper;
pub mod kernel_marks;
pub mod kind;
pub mod mount_marks;
pub mod outside;
pub mod paths;
pub mod tiers;

#[cfg(test)]
mod scratch;
