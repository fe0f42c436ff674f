//! Many changes at once, and what a large tree costs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::bench::{Bench, all_below, links, make, policy};
use crate::coverage::directories::{Directories, DirectoriesMessage, Reach};
use crate::coverage::scratch::{Scratch, marked_inodes, or_skip, table, told};
use crate::kernel::fanotify::{Group, GroupKind};

/// Trees are made, moved and deleted by two threads while the walk goes on; in
/// the end each directory in scope carries a mark, and no other one.
#[test]
fn in_the_end_the_marks_are_where_they_should_be() {
    let scratch = or_skip!(Scratch::new());
    make(&scratch, &["in/skip/deep", "out"]);
    let mut bench = Bench::new(&scratch, &["in", "in/skip/deep"], &["in/skip"]);
    bench.walk();
    let rounds = std::env::var("ONACC_CHURN_ROUNDS").map_or(20, |rounds| rounds.parse().unwrap());
    for seed in 0..rounds {
        let workers: Vec<_> = (0..2)
            .map(|worker| {
                let base = scratch.path();
                std::thread::spawn(move || churn(&base, seed * 2 + worker))
            })
            .collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            bench.directories.round();
        }
        for worker in workers {
            worker.join().unwrap();
        }
        if seed % 5 == 4 {
            bench.overflow();
        }
        bench.settle_and_unmark();
        let base = scratch.path();
        let (skip, deep) = (base.join("in/skip"), base.join("in/skip/deep"));
        let wanted: Vec<PathBuf> = all_below(&base.join("in"))
            .into_iter()
            .filter(|path| !path.starts_with(&skip) || path.starts_with(&deep))
            .collect();
        bench.check(&wanted);
    }
    assert_eq!(bench.counters.directory_errors.get(), 0);
}

fn churn(base: &Path, seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % below
    };
    let fixed = ["in", "out", "in/skip", "in/skip/deep"];
    for _ in 0..300 {
        let place = |random: &mut dyn FnMut(usize) -> usize| {
            let mut path = base.join(fixed[random(fixed.len())]);
            for _ in 0..=random(3) {
                path.push(["a", "b", "c"][random(3)]);
            }
            path
        };
        let (one, other) = (place(&mut random), place(&mut random));
        // Each may fail, for the other worker is at it too.
        let _may_fail = match random(6) {
            0..=2 => fs::create_dir_all(&one),
            3 | 4 => fs::rename(&one, &other),
            _ => fs::remove_dir_all(&one),
        };
    }
}

/// Prints what a large tree costs. Run with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn a_hundred_thousand_directories() {
    let scratch = or_skip!(Scratch::new());
    for one in 0..100 {
        for two in 0..100 {
            for three in 0..10 {
                make(
                    &scratch,
                    &[&format!("in/directory{one}/sub{two}/leaf-{three}")],
                );
            }
        }
    }
    let before = resident();
    let mut bench = Bench::new(&scratch, &["in"], &[]);
    let (start, worked) = (Instant::now(), processor_time());
    let found = bench.walk();
    let walked = (start.elapsed(), processor_time().saturating_sub(worked));
    println!(
        "first walk: {found:?} in {walked:?} (passed, processor), {} KiB",
        resident() - before
    );
    let start = Instant::now();
    bench.overflow();
    bench.settle();
    println!("comparison of all: {:?}", start.elapsed());
    let start = Instant::now();
    fs::rename(
        scratch.path().join("in/directory7"),
        scratch.path().join("in/moved"),
    )
    .unwrap();
    bench.settle();
    println!("move of 1,101 directories: {:?}", start.elapsed());
    fs::rename(
        scratch.path().join("in/moved"),
        scratch.path().join("moved"),
    )
    .unwrap();
    bench.settle();
    let start = Instant::now();
    bench.directories.unmark_what_left();
    println!("unmarking 1,101 that moved out: {:?}", start.elapsed());
    println!("{} KiB after all", resident() - before);
    let start = Instant::now();
    for at in 0..10_000 {
        make(&scratch, &[&format!("in/directory0/new{at}/x")]);
        if at % 1000 == 0 {
            bench.directories.round();
        }
    }
    bench.settle();
    println!(
        "20,000 new directories, made and marked: {:?}",
        start.elapsed()
    );
    fs::remove_dir_all(scratch.path().join("in")).unwrap();
    bench.settle();
    println!(
        "all deleted: {} KiB, {} directories",
        resident() - before,
        bench.directories.tree.count()
    );
}

/// Processor time of this thread: other load of the machine does not count.
fn processor_time() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .unwrap()
        .into()
}

/// Resident memory of this process, KiB.
fn resident() -> i64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Prints how many of 200 files, written into a directory made a moment before
/// and read at once, are events; the others are scanned after the fact.
#[test]
#[ignore = "a measurement"]
fn files_read_at_once_in_a_new_directory() {
    let scratch = or_skip!(Scratch::new());
    make(&scratch, &["in"]);
    let group = Group::new(GroupKind::Notification).unwrap();
    let include = scratch.path().join("in");
    let (links, messages, jobs) =
        links(&group, (std::slice::from_ref(&include), &[]), Reach::Whole);
    let policy = policy(&[include], &[], table());
    let thread = std::thread::spawn(move || Directories::new(links, policy).unwrap().run());
    while marked_inodes(&group).is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let (mut events, mut prescans) = (0, 0);
    for at in 0..200 {
        let directory = scratch.path().join(format!("in/{at}"));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("f"), "x").unwrap();
        told(&group);
        drop(fs::File::open(directory.join("f")).unwrap());
        events += usize::from(!told(&group).is_empty());
        std::thread::sleep(Duration::from_millis(5));
        let mut waiting = Vec::new();
        jobs.drain(&mut waiting);
        prescans += waiting.len();
    }
    println!("events at the read: {events} of 200; scanned ahead or after the fact: {prescans}");
    messages.send(DirectoriesMessage::Stop);
    thread.join().unwrap();
}
