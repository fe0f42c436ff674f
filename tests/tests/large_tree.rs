//! A tree of 100,000 directories under directory coverage: the first and the last, the
//! widest and the deepest are protected.
//!
//! How long the walk takes and what it costs in memory is the benchmark's business.

mod common;

use std::{fs, time::Instant};

use common::{LIMIT, Site, assert_opens, assert_refused, clean, counter, infected, refused_within};
use onacc_tests::{ScratchFs, or_skip, require_root, skip, watches};

const WIDE: usize = 1000;
const EACH: usize = 99;
const DEEP: usize = 100;
/// Directories in all, but for the include path.
const ALL: usize = WIDE * (1 + EACH) + DEEP;
/// Others may watch as root, too.
const ROOM: usize = 30_000;

#[test]
fn a_tree_of_100_000_directories_is_protected_to_its_last_and_deepest() {
    require_root!();
    let limit = or_skip!(watches::limit("max_user_watches"));
    if limit < ALL + ROOM {
        skip!("max_user_watches is {limit}, a tree of {ALL} directories needs more");
    }
    let site = or_skip!(ScratchFs::tmpfs(64).and_then(Site::on));
    let top = site.watched();
    for wide in 0..WIDE {
        let wide = top.join(format!("w{wide}"));
        fs::create_dir(&wide).unwrap();
        for each in 0..EACH {
            fs::create_dir(wide.join(format!("{each}"))).unwrap();
        }
    }
    let deepest = (0..DEEP).fold(top.clone(), |path, _| path.join("d"));
    fs::create_dir_all(&deepest).unwrap();
    let last = top.join(format!("w{}/{}", WIDE - 1, EACH - 1));
    let places = [top.join("w0"), top.join("w0/0"), last, deepest];
    for place in &places {
        fs::write(place.join("bad"), infected()).unwrap();
        fs::write(place.join("good"), clean()).unwrap();
    }
    let before = Instant::now();
    let agent = site.agent().arg("--coverage=directory").start();
    println!(
        "{ALL} directories: protection is on after {:?}",
        before.elapsed()
    );
    for place in &places {
        assert_refused(&place.join("bad"));
        assert_opens(&place.join("good"));
        // What comes now is protected, too.
        fs::write(place.join("new"), infected()).unwrap();
        assert_refused(&place.join("new"));
        let made = place.join("made");
        fs::create_dir(&made).unwrap();
        fs::write(made.join("bad"), infected()).unwrap();
        assert!(refused_within(&made.join("bad"), LIMIT).is_some());
    }
    assert!(counter(&agent, "directory_marks") > ALL as u64);
    assert_eq!(counter(&agent, "directory_errors"), 0);
    assert_eq!(counter(&agent, "timeouts"), 0);
}
