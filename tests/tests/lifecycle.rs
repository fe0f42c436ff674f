//! Start, stop, counters, limits: the agent as a process.
//!
//! However it ends, every opener is let go; however little it may use, nobody
//! is denied for that. Must not: leave an agent behind, a daemon least of all.

mod common;

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use common::{
    FakeSite, LIMIT, Site, assert_opens, assert_refused, clean, counters, infected, open_all,
    opened,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use onacc_tests::{
    Behaviour, Opened, Opening, agent, child, clamd::wait_until, guard, open_within, or_skip,
    require_root, sys,
};

const DENY: &str = "OnAccessDenyOnError yes";
const ALLOW: &str = "OnAccessDenyOnError no";
/// A service manager would wait longer; a user would not.
const STOP_LIMIT: Duration = Duration::from_millis(1500);
/// Openers are let go by the kernel as soon as the agent is gone.
const RELEASE_LIMIT: Duration = Duration::from_secs(3);

fn start_openers(paths: &[PathBuf]) -> Vec<Opening> {
    paths.iter().map(|path| Opening::start(path)).collect()
}

/// All openers have an answer; whether each was let through.
#[track_caller]
fn answers(openings: Vec<Opening>, limit: Duration) -> Vec<Opened> {
    let until = Instant::now() + limit;
    let answers: Vec<Opened> = openings
        .into_iter()
        .map(|opening| opening.within(until.saturating_duration_since(Instant::now())))
        .collect();
    let hanging = answers.iter().filter(|open| open.timed_out()).count();
    assert_eq!(hanging, 0, "openers that still hang, of {}", answers.len());
    answers
}

#[test]
fn a_stop_by_term_int_or_quit_lets_all_openers_go_and_is_quick() {
    require_root!();
    for (signal, policy) in [
        (Signal::SIGTERM, ALLOW),
        (Signal::SIGTERM, DENY),
        (Signal::SIGINT, ALLOW),
        (Signal::SIGQUIT, DENY),
    ] {
        let site = or_skip!(FakeSite::ext4(|_| Behaviour::never()));
        let paths = site.clean_files(32);
        let mut agent = site
            .agent()
            .option(policy)
            .option("OnAccessCurlTimeout 60000")
            .start();
        let openings = start_openers(&paths);
        assert!(site.fake().wait_for_scans(5, LIMIT));
        // The others wait for a place.
        thread::sleep(Duration::from_millis(100));
        for opening in &openings {
            assert!(opening.wait(Duration::ZERO).is_none(), "answered too early");
        }
        let before = Instant::now();
        agent.signal(signal);
        let ended = wait_until(LIMIT, || !agent.is_running());
        let took = before.elapsed();
        assert!(ended && took < STOP_LIMIT, "{signal}: {took:?}");
        assert_eq!(agent.stop().0.code(), Some(0), "{}", agent.output());
        for open in answers(openings, RELEASE_LIMIT) {
            let by_policy = open.is_refused() && policy == DENY;
            assert!(open.is_open() || by_policy, "{open:?}");
        }
        assert!(agent.output().contains("Clamonacc: stopped"));
        assert_opens(&paths[0]);
    }
}

#[test]
fn signals_that_mean_nothing_end_nothing() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.write("bad", &infected());
    let mut agent = site.agent().start();
    // TSTP is Ctrl-Z: a stopped agent would leave every opener waiting.
    for signal in [
        Signal::SIGUSR2,
        Signal::SIGPIPE,
        Signal::SIGALRM,
        Signal::SIGTSTP,
        Signal::SIGTTOU,
        Signal::SIGIO,
        Signal::SIGPWR,
    ] {
        agent.signal(signal);
        assert_refused(&bad);
    }
    agent.wait_for("signal 20 is of no effect", LIMIT).unwrap();
    assert!(!counters(&agent).is_empty() && agent.is_running());
}

#[test]
fn a_kill_lets_all_openers_go() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::never()));
    let paths = site.clean_files(32);
    let mut agent = site.agent().option("OnAccessCurlTimeout 60000").start();
    let openings = start_openers(&paths);
    assert!(site.fake().wait_for_scans(5, LIMIT));
    thread::sleep(Duration::from_millis(100));
    agent.kill();
    for open in answers(openings, RELEASE_LIMIT) {
        assert!(open.is_open(), "{open:?}");
    }
    let bad = site.write("bad", &infected());
    assert_opens(&bad);
}

#[test]
fn starts_and_stops_amid_opens_disturb_nobody() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let paths: Vec<PathBuf> = (0..8)
        .map(|n| site.write(format!("{n}"), &clean()))
        .collect();
    let bad = site.write("bad", &infected());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let openers: Vec<_> = paths
            .iter()
            .map(|path| {
                let done = &done;
                scope.spawn(move || {
                    let mut slowest = Duration::ZERO;
                    let mut opens = 0_u32;
                    while !done.load(Ordering::SeqCst) {
                        opens += 1;
                        let open = open_within(path, LIMIT);
                        slowest = slowest.max(open.took);
                        assert!(open.is_open(), "{open:?}");
                        // Now and then there is something new to scan.
                        if opens.is_multiple_of(10) {
                            let _ = fs::write(path, clean());
                        }
                    }
                    slowest
                })
            })
            .collect();
        for round in 0..6 {
            let mut agent = site.agent().start();
            assert_refused(&bad);
            if round % 2 == 0 {
                let (status, took) = agent.stop();
                assert!(status.success() && took < STOP_LIMIT, "{status}, {took:?}");
            } else {
                agent.kill();
            }
        }
        done.store(true, Ordering::SeqCst);
        for opener in openers {
            let slowest = opener.join().unwrap();
            assert!(slowest < Duration::from_secs(3), "{slowest:?}");
        }
    });
}

#[test]
fn a_stop_without_a_clamd_and_without_work_is_quick_too() {
    require_root!();
    let mut site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let path = site.write("a", &clean());
    let mut agent = site.agent().start();
    assert_opens(&path);
    site.end_clamd();
    let (status, took) = agent.stop();
    assert_eq!(status.code(), Some(0));
    assert!(took < STOP_LIMIT, "{took:?}");
}

#[test]
fn a_stopped_agent_leaves_nothing_marked() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.write("bad", &infected());
    for _ in 0..3 {
        let mut agent = site.agent().start();
        assert_refused(&bad);
        assert_eq!(agent.stop().0.code(), Some(0));
        assert_opens(&bad);
    }
}

#[test]
fn counters_are_told_on_usr1_and_at_the_end() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let (bad, good) = (site.write("bad", &infected()), site.write("good", &clean()));
    let mut agent = site.agent().start();
    assert_refused(&bad);
    assert_opens(&good);
    let told = counters(&agent);
    assert_eq!((told["infected"], told["clean"]), (1, 1), "{told:?}");
    assert!(told["events"] >= 2 && told["scans"] == 2, "{told:?}");
    // What the eBPF program saw, dropped by which reason, reported and lost.
    let all = agent.counters().unwrap();
    let bpf: HashSet<&str> = all
        .keys()
        .filter_map(|name| name.strip_prefix("bpf_"))
        .collect();
    if agent.output().contains("tier: eBPF: tracepoint") {
        for name in ["seen", "reported", "lost"] {
            assert!(bpf.contains(name), "{all:?}");
        }
        assert!(bpf.iter().any(|name| name.starts_with("dropped_")));
    }
    assert!(agent.is_running());
    let from = agent.output().len();
    agent.stop();
    let last = agent.output()[from..].to_owned();
    assert!(last.contains("onacc: counter: infected 1"), "{last}");
    assert!(agent.log().contains("onacc: counter: infected 1"));
}

#[test]
fn few_open_files_deny_nobody_and_hold_nobody_for_ever() {
    require_root!();
    let slow = Duration::from_millis(10);
    let site = or_skip!(FakeSite::ext4(move |_| Behaviour::usual().after(slow)));
    let paths = site.clean_files(300);
    let bad = site.write("bad", &infected());
    let mut agent = site
        .agent()
        .option("OnAccessCurlTimeout 60000")
        .open_files(256)
        .start();
    for (path, open) in paths.iter().zip(open_all(&paths, LIMIT)) {
        // EPERM (the kernel found no fd for the event) and EMFILE are wrong.
        opened(open, path);
    }
    assert_refused(&bad);
    let told = counters(&agent);
    assert!(told["budget_waits"] > 0, "the limit was felt: {told:?}");
    assert_eq!(told["clean"], 300, "{told:?}");
    assert!(agent.is_running());
}

#[test]
fn few_open_files_and_scans_that_never_end_hold_nobody_longer_than_the_bound() {
    require_root!();
    // It is alive, and answers all but scans.
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::never()));
    let paths = site.clean_files(800);
    let bound = Duration::from_millis(500);
    let mut agent = site
        .agent()
        .option("OnAccessCurlTimeout 500")
        .open_files(256)
        .start();
    let opens = open_all(&paths, LIMIT);
    let slowest = opens.iter().map(|open| open.took).max();
    for (path, open) in paths.iter().zip(opens) {
        opened(open, path);
    }
    assert!(agent.is_running());
    // Those that wait in the kernel for a free fd are openers as well.
    let limit = bound + Duration::from_secs(1);
    assert!(
        slowest.is_some_and(|took| took <= limit),
        "{slowest:?}, and the bound is {bound:?}: {:?}",
        counters(&agent)
    );
}

#[test]
fn with_too_few_open_files_it_does_not_start_and_with_just_enough_it_denies_nobody() {
    require_root!();
    let slow = Duration::from_millis(20);
    let site = or_skip!(FakeSite::ext4(move |_| Behaviour::usual().after(slow)));
    let paths = site.clean_files(60);
    for limit in (16..80).step_by(8) {
        let started = site.agent().open_files(limit).try_start();
        let Ok(mut agent) = started else {
            // It said so before it held anybody up.
            let exited = site.agent().open_files(limit).spawn_expect_exit();
            assert_eq!(exited.status.code(), Some(2), "{limit}: {}", exited.output);
            assert!(exited.output.contains("open files"), "{}", exited.output);
            continue;
        };
        for (path, open) in paths.iter().zip(open_all(&paths, LIMIT)) {
            assert!(open.is_open(), "{limit} open files, {path:?}: {open:?}");
        }
        assert!(agent.is_running(), "{limit}: {}", agent.output());
    }
}

#[test]
fn the_log_is_appended_to_and_never_through_a_link() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.write("bad", &infected());
    let dir = tempfile::tempdir().unwrap();
    let (log, link) = (dir.path().join("log"), dir.path().join("link"));
    symlink(&log, &link).unwrap();
    let exited = site.agent().log_path(&link).spawn_expect_exit();
    assert_eq!(exited.status.code(), Some(3), "{}", exited.output);
    assert!(exited.output.contains("link") && exited.output.contains("--log="));
    assert!(!log.exists(), "the link was not followed");
    fs::write(&log, "kept\n").unwrap();
    fs::set_permissions(&log, fs::Permissions::from_mode(0o600)).unwrap();
    let agent = site.agent().log_path(&log).start();
    assert_refused(&bad);
    assert!(wait_until(LIMIT, || agent.log().contains(" FOUND")));
    assert!(agent.log().starts_with("kept\n"));
    assert_eq!(
        agent
            .log_path()
            .symlink_metadata()
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
}

/// A daemon that is told apart by its configuration file, and does not outlive
/// this value.
struct Daemon {
    conf: PathBuf,
}

impl Daemon {
    /// The processes that run with this configuration.
    fn pids(&self) -> Vec<i32> {
        let wanted = format!("--config-file={}", self.conf.display());
        fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid: &i32| {
                fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                    line.split(|byte| *byte == 0)
                        .any(|word| word == wanted.as_bytes())
                })
            })
            .collect()
    }

    fn signal(&self, signal: Signal) {
        for pid in self.pids() {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

/// Starts an agent without `--foreground`; waits for the first process to end.
fn start_daemon(conf: &Path, log: &Path) -> (Option<ExitStatus>, Child) {
    let mut command = Command::new(agent::binary());
    command
        .arg(format!("--config-file={}", conf.display()))
        .arg(format!("--log={}", log.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut first = sys::die_with_parent(&mut command)
        .spawn()
        .expect("the process starts");
    let status = child::wait_within(&mut first, Duration::from_secs(10));
    (status, first)
}

#[test]
fn the_parent_of_a_daemon_ends_well_only_once_protection_is_on() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.write("bad", &infected());
    let dir = tempfile::tempdir().unwrap();
    let (conf, log) = (dir.path().join("conf"), dir.path().join("log"));
    let lines = format!(
        "LocalSocket {}\nOnAccessPrevention yes\nOnAccessIncludePath {}\n",
        site.clamd().socket().display(),
        site.watched().display()
    );
    fs::write(&conf, lines).unwrap();
    let daemon = Daemon { conf: conf.clone() };
    let (status, _first) = start_daemon(&conf, &log);
    let pids = daemon.pids();
    // The guards of daemons that may hang: they end when the test does.
    let _guards: Vec<_> = pids
        .iter()
        .map(|pid| guard(u32::try_from(*pid).unwrap(), Duration::from_mins(1)))
        .collect();
    assert_eq!(status.and_then(|status| status.code()), Some(0));
    assert_refused(&bad);
    assert_eq!(pids.len(), 1, "one process goes on: {pids:?}");
    assert_eq!(
        fs::read_link(format!("/proc/{}/cwd", pids[0])).unwrap(),
        Path::new("/")
    );
    let session = nix::unistd::getsid(Some(Pid::from_raw(pids[0]))).unwrap();
    assert_eq!(session.as_raw(), pids[0], "it leads a session of its own");
    for stream in 0..=2 {
        let target = fs::read_link(format!("/proc/{}/fd/{stream}", pids[0])).unwrap();
        assert_eq!(target, Path::new("/dev/null"), "stream {stream}");
    }
    let said = || fs::read_to_string(&log).unwrap_or_default();
    assert!(
        wait_until(LIMIT, || said().contains(" FOUND")),
        "{}",
        said()
    );
    // A second one has no log, and must not disturb the first.
    let (status, _first) = start_daemon(&conf, &log);
    assert_eq!(status.and_then(|status| status.code()), Some(3));
    assert_eq!(daemon.pids(), pids);
    let before = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert!(wait_until(LIMIT, || daemon.pids().is_empty()));
    assert!(before.elapsed() < STOP_LIMIT, "{:?}", before.elapsed());
    assert_opens(&bad);
    assert!(said().contains("Clamonacc: stopped"), "{}", said());
}

#[test]
fn the_parent_of_a_daemon_that_cannot_start_says_why_and_ends_with_2() {
    require_root!();
    let dir = tempfile::tempdir().unwrap();
    let (conf, log) = (dir.path().join("conf"), dir.path().join("log"));
    let daemon = Daemon { conf: conf.clone() };
    for (lines, word) in [
        (
            "OnAccessIncludePath /tmp\nNoSuchOption yes\n",
            "NoSuchOption",
        ),
        (
            // Found only when it has gone into the background.
            "LocalSocket /x\nOnAccessIncludePath /proc/sys\nOnAccessPrevention yes\n",
            "nothing can be protected",
        ),
    ] {
        fs::write(&conf, lines).unwrap();
        let (status, first) = start_daemon(&conf, &log);
        let said = std::io::read_to_string(first.stderr.unwrap()).unwrap();
        assert_eq!(status.and_then(|status| status.code()), Some(2), "{said}");
        assert!(said.contains(word), "{said}");
        assert!(daemon.pids().is_empty());
    }
}

#[test]
fn a_filesystem_that_is_watched_can_be_unmounted() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let other = or_skip!(onacc_tests::ScratchFs::ext4(16));
    let (bad, inside) = (other.write("bad", &infected()), other.path().to_path_buf());
    let _agent = site.agent().include(&inside).start();
    assert_refused(&bad);
    let good = other.write("good", &clean());
    drop(assert_opens(&good));
    let unmounted = wait_until(Duration::from_secs(2), || {
        nix::mount::umount(&inside).is_ok()
    });
    assert!(unmounted, "the agent keeps it busy");
    let own = site.write("bad", &infected());
    assert!(open_within(&own, LIMIT).is_refused());
}

#[test]
fn a_pid_file_is_one_agents_and_a_stale_one_is_taken_over() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.write("bad", &infected());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("onacc.pid");
    let flag = format!("--pid-file={}", file.display());
    fs::write(&file, "1\n").unwrap();
    let mut agent = site.agent().arg(&flag).start();
    let pid = agent.pid().to_string();
    assert_eq!(fs::read_to_string(&file).unwrap().trim(), pid);

    let second = site.agent().arg(&flag).spawn_expect_exit();
    assert_eq!(second.status.code(), Some(2), "{}", second.output);
    let said = format!("another onacc runs with this pid file (process {pid})");
    assert!(second.output.contains(&said), "{}", second.output);
    assert!(
        second.output.contains("--pid-file=FILE"),
        "{}",
        second.output
    );
    assert_eq!(fs::read_to_string(&file).unwrap().trim(), pid);
    assert_refused(&bad);

    assert!(agent.stop().0.success());
    assert!(!file.exists());
    let mut killed = site.agent().arg(&flag).start();
    killed.kill();
    assert!(file.exists(), "nobody could remove it");
    let _again = site.agent().arg(&flag).start();
    assert_refused(&bad);
}

#[test]
fn a_daemon_is_given_up_with_the_parent_that_was_ended_while_it_waited() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let dir = tempfile::tempdir().unwrap();
    let (conf, log) = (dir.path().join("conf"), dir.path().join("log"));
    nix::unistd::mkfifo(&log, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let lines = format!(
        "LocalSocket {}\nOnAccessPrevention yes\nOnAccessIncludePath {}\n",
        site.clamd().socket().display(),
        site.watched().display()
    );
    fs::write(&conf, lines).unwrap();
    let daemon = Daemon { conf: conf.clone() };
    let mut command = Command::new(agent::binary());
    command
        .arg(format!("--config-file={}", conf.display()))
        // Opening a pipe that nobody reads waits for ever.
        .arg(format!("--log={}", log.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut first = sys::die_with_parent(&mut command).spawn().unwrap();
    assert!(wait_until(LIMIT, || daemon.pids().len() == 2));
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(wait_until(LIMIT, || daemon.pids().is_empty()));
}
