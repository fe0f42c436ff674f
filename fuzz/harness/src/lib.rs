//! What must hold of every parser of bytes from outside, whatever the bytes.
//!
//! Owns: one function a parser, and their list. The fuzz targets call them with
//! what libFuzzer invents, `tests/replay.rs` with the corpora and with random
//! bytes. Must not: know a fuzzer.

mod btf;
mod clamd_conf;
mod events;
mod inotify;
mod kernel_text;
mod lists;
mod log_text;
mod records;
mod replies;
mod sidecars;

pub use btf::btf;
pub use clamd_conf::{clamd_conf, onacc_toml};
pub use events::events;
pub use inotify::inotify;
pub use kernel_text::kernel_text;
pub use lists::lists;
pub use log_text::log_text;
pub use records::{arrivals, records};
pub use replies::replies;
pub use sidecars::sidecars;

/// A parser and what must hold of it.
pub type Check = fn(&[u8]);

/// All of them, by the names of their fuzz targets and corpora.
pub const CHECKS: [(&str, Check); 12] = [
    ("arrivals", arrivals),
    ("btf", btf),
    ("clamd_conf", clamd_conf),
    ("events", events),
    ("inotify", inotify),
    ("kernel_text", kernel_text),
    ("lists", lists),
    ("log_text", log_text),
    ("onacc_toml", onacc_toml),
    ("records", records),
    ("replies", replies),
    ("sidecars", sidecars),
];
