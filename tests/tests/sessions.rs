//! Sessions through the life of a clamd: idle for long, reloading, and files that
//! change while their content is on its way.

mod common;

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{
    FakeSite, LIMIT, NO_LONGER_YOUNG, SOON, assert_opens, assert_refused, clean, counter, infected,
    refused_within, write_marker_signature,
};
use onacc_tests::{
    Agent, Behaviour, Clamd, Opening, ScratchFs, agent::AgentBuilder, clamd::wait_until,
    open_within, or_skip, require_root, tls_proxy::free_port,
};

/// An open that takes longer was held up.
const QUICK: Duration = Duration::from_secs(3);

/// A clamd in a directory of its own.
struct Own {
    clamd: Clamd,
    _dir: tempfile::TempDir,
}

impl Own {
    fn new(options: &[&str]) -> Result<Self, String> {
        Clamd::installed()?;
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        write_marker_signature(dir.path());
        let builder = Clamd::builder(dir.path()).option("ExitOnOOM no");
        let builder = options
            .iter()
            .fold(builder, |builder, line| builder.option(line));
        Ok(Self {
            clamd: builder.try_start()?,
            _dir: dir,
        })
    }
}

fn agent_of(clamds: &[&Own], scratch: &ScratchFs, settings: &tempfile::TempDir) -> AgentBuilder {
    let path = settings.path().join("onacc.toml");
    let each = clamds.iter().map(|own| {
        let socket = own.clamd.socket();
        format!("[[server]]\nAddress = \"{}\"\n", socket.display())
    });
    fs::write(&path, each.collect::<String>()).expect("writing settings");
    Agent::without_clamd()
        .arg(&format!("--settings={}", path.display()))
        .prevention(true)
        .include(scratch.path())
}

#[test]
fn a_session_that_is_idle_for_long_serves_the_next_opener_at_once() {
    require_root!();
    // clamd gives up what is silent for three seconds.
    let small = ["ReadTimeout 3", "CommandReadTimeout 3", "IdleTimeout 1"];
    let port = free_port();
    let tcp = format!("TCPSocket {port}");
    let own = or_skip!(Own::new(
        &[&small[..], &[&tcp, "TCPAddr 127.0.0.1"]].concat()
    ));
    let socket = format!("LocalSocket {}", own.clamd.socket().display());
    // Where the agent knows clamd's timeout the session is kept alive; where it
    // does not, it is made anew before anybody comes.
    for (lines, flag, known) in [
        (vec![socket.as_str(), "ReadTimeout 3"], None, true),
        (vec![socket.as_str()], None, false),
        (
            vec![socket.as_str(), "ReadTimeout 3"],
            Some("--stream"),
            true,
        ),
        (vec![tcp.as_str(), "TCPAddr 127.0.0.1"], None, false),
    ] {
        let scratch = or_skip!(ScratchFs::ext4(32));
        let (first, second) = (
            scratch.write("first", &infected()),
            scratch.write("second", &infected()),
        );
        let builder = Agent::without_clamd()
            .prevention(true)
            .include(scratch.path());
        let builder = lines
            .iter()
            .fold(builder, |builder, line| builder.option(line));
        let builder = flag.iter().fold(builder, |builder, flag| builder.arg(flag));
        let agent = builder.option("OnAccessDenyOnError no").start();
        assert_refused(&first);
        thread::sleep(Duration::from_secs(8));
        let open = open_within(&second, LIMIT);
        assert!(
            open.is_refused() && open.took < QUICK,
            "{lines:?}: {open:?}"
        );
        assert_eq!(
            counter(&agent, "timeouts") + counter(&agent, "unreachable"),
            0
        );
        assert_eq!(counter(&agent, "scan_errors"), 0);
        if known {
            assert_eq!(counter(&agent, "sessions_lost"), 0, "{}", agent.output());
        }
    }
}

/// A reload of such a clamd waits for its idle threads, five seconds, and nobody
/// is answered meanwhile.
const SLOW_RELOAD: [&str; 2] = ["ConcurrentDatabaseReload no", "IdleTimeout 5"];

#[test]
fn while_the_only_clamd_reloads_nobody_waits_longer_than_the_bound() {
    require_root!();
    for (policy, refused) in [("no", false), ("yes", true)] {
        let own = or_skip!(Own::new(&SLOW_RELOAD));
        let scratch = or_skip!(ScratchFs::ext4(32));
        let settings = tempfile::tempdir().unwrap();
        let files: Vec<PathBuf> = (0..6)
            .map(|n| {
                scratch.write(
                    format!("file{n}"),
                    format!("known only later {n}").as_bytes(),
                )
            })
            .collect();
        let agent = agent_of(&[&own], &scratch, &settings)
            .option("OnAccessCurlTimeout 1000")
            .option(&format!("OnAccessDenyOnError {policy}"))
            // A database without a version is known by its files.
            .option(&format!(
                "DatabaseDirectory {}",
                own.clamd.database().display()
            ))
            .start();
        assert_opens(&files[0]);
        own.clamd
            .add_signature("Onacc.Test.Later", b"known only later");
        let until = Instant::now() + Duration::from_secs(4);
        let mut held_up = 0;
        while Instant::now() < until {
            // Under "deny" the open for writing is refused as well.
            let fresh = scratch.join("fresh");
            let _may_be_refused = fs::write(&fresh, b"clean, and new each time");
            for path in files
                .iter()
                .chain([&fresh].into_iter().filter(|path| path.exists()))
            {
                let open = open_within(path, LIMIT);
                assert!(
                    open.took < Duration::from_millis(2500),
                    "{policy}: {open:?}"
                );
                held_up += usize::from(open.is_refused() == refused);
            }
            thread::sleep(Duration::from_millis(50));
        }
        assert!(held_up > 0);
        // With the new database all is judged anew.
        for path in &files {
            assert!(
                wait_until(LIMIT, || open_within(path, LIMIT).is_refused()),
                "{policy}: {}",
                agent.output()
            );
        }
        agent.wait_for("Onacc.Test.Later", LIMIT).unwrap();
        let good = scratch.write("good", &clean());
        assert!(wait_until(LIMIT, || open_within(&good, LIMIT).is_open()));
    }
}

#[test]
fn while_one_of_two_clamds_reloads_the_other_gives_the_verdicts() {
    require_root!();
    let (one, two) = (or_skip!(Own::new(&SLOW_RELOAD)), or_skip!(Own::new(&[])));
    let scratch = or_skip!(ScratchFs::ext4(32));
    let settings = tempfile::tempdir().unwrap();
    let agent = agent_of(&[&one, &two], &scratch, &settings)
        .option("OnAccessCurlTimeout 6000")
        .option("OnAccessDenyOnError yes")
        .start();
    // Both have served.
    let mut round = 0;
    let both = wait_until(LIMIT, || {
        round += 1;
        let files: Vec<PathBuf> = (0..8)
            .map(|n| {
                scratch.write(
                    format!("warm{round}-{n}"),
                    format!("{round} {n}").as_bytes(),
                )
            })
            .collect();
        let opens = common::open_all(&files, LIMIT);
        opens.iter().all(onacc_tests::Opened::is_open)
            && counter(&agent, "server1_clean") > 0
            && counter(&agent, "server2_clean") > 0
    });
    assert!(both, "{}", agent.output());
    one.clamd.reload();
    for n in 0..20 {
        let bad = scratch.write(format!("bad{n}"), &[infected(), vec![b'x'; n]].concat());
        let good = scratch.write(format!("good{n}"), &[clean(), vec![b'x'; n]].concat());
        let opens = common::open_all([&bad, &good], LIMIT);
        assert!(opens[0].is_refused(), "{n}: {:?}", opens[0]);
        assert!(opens[1].is_open(), "{n}: {:?}", opens[1]);
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(counter(&agent, "timeouts"), 0, "{}", agent.output());
}

#[test]
fn a_file_that_changes_while_it_is_streamed_leaves_no_verdict() {
    require_root!();
    let slow = Arc::new(AtomicBool::new(true));
    let slowly = Arc::clone(&slow);
    let site = or_skip!(FakeSite::with_script(move |request| {
        match request.command.as_str() {
            "INSTREAM" if slowly.load(Ordering::SeqCst) => {
                Behaviour::usual().after(Duration::from_millis(800))
            }
            _ => Behaviour::usual(),
        }
    }));
    let path = site.write("file", &clean());
    thread::sleep(NO_LONGER_YOUNG);
    let agent = site.agent().arg("--stream").start();
    let waiting = Opening::start(&path);
    assert!(site.fake().wait_for_scans(1, LIMIT));
    // Its old bytes are with clamd; these are not.
    fs::write(&path, infected()).unwrap();
    slow.store(false, Ordering::SeqCst);
    assert!(waiting.within(LIMIT).is_open());
    for _ in 0..3 {
        assert_refused(&path);
    }
    assert_eq!(counter(&agent, "marks_placed"), 0);
    // And the other way round: a clean one is not held for the infected one before.
    fs::remove_file(&path).unwrap();
    fs::write(&path, clean()).unwrap();
    assert!(wait_until(SOON, || open_within(&path, LIMIT).is_open()));
    assert!(refused_within(&site.write("bad", &infected()), SOON).is_some());
}
