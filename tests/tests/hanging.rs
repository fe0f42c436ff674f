//! Filesystems that hang: a FUSE server that answers no read, or no close.
//!
//! Whoever opens a file there may wait as the settings say; nobody else does, and
//! the agent stays as it was.

mod common;

use std::{fs, path::Path, thread, time::Duration};

use common::{FakeSite, LIMIT, assert_opens, assert_refused, clean, infected};
use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    sys::signal::Signal,
};
use onacc_tests::{
    Agent, Behaviour, HangingFs, Opened, Opening, clamd::wait_until, open_within, or_skip,
    require_root,
};

/// Files of a filesystem that hangs, each with a content of its own.
fn files(count: usize) -> Vec<(String, Vec<u8>)> {
    (0..count)
        .map(|n| (format!("hang{n}"), format!("hangs {n}").into_bytes()))
        .collect()
}

fn threads(agent: &Agent) -> usize {
    let tasks = format!("/proc/{}/task", agent.pid());
    fs::read_dir(tasks).expect("the agent's threads").count()
}

/// Threads that may come and go meanwhile; of what hangs there are more.
const FEW: usize = 2;
/// Bound of the settings, and what a busy machine may add to it.
const BOUND: &str = "OnAccessCurlTimeout 2000";
const NO_LONGER: Duration = Duration::from_millis(3500);

/// Has the kernel forget the pages of a file.
fn drop_from_memory(path: &Path) {
    let file = fs::File::open(path).expect("opening");
    file.sync_all().expect("it is written");
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("posix_fadvise");
}

#[track_caller]
fn assert_quick(path: &Path, is_infected: bool) {
    let open = open_within(path, LIMIT);
    let right = if is_infected {
        open.is_refused()
    } else {
        open.is_open()
    };
    assert!(
        right && open.took < NO_LONGER,
        "{}: {open:?}",
        path.display()
    );
}

#[test]
fn closes_that_hang_hold_nobody_else_up() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let hanging = or_skip!(HangingFs::mount(files(60)));
    let (bad, good) = (site.write("bad", &infected()), site.write("good", &clean()));
    let mut agent = site
        .agent()
        .include(hanging.path())
        .option(BOUND)
        // Only few events may be in flight there: places run out.
        .open_files(256)
        .start();
    let mut opened: Vec<Opened> = Vec::new();
    let mut openings: Vec<Opening> = Vec::new();
    let held = hanging.hold_closes();
    for n in 0..60 {
        openings.push(Opening::start(&hanging.join(format!("hang{n}"))));
    }
    // The agent has closed one of them, or tries.
    assert!(wait_until(LIMIT, || hanging.hanging_closes() > 0));
    let before = threads(&agent);
    for _ in 0..5 {
        assert_quick(&bad, true);
        assert_quick(&good, false);
        let new = site.write("new", &clean());
        assert_quick(&new, false);
        fs::remove_file(new).expect("removing");
        // Past the patience of the watchdog.
        thread::sleep(Duration::from_millis(1500));
    }
    assert!(agent.is_running(), "{}", agent.output());
    assert!(threads(&agent) <= before + FEW, "threads pile up");
    drop(held);
    opened.extend(openings.into_iter().map(|opening| opening.within(LIMIT)));
    assert!(opened.iter().all(Opened::is_open), "{opened:?}");
    drop(opened);
    assert_refused(&bad);
    assert_opens(&good);
    let (status, took) = agent.stop();
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn reads_that_hang_while_files_are_streamed_hold_up_their_own_openers_alone() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let hanging = or_skip!(HangingFs::mount(files(24)));
    // No longer in memory: only a thread that may wait can read them.
    let cold = |n, content: &[u8]| {
        let path = site.write(format!("cold{n}"), content);
        drop_from_memory(&path);
        path
    };
    let cold_bad = [0, 1, 2].map(|n| cold(n, &infected()));
    let cold_large = [3, 4, 5].map(|n| cold(n, &clean().repeat(400)));
    let (bad, good) = (site.write("bad", &infected()), site.write("good", &clean()));
    let mut agent = site
        .agent()
        .arg("--stream")
        .include(hanging.path())
        .option(BOUND)
        .start();
    assert_refused(&bad);
    let before = threads(&agent);
    let held = hanging.hold_reads();
    for round in 0..3 {
        let openings: Vec<Opening> = (0..8)
            .map(|n| Opening::start(&hanging.join(format!("hang{}", 8 * round + n))))
            .collect();
        if round == 0 {
            assert!(hanging.wait_for_reads(1, LIMIT));
        }
        // By their verdicts: half of the streams and readers are not for such files.
        assert_quick(&cold_bad[round], true);
        assert_quick(&cold_large[round], false);
        assert_quick(&bad, true);
        assert_quick(&good, false);
        for n in 0..4 {
            let new = site.write(format!("new{round}.{n}"), &infected());
            assert_quick(&new, true);
        }
        for opening in openings {
            let open = opening.within(LIMIT);
            assert!(open.is_open() && open.took < NO_LONGER, "{open:?}");
        }
        assert!(threads(&agent) <= before + FEW, "threads pile up");
    }
    assert!(agent.is_running(), "{}", agent.output());
    // It comes back by itself when the reads do.
    drop(held);
    let back = wait_until(LIMIT, || open_within(&bad, LIMIT).is_refused());
    assert!(back, "{}", agent.output());
    assert_quick(&bad, true);
    assert_quick(&good, false);
    assert_quick(&hanging.join("hang0"), false);
}

/// Opens files there, each once, until a close of the agent's hangs.
fn open_until_a_close_hangs(hanging: &HangingFs, openings: &mut Vec<Opening>) {
    for _ in 0..10 {
        let next = openings.len();
        openings.push(Opening::start(&hanging.join(format!("hang{next}"))));
    }
    assert!(wait_until(LIMIT, || hanging.hanging_closes() > 0));
}

#[track_caller]
fn end_in_time(openings: Vec<Opening>, opened: &mut Vec<Opened>) {
    opened.extend(openings.into_iter().map(|opening| opening.within(LIMIT)));
    let in_time = |open: &Opened| open.is_open() && open.took < NO_LONGER;
    assert!(opened.iter().all(in_time), "{opened:?}");
}

#[test]
fn a_stop_while_closes_hang_lets_everybody_go_at_once() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let hanging = or_skip!(HangingFs::mount(files(40)));
    let bad = site.write("bad", &infected());
    let mut agent = site.agent().include(hanging.path()).option(BOUND).start();
    assert_refused(&bad);
    // Dropped after `held`: their closes would hang.
    let (mut openings, mut opened) = (Vec::new(), Vec::new());
    let held = hanging.hold_closes();
    open_until_a_close_hangs(&hanging, &mut openings);
    agent.signal(Signal::SIGTERM);
    agent
        .wait_for("Clamonacc: stopped", Duration::from_secs(10))
        .expect("it says that it has stopped");
    // Its last thread cannot end before the server answers; nobody waits for that.
    assert!(wait_until(NO_LONGER, || open_within(&bad, LIMIT).is_open()));
    end_in_time(openings, &mut opened);
    drop(held);
    drop(opened);
    let status = agent.wait_for_end(Duration::from_secs(10));
    assert_eq!(status.and_then(|status| status.code()), Some(0));
    assert!(!agent.guard_fired());
}

#[test]
fn reloads_while_closes_hang_come_into_force() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let hanging = or_skip!(HangingFs::mount(files(40)));
    let bad = site.write("bad", &infected());
    let mut agent = site.agent().include(hanging.path()).option(BOUND).start();
    assert_refused(&bad);
    let (mut openings, mut opened) = (Vec::new(), Vec::new());
    let held = hanging.hold_closes();
    open_until_a_close_hangs(&hanging, &mut openings);
    let conf = fs::read_to_string(agent.conf()).expect("its clamd.conf");
    // In place: only the policy is another one. Then by a second agent.
    for (round, line) in ["OnAccessExcludeUID 54321", "OnAccessMaxThreads 3"]
        .into_iter()
        .enumerate()
    {
        fs::write(agent.conf(), format!("{conf}{line}\n")).expect("writing");
        agent.signal(Signal::SIGHUP);
        let said = || agent.output().matches("onacc: settings reloaded").count();
        let taken = wait_until(LIMIT, || said() > round);
        assert!(taken, "{}", agent.output());
        assert_quick(&bad, true);
        open_until_a_close_hangs(&hanging, &mut openings);
    }
    end_in_time(openings, &mut opened);
    assert!(agent.is_running(), "{}", agent.output());
    drop(held);
    drop(opened);
    assert_quick(&bad, true);
    let (status, took) = agent.stop();
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(3), "{took:?}");
}
