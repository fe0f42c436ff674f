//! `OnAccessExtraScanning`: what is created, written, linked or moved into the
//! scope is scanned before anyone opens it, in both modes, and nothing that is no
//! regular file is ever opened.

mod common;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use common::{LIMIT, Site, assert_refused, clean, infected};
use nix::{
    fcntl::{AT_FDCWD, AtFlags, OFlag},
    sys::stat::Mode,
};
use onacc_tests::{Agent, agent::AgentBuilder, clamd::wait_until, or_skip, require_root};

fn extra(site: &Site, prevention: bool) -> AgentBuilder {
    Agent::builder(site.clamd())
        .prevention(prevention)
        .include(site.watched())
        .option("OnAccessExtraScanning yes")
}

#[track_caller]
fn assert_reported(agent: &Agent, path: &Path) {
    let line = format!("{}: ", path.display());
    let seen = wait_until(LIMIT, || agent.output().contains(&line));
    assert!(
        seen,
        "{} is not reported: {}",
        path.display(),
        agent.output()
    );
}

/// A tree with infected files, and things that must not be opened.
fn tree(top: &Path) -> Vec<PathBuf> {
    let mut bad = Vec::new();
    for dir in ["", "a", "a/b", "c"] {
        let dir = top.join(dir);
        fs::create_dir_all(&dir).expect("the scene can be set");
        nix::unistd::mkfifo(&dir.join("fifo"), Mode::S_IRWXU).expect("the scene can be set");
        symlink("/dev/zero", dir.join("link")).expect("the scene can be set");
        let _socket =
            std::os::unix::net::UnixListener::bind(dir.join("sock")).expect("the scene can be set");
        fs::write(dir.join("good"), clean()).expect("the scene can be set");
        fs::write(dir.join("bad"), infected()).expect("the scene can be set");
        bad.push(dir.join("bad"));
    }
    bad
}

fn assert_all_ways(site: &Site, prevention: bool) {
    let outside = site.scratch().mkdir("outside");
    let agent = extra(site, prevention).start();
    assert!(
        agent.output().contains("extra scanning"),
        "{}",
        agent.output()
    );
    let inside = site.watched();

    let written = site.write("written", &infected());
    assert_reported(&agent, &written);
    fs::write(outside.join("file"), infected()).expect("the scene can be set");
    let moved = inside.join("moved");
    fs::rename(outside.join("file"), &moved).expect("the scene can be set");
    assert_reported(&agent, &moved);
    fs::write(outside.join("other"), infected()).expect("the scene can be set");
    let linked = inside.join("linked");
    fs::hard_link(outside.join("other"), &linked).expect("the scene can be set");
    assert_reported(&agent, &linked);

    let top = outside.join("tree");
    fs::create_dir(&top).expect("the scene can be set");
    let bad = tree(&top);
    let target = inside.join("tree");
    fs::rename(&top, &target).expect("the scene can be set");
    for path in bad {
        assert_reported(
            &agent,
            &target.join(path.strip_prefix(&top).expect("the scene can be set")),
        );
    }
    let made = inside.join("made");
    fs::create_dir(&made).expect("the scene can be set");
    for path in tree(&made) {
        assert_reported(&agent, &path);
    }
    // A temporary file without a name, linked into place.
    let flags = OFlag::O_TMPFILE | OFlag::O_WRONLY;
    let file = nix::fcntl::open(&inside, flags, Mode::S_IRWXU).expect("the scene can be set");
    nix::unistd::write(&file, &infected()).expect("the scene can be set");
    let unnamed = inside.join("was unnamed");
    nix::unistd::linkat(&file, "", AT_FDCWD, &unnamed, AtFlags::AT_EMPTY_PATH)
        .expect("the scene can be set");
    drop(file);
    assert_reported(&agent, &unnamed);

    if prevention {
        assert_refused(&written);
        // It is said after the answer.
        let said = agent.wait_for("open refused: ", LIMIT);
        said.expect("the refusal is said");
    }
    fs::write(outside.join("far"), infected()).expect("the scene can be set");
    fs::rename(outside.join("far"), outside.join("farther")).expect("the scene can be set");
    fs::write(inside.join("harmless"), clean()).expect("the scene can be set");
    // What came before may be reported once more, by its close: names tell, not numbers.
    let witness = site.write("witness", &infected());
    assert_reported(&agent, &witness);
    thread::sleep(Duration::from_millis(400));
    for name in ["far: ", "farther: ", "harmless: "] {
        assert!(!agent.output().contains(name), "{}", agent.output());
    }
    assert!(!agent.output().contains("good: "));
}

#[test]
fn whatever_comes_is_reported_in_notify_only_mode() {
    require_root!();
    assert_all_ways(&or_skip!(Site::ext4()), false);
}

#[test]
fn whatever_comes_is_reported_in_prevention_mode() {
    require_root!();
    assert_all_ways(&or_skip!(Site::ext4()), true);
}

#[test]
fn on_a_tmpfs_too() {
    require_root!();
    assert_all_ways(&or_skip!(Site::tmpfs()), false);
}

/// No verdict can be kept for two seconds after a change there.
#[test]
fn where_stamps_count_seconds_too() {
    require_root!();
    assert_all_ways(&or_skip!(Site::ext4_in_seconds()), false);
}

#[test]
fn a_fifo_stops_nothing() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let agent = extra(&site, true).start();
    for n in 0..20 {
        let dir = site.watched().join(format!("d{n}"));
        fs::create_dir(&dir).expect("the scene can be set");
        nix::unistd::mkfifo(&dir.join("f"), Mode::S_IRWXU).expect("the scene can be set");
    }
    let bad = site.write("after", &infected());
    assert_reported(&agent, &bad);
}

#[test]
fn many_at_once_are_all_looked_at() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let outside = site.scratch().mkdir("outside/many");
    for n in 0..600 {
        let bytes = if n % 10 == 0 { infected() } else { clean() };
        fs::write(outside.join(format!("f{n:03}")), bytes).expect("the scene can be set");
    }
    let agent = extra(&site, false).start();
    let target = site.watched().join("many");
    assert!(
        Command::new("mv")
            .arg(&outside)
            .arg(&target)
            .status()
            .expect("the scene can be set")
            .success()
    );
    for n in (0..600).step_by(10) {
        assert_reported(&agent, &target.join(format!("f{n:03}")));
    }
}

#[test]
fn without_it_a_file_that_is_moved_in_waits_for_its_first_open() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let outside = site.scratch().write("outside", &infected());
    let agent = Agent::builder(site.clamd())
        .prevention(false)
        .include(site.watched())
        .start();
    let path = site.watched().join("moved");
    fs::rename(&outside, &path).expect("the scene can be set");
    thread::sleep(Duration::from_millis(400));
    assert!(!agent.output().contains(" FOUND"), "{}", agent.output());
    drop(fs::File::open(&path).expect("the scene can be set"));
    assert_reported(&agent, &path);
}
