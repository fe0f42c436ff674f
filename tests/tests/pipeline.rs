//! The verdict pipeline under failure and load: every failure with every policy and
//! retries, openers that are killed, numbers that must be exact, and one process
//! that opens a thousand large files beside others.

mod common;

use std::{
    fs::{self, File},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use common::{
    FakeSite, LIMIT, NO_LONGER_YOUNG, Site, assert_refused, clean, counter, counters, infected,
    marker, open_all, start_cat,
};
use onacc_tests::{
    Agent, Behaviour, Opened, Opening, RequestInfo, child,
    clamd::{ask, wait_until},
    client::Session,
    open_within, or_skip, require_root,
};

const DENY: &str = "OnAccessDenyOnError yes";
const ALLOW: &str = "OnAccessDenyOnError no";
/// No opener's time runs out while the test sets the scene.
const LONG: &str = "OnAccessCurlTimeout 20000";
/// Large files that one process opens.
const MANY: usize = 1000;
/// What the noise of a busy machine may add.
const SLACK: Duration = Duration::from_millis(2500);

fn held(_: &RequestInfo) -> Behaviour {
    Behaviour::usual().held()
}

#[track_caller]
fn assert_by_policy(policy: &str, what: &str, open: &Opened, within: Duration) {
    let right = if policy == DENY {
        open.is_refused()
    } else {
        open.is_open()
    };
    assert!(right, "{what}, {policy}: {open:?}");
    assert!(open.took <= within, "{what}, {policy}: {open:?}");
}

/// What a scripted clamd does with a scan.
type Act = Arc<dyn Fn(&RequestInfo) -> Behaviour + Send + Sync>;

/// Every way in which a scan fails.
fn failures() -> Vec<(String, Act)> {
    let text = |words: &'static str| -> Act { Arc::new(move |_| Behaviour::reply(words)) };
    let mut all: Vec<(String, Act)> = [
        "Can't access file ERROR",
        "Access denied. ERROR",
        "lstat() failed: Permission denied. ERROR",
        "File path check failure: No such file or directory. ERROR",
        "INSTREAM size limit exceeded. ERROR",
        "Exceeded time limit ERROR",
        "Unheard of",
    ]
    .into_iter()
    .map(|words| (words.to_owned(), text(words)))
    .collect();
    all.push(("no answer".to_owned(), Arc::new(|_| Behaviour::never())));
    all.push((
        "late".to_owned(),
        Arc::new(|_| Behaviour::clean().after(Duration::from_secs(5))),
    ));
    let whole = "1: fd[10]: OK".len();
    for count in 0..=whole {
        let act: Act = Arc::new(move |request| {
            let reply = format!("{}: fd[10]: OK\0", request.id);
            let end = count.min(reply.len() - 1);
            Behaviour::raw(&reply.as_bytes()[..end]).then_close()
        });
        all.push((format!("closed after {count} bytes"), act));
    }
    all
}

#[test]
fn every_failure_with_retries_is_left_to_the_fail_policy() {
    require_root!();
    for (policy, retries) in [(DENY, 2), (DENY, 0), (ALLOW, 2)] {
        let script: Arc<Mutex<Option<Act>>> = Arc::default();
        let played = Arc::clone(&script);
        let mut site = or_skip!(FakeSite::ext4(move |request| {
            let act = played.lock().unwrap().clone();
            act.map_or(Behaviour::usual(), |act| act(request))
        }));
        let files: Vec<PathBuf> = (0..=failures().len())
            .map(|n| site.write(format!("clean{n}"), format!("clean {n}").as_bytes()))
            .collect();
        thread::sleep(NO_LONGER_YOUNG);
        let agent = site
            .agent()
            .option(policy)
            .option("OnAccessCurlTimeout 300")
            .option(&format!("OnAccessRetryAttempts {retries}"))
            .start();
        let bound = Duration::from_millis(300 * (retries + 1));
        for ((name, act), path) in failures().into_iter().zip(&files) {
            *script.lock().unwrap() = Some(act);
            let before = site.fake().count("FILDES");
            // The agent may pause between connections: then it does not ask.
            let asked = wait_until(LIMIT, || {
                let open = open_within(path, LIMIT);
                assert_by_policy(policy, &name, &open, bound + SLACK);
                site.fake().count("FILDES") > before
            });
            assert!(asked, "{name}, {policy}: clamd was never asked");
            // And it is not for good.
            *script.lock().unwrap() = None;
            let opens = wait_until(LIMIT, || open_within(path, LIMIT).is_open());
            assert!(opens, "{name}, {policy}: {}", agent.output());
        }
        site.end_clamd();
        let last = &files[files.len() - 1];
        for _ in 0..3 {
            assert_by_policy(policy, "gone", &open_within(last, LIMIT), bound + SLACK);
        }
    }
}

#[test]
fn a_file_over_the_size_limit_is_left_to_the_fail_policy_after_retries_too() {
    require_root!();
    for policy in [DENY, ALLOW] {
        let site = or_skip!(FakeSite::ext4(held));
        let long = site.write("long", &vec![b'x'; 2 << 20]);
        let agent = site
            .agent()
            .arg("--stream")
            .option(policy)
            .option("StreamMaxLength 1M")
            .option("OnAccessRetryAttempts 2")
            .start();
        let open = open_within(&long, LIMIT);
        assert_by_policy(policy, "over the limit", &open, SLACK);
        let told = counters(&agent);
        assert_eq!(told["too_long_to_stream"], 1, "{told:?}");
        assert_eq!(told["streamed_bytes"], 0, "{told:?}");
        assert_eq!(site.fake().count("INSTREAM"), 0);
    }
}

#[test]
fn an_opener_that_is_killed_under_way_leaves_its_scan_to_the_next() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(held));
    let (bad, other) = (
        site.write("bad", &infected()),
        site.write("other", &clean()),
    );
    thread::sleep(NO_LONGER_YOUNG);
    let agent = site
        .agent()
        .option("OnAccessMaxThreads 1")
        .option(LONG)
        .start();
    let mut cat = start_cat(&bad);
    assert!(site.fake().wait_for_scans(1, LIMIT));
    child::kill(&mut cat);
    assert!(
        wait_until(LIMIT, || counter(&agent, "cancelled") == 1),
        "{}",
        agent.output()
    );
    // The same file: no second scan. Another one: its place comes with the reply.
    let again = Opening::start(&bad);
    let next = Opening::start(&other);
    assert!(wait_until(LIMIT, || counter(&agent, "scans") == 3));
    assert_eq!(counter(&agent, "joined"), 1, "{:?}", counters(&agent));
    assert_eq!(site.fake().count("FILDES"), 1);
    site.fake().let_all_go();
    assert!(again.within(LIMIT).is_refused());
    assert!(next.within(LIMIT).is_open());
    let told = counters(&agent);
    assert_eq!(site.fake().count("FILDES"), 2, "{told:?}");
    assert_eq!(
        (told["infected"], told["clean"], told["late_verdicts"]),
        (1, 1, 0),
        "{told:?}"
    );
    assert_eq!(told["timeouts"] + told["scan_errors"], 0, "{told:?}");
}

#[test]
fn the_counters_are_exact() {
    require_root!();
    let script: Arc<Mutex<Vec<Behaviour>>> = Arc::default();
    let played = Arc::clone(&script);
    let site = or_skip!(FakeSite::with_script(move |request| {
        match request.command.as_str() {
            "INSTREAM" => {
                let next = played.lock().unwrap().pop();
                next.unwrap_or(Behaviour::usual())
            }
            _ => Behaviour::usual(),
        }
    }));
    let file = |name: &str, length: usize| {
        let byte = name.as_bytes()[0];
        site.write(name, &vec![byte; length])
    };
    let lengths = [1, 65_536, 65_537, 300_000];
    let plain: Vec<PathBuf> = (0..lengths.len())
        .map(|n| file(&format!("{n}plain"), lengths[n]))
        .collect();
    let (same, retried, lost) = (file("same", 10), file("retried", 20), file("lost", 30));
    let bad = site.write("bad", &infected());
    thread::sleep(NO_LONGER_YOUNG);
    let agent = site
        .agent()
        .arg("--stream")
        .option(LONG)
        .option("OnAccessRetryAttempts 2")
        .start();
    let play = |acts: &[Behaviour]| acts.clone_into(&mut script.lock().unwrap());
    for path in &plain {
        assert!(open_within(path, LIMIT).is_open());
    }
    // Five openers, one scan.
    play(&[Behaviour::usual().held()]);
    let openings: Vec<Opening> = (0..5).map(|_| Opening::start(&same)).collect();
    assert!(wait_until(LIMIT, || counter(&agent, "scans") == 9));
    site.fake().let_go(1);
    for opening in openings {
        assert!(opening.within(LIMIT).is_open());
    }
    // Two errors, then a verdict; a session that ends, then a verdict.
    play(&[Behaviour::error("No"), Behaviour::error("No")]);
    assert!(open_within(&retried, LIMIT).is_open());
    let sessions = counter(&agent, "sessions");
    play(&[Behaviour::close()]);
    assert!(open_within(&lost, LIMIT).is_open());
    assert!(open_within(&bad, LIMIT).is_refused());
    let bytes: usize = lengths.iter().sum::<usize>() + 10 + 3 * 20 + 2 * 30 + infected().len();
    let wanted = [
        ("scans", 12),
        ("joined", 4),
        ("clean", 7),
        ("infected", 1),
        ("scan_errors", 0),
        ("timeouts", 0),
        ("unreachable", 0),
        ("late_verdicts", 0),
        ("retries", 3),
        ("sessions_lost", 1),
        ("server1_lost", 1),
        ("server1_clean", 7),
        ("server1_infected", 1),
        ("server1_errors", 2),
        ("streamed_bytes", bytes as u64),
        ("server1_bytes", bytes as u64),
        ("opener_wait_count", 12),
        // Once for each scan, not for each try; who joins has no place in line.
        ("queue_wait_count", 8),
        ("scan_time_count", 8),
    ];
    let told = counters(&agent);
    for (name, count) in wanted {
        assert_eq!(told[name], count, "{name} in {told:?}");
    }
    assert!(told["sessions"] >= sessions);
    assert_eq!(told["sessions"], told["server1_sessions"]);
}

/// A clamd with one worker, to which each byte costs time.
fn one_worker() -> impl Fn(&RequestInfo) -> Behaviour + Send + Sync + 'static {
    let worker = Mutex::new(());
    move |request| {
        let length = request
            .file
            .as_ref()
            .and_then(|file| file.metadata().ok())
            .map_or(0, |data| data.len());
        let _busy = worker.lock().expect("no worker panics");
        // 1 MiB: 20 ms.
        thread::sleep(Duration::from_nanos(length * 20));
        Behaviour::clean()
    }
}

#[test]
fn a_thousand_large_files_of_one_process_hold_a_shell_up_for_little() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(one_worker()));
    let file = |name: String, length: u64| {
        let path = site.write(&name, name.as_bytes());
        let file = File::options().write(true).open(&path).expect("opening");
        file.set_len(length).expect("making it long");
        path
    };
    let large: Vec<PathBuf> = (0..MANY)
        .map(|n| file(format!("large{n}"), 1 << 20))
        .collect();
    let small: Vec<PathBuf> = (0..20).map(|n| file(format!("small{n}"), 100)).collect();
    let own_large: Vec<PathBuf> = (0..4).map(|n| file(format!("own{n}"), 1 << 20)).collect();
    let agent = site
        .agent()
        .option("OnAccessCurlTimeout 50000")
        .guard(Duration::from_secs(100))
        .start();
    let openings: Vec<Opening> = large.iter().map(|path| Opening::start(path)).collect();
    assert!(wait_until(LIMIT, || counter(&agent, "scans") >= MANY as u64));
    let begun = Instant::now();
    let mut waits = Vec::new();
    for path in small.iter().chain(&own_large) {
        let before = Instant::now();
        assert!(start_cat(path).wait().expect("waiting for cat").success());
        waits.push(before.elapsed());
    }
    let (took, left) = (
        begun.elapsed(),
        MANY - site.fake().count("FILDES").min(MANY),
    );
    waits.sort_unstable();
    eprintln!(
        "the shell waited {:?} at the median, {:?} at most; {left} large files were in line still",
        waits[waits.len() / 2],
        waits[waits.len() - 1]
    );
    // At the end of the line each would have waited for all of it: 20 s. Beside it
    // only those that are under way, and a turn of the other process.
    assert!(left > MANY / 4, "{took:?}, {waits:?}");
    assert!(waits[waits.len() - 1] < Duration::from_secs(3), "{waits:?}");
    assert!(waits[waits.len() / 2] < Duration::from_secs(1), "{waits:?}");
    for opening in openings {
        let open = opening.within(Duration::from_mins(1));
        assert!(open.is_open(), "{open:?}");
    }
    assert_eq!(counter(&agent, "timeouts"), 0);
}

#[test]
fn no_more_is_in_flight_than_clamds_queue_takes() {
    require_root!();
    for (queue, most) in [(2, 1), (8, 3), (20, 9)] {
        let site = or_skip!(FakeSite::ext4(held));
        let files = site.clean_files(40);
        let agent = site
            .agent()
            .option("OnAccessMaxThreads 64")
            .option(&format!("MaxQueue {queue}"))
            .option(LONG)
            .start();
        let openings: Vec<Opening> = files.iter().map(|path| Opening::start(path)).collect();
        assert!(site.fake().wait_for_scans(most, LIMIT));
        assert!(wait_until(LIMIT, || counter(&agent, "scans") == 40));
        assert_eq!(site.fake().in_flight(), most, "MaxQueue {queue}");
        site.fake().let_all_go();
        for opening in openings {
            assert!(opening.within(LIMIT).is_open());
        }
        assert!(site.fake().peak() <= most, "MaxQueue {queue}");
    }
}

/// Beside the agent's scans another client is answered: the receiving thread of
/// this clamd never waits for room in its queue.
#[test]
fn a_real_clamd_with_a_short_queue_serves_others_beside_the_agent() {
    require_root!();
    let options = ["MaxThreads 2", "MaxQueue 8"];
    let site = or_skip!(Site::ext4_with(&options));
    // Scans that take a while: clamd looks for the marker in all of it.
    let content: Vec<u8> = (0..1_500_000_u32)
        .map(|n| u8::try_from(n % 251).unwrap_or_default())
        .collect();
    let files: Vec<PathBuf> = (0..24)
        .map(|n| {
            let own = [format!("{n}").as_bytes(), &content].concat();
            site.write(format!("file{n}"), &own)
        })
        .collect();
    let agent = site
        .agent()
        .option("OnAccessMaxThreads 64")
        .option("MaxQueue 8")
        .option(LONG)
        .start();
    let (dir, ours) = (tempfile::tempdir().unwrap(), [clean(), marker()].concat());
    let outside = dir.path().join("ours");
    std::fs::write(&outside, &ours).unwrap();
    let openings: Vec<Opening> = files.iter().map(|path| Opening::start(path)).collect();
    for _ in 0..50 {
        let before = Instant::now();
        let pong = ask(&site.clamd().socket(), "PING", LIMIT);
        assert_eq!(pong.as_deref(), Ok("PONG"));
        let mut session = Session::connect(&site.clamd().socket(), LIMIT).unwrap();
        session.fildes(&File::open(&outside).unwrap()).unwrap();
        let (_, said) = session.reply().unwrap();
        assert!(said.ends_with(" FOUND"), "{said}");
        assert!(
            before.elapsed() < Duration::from_secs(10),
            "{:?}",
            before.elapsed()
        );
        if counter(&agent, "clean") >= 24 {
            break;
        }
    }
    for opening in openings {
        assert!(opening.within(LIMIT).is_open());
    }
    assert_eq!(counter(&agent, "timeouts"), 0, "{}", agent.output());
}

#[test]
fn many_opens_of_few_openers_are_all_answered_whatever_clamd_does() {
    require_root!();
    // Replies overtake each other, every eleventh is an error, every
    // ninety-seventh ends the session.
    let site = or_skip!(FakeSite::ext4(|request| {
        let number = request.path().and_then(|path| {
            let name = path.file_name()?.to_str()?.to_owned();
            name.trim_start_matches("clean").parse::<u64>().ok()
        });
        match number.unwrap_or(0) {
            n if n % 97 == 96 && request.id % 2 == 0 => Behaviour::close(),
            n if n % 11 == 10 => Behaviour::error("Can't read file"),
            n => Behaviour::usual().after(Duration::from_micros(n % 7 * 300)),
        }
    }));
    let files = site.clean_files(600);
    let bad = site.write("bad", &infected());
    let agent: Agent = site.agent().option(LONG).start();
    for part in files.chunks(100) {
        for open in open_all(part, LIMIT) {
            assert!(open.is_open(), "{open:?}: {}", agent.output());
        }
        assert!(wait_until(LIMIT, || open_within(&bad, LIMIT).is_refused()));
    }
    assert_eq!(counter(&agent, "timeouts"), 0, "{:?}", counters(&agent));
}

/// Sessions are looked after every five seconds, and this is some bounds more.
const GIVEN_UP_BY: Duration = Duration::from_secs(30);

/// A clamd that replies to all but the files that begin with `never`, as long as its
/// workers hang.
#[test]
fn scans_that_clamd_never_replies_to_give_their_places_back() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|request| {
        if request.command == "FILDES" && request.content().starts_with(b"never") {
            Behaviour::never()
        } else {
            Behaviour::usual()
        }
    }));
    let fds = |agent: &onacc_tests::Agent| {
        let fds = fs::read_dir(format!("/proc/{}/fd", agent.pid()));
        fds.expect("its fds").count()
    };
    let mut agent = site
        .agent()
        .option("OnAccessCurlTimeout 500")
        .option("OnAccessMaxThreads 4")
        .start();
    assert_refused(&site.write("bad", &infected()));
    let before = fds(&agent);
    for round in 0..2 {
        let lost = counter(&agent, "scans_unanswered");
        let openings: Vec<Opening> = (0..4)
            .map(|n| {
                let name = format!("never {round} {n}");
                Opening::start(&site.write(&name, name.as_bytes()))
            })
            .collect();
        for opening in openings {
            // At the bound, by the fail policy.
            assert!(opening.within(LIMIT).is_open());
        }
        // Every place is taken, until the session is begun anew.
        let new = site.write(format!("new {round}"), &infected());
        let served = wait_until(GIVEN_UP_BY, || open_within(&new, LIMIT).is_refused());
        assert!(served, "{}", agent.output());
        assert_eq!(counter(&agent, "scans_unanswered"), lost + 4);
        // Nothing of theirs is left.
        assert!(wait_until(LIMIT, || fds(&agent) <= before), "{before}");
        assert_eq!(counter(&agent, "sessions_lost"), round + 1);
        assert_eq!(counter(&agent, "sessions"), round + 2);
    }
    assert!(agent.is_running());
}
