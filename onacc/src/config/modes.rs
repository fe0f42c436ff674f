//! Choices that are made by a word, on the command line and in files alike.
//!
//! Owns the words and what they mean. Must not act on them: `coverage` does.

use clap::ValueEnum;

/// What carries the marks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CoverageMode {
    /// "filesystem" where the kernel has what it needs (6.0), else "directory";
    /// "listed" with `OnAccessDisableDDD`
    #[default]
    Auto,
    /// One mark on each filesystem: no walk at start, no limit of inotify, sees
    /// every mount namespace
    Filesystem,
    /// A mark on each directory, kept up with inotify as directories come and go
    Directory,
    /// The named directories alone, without those below them
    Listed,
    /// One mark on each mount that holds a named path; blind to other mounts of
    /// the same filesystem
    Mount,
}

/// Which ignore marks the kernel keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum MarksMode {
    /// On clean files where every change is seen, and on directories out of
    /// scope: fastest, with a window of microseconds after a store through a
    /// mapping or a move
    #[default]
    Auto,
    /// None on files that anyone can write: a clean file that is opened again is
    /// an event, answered from memory where its stamps tell every change
    Strict,
    /// None at all: opens out of scope stay events too, and no window is left
    Off,
}

/// How eBPF is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BpfMode {
    /// Use what the kernel allows, and do without the rest
    #[default]
    Auto,
    /// Use no eBPF. No kernel marks are then kept for files that could be
    /// mapped for writing, so that these are looked at more often
    Off,
    /// Do not start if the kernel refuses eBPF
    Require,
}
