//! Who is next: small files before large ones, openers in turn, and the dead not
//! at all.

mod common;

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use common::{FakeSite, LIMIT, counter, open_all};
use onacc_tests::{
    Behaviour, Opening, RequestInfo, cat, child, clamd::wait_until, or_skip, require_root, sys,
};

fn scan(_: &RequestInfo) -> Behaviour {
    Behaviour::usual().after(Duration::from_millis(150))
}

fn names(site: &FakeSite) -> Vec<String> {
    let scans = site.fake().requests();
    scans
        .into_iter()
        .filter(|one| one.command == "FILDES")
        .filter_map(|one| Some(one.path?.file_name()?.to_string_lossy().into_owned()))
        .collect()
}

fn place_of(names: &[String], wanted: &str) -> usize {
    let at = names.iter().position(|name| name == wanted);
    at.unwrap_or_else(|| panic!("{wanted} was not scanned: {names:?}"))
}

/// A file of this length that takes no room.
fn sparse(site: &FakeSite, name: &str, length: u64) -> PathBuf {
    let path = site.write(name, name.as_bytes());
    File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(length))
        .expect("a sparse file");
    path
}

#[test]
fn one_process_with_many_files_does_not_starve_another() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(scan));
    let many = site.clean_files(30);
    let shell = site.write("shell", b"a shell wants this");
    let agent = site.agent().option("OnAccessMaxThreads 2").start();
    let openings: Vec<Opening> = many.iter().map(|path| Opening::start(path)).collect();
    assert!(site.fake().wait_for_scans(2, LIMIT));
    assert!(wait_until(LIMIT, || counter(&agent, "scans") >= 30));
    assert!(cat(&shell, LIMIT).content().is_some());
    for opening in openings {
        assert!(opening.within(LIMIT).is_open());
    }
    let order = names(&site);
    let place = place_of(&order, "shell");
    // Thirty were in line before it. Scans go on while it starts.
    assert!(place < 20, "{place}: {order:?}");
}

#[test]
fn small_files_go_before_large_ones_and_large_ones_leave_a_place() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(scan));
    let large: Vec<PathBuf> = (0..12)
        .map(|n| sparse(&site, &format!("large{n}"), 2 << 20))
        .collect();
    let small: Vec<PathBuf> = (0..4)
        .map(|n| site.write(format!("small{n}"), format!("{n}").as_bytes()))
        .collect();
    let agent = site.agent().option("OnAccessMaxThreads 3").start();
    let openings: Vec<Opening> = large.iter().map(|path| Opening::start(path)).collect();
    assert!(site.fake().wait_for_scans(2, LIMIT));
    assert!(wait_until(LIMIT, || counter(&agent, "scans") >= 12));
    for open in open_all(&small, LIMIT) {
        assert!(open.is_open(), "{open:?}");
    }
    for opening in openings {
        assert!(opening.within(LIMIT).is_open());
    }
    let order = names(&site);
    let last_small = (0..4)
        .map(|n| place_of(&order, &format!("small{n}")))
        .max()
        .unwrap_or_default();
    let large_before = order[..last_small]
        .iter()
        .filter(|name| name.starts_with("large"))
        .count();
    assert!(large_before < 10, "{order:?}");
    assert!(site.fake().peak() <= 3);
}

fn start_cat(path: &Path) -> Child {
    let mut command = Command::new("cat");
    command
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    sys::die_with_parent(&mut command)
        .spawn()
        .expect("cat starts")
}

#[test]
fn whoever_is_killed_while_waiting_leaves_the_line() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| {
        Behaviour::usual().after(Duration::from_secs(3))
    }));
    let first = site.write("first", b"scanned for long");
    let doomed: Vec<PathBuf> = (0..6)
        .map(|n| site.write(format!("doomed{n}"), format!("{n}").as_bytes()))
        .collect();
    let agent = site
        .agent()
        .option("OnAccessMaxThreads 1")
        .option("OnAccessCurlTimeout 15000")
        .start();
    let opening = Opening::start(&first);
    assert!(site.fake().wait_for_scans(1, LIMIT));
    let mut cats: Vec<Child> = doomed.iter().map(|path| start_cat(path)).collect();
    assert!(wait_until(LIMIT, || counter(&agent, "scans") >= 7));
    // Three are reaped, three stay as zombies for a while.
    for cat in &mut cats[..3] {
        child::kill(cat);
    }
    for cat in &mut cats[3..] {
        cat.kill().expect("killing cat");
    }
    assert!(
        wait_until(LIMIT, || counter(&agent, "cancelled") >= 6),
        "{}",
        agent.output()
    );
    assert!(opening.within(LIMIT).is_open());
    thread::sleep(Duration::from_millis(300));
    assert_eq!(names(&site), ["first"]);
    for cat in &mut cats[3..] {
        child::kill(cat);
    }
}
