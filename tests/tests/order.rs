//! Who is next: small files before large ones, openers in turn, and the dead not
//! at all.

mod common;

use std::{
    fs::File,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::Child,
    thread,
    time::Duration,
};

use common::{FakeSite, LIMIT, counter, infected, start_cat};
use nix::{
    fcntl::{AT_FDCWD, AtFlags, OFlag},
    sys::stat::Mode,
};
use onacc_tests::{
    Behaviour, Opening, RequestInfo, child, clamd::wait_until, or_skip, require_root,
};

/// No scan ends before the test says so: whoever comes meanwhile stands in line.
fn held(_: &RequestInfo) -> Behaviour {
    Behaviour::usual().held()
}

/// No opener's time runs out while the test sets the scene.
const LONG: &str = "OnAccessCurlTimeout 20000";

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
    let site = or_skip!(FakeSite::ext4(held));
    let many = site.clean_files(30);
    let shell = site.write("shell", b"a shell wants this");
    let agent = site
        .agent()
        .option("OnAccessMaxThreads 2")
        .option(LONG)
        .start();
    let openings: Vec<Opening> = many.iter().map(|path| Opening::start(path)).collect();
    assert!(site.fake().wait_for_scans(2, LIMIT));
    assert!(wait_until(LIMIT, || counter(&agent, "scans") >= 30));
    let mut cat = start_cat(&shell);
    assert!(wait_until(LIMIT, || counter(&agent, "scans") >= 31));
    site.fake().let_all_go();
    for opening in openings {
        assert!(opening.within(LIMIT).is_open());
    }
    assert!(cat.wait().expect("waiting for cat").success());
    let order = names(&site);
    let place = place_of(&order, "shell");
    // Thirty were in line before it: two are under way, and one more may go first.
    assert!(place < 10, "{place}: {order:?}");
}

#[test]
fn small_files_go_before_large_ones_and_large_ones_leave_a_place() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(held));
    let large: Vec<PathBuf> = (0..12)
        .map(|n| sparse(&site, &format!("large{n}"), 2 << 20))
        .collect();
    let small: Vec<PathBuf> = (0..4)
        .map(|n| site.write(format!("small{n}"), format!("{n}").as_bytes()))
        .collect();
    let agent = site
        .agent()
        .option("OnAccessMaxThreads 3")
        .option(LONG)
        .start();
    let start = |paths: &[PathBuf]| -> Vec<Opening> {
        paths.iter().map(|path| Opening::start(path)).collect()
    };
    let large = start(&large);
    assert!(site.fake().wait_for_scans(2, LIMIT));
    assert!(wait_until(LIMIT, || counter(&agent, "scans") >= 12));
    assert_eq!(site.fake().in_flight(), 2, "{:?}", names(&site));
    let small = start(&small);
    // One goes at once: large files leave a place to it.
    assert!(site.fake().wait_for_scans(3, LIMIT), "{:?}", names(&site));
    assert!(wait_until(LIMIT, || counter(&agent, "scans") >= 16));
    site.fake().let_all_go();
    for opening in small.into_iter().chain(large) {
        let open = opening.within(LIMIT);
        assert!(open.is_open(), "{open:?}");
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
    // Two were under way; none of the ten in line should go first.
    assert!(large_before < 6, "{order:?}");
    assert!(site.fake().peak() <= 3);
}

#[test]
fn whoever_is_killed_while_waiting_leaves_the_line() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(held));
    let first = site.write("first", b"scanned for long");
    let doomed: Vec<PathBuf> = (0..6)
        .map(|n| site.write(format!("doomed{n}"), format!("{n}").as_bytes()))
        .collect();
    let agent = site
        .agent()
        .option("OnAccessMaxThreads 1")
        .option(LONG)
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
    site.fake().let_all_go();
    assert!(opening.within(LIMIT).is_open());
    thread::sleep(Duration::from_millis(300));
    assert_eq!(names(&site), ["first"]);
    for cat in &mut cats[3..] {
        child::kill(cat);
    }
}

/// While clamd looks at a temporary file without a name it is given one.
#[test]
fn a_file_that_is_linked_while_it_is_scanned_is_reported_by_its_name() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(held));
    let agent = site.agent().start();
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR;
    let file = nix::fcntl::open(&site.watched(), flags, Mode::S_IRWXU).expect("a temporary file");
    nix::unistd::write(&file, &infected()).expect("a temporary file");
    let unnamed = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let opening = Opening::start(Path::new(&unnamed));
    assert!(site.fake().wait_for_scans(1, LIMIT));
    let named = site.watched().join("was unnamed");
    nix::unistd::linkat(&file, "", AT_FDCWD, &named, AtFlags::AT_EMPTY_PATH).expect("a link");
    site.fake().let_all_go();
    assert!(opening.within(LIMIT).is_refused());
    let line = format!("{}: ", named.display());
    assert!(agent.wait_for(&line, LIMIT).is_ok(), "{}", agent.output());
}
