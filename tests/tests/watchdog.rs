//! The watchdog: a thread that openers depend on stands still, frozen from outside
//! (a control group), and the agent ends, says why, and lets everybody go.

mod common;

use std::{
    fs,
    os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use common::{FakeSite, LIMIT, assert_opens, assert_refused, clean, infected};
use onacc_tests::{
    Agent, Behaviour, Freezer, Opening, agent::binary, clamd::wait_until, or_skip, require_root,
};

/// What is promised: four seconds, seen at the next tick but one.
const PROMISED: Duration = Duration::from_secs(5);
/// Not before this, whatever the clocks: a hang of three seconds is none yet.
const NOT_BEFORE: Duration = Duration::from_secs(3);
/// On a machine with other work.
const NOT_AFTER: Duration = Duration::from_secs(20);
/// A bound that comes later than the watchdog: what frees the openers is its doing.
const LONG_BOUND: &str = "OnAccessCurlTimeout 60000";

/// Waits for the end that the watchdog brings; says how long it took.
#[track_caller]
fn assert_ends(agent: &mut Agent, since: Instant, thread: &str) {
    let status = agent.wait_for_end(NOT_AFTER);
    let took = since.elapsed();
    println!("{thread}: ended after {took:?} (promised: {PROMISED:?})");
    let status = status.unwrap_or_else(|| panic!("it goes on: {}", agent.output()));
    assert_eq!(status.code(), Some(2), "{}", agent.output());
    assert!(took >= NOT_BEFORE, "{took:?}");
    let why = format!("ERROR: onacc: the {thread} thread is stuck, it had 4.");
    for said in [agent.output(), agent.log()] {
        let lines: Vec<&str> = said.lines().filter(|line| line.contains("stuck")).collect();
        assert_eq!(lines.len(), 1, "{said}");
        assert!(lines[0].starts_with(&why), "{said}");
    }
    assert!(!agent.guard_fired());
}

#[track_caller]
fn assert_let_go(openings: Vec<Opening>) {
    for opening in openings {
        let open = opening.within(LIMIT);
        assert!(open.is_open(), "{open:?}");
    }
}

fn twenty(site: &FakeSite, content: &[u8]) -> Vec<std::path::PathBuf> {
    (0..20)
        .map(|n| site.write(format!("f{n}"), content))
        .collect()
}

fn start_openings(paths: &[std::path::PathBuf]) -> Vec<Opening> {
    paths.iter().map(|path| Opening::start(path)).collect()
}

#[test]
fn a_reader_that_stands_still_while_events_wait_ends_the_agent_and_lets_all_go() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let bad = site.write("bad", &infected());
    let more = twenty(&site, &infected());
    let mut agent = site.agent().option(LONG_BOUND).start();
    let freezer = or_skip!(Freezer::of(agent.pid()));
    assert_refused(&bad);
    freezer.freeze("onacc-reader").expect("freezing");
    let since = Instant::now();
    let openings = start_openings(&more);
    assert_ends(&mut agent, since, "reader");
    // Unprotected from here on, and said so.
    assert_let_go(openings);
    assert_opens(&bad);
    // What systemd does (Restart=always) brings protection back.
    let _agent = site.agent().start();
    assert_refused(&bad);
    assert_refused(&more[0]);
}

#[test]
fn a_reader_that_stands_still_is_let_be_while_nothing_waits() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let bad = site.write("bad", &infected());
    let mut agent = site.agent().option(LONG_BOUND).start();
    let freezer = or_skip!(Freezer::of(agent.pid()));
    assert_refused(&bad);
    freezer.freeze("onacc-reader").expect("freezing");
    thread::sleep(PROMISED + Duration::from_secs(2));
    // A moment of standing still with an event is none of four seconds.
    let opening = Opening::start(&bad);
    thread::sleep(Duration::from_secs(1));
    assert!(agent.is_running(), "{}", agent.output());
    freezer.thaw().expect("thawing");
    let open = opening.within(LIMIT);
    assert!(open.is_refused(), "{open:?}");
    assert_eq!(agent.stop().0.code(), Some(0));
}

#[test]
fn a_service_that_stands_still_ends_the_agent_and_lets_all_go() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let bad = site.write("bad", &infected());
    let more = twenty(&site, &infected());
    let mut agent = site.agent().option(LONG_BOUND).start();
    let freezer = or_skip!(Freezer::of(agent.pid()));
    assert_refused(&bad);
    freezer.freeze("onacc-scan").expect("freezing");
    let since = Instant::now();
    let openings = start_openings(&more);
    assert_ends(&mut agent, since, "service");
    assert_let_go(openings);
}

#[test]
fn a_keeper_that_stands_still_ends_the_agent() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let good = twenty(&site, &clean());
    thread::sleep(common::NO_LONGER_YOUNG);
    let mut agent = site.agent().option(LONG_BOUND).start();
    let freezer = or_skip!(Freezer::of(agent.pid()));
    freezer.freeze("onacc-keeper").expect("freezing");
    let since = Instant::now();
    for path in &good {
        // Each wants a mark.
        assert_opens(path);
    }
    assert_ends(&mut agent, since, "keeper");
}

#[test]
fn an_end_by_the_watchdog_waits_for_nobody_who_reads_what_it_says() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let bad = site.write("bad", &infected());
    // Its output goes into a pipe that is full and that nobody reads.
    let dir = tempfile::tempdir().expect("a directory");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let full = sys_fill(&writer);
    let script = dir.path().join("onacc-with-a-full-pipe");
    write_script(&script, writer.as_raw_fd());
    let mut agent = site
        .agent()
        .option(LONG_BOUND)
        .binary(&script)
        .spawn()
        .expect("the agent's process starts");
    assert!(wait_until(LIMIT, || agent
        .log()
        .contains("protection is on")));
    assert!(full > 0);
    let freezer = or_skip!(Freezer::of(agent.pid()));
    freezer.freeze("onacc-reader").expect("freezing");
    let opening = Opening::start(&bad);
    let status = agent.wait_for_end(NOT_AFTER);
    assert_eq!(
        status.and_then(|status| status.code()),
        Some(2),
        "{}",
        agent.log()
    );
    assert!(opening.within(LIMIT).is_open());
    let said = agent.log();
    assert!(said.contains("the reader thread is stuck"), "{said}");
    drop((reader, writer));
}

/// Fills a pipe; returns how many bytes it took.
fn sys_fill(writer: &std::io::PipeWriter) -> usize {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("fcntl");
    let mut bytes = 0;
    for size in [4096, 1] {
        let piece = vec![b'x'; size];
        while let Ok(count) = nix::unistd::write(writer, &piece) {
            bytes += count;
        }
    }
    fcntl(writer, FcntlArg::F_SETFL(OFlag::empty())).expect("fcntl");
    bytes
}

/// Starts the agent with its output in a pipe of this process.
fn write_script(script: &Path, fd: i32) {
    let text = format!(
        "#!/bin/sh\nexec {} \"$@\" >/proc/{}/fd/{fd} 2>&1\n",
        binary().display(),
        std::process::id()
    );
    fs::write(script, text).expect("writing");
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).expect("chmod");
}
