//! The agent's, clamd's and their readers' own opens under the watched path.
//!
//! Log, configuration, database, temporary files, console: all of it may lie
//! where opens wait for the agent. None of that may make anybody wait for
//! itself. What is a deadlock shows here as an open that takes the whole bound.

mod common;

use std::{
    fs::{self, File, Permissions},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use common::{
    LIMIT, SOON, Site, assert_opens, assert_refused, clean, counter, infected, marker,
    refused_within, write_marker_signature,
};
use onacc_tests::{
    Agent, Clamd, ScratchFs,
    agent::AgentBuilder,
    cat_as,
    clamd::{ask, wait_until},
    open_within, or_skip, require_root, sys,
    tls_proxy::free_port,
};

/// An open that takes longer has waited for the bound.
const QUICK: Duration = Duration::from_secs(3);
/// The same with a bound of 15 s, where clamd is to be found first.
const WELL_BELOW: Duration = Duration::from_secs(10);

/// A filesystem that is watched as a whole, with all of clamd's files on it.
struct AllInside {
    clamd: Clamd,
    scratch: ScratchFs,
}

impl AllInside {
    fn new(option: &str) -> Result<Self, String> {
        let scratch = ScratchFs::ext4(64)?;
        let dir = scratch.mkdir("clamd");
        write_marker_signature(&dir);
        let clamd = Clamd::builder(&dir).option(option).try_start()?;
        Ok(Self { clamd, scratch })
    }

    /// An agent whose configuration and log are on it as well.
    fn agent(&self) -> AgentBuilder {
        Agent::builder(&self.clamd)
            .prevention(true)
            .include(self.scratch.path())
            .directory(self.scratch.path())
    }
}

#[track_caller]
fn assert_quick(path: &Path, is_infected: bool) {
    let open = open_within(path, LIMIT);
    let right = if is_infected {
        open.is_refused()
    } else {
        open.is_open()
    };
    assert!(right && open.took < QUICK, "{}: {open:?}", path.display());
}

#[test]
fn all_files_of_agent_and_clamd_may_lie_under_the_watched_path() {
    require_root!();
    let site = or_skip!(AllInside::new("# a clamd as root, excluded by no option"));
    let mut agent = site.agent().start();
    for n in 0..20 {
        let bad = site.scratch.write(format!("bad{n}"), &infected());
        let good = site.scratch.write(format!("good{n}"), &clean());
        assert_quick(&bad, true);
        assert_quick(&good, false);
    }
    // The very files of both.
    let mine = [
        agent.conf(),
        agent.log_path().to_path_buf(),
        site.clamd.conf(),
        site.clamd.database().join("marker.ndb"),
    ];
    for path in &mine {
        assert_quick(path, false);
    }
    let (status, took) = agent.stop();
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_millis(1500), "{took:?}");
}

#[test]
fn clamd_unpacks_archives_under_the_watched_path() {
    require_root!();
    let site = or_skip!(AllInside::new("# nothing"));
    let agent = site.agent().start();
    // tar.gz in tar.gz: clamd writes what it unpacks to its temporary directory.
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("inner"), infected()).unwrap();
    let tar = |name: &str, of: &str| {
        let path = dir.path().join(name);
        let status = Command::new("tar")
            .arg("-czf")
            .arg(&path)
            .arg("-C")
            .arg(dir.path())
            .arg(of)
            .status()
            .unwrap();
        assert!(status.success());
        path
    };
    tar("middle.tar.gz", "inner");
    let outer = tar("outer.tar.gz", "middle.tar.gz");
    let bad = site
        .scratch
        .write("outer.tar.gz", &fs::read(outer).unwrap());
    assert_quick(&bad, true);
    assert!(counter(&agent, "scanner") > 0, "clamd has opened its files");
}

#[test]
fn clamd_reloads_its_database_under_the_watched_path() {
    require_root!();
    let site = or_skip!(AllInside::new("# nothing"));
    let agent = site.agent().start();
    let path = site.scratch.write("later", b"known only later");
    assert_quick(&path, false);
    site.clamd
        .add_signature("Onacc.Test.Later", b"known only later, and");
    let other = site.scratch.write("other", b"known only later, and found");
    let until = Instant::now() + LIMIT;
    let mut found = false;
    while !found && Instant::now() < until {
        // A new version each time, so that it is scanned each time.
        fs::write(&other, b"known only later, and found").unwrap_or_default();
        let open = open_within(&other, LIMIT);
        assert!(open.took < QUICK, "{open:?}");
        found = open.is_refused();
        thread::sleep(Duration::from_millis(20));
    }
    assert!(
        found,
        "the new signature was never in force: {}",
        site.clamd.log()
    );
    assert!(counter(&agent, "scanner") > 0, "clamd has opened its files");
    assert_eq!(counter(&agent, "timeouts"), 0);
}

#[test]
fn clamd_starts_under_the_watched_path_even_if_errors_deny() {
    require_root!();
    for policy in ["OnAccessDenyOnError no", "OnAccessDenyOnError yes"] {
        let mut site = or_skip!(AllInside::new("# nothing"));
        let (bad, good) = (
            site.scratch.write("bad", &infected()),
            site.scratch.write("good", &clean()),
        );
        let agent = site.agent().option(policy).start();
        assert_refused(&bad);
        site.clamd.kill();
        // Not by the kit, whose own open of clamd's output would be denied.
        let mut command = Command::new("clamd");
        command
            .arg("-c")
            .arg(site.clamd.conf())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        for round in 0..2 {
            let before = Instant::now();
            let mut clamd = sys::die_with_parent(&mut command).spawn().unwrap();
            let answers = wait_until(LIMIT, || {
                ask(&site.clamd.socket(), "PING", LIMIT).as_deref() == Ok("PONG")
            });
            let took = before.elapsed();
            assert!(answers, "{policy}, {round}: {}", agent.output());
            assert!(took < Duration::from_secs(15), "{policy}: {took:?}");
            assert!(wait_until(SOON, || open_within(&good, LIMIT).is_open()));
            assert!(refused_within(&bad, SOON).is_some(), "{policy}");
            clamd.kill().unwrap();
            clamd.wait().unwrap();
            fs::remove_file(site.clamd.socket()).unwrap();
        }
    }
}

#[test]
fn a_clamd_of_another_user_is_known_as_well() {
    require_root!();
    let scratch = or_skip!(ScratchFs::ext4(64));
    let dir = scratch.mkdir("clamd");
    let clamd = or_skip!(Clamd::builder(&dir).as_user("clamav").try_start());
    let agent = Agent::builder(&clamd)
        .prevention(true)
        .include(scratch.path())
        .start();
    let bad = scratch.write("bad", &infected());
    // Not readable by clamd's user: it gets the open file itself.
    fs::set_permissions(&bad, Permissions::from_mode(0o600)).unwrap();
    assert_quick(&bad, true);
    // Another process of that user is no clamd.
    let uid = nix::unistd::User::from_name("clamav").unwrap().unwrap();
    fs::set_permissions(&bad, Permissions::from_mode(0o644)).unwrap();
    assert!(cat_as(uid.uid.as_raw(), &bad, LIMIT).is_refused());
    clamd.reload();
    assert!(wait_until(LIMIT, || counter(&agent, "scanner") > 0));
}

/// Writes an executable script.
fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).expect("writing");
    fs::set_permissions(path, Permissions::from_mode(0o755)).expect("changing the mode");
}

#[test]
fn a_virus_event_script_may_read_the_infected_file_and_others() {
    require_root!();
    let scratch = or_skip!(ScratchFs::ext4(64));
    or_skip!(Clamd::installed());
    let dir = scratch.mkdir("clamd");
    // The script itself, what it reads and what it writes: all under the watch.
    let event = scratch.join("event.sh");
    let others: Vec<PathBuf> = (0..5)
        .map(|n| scratch.write(format!("other{n}"), format!("other {n}").as_bytes()))
        .collect();
    let clamd = Clamd::builder(&dir)
        .option(&format!("VirusEvent {}", event.display()))
        .start();
    let kept = scratch.join("kept");
    let agent = Agent::builder(&clamd)
        .prevention(true)
        .include(scratch.path())
        .option("OnAccessCurlTimeout 8000")
        .start();
    script(
        &event,
        &format!(
            "cat \"$CLAM_VIRUSEVENT_FILENAME\" {0}/other* > {0}/kept.new\n\
             sh -c 'cat {0}/other0 > /dev/null; head -c 1 {0}/event.sh > /dev/null'\n\
             mv {0}/kept.new {0}/kept",
            scratch.path().display()
        ),
    );
    let bad = scratch.write("bad", &infected());
    assert_quick(&bad, true);
    assert!(wait_until(LIMIT, || kept.exists()), "{}", clamd.log());
    // Meanwhile the copy is infected as well, so it is read by an agentless way.
    drop(agent);
    let held = fs::read(&kept).unwrap();
    let expected: Vec<u8> = others
        .iter()
        .flat_map(|other| fs::read(other).unwrap())
        .collect();
    assert_eq!(held, [infected(), expected].concat());
}

#[test]
fn a_virus_event_script_may_read_the_infected_file_when_it_was_streamed() {
    require_root!();
    or_skip!(Clamd::installed());
    for tcp in [true, false] {
        let scratch = or_skip!(ScratchFs::ext4(64));
        let dir = scratch.mkdir("clamd");
        let event = scratch.join("event.sh");
        let port = free_port();
        let clamd = Clamd::builder(&dir)
            .option(&format!("VirusEvent {}", event.display()))
            .option(&format!("TCPSocket {port}"))
            .option("TCPAddr 127.0.0.1")
            .start();
        // clamd does not know the name of what is streamed; the script does.
        let shown = scratch.path().display();
        let text = format!("cat {shown}/bad > {shown}/kept.new\nmv {shown}/kept.new {shown}/kept");
        script(&event, &text);
        let builder = if tcp {
            Agent::without_clamd()
                .option(&format!("TCPSocket {port}"))
                .option("TCPAddr 127.0.0.1")
        } else {
            Agent::builder(&clamd).arg("--stream")
        };
        let bad = scratch.write("bad", &infected());
        let agent = builder
            .prevention(true)
            .include(scratch.path())
            .option("OnAccessCurlTimeout 15000")
            .start();
        let open = open_within(&bad, LIMIT);
        let right = open.is_refused() && open.took < WELL_BELOW;
        assert!(right, "tcp: {tcp}: {open:?}");
        let kept = scratch.join("kept");
        let written = wait_until(LIMIT, || kept.exists());
        assert!(written, "tcp: {tcp}: {}", clamd.log());
        assert!(counter(&agent, "streamed_bytes") >= 68);
        let said = agent.output();
        assert_eq!(counter(&agent, "timeouts"), 0, "tcp: {tcp}: {said}");
        drop(agent);
        assert_eq!(fs::read(&kept).unwrap(), infected(), "tcp: {tcp}");
    }
}

#[test]
fn a_slow_virus_event_script_holds_up_its_own_file_alone() {
    require_root!();
    let scratch = or_skip!(ScratchFs::ext4(64));
    or_skip!(Clamd::installed());
    let dir = scratch.mkdir("clamd");
    let event = scratch.join("event.sh");
    script(&event, "sleep 1");
    let clamd = Clamd::builder(&dir)
        .option(&format!("VirusEvent {}", event.display()))
        .start();
    let _agent = Agent::builder(&clamd)
        .prevention(true)
        .include(scratch.path())
        .start();
    let bad = scratch.write("bad", &infected());
    let good = scratch.write("good", &clean());
    let waiting = onacc_tests::Opening::start(&bad);
    thread::sleep(Duration::from_millis(100));
    let open = open_within(&good, LIMIT);
    assert!(
        open.is_open() && open.took < Duration::from_millis(900),
        "{open:?}"
    );
    assert!(waiting.within(LIMIT).is_refused());
}

#[test]
fn the_reader_of_the_console_may_open_watched_files_for_each_line() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let names: Vec<PathBuf> = (0..60)
        .map(|n| site.write(format!("for-line{n}"), format!("line {n}").as_bytes()))
        .collect();
    let slowest = Arc::new(Mutex::new(Duration::ZERO));
    let (slow, opened) = (Arc::clone(&slowest), Arc::new(AtomicUsize::new(0)));
    let counting = Arc::clone(&opened);
    let watched = site.watched();
    let agent = site
        .agent()
        .arg("--verbose")
        .on_line(move |_| {
            let n = counting.fetch_add(1, Ordering::SeqCst);
            let before = Instant::now();
            // A clean one, and up to a number an infected one, which makes lines.
            drop(File::open(&names[n % names.len()]));
            if n < 100 {
                drop(File::open(watched.join("bad")));
            }
            let mut slowest = slow.lock().unwrap();
            *slowest = (*slowest).max(before.elapsed());
        })
        .start();
    let bad = site.write("bad", &infected());
    for _ in 0..30 {
        assert_quick(&bad, true);
    }
    assert!(wait_until(LIMIT, || opened.load(Ordering::SeqCst) >= 100));
    drop(agent);
    let slowest = *slowest.lock().unwrap();
    assert!(slowest < QUICK, "an open of the reader took {slowest:?}");
}

#[test]
fn a_console_that_nobody_reads_holds_nobody_up() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let stuck = Arc::new(AtomicBool::new(false));
    let is_stuck = Arc::clone(&stuck);
    let (release, held) = mpsc::channel::<()>();
    let mut agent = site
        .agent()
        .on_line(move |_| {
            if is_stuck.load(Ordering::SeqCst) {
                let _ = held.recv();
            }
        })
        .start();
    stuck.store(true, Ordering::SeqCst);
    let good = site.write("good", &clean());
    // Lines with long names, more than a pipe holds.
    let name = "n".repeat(240);
    for n in 0..500 {
        let bad = site.write(format!("{name}{n}"), &infected());
        assert_quick(&bad, true);
        fs::remove_file(&bad).unwrap();
    }
    assert_quick(&good, false);
    let before = Instant::now();
    agent.signal(nix::sys::signal::Signal::SIGTERM);
    let ended = wait_until(LIMIT, || !agent.is_running());
    let took = before.elapsed();
    drop(release);
    assert!(ended && took < Duration::from_secs(2), "{took:?}");
    assert_opens(&good);
}

#[test]
fn a_program_that_follows_the_log_under_the_watch_holds_nobody_up() {
    require_root!();
    let site = or_skip!(AllInside::new("# nothing"));
    let agent = site.agent().start();
    let log = agent.log_path().to_path_buf();
    let good = site.scratch.write("good", &clean());
    // Opens the log again and again, and another file whenever it has grown.
    let mut follower = Command::new("sh");
    follower
        .args([
            "-c",
            "while :; do cat \"$1\" \"$2\" > /dev/null; done",
            "sh",
        ])
        .args([&log, &good])
        .stdin(Stdio::null())
        .process_group(0);
    let mut follower = sys::die_with_parent(&mut follower).spawn().unwrap();
    for n in 0..50 {
        let bad = site
            .scratch
            .write(format!("bad{n}"), &[infected(), marker()].concat());
        assert_quick(&bad, true);
    }
    follower.kill().unwrap();
    follower.wait().unwrap();
    assert_quick(&log, false);
    assert_eq!(counter(&agent, "timeouts"), 0);
}
