//! HUP: what the settings say now is in force, and at no time is anything
//! infected let through or anything clean refused.
//!
//! Must not: name include paths that do not exist; they would lie on the root
//! filesystem.

mod common;

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use common::{
    FakeSite, LIMIT, Site, assert_opens, assert_refused, clean, infected, open_until_marked,
    opened, refused_within,
};
use nix::sys::signal::Signal;
use onacc_tests::{
    Agent, Behaviour, FakeClamd, Opening, clamd::wait_until, open_within, or_skip, require_root,
};

const DONE: &str = "onacc: settings reloaded";
const FAILED: &str = "settings not reloaded, the old ones stay in force";

/// Writes an agent's clamd.conf anew, as a package manager would: whole or not.
fn write_conf(agent: &Agent, text: &str) {
    let new = agent.conf().with_extension("new");
    fs::write(&new, text).expect("writing settings");
    fs::rename(&new, agent.conf()).expect("replacing settings");
}

/// How often a line was said.
fn said(agent: &Agent, needle: &str) -> usize {
    agent.output().matches(needle).count()
}

/// Sends HUP and waits until the agent has said this once more.
#[track_caller]
fn reload_until(agent: &Agent, needle: &str) {
    let before = said(agent, needle);
    agent.signal(Signal::SIGHUP);
    let ok = wait_until(LIMIT, || said(agent, needle) > before);
    assert!(ok, "not said: {needle}\n{}", agent.output());
}

/// The agent's settings with lines in front and behind; takes them up.
#[track_caller]
fn reload_with(agent: &Agent, base: &str, first: &str, last: &str) {
    write_conf(agent, &format!("{first}\n{base}\n{last}\n"));
    reload_until(agent, DONE);
}

fn conf_of(agent: &Agent) -> String {
    fs::read_to_string(agent.conf()).expect("the settings")
}

/// Opens without pause while `work` runs: an infected file, one that is
/// infected and new each time, a clean one, and a clean one that is new each time.
fn hammer(watched: &Path, work: impl FnOnce()) {
    let (bad, good) = (watched.join("bad"), watched.join("good"));
    fs::write(&bad, infected()).expect("an opener of the test");
    fs::write(&good, clean()).expect("an opener of the test");
    let done = AtomicBool::new(false);
    let opens = AtomicU32::new(0);
    let forever = |each: &dyn Fn(u32)| {
        while !done.load(Ordering::SeqCst) {
            each(opens.fetch_add(1, Ordering::SeqCst));
        }
    };
    thread::scope(|scope| {
        let known_bad = scope.spawn(|| forever(&|_| assert_refused(&bad)));
        let new_bad = scope.spawn(|| {
            forever(&|n| {
                let path = watched.join(format!("bad{}", n % 64));
                let _ = fs::remove_file(&path);
                fs::write(&path, infected()).expect("an opener of the test");
                assert_refused(&path);
            });
        });
        let known_good = scope.spawn(|| forever(&|_| drop(assert_opens(&good))));
        let new_good = scope.spawn(|| {
            forever(&|n| {
                let path = watched.join(format!("good{}", n % 64));
                fs::write(&path, common::clean_pages(n as usize)).expect("an opener of the test");
                drop(assert_opens(&path));
            });
        });
        // A panic of `work` must end the others, too.
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::SeqCst);
        for opener in [known_bad, new_bad, known_good, new_good] {
            opener.join().expect("an opener of the test");
        }
        if let Err(panic) = worked {
            std::panic::resume_unwind(panic);
        }
    });
    println!("opens during the reloads: {}", opens.load(Ordering::SeqCst));
    assert!(opens.load(Ordering::SeqCst) > 100);
}

#[test]
fn three_hundred_reloads_in_place_leave_no_gap() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("in/other");
    let other = site.watched().join("other");
    let exclude = format!("OnAccessExcludePath {}", other.display());
    let agent = site.agent().guard(Duration::from_mins(3)).start();
    let base = conf_of(&agent);
    hammer(&site.watched(), || {
        for n in 0..300 {
            let (first, last) = match n % 4 {
                0 => ("# moved", exclude.as_str()),
                1 => ("", "OnAccessMaxFileSize 1M"),
                2 => ("", "OnAccessExcludeUID 7"),
                _ => ("", ""),
            };
            reload_with(&agent, &base, first, last);
        }
    });
    assert_eq!(said(&agent, "protection is on"), 1, "one agent all along");
    // HUPs that come faster than they can be followed come to one.
    for _ in 0..200 {
        agent.signal(Signal::SIGHUP);
    }
    reload_until(&agent, DONE);
}

#[test]
fn changes_that_only_another_agent_can_take_up_leave_no_gap() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let mut agent = site.agent().guard(Duration::from_mins(3)).start();
    let base = conf_of(&agent);
    hammer(&site.watched(), || {
        for n in 0..25 {
            reload_with(
                &agent,
                &base,
                "",
                &format!("OnAccessCurlTimeout {}", 9000 + n),
            );
        }
    });
    assert_eq!(said(&agent, "protection is on"), 26);
    // All but the last have ended, with their threads and files.
    let count = |what: &str| {
        let list = fs::read_dir(format!("/proc/{}/{what}", agent.pid()));
        list.expect("the agent runs").count()
    };
    assert!(
        wait_until(LIMIT, || count("task") < 20),
        "{} threads",
        count("task")
    );
    assert!(
        wait_until(LIMIT, || count("fd") < 90),
        "{} files",
        count("fd")
    );
    // What they had is given back: each has read the kernel's BTF.
    let memory = || {
        let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()));
        let status = status.expect("the agent runs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let number = line.and_then(|line| line.trim().split(' ').next());
        number.and_then(|kib| kib.parse::<u64>().ok()).expect("KiB")
    };
    assert!(
        wait_until(LIMIT, || memory() < 24 << 10),
        "{} KiB after 25 reloads",
        memory()
    );
    // Past the patience of a watchdog that took an ended thread for a stuck one.
    thread::sleep(Duration::from_secs(6));
    assert!(agent.is_running(), "{}", agent.output());
    assert_refused(&site.write("last", &infected()));
    assert!(agent.stop().0.success());
}

#[test]
fn reloads_under_marks_on_directories_leave_no_gap() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("in/other");
    let exclude = format!("OnAccessExcludePath {}/other", site.watched().display());
    let agent = site
        .agent()
        .arg("--coverage=directory")
        .guard(Duration::from_mins(3))
        .start();
    let base = conf_of(&agent);
    hammer(&site.watched(), || {
        for n in 0..40 {
            reload_with(&agent, &base, "", if n % 2 == 0 { &exclude } else { "" });
        }
        for n in 0..5 {
            reload_with(
                &agent,
                &base,
                "",
                &format!("OnAccessCurlTimeout {}", 9000 + n),
            );
        }
    });
}

#[test]
fn scope_exclusions_and_limits_are_those_of_the_file_after_hup() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("in/sub");
    site.scratch().mkdir("out");
    let bad = site.write("sub/bad", &infected());
    let outside = site.scratch().write("out/bad", &infected());
    let good = site.write("sub/good", &clean());
    let agent = site.agent().start();
    let base = conf_of(&agent);
    let sub = site.watched().join("sub");
    assert_refused(&bad);
    assert_opens(&outside);
    open_until_marked(&agent, std::slice::from_ref(&good));

    reload_with(
        &agent,
        &base,
        "",
        &format!("OnAccessExcludePath {}", sub.display()),
    );
    assert_opens(&bad);
    reload_with(&agent, &base, "", "");
    // The kernel forgets the ignored directory a moment after the line is said.
    assert!(refused_within(&bad, LIMIT).is_some());

    let out = site.scratch().join("out");
    reload_with(
        &agent,
        &base,
        "",
        &format!("OnAccessIncludePath {}", out.display()),
    );
    assert!(refused_within(&outside, LIMIT).is_some());
    assert_refused(&bad);
    reload_with(&agent, &base, "", "");
    assert_opens(&outside);

    reload_with(&agent, &base, "OnAccessMaxFileSize 10", "");
    assert_opens(&bad);
    reload_with(&agent, &base, "", "");
    assert_refused(&bad);

    reload_with(&agent, &base, "", "OnAccessExcludeRootUID yes");
    assert_opens(&bad);
    reload_with(&agent, &base, "", "OnAccessExcludeUname nobody");
    assert_refused(&bad);
}

#[test]
fn prevention_fail_policy_bound_and_clamd_are_those_of_the_file_after_hup() {
    require_root!();
    let mut site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let bad = site.write("bad", &infected());
    let agent = site.agent().option("OnAccessCurlTimeout 60000").start();
    let base = conf_of(&agent);
    assert_refused(&bad);

    let off = base.replace("OnAccessPrevention yes", "OnAccessPrevention no");
    reload_with(&agent, &off, "", "");
    // The former agent ends when whoever waited for it is answered.
    assert!(wait_until(LIMIT, || open_within(&bad, LIMIT).is_open()));
    reload_with(&agent, &base, "", "");
    assert_refused(&bad);

    // Another clamd, to which everything is infected.
    let dir = tempfile::tempdir().unwrap();
    let other = FakeClamd::start(dir.path(), |request| match request.command.as_str() {
        "FILDES" => Behaviour::reply("fd[9]: Other.Name FOUND"),
        _ => Behaviour::usual(),
    });
    let good = site.write("good", &clean());
    assert_opens(&good);
    let elsewhere = base.replace(
        &site.fake().socket().display().to_string(),
        &other.socket().display().to_string(),
    );
    reload_with(&agent, &elsewhere, "", "");
    assert_refused(&good);
    agent.wait_for("Other.Name FOUND", LIMIT).unwrap();
    reload_with(&agent, &base, "", "");
    assert_opens(&good);

    // clamd is gone: the fail policy.
    site.end_clamd();
    let without = base.replace("OnAccessCurlTimeout 60000", "OnAccessCurlTimeout 700");
    reload_with(&agent, &without, "", "OnAccessDenyOnError yes");
    assert_refused(&site.write("new", &clean()));
    reload_with(&agent, &without, "", "OnAccessDenyOnError no");
    let before = Instant::now();
    opened(open_within(&bad, LIMIT), &bad);
    assert!(before.elapsed() < Duration::from_secs(10), "the new bound");
}

#[test]
fn wrong_settings_change_nothing_and_every_fault_is_said() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.write("bad", &infected());
    let mut agent = site.agent().start();
    let base = conf_of(&agent);
    let looped = site.scratch().join("looped");
    std::os::unix::fs::symlink(&looped, &looped).unwrap();
    for (line, fault) in [
        ("OnAccesPrevention no", "did you mean OnAccessPrevention?"),
        ("OnAccessExcludeUID many", "'many' is not"),
        (
            &format!("OnAccessIncludePath {}", looped.display()),
            "Too many levels of symbolic links",
        ),
    ] {
        write_conf(&agent, &format!("{line}\n{base}"));
        reload_until(&agent, FAILED);
        let output = agent.output();
        let told = output.lines().rfind(|said| said.contains(FAILED)).unwrap();
        assert!(
            told.starts_with("ERROR: ") && output.contains(fault),
            "{output}"
        );
        assert!(output.contains("clamd.conf:1:"), "the line: {output}");
        assert_refused(&bad);
    }
    // Every fault, not the first alone.
    write_conf(
        &agent,
        &format!("NoSuchOption 1\nOnAccessExcludeUID x\n{base}"),
    );
    reload_until(&agent, FAILED);
    for fault in ["ERROR: ", "clamd.conf:1:1: NoSuchOption", "clamd.conf:2:"] {
        assert!(agent.output().contains(fault), "{}", agent.output());
    }
    fs::remove_file(agent.conf()).unwrap();
    reload_until(&agent, FAILED);
    assert!(agent.output().contains("cannot read the configuration"));
    assert_refused(&bad);
    write_conf(&agent, &base);
    reload_until(&agent, DONE);
    assert_refused(&bad);
    assert!(agent.is_running());
}

#[test]
fn openers_that_wait_for_the_former_agent_get_their_verdict() {
    require_root!();
    let slow = Duration::from_millis(1500);
    let site = or_skip!(FakeSite::ext4(move |_| Behaviour::usual().after(slow)));
    let (bad, good) = (site.write("bad", &infected()), site.write("good", &clean()));
    let agent = site.agent().option("OnAccessCurlTimeout 60000").start();
    let base = conf_of(&agent);
    let (waits_bad, waits_good) = (Opening::start(&bad), Opening::start(&good));
    assert!(site.fake().wait_for_scans(2, LIMIT));
    reload_with(&agent, &base, "OnAccessMaxThreads 3", "");
    assert!(waits_bad.wait(Duration::ZERO).is_none(), "it was too fast");
    assert!(waits_bad.within(LIMIT).is_refused());
    assert!(waits_good.within(LIMIT).is_open());
}

#[test]
fn without_room_for_a_second_agent_the_line_says_what_to_do() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.write("bad", &infected());
    let agent = site.agent().open_files(256).start();
    let base = conf_of(&agent);
    write_conf(&agent, &format!("OnAccessMaxThreads 3\n{base}"));
    reload_until(&agent, FAILED);
    assert!(agent.output().contains("restart onacc") && agent.output().contains("LimitNOFILE="));
    assert_refused(&bad);
    reload_with(&agent, &base, "", "OnAccessMaxFileSize 10");
    assert_opens(&bad);
}
