//! Tests of the handling of the agent, with a shell script in its place.

use std::os::unix::process::ExitStatusExt;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

/// An agent whose binary is a shell script; `$2` is `--config-file=…`.
fn stand_in(dir: &Path, script: &str) -> AgentBuilder {
    let (text, path) = (dir.join("onacc.sh"), dir.join("onacc"));
    fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
    // Written by a process of its own: a child that another test forks just now
    // would keep our descriptor, and the script would be "busy".
    let mut install = Command::new("install");
    let status = install.args(["-m", "755"]).args([&text, &path]).status();
    assert!(status.unwrap().success());
    Agent::builder(Path::new("/nowhere/clamd.sock")).binary(&path)
}

#[test]
fn it_is_started_heard_counted_and_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hearing = Arc::clone(&heard);
    let script = "trap 'echo onacc: counter: seen 4; echo onacc: counter: lost 0 >&2; sleep 0.2; echo onacc: counter: scan_time_max_us 7' USR1
        trap 'exit 3' TERM
        echo \"args: $*\" >&2
        cat \"${2#--config-file=}\"
        echo in the log > \"${3#--log=}\"
        echo onacc: protection is on, so they say
        while :; do sleep 0.02; done";
    let mut agent = stand_in(dir.path(), script)
        .include("/some/where")
        .exclude("/some/where/else")
        .option("OnAccessDenyOnError yes")
        .prevention(true)
        .arg("--bpf=off")
        .on_line(move |line| hearing.lock().unwrap().push(line.to_owned()))
        .start();
    let output = agent.output();
    for part in [
        "args: --foreground --config-file=",
        "--bpf=off",
        "LocalSocket /nowhere/clamd.sock\n",
        "OnAccessIncludePath /some/where\n",
        "OnAccessExcludePath /some/where/else\n",
        "OnAccessDenyOnError yes\n",
        "OnAccessPrevention yes\n",
    ] {
        assert!(output.contains(part), "{part:?} is not in:\n{output}");
    }
    assert_eq!(agent.log(), "in the log\n");
    assert_eq!(
        agent.wait_for("so they", LIMIT).unwrap(),
        "onacc: protection is on, so they say"
    );
    assert!(
        agent
            .wait_for("never said", Duration::from_millis(50))
            .is_err()
    );
    let counters = agent.counters().unwrap();
    assert_eq!((counters["seen"], counters["lost"]), (4, 0));
    assert!(agent.is_running());
    let (status, took) = agent.stop();
    assert_eq!(status.code(), Some(3));
    assert!(took < LIMIT && !agent.guard_fired() && !agent.is_running());
    assert!(
        heard
            .lock()
            .unwrap()
            .iter()
            .any(|line| line.starts_with(READY))
    );
}

#[test]
fn an_agent_that_does_not_start_is_shown_with_what_it_said() {
    let dir = tempfile::tempdir().unwrap();
    let exited = stand_in(dir.path(), "echo onacc: no; exit 2").spawn_expect_exit();
    assert_eq!(
        (exited.status.code(), exited.output.as_str()),
        (Some(2), "onacc: no\n")
    );
    let error = stand_in(dir.path(), "echo onacc: no; exit 2")
        .try_start()
        .err()
        .unwrap();
    assert!(
        error.contains("ended") && error.contains("onacc: no"),
        "{error}"
    );
    let missing = Agent::builder(Path::new("/x")).binary(Path::new("/nowhere/onacc"));
    assert!(
        missing
            .try_start()
            .err()
            .unwrap()
            .contains("/nowhere/onacc")
    );
}

#[test]
fn an_agent_that_hangs_is_killed_by_its_guard() {
    let dir = tempfile::tempdir().unwrap();
    let script = "echo onacc: protection is on; exec sleep 60";
    let mut agent = stand_in(dir.path(), script)
        .guard(Duration::from_millis(200))
        .start();
    let status = child::wait_within(&mut agent.child, LIMIT).unwrap();
    assert_eq!(status.signal(), Some(libc::SIGKILL));
}
