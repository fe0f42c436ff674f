//! A clamd that is absent, dies, hangs, is slow, or talks nonsense.
//!
//! Whatever it does, no opener waits longer than the bound, the fail policy
//! decides (allow, or deny under `OnAccessDenyOnError`), nothing infected is
//! taken for clean later, and protection comes back by itself.

mod common;

use std::{
    fs,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{
    FakeSite, LIMIT, NO_LONGER_YOUNG, SOON, Site, assert_opens, assert_refused, clean, counter,
    counters, infected, open_all, opened, refused_within,
};
use onacc_tests::{
    Agent, Behaviour, Clamd, Opened, Opening, RequestInfo, ScratchFs, agent::AgentBuilder,
    clamd::wait_until, open_within, or_skip, require_root,
};

/// What the noise of a busy machine may add.
const SLACK: Duration = Duration::from_millis(1500);
const DENY: &str = "OnAccessDenyOnError yes";
const ALLOW: &str = "OnAccessDenyOnError no";

fn timeout(millis: u64) -> String {
    format!("OnAccessCurlTimeout {millis}")
}

/// Asserts the answer of the fail policy, and that it came in time.
#[track_caller]
fn assert_by_policy(policy: &str, open: &Opened, within: Duration) {
    let right = if policy == DENY {
        open.is_refused()
    } else {
        open.is_open()
    };
    assert!(right, "{policy}: {open:?}");
    assert!(open.took <= within, "{policy}: {open:?}, not in {within:?}");
}

/// Opens until it opens.
fn opens_within(path: &Path, limit: Duration) -> bool {
    wait_until(limit, || open_within(path, LIMIT).is_open())
}

#[test]
fn an_absent_clamd_holds_up_nobody_and_protection_begins_when_it_comes() {
    require_root!();
    or_skip!(Clamd::installed());
    for policy in [ALLOW, DENY] {
        let scratch = or_skip!(ScratchFs::ext4(32));
        scratch.mkdir("in");
        let (bad, good) = (
            scratch.write("in/bad", &infected()),
            scratch.write("in/good", &clean()),
        );
        let dir = tempfile::tempdir().unwrap();
        let agent = Agent::builder(&dir.path().join("clamd.sock"))
            .prevention(true)
            .include(scratch.join("in"))
            .option(policy)
            .start();
        for path in [&bad, &good, &bad] {
            assert_by_policy(policy, &open_within(path, LIMIT), SLACK);
        }
        let line = agent.wait_for("Connection to clamd failed", LIMIT).unwrap();
        assert!(line.starts_with("ERROR: ClamClient: "), "{line}");
        let _clamd = Clamd::start(dir.path());
        assert!(refused_within(&bad, SOON).is_some() || policy == DENY);
        assert!(opens_within(&good, SOON), "{policy}");
        assert_refused(&bad);
        agent
            .wait_for("Connection to clamd re-established.", LIMIT)
            .unwrap();
        let told = agent.output().matches("Connection to clamd failed").count();
        assert_eq!(told, 1, "once an outage:\n{}", agent.output());
    }
}

#[test]
fn a_socket_that_a_dead_clamd_left_behind_is_as_good_as_none() {
    require_root!();
    for policy in [ALLOW, DENY] {
        let scratch = or_skip!(ScratchFs::ext4(32));
        let path = scratch.write("bad", &infected());
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("clamd.sock");
        drop(UnixListener::bind(&socket).unwrap());
        let _agent = Agent::builder(&socket)
            .prevention(true)
            .include(scratch.path())
            .option(policy)
            .start();
        assert_by_policy(policy, &open_within(&path, LIMIT), SLACK);
    }
}

#[test]
fn a_clamd_that_closes_every_connection_is_not_asked_in_a_loop() {
    require_root!();
    for policy in [ALLOW, DENY] {
        let scratch = or_skip!(ScratchFs::ext4(32));
        let path = scratch.write("bad", &infected());
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counting = Arc::clone(&accepted);
        // It ends with the process, not with the test.
        thread::spawn(move || {
            for stream in listener.incoming() {
                counting.fetch_add(1, Ordering::SeqCst);
                drop(stream);
            }
        });
        let _agent = Agent::builder(&dir.path().join("s"))
            .prevention(true)
            .include(scratch.path())
            .option(policy)
            .option(&timeout(2000))
            .start();
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            let open = open_within(&path, LIMIT);
            assert_by_policy(policy, &open, Duration::from_secs(2) + SLACK);
        }
        let accepted = accepted.load(Ordering::SeqCst);
        assert!((1..60).contains(&accepted), "{accepted} connections");
    }
}

#[test]
fn a_clamd_that_takes_no_connection_holds_openers_no_longer_than_the_bound() {
    require_root!();
    for policy in [ALLOW, DENY] {
        let scratch = or_skip!(ScratchFs::ext4(32));
        let paths: Vec<PathBuf> = (0..24)
            .map(|n| scratch.write(format!("{n}"), &infected()))
            .collect();
        let dir = tempfile::tempdir().unwrap();
        // The kernel takes connections for it, up to a number.
        let _listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let _agent = Agent::builder(&dir.path().join("s"))
            .prevention(true)
            .include(scratch.path())
            .option(policy)
            .option(&timeout(700))
            .start();
        for open in open_all(&paths, LIMIT) {
            assert_by_policy(policy, &open, Duration::from_millis(700) + SLACK);
        }
    }
}

#[test]
fn a_scan_whose_connection_breaks_is_sent_again() {
    require_root!();
    let broken = AtomicUsize::new(0);
    let site = or_skip!(FakeSite::ext4(move |_| {
        if broken.fetch_add(1, Ordering::SeqCst) == 0 {
            Behaviour::close().after(Duration::from_millis(200))
        } else {
            Behaviour::usual()
        }
    }));
    let bad = site.write("bad", &infected());
    let _agent = site.agent().start();
    assert_refused(&bad);
    assert_eq!(site.fake().count("FILDES"), 2);
}

#[test]
fn a_clamd_that_dies_with_every_scan_leaves_it_to_the_fail_policy() {
    require_root!();
    for policy in [ALLOW, DENY] {
        let close = |_: &_| Behaviour::close().after(Duration::from_millis(100));
        let site = or_skip!(FakeSite::ext4(close));
        let bad = site.write("bad", &infected());
        let _agent = site.agent().option(policy).start();
        for _ in 0..3 {
            let open = open_within(&bad, LIMIT);
            assert_by_policy(policy, &open, Duration::from_secs(5) + SLACK);
        }
    }
}

#[test]
fn a_clamd_that_ends_for_good_in_the_middle_of_scans_lets_all_openers_go_at_once() {
    require_root!();
    for policy in [ALLOW, DENY] {
        let mut site = or_skip!(FakeSite::ext4(|_| Behaviour::never()));
        let bad = site.write("bad", &infected());
        let paths = site.clean_files(12);
        let _agent = site.agent().option(policy).option(&timeout(15_000)).start();
        let openings: Vec<Opening> = paths.iter().map(|path| Opening::start(path)).collect();
        assert!(site.fake().wait_for_scans(2, LIMIT));
        let before = Instant::now();
        site.end_clamd();
        for opening in openings {
            let open = opening.within(LIMIT);
            assert_by_policy(policy, &open, LIMIT);
        }
        let took = before.elapsed();
        assert!(took < Duration::from_secs(8), "{policy}: {took:?}");
        site.restart_clamd(|_| Behaviour::usual());
        assert!(refused_within(&bad, SOON).is_some());
        assert!(opens_within(&paths[0], SOON));
    }
}

/// Sixteen threads, each opens four files one after the other.
fn open_by_sixteen(paths: &[PathBuf]) -> (Vec<Opened>, Duration) {
    let before = Instant::now();
    let opens = thread::scope(|scope| {
        let openers: Vec<_> = paths
            .chunks(paths.len() / 16)
            .map(|paths| {
                scope.spawn(|| -> Vec<Opened> {
                    paths.iter().map(|path| open_within(path, LIMIT)).collect()
                })
            })
            .collect();
        openers
            .into_iter()
            .flat_map(|opener| opener.join().expect("no opener panics"))
            .collect()
    });
    (opens, before.elapsed())
}

#[test]
fn a_stopped_clamd_holds_sixty_four_opens_no_longer_than_the_bound() {
    require_root!();
    // Stopped with a session open, and before there was one.
    for (policy, began) in [(ALLOW, true), (DENY, true), (ALLOW, false)] {
        let site = or_skip!(Site::ext4());
        let paths: Vec<PathBuf> = (0..64)
            .map(|n| site.write(format!("{n}"), format!("clean {n}").as_bytes()))
            .collect();
        let (bad, first) = (
            site.write("bad", &infected()),
            site.write("first", b"clean"),
        );
        let agent = site.agent().option(policy).option(&timeout(1000)).start();
        if began {
            assert_opens(&first);
        }
        site.clamd().stop();
        let (opens, took) = open_by_sixteen(&paths);
        assert!(took < Duration::from_secs(4), "{policy}: {took:?} in all");
        for open in &opens {
            assert_by_policy(policy, open, Duration::from_secs(1) + SLACK);
        }
        assert_by_policy(
            policy,
            &open_within(&bad, LIMIT),
            Duration::from_secs(1) + SLACK,
        );
        site.clamd().cont();
        assert!(opens_within(&paths[0], SOON), "{policy}");
        assert!(refused_within(&bad, SOON).is_some(), "{policy}");
        assert_refused(&bad);
        let told = agent.output();
        assert!(told.contains("TIMEOUT while waiting on socket"), "{told}");
    }
}

#[test]
fn a_slow_clamd_is_waited_for_as_long_as_the_bound() {
    require_root!();
    for policy in [ALLOW, DENY] {
        let slow = Duration::from_millis(1800);
        let site = or_skip!(FakeSite::ext4(move |_| Behaviour::usual().after(slow)));
        let (bad, good) = (site.write("bad", &infected()), site.write("good", &clean()));
        thread::sleep(NO_LONGER_YOUNG);
        let bound = Duration::from_millis(600);
        let agent = site.agent().option(policy).option(&timeout(600)).start();
        let opens = open_all([&bad, &good], LIMIT);
        for open in &opens {
            assert_by_policy(policy, open, bound + Duration::from_millis(900));
            assert!(open.took + Duration::from_millis(50) >= bound, "{open:?}");
        }
        // The scan went on, and is of use to whoever comes next.
        agent.wait_for("bad: Eicar", LIMIT).unwrap();
        agent
            .wait_for("after its opener had been answered", LIMIT)
            .unwrap();
        let again = open_within(&bad, LIMIT);
        assert!(again.is_refused(), "{policy}: {again:?}");
        assert_eq!(counter(&agent, "timeouts"), 2, "{:?}", counters(&agent));
    }
}

#[test]
fn an_answer_within_the_bound_is_waited_for() {
    require_root!();
    let slow = Duration::from_millis(1200);
    let site = or_skip!(FakeSite::ext4(move |_| Behaviour::usual().after(slow)));
    let (bad, good) = (site.write("bad", &infected()), site.write("good", &clean()));
    let _agent = site.agent().start();
    let waiting = Opening::start(&good);
    let open = open_within(&bad, LIMIT);
    assert!(open.is_refused() && open.took >= slow, "{open:?}");
    opened(waiting.within(LIMIT), &good);
}

#[test]
fn an_error_of_clamd_leaves_it_to_the_fail_policy_and_retries_do_not_change_that() {
    require_root!();
    for (policy, retries) in [(ALLOW, 0), (DENY, 0), (ALLOW, 2), (DENY, 2)] {
        let site = or_skip!(FakeSite::ext4(|_| Behaviour::error("Can't do that")));
        let bad = site.write("bad", &infected());
        let agent = site
            .agent()
            .option(policy)
            .option(&format!("OnAccessRetryAttempts {retries}"))
            .start();
        assert_by_policy(policy, &open_within(&bad, LIMIT), SLACK);
        assert_eq!(site.fake().count("FILDES"), 1 + retries);
        let line = agent.wait_for("Can't do that", LIMIT).unwrap();
        let path = bad.display().to_string();
        assert!(
            line.starts_with("ERROR: ") && line.contains(&path),
            "{line}"
        );
        assert_by_policy(policy, &open_within(&bad, LIMIT), SLACK);
    }
}

#[test]
fn a_retry_that_succeeds_gives_the_verdict() {
    require_root!();
    let asked = AtomicUsize::new(0);
    let site = or_skip!(FakeSite::ext4(move |_| {
        match asked.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => Behaviour::error("Not now"),
            _ => Behaviour::usual(),
        }
    }));
    let bad = site.write("bad", &infected());
    let _agent = site.agent().option("OnAccessRetryAttempts 2").start();
    assert_refused(&bad);
    assert_eq!(site.fake().count("FILDES"), 3);
}

#[test]
fn retries_do_not_add_to_the_bound() {
    require_root!();
    for policy in [ALLOW, DENY] {
        let late = Duration::from_millis(350);
        let site = or_skip!(FakeSite::ext4(move |_| {
            Behaviour::error("Too late").after(late)
        }));
        let bad = site.write("bad", &infected());
        let agent = site
            .agent()
            .option(policy)
            .option(&timeout(300))
            .option("OnAccessRetryAttempts 4")
            .start();
        let said = agent.wait_for("no opener waits longer than 1500 ms", LIMIT);
        said.unwrap();
        assert_by_policy(
            policy,
            &open_within(&bad, LIMIT),
            Duration::from_millis(1500) + SLACK,
        );
    }
}

/// What a scripted clamd does with a scan.
type Act = fn(&RequestInfo) -> Behaviour;

/// What a clamd gone mad says to a scan.
fn nonsense() -> Vec<(&'static str, Act)> {
    fn with_id(request: &RequestInfo, text: &str) -> Behaviour {
        Behaviour::raw(format!("{}: {text}", request.id).as_bytes())
    }
    vec![
        ("gibberish", |_| Behaviour::raw(b"gibberish\0")),
        ("nothing but ends", |_| Behaviour::raw(b"\0\0\0\n\n")),
        ("bytes", |_| Behaviour::raw(b"\xff\xfe\x80: fd[10]: OK\0")),
        ("a foreign id", |_| Behaviour::raw(b"99999: fd[10]: OK\0")),
        ("id 0", |_| Behaviour::raw(b"0: fd[10]: OK\0")),
        ("no id", |_| Behaviour::raw(b"fd[10]: OK\0")),
        ("a negative id", |request| {
            Behaviour::raw(format!("-{}: fd[10]: OK\0", request.id).as_bytes())
        }),
        ("an id modulo 2^32", |request| {
            let id = u64::from(request.id) + (1 << 32);
            Behaviour::raw(format!("{id}: fd[10]: OK\0").as_bytes())
        }),
        ("half, then the end", |request| {
            with_id(request, "fd[10]: OK").then_close()
        }),
        ("less, then the end", |request| {
            with_id(request, "fd[10]: O").then_close()
        }),
        ("half, then nothing", |request| {
            with_id(request, "fd[10]: OK")
        }),
        ("without end", |_| Behaviour::raw(&vec![b'a'; 200_000])),
        ("not OK", |request| with_id(request, "fd[10]: NOT OK\0")),
        ("OK and more", |request| {
            with_id(request, "fd[10]: OK ERROR\0")
        }),
        ("an empty verdict", |request| with_id(request, "fd[10]: \0")),
        ("an empty reply", |request| with_id(request, "\0")),
        ("a pong", |request| with_id(request, "PONG\0")),
        ("a version", |request| with_id(request, "ClamAV 1.4.6\0")),
        ("a farewell", |_| {
            Behaviour::raw(b"COMMAND READ TIMED OUT\n")
        }),
        ("the end", |_| Behaviour::close()),
    ]
}

#[test]
fn nonsense_holds_nobody_up_and_is_never_taken_for_clean() {
    require_root!();
    for policy in [ALLOW, DENY] {
        let script: Arc<Mutex<Option<Act>>> = Arc::default();
        let played = Arc::clone(&script);
        let site = or_skip!(FakeSite::ext4(move |request| {
            let act = *played.lock().unwrap();
            act.map_or(Behaviour::usual(), |act| act(request))
        }));
        // All written before the agent comes, so that it scans none ahead.
        let files: Vec<(PathBuf, PathBuf)> = (0..nonsense().len())
            .map(|n| {
                (
                    site.write(format!("bad{n}"), &infected()),
                    site.write(format!("good{n}"), &clean()),
                )
            })
            .collect();
        thread::sleep(NO_LONGER_YOUNG);
        let _agent = site.agent().option(policy).option(&timeout(500)).start();
        for ((name, act), (bad, good)) in nonsense().into_iter().zip(&files) {
            *script.lock().unwrap() = Some(act);
            let before = site.fake().count("FILDES");
            // The agent may pause between connections: then it does not ask.
            let heard = wait_until(LIMIT, || {
                let open = open_within(bad, LIMIT);
                assert_by_policy(policy, &open, Duration::from_millis(500) + SLACK);
                site.fake().count("FILDES") > before
            });
            assert!(heard, "{policy}, {name}: it was never asked");
            *script.lock().unwrap() = None;
            assert!(refused_within(bad, SOON).is_some(), "{policy}, {name}");
            assert!(opens_within(good, SOON), "{policy}, {name}");
            assert_refused(bad);
        }
    }
}

#[test]
fn a_reply_belongs_to_its_own_scan_when_replies_overtake_each_other() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|request| {
        // The later the request, the sooner the reply.
        let delay = 400_u64.saturating_sub(u64::from(request.id) * 23);
        Behaviour::usual().after(Duration::from_millis(delay))
    }));
    let content = |n: usize| {
        if n.is_multiple_of(3) {
            infected()
        } else {
            clean()
        }
    };
    let paths: Vec<PathBuf> = (0..30)
        .map(|n| site.write(format!("{n}"), &content(n)))
        .collect();
    let _agent = site.agent().option("OnAccessMaxThreads 10").start();
    for (n, open) in open_all(&paths, LIMIT).iter().enumerate() {
        let right = if n.is_multiple_of(3) {
            open.is_refused()
        } else {
            open.is_open()
        };
        assert!(right, "file {n}: {open:?}");
    }
}

#[test]
fn an_unanswered_version_or_ping_keeps_no_verdict_back() {
    require_root!();
    let site = or_skip!(FakeSite::with_script(|request| {
        match request.command.as_str() {
            "FILDES" => Behaviour::usual().after(Duration::from_millis(50)),
            _ => Behaviour::never(),
        }
    }));
    let (bad, good) = (site.write("bad", &infected()), site.write("good", &clean()));
    let _agent = site.agent().option(&timeout(2000)).start();
    for _ in 0..3 {
        assert_refused(&bad);
        assert_opens(&good);
    }
}

#[test]
fn a_failed_scan_leaves_no_clean_verdict() {
    require_root!();
    let fails = Arc::new(Mutex::new(true));
    let failing = Arc::clone(&fails);
    let site = or_skip!(FakeSite::ext4(move |_| {
        if *failing.lock().unwrap() {
            Behaviour::error("Can't map file into memory")
        } else {
            Behaviour::usual()
        }
    }));
    let bad = site.write("bad", &infected());
    thread::sleep(NO_LONGER_YOUNG);
    let agent = site.agent().start();
    for _ in 0..3 {
        assert_opens(&bad);
    }
    assert_eq!(counter(&agent, "marks_placed"), 0);
    *fails.lock().unwrap() = false;
    assert_refused(&bad);
}

#[test]
fn a_clamd_that_is_restarted_is_found_again() {
    require_root!();
    let scratch = or_skip!(ScratchFs::ext4(32));
    or_skip!(Clamd::installed());
    let dir = tempfile::tempdir().unwrap();
    let mut clamd = Clamd::start(dir.path());
    let start = |builder: AgentBuilder| builder.prevention(true).include(scratch.path()).start();
    let agent = start(Agent::builder(&clamd));
    for round in 0..3 {
        let bad = scratch.write(format!("{round}"), &infected());
        assert!(refused_within(&bad, SOON).is_some(), "round {round}");
        clamd.restart();
    }
    let bad = scratch.write("last", &infected());
    assert!(refused_within(&bad, SOON).is_some());
    assert!(counter(&agent, "sessions") >= 3);
    let forgotten: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
    assert!(!forgotten.is_empty());
}
