//! Files that the settings name, and directories that hold a mounted one when they
//! are moved.

mod common;
#[path = "common/settle.rs"]
mod settle;

use std::{fs, path::Path};

use common::{
    LIMIT, MOVE_WINDOW, Site, assert_opens, assert_refused, counter, infected, refused_within,
};
use onacc_tests::{or_skip, require_root};
use settle::{MOUNT_WINDOW, Mounted};

const KINDS: [&str; 2] = ["filesystem", "directory"];

#[track_caller]
fn assert_soon_refused(path: &Path, kind: &str) {
    let took = refused_within(path, MOVE_WINDOW.max(MOUNT_WINDOW));
    assert!(took.is_some(), "{kind}: {} is not refused", path.display());
}

#[test]
fn a_file_named_as_exclude_path_stays_excluded_when_it_is_replaced() {
    require_root!();
    for site in [Site::ext4(), Site::tmpfs()] {
        let site = or_skip!(site);
        for kind in KINDS {
            let left_out = site.write("left-out", &infected());
            let other = site.write("other", &infected());
            let agent = site
                .agent()
                .exclude(&left_out)
                .arg(&format!("--coverage={kind}"))
                .start();
            for round in 0..5 {
                assert_opens(&left_out);
                assert_refused(&other);
                // What takes the name is left out, what loses it is not.
                let former = site.watched().join(format!("former{round}"));
                fs::rename(&left_out, &former).unwrap();
                fs::rename(&other, &left_out).unwrap();
                assert_opens(&left_out);
                assert_refused(&former);
                fs::rename(&former, &other).unwrap();
                fs::remove_file(&left_out).unwrap();
                fs::write(&left_out, infected()).unwrap();
                assert_opens(&left_out);
            }
            // Its directory is in scope, with all that is new in it.
            let new = site.write("new", &infected());
            assert_refused(&new);
            fs::remove_file(&new).unwrap();
            assert_eq!(counter(&agent, "directories_ignored"), 0, "{kind}");
            assert_eq!(counter(&agent, "timeouts"), 0, "{kind}");
        }
    }
}

#[test]
fn a_file_named_as_include_path_in_an_excluded_directory_stays_protected() {
    require_root!();
    for site in [Site::ext4(), Site::tmpfs()] {
        let site = or_skip!(site);
        for kind in KINDS {
            site.scratch().mkdir("in/closed");
            let closed = site.watched().join("closed");
            let named = site.write("closed/named", &infected());
            let sibling = site.write("closed/sibling", &infected());
            let agent = site
                .agent()
                .exclude(&closed)
                .include(&named)
                .arg(&format!("--coverage={kind}"))
                .start();
            for _ in 0..5 {
                assert_soon_refused(&named, kind);
                assert_opens(&sibling);
                let new = site.write("closed/new", &infected());
                assert_opens(&new);
                fs::rename(&new, &named).unwrap();
                assert_soon_refused(&named, kind);
                fs::remove_file(&named).unwrap();
                fs::write(&named, infected()).unwrap();
                assert_soon_refused(&named, kind);
            }
            assert_eq!(counter(&agent, "timeouts"), 0, "{kind}");
            drop(agent);
            fs::remove_dir_all(&closed).unwrap();
        }
    }
}

#[test]
fn a_directory_that_holds_a_mounted_file_keeps_it_protected_when_it_is_renamed() {
    require_root!();
    for kind in KINDS {
        let site = or_skip!(Site::ext4());
        site.scratch().mkdir("out");
        site.scratch().mkdir("in/one");
        let bad = site.scratch().write("out/bad", &infected());
        let place = site.write("one/place", b"");
        let agent = site.agent().arg(&format!("--coverage={kind}")).start();
        let bound = Mounted::bind(&bad, &place);
        assert_soon_refused(bound.path(), kind);
        let [one, two] = ["one", "two"].map(|name| site.watched().join(name));
        let away = site.scratch().join("out/away");
        for _ in 0..3 {
            fs::rename(&one, &two).unwrap();
            assert_soon_refused(&two.join("place"), kind);
            fs::rename(&two, &one).unwrap();
            assert_soon_refused(&one.join("place"), kind);
            // Where it is then the table of mounts says when it is read again.
            fs::rename(&one, &away).unwrap();
            fs::rename(&away, &one).unwrap();
            assert_soon_refused(&one.join("place"), kind);
        }
        assert_eq!(counter(&agent, "timeouts"), 0, "{kind}");
        drop(bound);
    }
}

#[test]
fn a_directory_that_holds_a_mounted_file_is_protected_when_it_is_moved_in() {
    require_root!();
    for kind in KINDS {
        let site = or_skip!(Site::ext4());
        site.scratch().mkdir("out");
        site.scratch().mkdir("out/one");
        let bad = site.scratch().write("out/bad", &infected());
        let place = site.scratch().write("out/one/place", b"");
        let bound = Mounted::bind(&bad, &place);
        let agent = site.agent().arg(&format!("--coverage={kind}")).start();
        assert_opens(bound.path());
        let moved = site.watched().join("one");
        fs::rename(site.scratch().join("out/one"), &moved).unwrap();
        // That changes the table of mounts without a word; it is read now and then.
        let moved_in = moved.join("place");
        let limit = if kind == "directory" {
            LIMIT
        } else {
            MOUNT_WINDOW
        };
        let took = refused_within(&moved_in, limit);
        assert!(
            took.is_some(),
            "{kind}: {} is not refused",
            moved_in.display()
        );
        drop(agent);
        fs::rename(&moved, site.scratch().join("out/one")).unwrap();
    }
}
