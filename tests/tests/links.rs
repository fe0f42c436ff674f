//! Files with several names, with none, or with a new one: what holds for each.
//!
//! The rule: an open is judged by the place of the name that it used, its
//! content by what clamd says of the inode. `prevention.rs` has the plain links
//! within the scope. Must not: move directories (`moves.rs`).

mod common;
#[path = "common/settle.rs"]
mod settle;

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileExt, OpenOptionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use common::{
    Site, assert_opens, assert_refused, clean, counter, counters, infected, open_until_marked,
};
use nix::{
    fcntl::{AT_FDCWD, AtFlags, OFlag, openat},
    sys::{
        memfd::{MFdFlags, memfd_create},
        stat::{Mode, mkdirat},
    },
    unistd::linkat,
};
use onacc_tests::{Agent, or_skip, require_root};
use settle::settle;

/// The name that `/proc` has for an open file: opening it opens the inode anew.
fn by_proc(file: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        file.as_raw_fd()
    ))
}

fn append(path: &Path, content: &[u8]) {
    let mut file = OpenOptions::new().append(true).open(path).expect("opening");
    file.write_all(content).expect("writing");
}

#[test]
fn a_hard_link_into_the_scope_is_refused_and_its_name_outside_opens() {
    require_root!();
    for site in [Site::ext4(), Site::tmpfs()] {
        let site = or_skip!(site);
        site.scratch().mkdir("out");
        let outside = site.scratch().write("out/bad", &infected());
        let inside = site.watched().join("hard");
        let agent = site.agent().start();
        settle(&agent, &[&outside]);
        fs::hard_link(&outside, &inside).unwrap();
        for _ in 0..5 {
            assert_refused(&inside);
            assert_opens(&outside);
        }
        fs::remove_file(&outside).unwrap();
        assert_refused(&inside);
        fs::hard_link(&inside, &outside).unwrap();
        fs::remove_file(&inside).unwrap();
        assert_opens(&outside);
    }
}

#[test]
fn a_clean_verdict_by_one_name_goes_when_the_file_is_changed_by_another() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("out");
    let outside = site.scratch().write("out/file", &clean());
    let inside = site.watched().join("hard");
    fs::hard_link(&outside, &inside).unwrap();
    let agent = site.agent().start();
    settle(&agent, &[&outside]);
    open_until_marked(&agent, std::slice::from_ref(&inside));
    append(&outside, &common::marker());
    assert_refused(&inside);
    assert_opens(&outside);
    let good = File::create(&outside).unwrap();
    good.write_all_at(&clean(), 0).unwrap();
    drop(good);
    assert_opens(&inside);
}

#[test]
fn a_symlink_is_judged_by_where_it_leads() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("out");
    let outside = site.scratch().write("out/bad", &infected());
    let inside = site.write("bad", &infected());
    let (to_outside, to_inside) = (site.watched().join("soft"), site.scratch().join("out/soft"));
    symlink(&outside, &to_outside).unwrap();
    symlink(&inside, &to_inside).unwrap();
    let agent = site.agent().start();
    settle(&agent, &[&outside, &to_outside]);
    for _ in 0..3 {
        assert_refused(&to_inside);
        assert_opens(&to_outside);
    }
    // It leads elsewhere from now on.
    fs::remove_file(&to_outside).unwrap();
    symlink("bad", &to_outside).unwrap();
    assert_refused(&to_outside);
}

/// Makes directories below `top` until their path is longer than any path can
/// be; the last one, open.
fn beyond_path_max(top: &Path) -> OwnedFd {
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut directory: OwnedFd = File::open(top).expect("opening").into();
    let name = "d".repeat(250);
    for _ in 0..20 {
        mkdirat(&directory, name.as_str(), Mode::from_bits_truncate(0o755))
            .expect("making a directory");
        directory = openat(&directory, name.as_str(), flags, Mode::empty()).expect("opening");
    }
    directory
}

#[test]
fn a_path_too_long_to_be_told_is_scanned_whatever_side_it_is_on() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("in/off");
    let inside = beyond_path_max(&site.watched());
    let excluded = beyond_path_max(&site.watched().join("off"));
    let outside = beyond_path_max(&site.scratch().mkdir("out"));
    let agent = site.agent().exclude(site.watched().join("off")).start();
    for directory in [&inside, &excluded, &outside] {
        let (bad, good) = (
            by_proc(directory).join("bad"),
            by_proc(directory).join("good"),
        );
        fs::write(&bad, infected()).unwrap();
        fs::write(&good, clean()).unwrap();
        for _ in 0..3 {
            assert_refused(&bad);
            assert_opens(&good);
        }
        // Clean today, infected tomorrow, by whatever cache.
        open_until_marked(&agent, std::slice::from_ref(&good));
        append(&good, &common::marker());
        assert_refused(&good);
    }
    assert_eq!(counter(&agent, "directories_ignored"), 0);
}

#[test]
fn a_deleted_file_that_is_opened_again_is_judged_by_the_place_it_had() {
    require_root!();
    let site = or_skip!(Site::ext4());
    for dir in ["in/off", "out"] {
        site.scratch().mkdir(dir);
    }
    let write = |name: &str| site.scratch().write(name, &clean());
    let files = [write("in/f"), write("in/off/f"), write("out/f")];
    let agent = site.agent().exclude(site.watched().join("off")).start();
    let held = files.map(|path| {
        let file = File::options().read(true).write(true).open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        file
    });
    for file in &held {
        assert_opens(&by_proc(file));
        file.write_all_at(&infected(), 0).unwrap();
    }
    let [inside, excluded, outside] = &held;
    for _ in 0..3 {
        assert_refused(&by_proc(inside));
        assert_opens(&by_proc(excluded));
        assert_opens(&by_proc(outside));
    }
    assert_eq!(counter(&agent, "timeouts"), 0);
}

#[test]
fn a_file_named_as_include_path_stays_protected_when_deleted_while_open() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("dir");
    let named = site.scratch().write("dir/named", &infected());
    let held = File::open(&named).unwrap();
    let _agent = Agent::builder(site.clamd())
        .prevention(true)
        .include(&named)
        .start();
    assert_refused(&by_proc(&held));
    fs::remove_file(&named).unwrap();
    assert_refused(&by_proc(&held));
}

#[test]
fn a_file_without_a_name_is_protected_before_and_after_it_gets_one() {
    require_root!();
    for site in [Site::ext4(), Site::tmpfs()] {
        let site = or_skip!(site);
        let out = site.scratch().mkdir("out");
        let beside = site.scratch().write("out/bad", &infected());
        let agent = site.agent().start();
        settle(&agent, &[&beside]);
        let nameless = |dir: &Path, content: &[u8]| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(libc::O_TMPFILE);
            let mut file = options.open(dir).unwrap();
            file.write_all(content).unwrap();
            file
        };
        let give_name = |file: &File, name: &str| {
            let to = site.watched().join(name);
            let flags = AtFlags::AT_SYMLINK_FOLLOW;
            linkat(AT_FDCWD, &by_proc(file), AT_FDCWD, &to, flags).unwrap();
            to
        };
        for (n, dir) in [site.watched(), out].iter().enumerate() {
            let bad = nameless(dir, &infected());
            if n == 0 {
                assert_refused(&by_proc(&bad));
            }
            // The writer is still there, then it is gone.
            let named = give_name(&bad, &format!("bad{n}"));
            assert_refused(&named);
            drop(bad);
            assert_refused(&named);
            let good = nameless(dir, &clean());
            let named = give_name(&good, &format!("good{n}"));
            assert_opens(&named);
            drop(good);
            assert_opens(&named);
            append(&named, &common::marker());
            assert_refused(&named);
        }
    }
}

#[test]
fn memory_files_and_pipes_are_left_alone() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let memory = memfd_create(c"onacc-test", MFdFlags::MFD_CLOEXEC).unwrap();
    let memory = File::from(memory);
    memory.write_all_at(&infected(), 0).unwrap();
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&infected()).unwrap();
    let agent = site.agent().start();
    let before = counters(&agent)["events"];
    for _ in 0..3 {
        assert_opens(&by_proc(&memory));
        assert_opens(&by_proc(&reader));
    }
    assert_eq!(counters(&agent)["events"], before);
}

/// Puts new content in the place of a file, as a program would.
type Replace = fn(&Path, &[u8]);

/// What editors and package managers do with a file that they change.
const REPLACEMENTS: &[(&str, Replace)] = &[
    ("write beside, rename over it", |path, content| {
        let new = path.with_extension("new");
        fs::write(&new, content).expect("writing");
        fs::rename(&new, path).expect("renaming");
    }),
    (
        "write beside, fsync, rename over it (dpkg)",
        |path, content| {
            let new = path.with_extension("dpkg-new");
            let mut file = File::create(&new).expect("making a file");
            file.write_all(content).expect("writing");
            file.sync_all().expect("fsync");
            fs::rename(&new, path).expect("renaming");
        },
    ),
    ("rename with the writer still open", |path, content| {
        let new = path.with_extension("open");
        let mut file = File::create(&new).expect("making a file");
        file.write_all(content).expect("writing");
        fs::rename(&new, path).expect("renaming");
        drop(file);
    }),
    (
        "rename away to a backup, write anew (vim)",
        |path, content| {
            fs::rename(path, path.with_extension("bak")).expect("renaming");
            fs::write(path, content).expect("writing");
        },
    ),
    ("hard link as a backup, rename over it", |path, content| {
        let backup = path.with_extension("old");
        let _ = fs::remove_file(&backup);
        fs::hard_link(path, &backup).expect("linking");
        let new = path.with_extension("tmp");
        fs::write(&new, content).expect("writing");
        fs::rename(&new, path).expect("renaming");
    }),
    ("write outside, rename into the place", |path, content| {
        let outside = path
            .parent()
            .expect("it has a parent")
            .with_file_name("out")
            .join("unpacked");
        fs::write(&outside, content).expect("writing");
        fs::rename(&outside, path).expect("renaming");
    }),
    ("delete, write anew", |path, content| {
        fs::remove_file(path).expect("deleting");
        fs::write(path, content).expect("writing");
    }),
];

#[test]
fn a_file_replaced_as_editors_and_package_managers_do_is_judged_anew() {
    require_root!();
    for site in [Site::ext4(), Site::tmpfs()] {
        let site = or_skip!(site);
        site.scratch().mkdir("out");
        let outside = site.scratch().write("out/unpacked", &infected());
        let agent = site.agent().start();
        settle(&agent, &[&outside]);
        for (n, (name, replace)) in REPLACEMENTS.iter().enumerate() {
            let path = site.write(format!("file{n}"), &clean());
            for _ in 0..3 {
                assert_opens(&path);
                replace(&path, &infected());
                let open = onacc_tests::open_within(&path, common::LIMIT);
                assert!(open.is_refused(), "{name}: {open:?}");
                replace(&path, &clean());
                let open = onacc_tests::open_within(&path, common::LIMIT);
                assert!(open.is_open(), "{name}, and back: {open:?}");
            }
        }
        assert_eq!(counter(&agent, "timeouts"), 0);
    }
}

#[test]
fn a_marked_file_that_is_replaced_does_not_lend_its_mark() {
    // ext4 gives an inode number again at once.
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("out");
    let agent = site.agent().start();
    for (n, (name, replace)) in REPLACEMENTS.iter().enumerate() {
        let path = site.write(format!("file{n}"), &clean());
        open_until_marked(&agent, std::slice::from_ref(&path));
        replace(&path, &infected());
        let open = onacc_tests::open_within(&path, common::LIMIT);
        assert!(open.is_refused(), "{name}: {open:?}");
    }
}
