//! The whole on a real kernel: a notification group (it blocks nobody) on a
//! tmpfs in a mount namespace of the test's thread.

mod bench;
mod churn;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{DirectoriesMessage, Marker as _, Reach};
use crate::coverage::scratch::{Scratch, marked_inodes, opened, or_skip, unmount};
use crate::kernel::inotify::InotifyBuffer;
use bench::{Bench, all_below, make};

#[test]
fn the_first_walk_marks_every_directory_in_scope() {
    let scratch = or_skip!(Scratch::new());
    make(&scratch, &["in/a/b/c", "in/skip/x/in/y", "out/z", "in/a/d"]);
    std::os::unix::fs::symlink(scratch.path().join("out"), scratch.path().join("in/link")).unwrap();
    nix::unistd::mkfifo(
        &scratch.path().join("in/fifo"),
        nix::sys::stat::Mode::S_IRWXU,
    )
    .unwrap();
    let mut bench = Bench::new(&scratch, &["in", "in/skip/x/in"], &["in/skip"]);
    let found = bench.walk();
    bench.settle();
    let mut wanted = all_below(&scratch.path().join("in/a"));
    wanted.push(scratch.path().join("in"));
    wanted.extend(all_below(&scratch.path().join("in/skip/x/in")));
    bench.check(&wanted);
    assert_eq!(
        (found.marked, found.unwatched, found.troubled),
        (wanted.len(), 0, 0)
    );
    let files = ["in/a/b/f", "in/skip/f", "out/f", "in/skip/x/in/y/f"];
    let files = files.map(|name| scratch.path().join(name));
    for file in &files {
        fs::write(file, "x").unwrap();
    }
    let seen = opened(&bench.group, &files);
    assert_eq!(seen, [files[0].clone(), files[3].clone()]);
}

#[test]
fn what_appears_is_marked_and_what_was_in_it_is_scanned() {
    let scratch = or_skip!(Scratch::new());
    make(&scratch, &["in", "out/moved/in"]);
    let mut bench = Bench::new(&scratch, &["in"], &[]);
    fs::write(scratch.path().join("in/old"), "x").unwrap();
    bench.walk();
    make(&scratch, &["in/p/q/r"]);
    fs::write(scratch.path().join("in/p/q/r/f"), "x").unwrap();
    fs::write(scratch.path().join("out/moved/in/g"), "x").unwrap();
    bench.settle();
    fs::rename(
        scratch.path().join("out/moved"),
        scratch.path().join("in/moved"),
    )
    .unwrap();
    bench.settle();
    bench.check(&all_below(&scratch.path().join("in")));
    let mut scanned = bench.prescans();
    scanned.sort();
    let wanted = ["in/moved/in/g", "in/p/q/r/f"].map(|name| scratch.path().join(name));
    assert_eq!(scanned, wanted);
}

#[test]
fn files_that_find_the_prescans_busy_wait_their_turn() {
    let scratch = or_skip!(Scratch::new());
    make(&scratch, &["in"]);
    let mut bench = Bench::new(&scratch, &["in"], &[]);
    bench.walk();
    make(&scratch, &["in/new"]);
    for at in 0..20 {
        fs::write(scratch.path().join(format!("in/new/{at}")), "x").unwrap();
    }
    let (mut seen, until) = (BTreeSet::new(), Instant::now() + Duration::from_secs(5));
    while seen.len() < 20 && Instant::now() < until {
        bench.directories.round();
        seen.extend(bench.prescans());
    }
    assert_eq!(seen.len(), 20);
    assert_eq!(bench.counters.prescans_dropped.get(), 0);
}

#[test]
fn a_move_within_takes_no_mark_away_and_a_move_out_does() {
    let scratch = or_skip!(Scratch::new());
    make(
        &scratch,
        &["in/a/b/c", "in/d", "out", "in/skip", "in/a/b/e"],
    );
    let mut bench = Bench::new(&scratch, &["in"], &["in/skip"]);
    bench.walk();
    let at = |name: &str| scratch.path().join(name);
    let before = bench.counters.directory_marks.get();
    fs::rename(at("in/a"), at("in/d/a")).unwrap();
    bench.settle_and_unmark();
    assert_eq!(
        bench.counters.directory_marks.get(),
        before,
        "moved as it was"
    );
    assert_eq!(bench.counters.directory_marks_removed.get(), 0);
    let mut wanted = all_below(&at("in/d"));
    wanted.push(at("in"));
    bench.check(&wanted);

    fs::rename(at("in/d/a/b"), at("out/b")).unwrap();
    bench.settle_and_unmark();
    bench.check(&[at("in"), at("in/d"), at("in/d/a")]);
    fs::rename(at("in/d/a"), at("in/skip/a")).unwrap();
    bench.settle_and_unmark();
    bench.check(&[at("in"), at("in/d")]);
    fs::rename(at("out/b"), at("in/b")).unwrap();
    fs::rename(at("in/skip/a"), at("in/b/a")).unwrap();
    bench.settle_and_unmark();
    let mut wanted = all_below(&at("in/b"));
    wanted.extend([at("in"), at("in/d")]);
    bench.check(&wanted);
}

#[test]
fn two_directories_change_places() {
    let scratch = or_skip!(Scratch::new());
    make(&scratch, &["in/a/a1/a2", "in/b/b1/b2", "out/c/c1"]);
    let mut bench = Bench::new(&scratch, &["in"], &[]);
    bench.walk();
    let exchange = |one: &str, other: &str| {
        let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
        let [one, other] = [one, other].map(|name| scratch.path().join(name));
        let cwd = nix::fcntl::AT_FDCWD;
        nix::fcntl::renameat2(cwd, &one, cwd, &other, flags).unwrap();
    };
    exchange("in/a", "in/b");
    bench.settle_and_unmark();
    bench.check(&all_below(&scratch.path().join("in")));
    exchange("in/a/b1", "out/c");
    bench.settle_and_unmark();
    bench.check(&all_below(&scratch.path().join("in")));
}

#[test]
fn an_include_path_may_come_go_and_come_again() {
    let scratch = or_skip!(Scratch::new());
    let at = |name: &str| scratch.path().join(name);
    let mut bench = Bench::new(&scratch, &["far/away/in"], &[]);
    assert_eq!(bench.walk().marked, 0);
    for round in 0..3 {
        make(&scratch, &["far/away/in/x"]);
        bench.settle();
        bench.check(&all_below(&at("far/away/in")));
        if round == 1 {
            fs::rename(at("far"), at("near")).unwrap();
        } else {
            fs::remove_dir_all(at("far")).unwrap();
        }
        bench.settle_and_unmark();
        bench.check(&[]);
    }
    fs::rename(at("near"), at("far")).unwrap();
    bench.settle();
    bench.check(&all_below(&at("far/away/in")));
}

#[test]
fn a_named_file_is_protected_when_another_takes_its_place() {
    let scratch = or_skip!(Scratch::new());
    make(&scratch, &["etc"]);
    let at = |name: &str| scratch.path().join(name);
    let mut bench = Bench::new(&scratch, &["etc/file"], &[]);
    bench.walk();
    bench.check(&[]);
    fs::write(at("etc/file"), "x").unwrap();
    bench.settle();
    bench.check(&[at("etc")]);
    fs::write(at("etc/new"), "y").unwrap();
    fs::rename(at("etc/new"), at("etc/file")).unwrap();
    assert_eq!(opened(&bench.group, &[at("etc/file")]), [at("etc/file")]);
}

#[test]
fn named_directories_alone() {
    let scratch = or_skip!(Scratch::new());
    make(&scratch, &["in/a/b/c", "other"]);
    let at = |name: &str| scratch.path().join(name);
    let paths: (&[&str], &[&str]) = (&["in", "in/a/b", "later/x"], &[]);
    let mut bench = Bench::with_reach(&scratch, paths, Reach::NamedAlone);
    bench.walk();
    bench.settle();
    bench.check(&[at("in"), at("in/a/b")]);
    make(&scratch, &["in/new", "later/x/y"]);
    bench.settle();
    bench.check(&[at("in"), at("in/a/b"), at("later/x")]);
    fs::rename(at("later/x"), at("other/x")).unwrap();
    make(&scratch, &["later/x"]);
    bench.settle_and_unmark();
    bench.check(&[at("in"), at("in/a/b"), at("later/x")]);
}

#[test]
fn mounts_below_come_and_go() {
    let scratch = or_skip!(Scratch::new());
    make(&scratch, &["in/point/hidden/x", "in/b"]);
    let at = |name: &str| scratch.path().join(name);
    let mut bench = Bench::new(&scratch, &["in"], &["in/point/skip"]);
    bench.walk();
    bench.check(&all_below(&at("in")));
    let hidden: Vec<u64> = ["in/point", "in/point/hidden", "in/point/hidden/x"]
        .map(|name| fs::metadata(at(name)).unwrap().ino())
        .into();

    let point = scratch.mount("in/point");
    make(&scratch, &["in/point/m/n", "in/point/skip/o"]);
    bench.mounts_changed();
    bench.settle_and_unmark();
    let marked = marked_inodes(&bench.group);
    assert!(
        hidden.iter().all(|inode| marked.contains(inode)),
        "hidden ones keep theirs"
    );
    let mut files = vec![];
    for (name, _) in [
        ("in/point/m/n/f", 1),
        ("in/point/skip/o/f", 0),
        ("in/point/f", 1),
    ] {
        fs::write(at(name), "x").unwrap();
        files.push(at(name));
    }
    let seen = opened(&bench.group, &files);
    assert_eq!(seen, [at("in/point/f"), at("in/point/m/n/f")]);

    unmount(&point);
    bench.mounts_changed();
    bench.settle_and_unmark();
    bench.check(&all_below(&at("in")));
}

#[test]
fn a_file_mounted_in_the_scope_is_marked_and_let_go_of() {
    let is_seen = |bench: &Bench, path: &PathBuf| {
        !opened(&bench.group, std::slice::from_ref(path)).is_empty()
    };
    for reach in [Reach::Whole, Reach::NamedAlone] {
        let scratch = or_skip!(Scratch::new());
        make(&scratch, &["in/skip", "out"]);
        let at = |name: &str| scratch.path().join(name);
        for name in [
            "out/one",
            "out/two",
            "in/place",
            "in/other",
            "in/skip/place",
        ] {
            fs::write(at(name), "x").unwrap();
        }
        let files = [at("out/one"), at("out/two")];
        // There before the walk.
        let first = scratch.bind_file(&files[0], "in/place");
        let mut bench = Bench::with_reach(&scratch, (&["in"], &["in/skip"]), reach);
        bench.walk();
        assert!(is_seen(&bench, &first));
        assert_eq!(
            opened(&bench.group, &files),
            [at("out/one")],
            "the scope names its place"
        );
        // Coming, twice, and once where it is excluded.
        let second = scratch.bind_file(&files[1], "in/skip/place");
        bench.mounts_changed();
        bench.settle();
        assert!(!is_seen(&bench, &second));
        let third = scratch.bind_file(&files[0], "in/other");
        bench.mounts_changed();
        bench.settle();
        assert!(is_seen(&bench, &third));
        // Going, and marks that were lost.
        unmount(&first);
        bench.mounts_changed();
        bench.settle();
        assert!(is_seen(&bench, &third));
        bench.group.flush_inode_marks().unwrap();
        bench.messages.send(DirectoriesMessage::MarksLost);
        bench.settle();
        assert!(is_seen(&bench, &third));
        unmount(&third);
        unmount(&second);
        bench.mounts_changed();
        bench.settle_and_unmark();
        assert!(opened(&bench.group, &files).is_empty());
        bench.check(&[at("in")]);
    }
}

#[test]
fn what_appears_during_the_first_walk_is_marked() {
    let scratch = or_skip!(Scratch::new());
    let at = |name: String| scratch.path().join(name);
    for n in 0..3000 {
        fs::create_dir_all(at(format!("in/{}/{n}", n % 30))).unwrap();
    }
    let mut bench = Bench::new(&scratch, &["in"], &[]);
    let start = std::sync::Arc::new(std::sync::Barrier::new(2));
    let base = scratch.path();
    let told = std::sync::Arc::clone(&start);
    let maker = std::thread::spawn(move || {
        told.wait();
        for n in 0..3000 {
            let leaf = base.join(format!("in/{}/{n}", n % 30));
            match n % 3 {
                0 => fs::create_dir_all(leaf.join("new/er")).unwrap(),
                1 => fs::rename(&leaf, base.join(format!("in/{}/moved{n}", (n + 1) % 30))).unwrap(),
                _ => fs::remove_dir(&leaf).unwrap(),
            }
        }
    });
    start.wait();
    bench.walk();
    maker.join().unwrap();
    bench.settle_and_unmark();
    bench.check(&all_below(&scratch.path().join("in")));
}

#[test]
fn an_inode_seen_at_two_places_keeps_its_mark_as_long_as_one_is_there() {
    let scratch = or_skip!(Scratch::new());
    make(&scratch, &["in/real/sub/x", "in/b"]);
    let at = |name: &str| scratch.path().join(name);
    let mut bench = Bench::new(&scratch, &["in"], &[]);
    bench.walk();
    let bound = scratch.bind(&at("in/real"), "in/b/bound");
    bench.mounts_changed();
    bench.settle_and_unmark();
    bench.check(&all_below(&at("in")));
    make(&scratch, &["in/b/bound/new/y"]);
    bench.settle_and_unmark();
    bench.check(&all_below(&at("in")));
    unmount(&bound);
    bench.mounts_changed();
    bench.settle_and_unmark();
    let mut wanted = all_below(&at("in"));
    wanted.dedup();
    bench.check(&wanted);
}

#[test]
fn lost_events_cost_a_comparison_and_no_protection() {
    let scratch = or_skip!(Scratch::new());
    make(&scratch, &["in/a/b/c", "in/d/e/f", "in/g/h"]);
    let at = |name: &str| scratch.path().join(name);
    let mut bench = Bench::new(&scratch, &["in"], &[]);
    bench.walk();
    make(&scratch, &["in/a/b/new/x"]);
    fs::rename(at("in/d/e"), at("in/g/h/e")).unwrap();
    fs::remove_dir(at("in/d")).unwrap();
    fs::rename(at("in/a/b/c"), at("in/d")).unwrap();
    fs::write(at("in/a/b/new/x/f"), "x").unwrap();
    // All that the kernel had to tell is lost.
    let mut buffer = InotifyBuffer::new();
    while bench.directories.marker.read(&mut buffer).unwrap().count() > 0 {}
    bench.overflow();
    bench.overflow();
    bench.settle_and_unmark();
    bench.check(&all_below(&at("in")));
    assert_eq!(bench.prescans(), [at("in/a/b/new/x/f")]);
    assert_eq!(bench.counters.directory_rescans.get(), 2);
}

#[test]
fn a_queue_that_has_run_over_hides_no_directory() {
    let scratch = or_skip!(Scratch::new());
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    if limit > 100_000 {
        println!("SKIPPED: the inotify queue holds {limit} events");
        return;
    }
    make(&scratch, &["in/a", "in/b"]);
    let at = |name: &str| scratch.path().join(name);
    let mut bench = Bench::new(&scratch, &["in"], &[]);
    bench.walk();
    for n in 0..=limit {
        fs::File::create(at(&format!("in/a/file{n}"))).unwrap();
    }
    // Of these nothing tells any more.
    make(&scratch, &["in/b/new/er", "in/a/new"]);
    fs::rename(at("in/b"), at("in/c")).unwrap();
    bench.settle_and_unmark();
    bench.check(&all_below(&at("in")));
    assert!(bench.counters.directory_rescans.get() > 0);
}

#[test]
fn marks_that_were_flushed_are_placed_again() {
    let scratch = or_skip!(Scratch::new());
    make(&scratch, &["in/a/b/c"]);
    let mut bench = Bench::new(&scratch, &["in"], &[]);
    bench.walk();
    bench.group.flush_inode_marks().unwrap();
    bench.check(&[]);
    bench.messages.send(DirectoriesMessage::MarksLost);
    bench.settle();
    bench.check(&all_below(&scratch.path().join("in")));
}

#[test]
fn without_watches_directories_are_protected_and_found_by_looking_again() {
    let scratch = or_skip!(Scratch::new());
    for at in 0..40 {
        make(&scratch, &[&format!("in/{at}/x")]);
    }
    let at = |name: &str| scratch.path().join(name);
    let mut bench = Bench::new(&scratch, &["in"], &[]);
    bench.watches_left.set(30);
    let found = bench.walk();
    assert_eq!(found.marked, 81);
    assert!(found.unwatched >= 50, "{found:?}");
    bench.check(&all_below(&at("in")));
    // Seen by looking, not told.
    make(&scratch, &["in/39/x/new/y"]);
    fs::write(at("in/39/x/new/y/f"), "x").unwrap();
    bench.settle();
    for _ in 0..3 {
        bench.directories.poll();
        bench.settle();
    }
    bench.check(&all_below(&at("in")));
    assert_eq!(bench.prescans(), [at("in/39/x/new/y/f")]);
    fs::remove_dir_all(at("in/39")).unwrap();
    bench.directories.poll();
    bench.settle();
    bench.check(&all_below(&at("in")));
    // Watches are free again.
    bench.watches_left.set(usize::MAX);
    bench.directories.poll();
    bench.settle();
    assert!(bench.directories.upkeep.polled.is_empty());
    make(&scratch, &["in/38/x/told"]);
    bench.settle();
    bench.check(&all_below(&at("in")));
}

#[test]
fn the_thread_starts_walks_and_stops() {
    let scratch = or_skip!(Scratch::new());
    make(&scratch, &["in/a"]);
    let bench = Bench::new(&scratch, &["in"], &[]);
    let (messages, group, path) = (
        bench.messages.clone(),
        Arc::clone(&bench.group),
        scratch.path(),
    );
    let helper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        fs::create_dir_all(path.join("in/b/c")).unwrap();
        let until = Instant::now() + Duration::from_secs(5);
        while marked_inodes(&group).len() < 4 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        messages.send(DirectoriesMessage::Stop);
        marked_inodes(&group).len()
    });
    bench.directories.run();
    assert_eq!(helper.join().unwrap(), 4);
}
