//! `--ping`, `--wait`, `--version` and `--allmatch`.

mod common;

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{LIMIT, MARKER_NAME, Site, assert_refused, infected, marker};
use onacc_tests::{
    Agent, Behaviour, Clamd, FakeClamd, ScratchFs, agent, clamd::EICAR_NAME, or_skip, require_root,
};

/// Runs onacc with these flags and a clamd.conf that names this socket.
fn onacc(dir: &Path, socket: &Path, flags: &[&str]) -> Output {
    let conf = dir.join("asked.conf");
    let text = format!(
        "LocalSocket {}\nOnAccessIncludePath /nowhere\n",
        socket.display()
    );
    fs::write(&conf, text).expect("writing settings");
    Command::new(agent::binary())
        .arg(format!("--config-file={}", conf.display()))
        .args(flags)
        .stdin(Stdio::null())
        .output()
        .expect("onacc starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn ping_tells_whether_clamd_answers() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("clamd.sock");
    let before = Instant::now();
    let output = onacc(dir.path(), &socket, &["--ping=2:1"]);
    assert_eq!(output.status.code(), Some(21));
    assert_eq!(
        said(&output),
        "PING timeout exceeded; No response from clamd\n"
    );
    let took = before.elapsed();
    assert!((1.0..9.0).contains(&took.as_secs_f32()), "{took:?}");
    {
        let _fake = FakeClamd::start(dir.path(), |_| Behaviour::usual());
        let output = onacc(dir.path(), &socket, &["-p", "1"]);
        assert_eq!(
            (output.status.code(), said(&output)),
            (Some(0), "PONG\n".into())
        );
    }
    // What listens and says nothing, or says anything else, is no clamd.
    for act in [
        Behaviour::never(),
        Behaviour::reply("PONG?"),
        Behaviour::close(),
    ] {
        let _fake = FakeClamd::start(dir.path(), move |_| act.clone());
        let output = onacc(dir.path(), &socket, &["--ping=1"]);
        assert_eq!(output.status.code(), Some(21));
    }
    let output = onacc(dir.path(), Path::new("not-absolute"), &["--ping=1"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn version_names_clamds_version_too_and_needs_no_clamd() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("clamd.sock");
    let own = format!("onacc {}\n", env!("CARGO_PKG_VERSION"));
    let output = onacc(dir.path(), &socket, &["--version"]);
    assert!(output.status.success() && said(&output).starts_with(&own));
    let _fake = FakeClamd::start(dir.path(), |_| Behaviour::usual());
    let output = onacc(dir.path(), &socket, &["-V"]);
    assert!(output.status.success());
    let told = said(&output);
    assert!(
        told.starts_with(&own) && told.contains("\nClamAV 1.4.6/27000/"),
        "{told}"
    );
}

#[test]
fn wait_waits_for_clamd_and_gives_up() {
    require_root!();
    or_skip!(Clamd::installed());
    let scratch = or_skip!(ScratchFs::ext4(32));
    let bad = scratch.write("bad", &infected());
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("clamd.sock");
    let builder = |flags: [&str; 2]| {
        let builder = Agent::builder(&socket)
            .prevention(true)
            .include(scratch.path());
        flags
            .iter()
            .fold(builder, |builder, flag| builder.arg(flag))
    };
    let exited = builder(["--wait", "--ping=2:1"]).spawn_expect_exit();
    assert_eq!(exited.status.code(), Some(21));
    let line = "Wait timeout exceeded; Could not connect to clamd";
    assert!(exited.output.contains(line), "{}", exited.output);
    let agent = builder(["--wait", "--ping=60:1"]).spawn().unwrap();
    thread::sleep(Duration::from_millis(500));
    assert!(!agent.output().contains(agent::READY), "{}", agent.output());
    let _clamd = Clamd::start(dir.path());
    agent.wait_for(agent::READY, LIMIT).unwrap();
    // The first open of all is answered by clamd.
    assert_refused(&bad);
}

#[test]
fn allmatch_names_all_and_refuses_again() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let both = [infected(), marker()].concat();
    let (first, second) = (
        site.write("first", &both),
        site.write("second", &infected()),
    );
    let agent = site.agent().arg("--allmatch").arg("--verbose").start();
    for _ in 0..3 {
        assert_refused(&first);
    }
    for name in [EICAR_NAME, MARKER_NAME] {
        agent
            .wait_for(&format!("first: {name} FOUND"), LIMIT)
            .unwrap();
    }
    assert_refused(&second);
    agent
        .wait_for(&format!("second: {EICAR_NAME} FOUND"), LIMIT)
        .unwrap();
}

#[test]
fn allmatch_names_the_one_where_clamd_does_not_say_more() {
    require_root!();
    let scratch = or_skip!(ScratchFs::ext4(32));
    let bad = scratch.write("bad", &infected());
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeClamd::start(dir.path(), |_| Behaviour::usual());
    let agent = Agent::builder(&fake)
        .prevention(true)
        .include(scratch.path())
        .arg("--allmatch")
        .start();
    assert_refused(&bad);
    agent
        .wait_for(&format!("bad: {EICAR_NAME} FOUND"), LIMIT)
        .unwrap();
    assert_refused(&bad);
}
