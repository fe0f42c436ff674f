//! The floor: the least that answering a permission event can cost. A loop that
//! reads an event and answers allow, and nothing else.
//!
//! Owns: the loop. Must not: mark anything but a filesystem of the benchmark's
//! own. Tested below.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::unistd::read;

use crate::{
    bench::{
        answerer::{Answerer, Event, answer, c_path},
        sys::{ContentGroup, own},
    },
    shell::Result,
};

/// Starts to answer all opens on the filesystem that this file is on.
pub fn start(file: &Path) -> Result<Answerer> {
    start_ignoring(file, &[], &[])
}

/// The same, but for opens of these files, and in these directories, which the
/// kernel keeps to itself.
pub fn start_ignoring(file: &Path, files: &[&Path], directories: &[&Path]) -> Result<Answerer> {
    let fail = |error: std::io::Error| format!("the floor: {error}");
    let group = ContentGroup::new().map_err(fail)?;
    for path in files {
        group.ignore_file(&c_path(path)?).map_err(fail)?;
    }
    for path in directories {
        group.ignore_directory(&c_path(path)?).map_err(fail)?;
    }
    // Last, for from here on somebody must answer. The group goes with the
    // loop, and whoever waits is let go.
    group.mark_filesystem(&c_path(file)?).map_err(fail)?;
    Answerer::start("the floor", file, move |stop| answer_all(&group, stop))
}

/// Reads and answers until told to stop.
fn answer_all(group: &ContentGroup, stop: &AtomicBool) -> Result<u64> {
    let mut buffer = [0; 4096];
    let mut answered = 0;
    while !stop.load(Ordering::SeqCst) {
        let length =
            read(group, &mut buffer).map_err(|error| format!("reading events: {error}"))?;
        let mut rest = &buffer[..length];
        while let Some(event) = Event::parse(rest) {
            answer(group, &own(event.fd), libc::FAN_ALLOW)?;
            answered += 1;
            rest = &rest[event.length..];
        }
    }
    Ok(answered)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use onacc_tests::{ScratchFs, or_skip, require_root};

    use super::*;

    #[test]
    fn the_floor_answers_every_open_and_ends() {
        require_root!();
        let scratch = or_skip!(ScratchFs::tmpfs(1));
        let file = scratch.write("file", b"x");
        let floor = or_skip!(start(&file));
        for _ in 0..100 {
            File::open(&file).unwrap();
        }
        // Whether the last one, which wakes the loop, finds it reading or at its
        // end is a race.
        let answered = floor.end().unwrap();
        assert!((100..=101).contains(&answered), "{answered}");
        File::open(&file).unwrap();
    }
}
