//! Moves across the border of the scope: the place that a file has now decides.
//!
//! What is out of scope was opened before and is ignored in the kernel by then
//! ([`settle`]), so that a stale ignore mark would show. Must not: test mounts
//! (`mounts.rs`) or links (`links.rs`).

mod common;
#[path = "common/settle.rs"]
mod settle;

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
    thread,
    time::Duration,
};

use common::{
    MOVE_WINDOW, Site, assert_opens, assert_refused, clean, counter, counters, infected,
    refused_within,
};
use nix::{
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
    sched::{CloneFlags, unshare},
};
use onacc_tests::{Agent, or_skip, require_root};
use settle::settle;

/// After a directory was moved into the scope: refused within the window.
#[track_caller]
fn assert_soon_refused(path: &Path) {
    let took = refused_within(path, MOVE_WINDOW);
    let took = took.unwrap_or_else(|| panic!("{} is not refused", path.display()));
    if took > Duration::from_millis(5) {
        eprintln!("{}: refused after {took:?}", path.display());
    }
}

/// Moves a tree with an infected file in `out/top/mid/deep` in and out, several
/// times: the part `moved` of that path is what is renamed.
fn a_learned_tree_is_moved(site: &Site, moved: &str) {
    let out = site.scratch().mkdir("out");
    site.scratch().mkdir("out/top/mid/deep");
    let path = site.scratch().write("out/top/mid/deep/bad", &infected());
    let agent = site.agent().start();
    let below = Path::new("top/mid/deep/bad")
        .strip_prefix(moved)
        .expect("it is below");
    let inside = site.watched().join("here");
    for round in 0..5 {
        settle(&agent, &[&path]);
        fs::rename(out.join(moved), &inside).expect("renaming");
        assert_soon_refused(&inside.join(below));
        assert_refused(&inside.join(below));
        fs::rename(&inside, out.join(moved)).expect("renaming");
        assert_opens(&path);
        assert!(counter(&agent, "marks_flushed") > round, "round {round}");
    }
    assert_eq!(counter(&agent, "timeouts"), 0);
}

#[test]
fn a_directory_learned_as_outside_is_protected_once_it_is_moved_in() {
    require_root!();
    a_learned_tree_is_moved(&or_skip!(Site::ext4()), "top/mid/deep");
    a_learned_tree_is_moved(&or_skip!(Site::tmpfs()), "top/mid/deep");
}

#[test]
fn a_directory_learned_as_outside_is_protected_once_an_ancestor_is_moved_in() {
    require_root!();
    for moved in ["top", "top/mid"] {
        a_learned_tree_is_moved(&or_skip!(Site::ext4()), moved);
        a_learned_tree_is_moved(&or_skip!(Site::tmpfs()), moved);
    }
}

#[test]
fn a_move_by_another_mount_namespace_counts_too() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("out/top/deep");
    let path = site.scratch().write("out/top/deep/bad", &infected());
    let agent = site.agent().start();
    settle(&agent, &[&path]);
    let (from, to) = (site.scratch().join("out/top"), site.watched().join("top"));
    thread::scope(|scope| {
        let work = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            fs::rename(&from, &to).unwrap();
        });
        work.join().unwrap();
    });
    assert_soon_refused(&to.join("deep/bad"));
}

#[test]
fn a_file_is_judged_by_where_it_is_at_once_each_time_it_is_moved() {
    require_root!();
    for site in [Site::ext4(), Site::tmpfs()] {
        let site = or_skip!(site);
        site.scratch().mkdir("out");
        let outside = site.scratch().write("out/bad", &infected());
        let good = site.scratch().write("out/good", &clean());
        let inside = site.watched().join("bad");
        let agent = site.agent().start();
        settle(&agent, &[&outside, &good]);
        for _ in 0..20 {
            // A file carries no mark of its directory: right from the first open.
            fs::rename(&outside, &inside).unwrap();
            assert_refused(&inside);
            fs::rename(&inside, &outside).unwrap();
            assert_opens(&outside);
        }
        fs::rename(&good, site.watched().join("good")).unwrap();
        assert_opens(&site.watched().join("good"));
        assert_eq!(
            counter(&agent, "marks_flushed"),
            0,
            "no directory was moved"
        );
    }
}

#[test]
fn a_directory_moved_from_an_excluded_place_to_its_included_parent_is_protected() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("in/off/dir/deep");
    let excluded = site.write("off/dir/bad", &infected());
    let deep = site.write("off/dir/deep/bad", &infected());
    let (off, on) = (site.watched().join("off/dir"), site.watched().join("dir"));
    let agent = site.agent().exclude(site.watched().join("off")).start();
    for _ in 0..3 {
        settle(&agent, &[&excluded, &deep]);
        fs::rename(&off, &on).unwrap();
        assert_soon_refused(&on.join("bad"));
        assert_soon_refused(&on.join("deep/bad"));
        fs::rename(&on, &off).unwrap();
        assert_opens(&excluded);
        assert_opens(&deep);
    }
}

#[test]
fn directories_exchanged_across_the_border_change_sides() {
    require_root!();
    for site in [Site::ext4(), Site::tmpfs()] {
        let site = or_skip!(site);
        site.scratch().mkdir("out/dir/deep");
        site.scratch().mkdir("in/dir/deep");
        let outside = site.scratch().write("out/dir/deep/bad", &infected());
        let inside = site.write("dir/deep/bad", &[infected(), b"2".to_vec()].concat());
        let agent = site.agent().start();
        for _ in 0..3 {
            settle(&agent, &[&outside]);
            assert_refused(&inside);
            renameat2(
                AT_FDCWD,
                &site.scratch().join("out/dir"),
                AT_FDCWD,
                &site.watched().join("dir"),
                RenameFlags::RENAME_EXCHANGE,
            )
            .unwrap();
            assert_soon_refused(&inside);
            assert_opens(&outside);
        }
    }
}

#[test]
fn an_include_path_that_is_deleted_and_made_anew_is_protected_again() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let _agent = site.agent().start();
    for _ in 0..10 {
        assert_refused(&site.write("bad", &infected()));
        fs::remove_dir_all(site.watched()).unwrap();
        fs::create_dir(site.watched()).unwrap();
    }
    assert_opens(&site.write("good", &clean()));
}

#[test]
fn a_directory_that_takes_the_name_of_the_include_path_is_protected() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("other/deep");
    site.scratch().mkdir("in/deep");
    let other = site.scratch().write("other/deep/bad", &infected());
    let inside = site.write("deep/bad", &infected());
    let (watched, away) = (site.watched(), site.scratch().join("away"));
    let agent = site.agent().start();
    settle(&agent, &[&other]);
    assert_refused(&inside);
    fs::rename(&watched, &away).unwrap();
    assert_opens(&away.join("deep/bad"));
    fs::rename(site.scratch().join("other"), &watched).unwrap();
    assert_soon_refused(&inside);
    // And with both learned and refused before: the other way round.
    settle(&agent, &[&away.join("deep/bad")]);
    let flags = RenameFlags::RENAME_EXCHANGE;
    renameat2(AT_FDCWD, &watched, AT_FDCWD, &away, flags).unwrap();
    assert_soon_refused(&inside);
    assert_opens(&away.join("deep/bad"));
}

#[test]
fn an_include_path_that_appears_later_is_protected_from_its_first_file_on() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let late = site.scratch().join("not/yet/here");
    let agent = site.agent().include(&late).start();
    let output = agent.output();
    assert!(output.contains("does not exist (yet)"), "{output}");
    site.scratch().mkdir("not/yet");
    // Not ignored, in whose directory the include path will be: always looked at.
    let beside = site.scratch().write("not/yet/bad", &infected());
    assert_opens(&beside);
    fs::create_dir(&late).unwrap();
    let bad = late.join("bad");
    fs::write(&bad, infected()).unwrap();
    assert_refused(&bad);
    assert_opens(&beside);
    // It goes, and comes again as a directory that was learned as outside.
    fs::remove_dir_all(&late).unwrap();
    site.scratch().mkdir("tree/yet/here");
    let learned = site.scratch().write("tree/yet/here/bad", &infected());
    settle(&agent, &[&learned]);
    fs::remove_dir_all(site.scratch().join("not")).unwrap();
    fs::rename(site.scratch().join("tree"), site.scratch().join("not")).unwrap();
    assert_soon_refused(&bad);
}

#[test]
fn an_include_path_that_appears_later_as_a_symlink_protects_what_it_leads_to() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("real");
    let real = site.scratch().write("real/bad", &infected());
    let late = site.scratch().join("late");
    let agent = site.agent().include(&late).start();
    settle(&agent, &[&real]);
    symlink("real", &late).unwrap();
    // No event tells of a symlink: the agent looks every few seconds.
    let took = refused_within(&late.join("bad"), Duration::from_secs(10));
    assert!(took.is_some(), "an include path that leads there now");
    assert_refused(&real);
}

#[test]
fn the_nearest_of_nested_paths_decides_before_and_after_moves() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let write = |dir: &str| {
        site.scratch().mkdir(dir);
        site.scratch().write(format!("{dir}/bad"), &infected())
    };
    let excluded = write("in/off/dir");
    let included = write("in/off/on/dir");
    let again = write("in/off/on/off/dir");
    let agent = site
        .agent()
        .exclude(site.watched().join("off"))
        .include(site.watched().join("off/on"))
        .exclude(site.watched().join("off/on/off"))
        .start();
    settle(&agent, &[&excluded, &again]);
    assert_refused(&included);
    // Each directory one step on: out of, into, and out of the scope.
    let at = |place: &str| site.watched().join(place);
    for _ in 0..3 {
        let spare = site.scratch().join("spare");
        fs::rename(at("off/on/off/dir"), &spare).unwrap();
        fs::rename(at("off/on/dir"), at("off/on/off/dir")).unwrap();
        fs::rename(at("off/dir"), at("off/on/dir")).unwrap();
        fs::rename(&spare, at("off/dir")).unwrap();
        assert_soon_refused(&included);
        assert_opens(&excluded);
        assert_opens(&again);
        settle(&agent, &[&excluded, &again]);
        assert_refused(&included);
    }
}

#[test]
fn an_include_path_with_a_symlink_is_resolved_and_says_so() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("real/dir");
    symlink("real", site.scratch().join("link")).unwrap();
    let link = site.scratch().join("link/dir");
    let real = site.scratch().join("real/dir");
    let agent = Agent::builder(site.clamd())
        .prevention(true)
        .include(&link)
        .start();
    let said = format!("{} leads to {}", link.display(), real.display());
    for text in [agent.output(), agent.log()] {
        assert!(text.contains(&said), "{said:?} is not in:\n{text}");
    }
    fs::write(real.join("bad"), infected()).unwrap();
    assert_refused(&real.join("bad"));
    assert_refused(&link.join("bad"));
}

#[test]
fn a_file_named_as_include_path_stays_protected_when_it_is_replaced() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("dir");
    let named = site.scratch().write("dir/named", &infected());
    let sibling = site.scratch().write("dir/sibling", &infected());
    let agent = Agent::builder(site.clamd())
        .prevention(true)
        .include(&named)
        .start();
    for _ in 0..10 {
        assert_refused(&named);
        assert_opens(&sibling);
        let new = site.scratch().write("dir/new", &infected());
        assert_opens(&new);
        fs::rename(&new, &named).unwrap();
    }
    fs::remove_file(&named).unwrap();
    fs::write(&named, infected()).unwrap();
    assert_refused(&named);
    // Its directory must not be ignored, or the file would be hidden with it.
    assert_eq!(counter(&agent, "directories_ignored"), 0);
}

#[test]
fn the_root_of_a_filesystem_can_be_the_include_path() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("a/b");
    let (top, deep) = (
        site.scratch().write("bad", &infected()),
        site.scratch().write("a/b/bad", &infected()),
    );
    let agent = Agent::builder(site.clamd())
        .prevention(true)
        .include(site.scratch().path())
        .exclude(site.watched())
        .start();
    let excluded = site.write("bad", &infected());
    for _ in 0..3 {
        assert_refused(&top);
        assert_refused(&deep);
        assert_opens(&excluded);
    }
    settle(&agent, &[&excluded]);
    let moved = site.scratch().join("moved");
    fs::rename(site.watched(), &moved).unwrap();
    assert_soon_refused(&moved.join("bad"));
}

#[test]
fn an_inode_number_that_was_an_ignored_directory_is_no_excuse() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let agent = site.agent().start();
    let mut reused = 0;
    for _ in 0..5 {
        let old = site.scratch().mkdir("out/dir");
        let number = fs::metadata(&old).unwrap().ino();
        let path = site.scratch().write("out/dir/bad", &infected());
        settle(&agent, &[&path]);
        fs::remove_dir_all(site.scratch().join("out")).unwrap();
        for n in 0..8 {
            let new = site.scratch().mkdir(format!("in/{n}"));
            reused += u32::from(fs::metadata(&new).unwrap().ino() == number);
            assert_refused(&site.write(format!("{n}/bad"), &infected()));
        }
        fs::remove_dir_all(site.watched()).unwrap();
        fs::create_dir(site.watched()).unwrap();
    }
    assert!(reused > 0, "ext4 gave no number again: nothing was tested");
}

/// The kernel may let go of the inodes above an ignored directory, and of their
/// watches, while that directory's own inode stays because it is dirty.
#[test]
fn a_directory_above_that_was_let_go_of_by_the_kernel_is_protected_once_moved_in() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("out/top/mid/deep");
    let path = site.scratch().write("out/top/mid/deep/bad", &infected());
    let deep = path.parent().unwrap();
    let agent = site.agent().start();
    for round in 0..5 {
        settle(&agent, &[&path]);
        // A new stamp makes the directory's inode dirty; writing it back is seconds off.
        let stamped = fs::File::open(deep).unwrap();
        stamped.set_modified(std::time::SystemTime::now()).unwrap();
        drop(stamped);
        if let Err(error) = fs::write("/proc/sys/vm/drop_caches", "2") {
            onacc_tests::skip!("caches cannot be dropped: {error}");
        }
        let inside = site.watched().join("top");
        fs::rename(site.scratch().join("out/top"), &inside).unwrap();
        let refused = refused_within(&inside.join("mid/deep/bad"), MOVE_WINDOW);
        let counted = counters(&agent);
        assert!(refused.is_some(), "round {round}: {counted:?}");
        fs::rename(&inside, site.scratch().join("out/top")).unwrap();
    }
}

#[test]
fn moves_while_files_are_opened_all_the_time_let_nothing_slip_for_long() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("out/top/deep");
    let outside = site.scratch().write("out/top/deep/bad", &infected());
    let inside = site.watched().join("top/deep/bad");
    let _agent = site.agent().start();
    let (out, into) = (site.scratch().join("out/top"), site.watched().join("top"));
    let done = std::sync::atomic::AtomicBool::new(false);
    let rounds = 200;
    let mut slipped = 0;
    thread::scope(|scope| {
        for path in [&outside, &inside] {
            let done = &done;
            // Has the directory learned again and again, at the worst of times.
            scope.spawn(move || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = fs::File::open(path);
                }
            });
        }
        for _ in 0..rounds {
            fs::rename(&out, &into).unwrap();
            let took = refused_within(&inside, MOVE_WINDOW);
            if took.is_none() {
                done.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            slipped += u32::from(took.expect("refused in the end") > Duration::from_millis(1));
            assert_refused(&inside);
            fs::rename(&into, &out).unwrap();
            assert_opens(&outside);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    eprintln!("{slipped} of {rounds} moves were followed only after a first open");
}
