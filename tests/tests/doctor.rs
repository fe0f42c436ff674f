//! `onacc doctor`: what it finds, what it proves, and what it leaves behind.
//!
//! What the machine itself lacks (capabilities, namespaces) differs from host to
//! host: of the area "kernel" nothing is demanded but that it is there. Must not:
//! fly a canary anywhere but on a scratch filesystem.

mod common;

use std::{
    fs,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::{FakeSite, LIMIT, Site, assert_opens, assert_refused, clean, infected};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use onacc_tests::{Agent, Behaviour, agent, child, clamd::wait_until, or_skip, require_root, sys};
use serde_json::Value;

/// What the doctor said.
struct Said {
    status: ExitStatus,
    value: Value,
}

impl Said {
    /// `level: what` of an area.
    fn of(&self, area: &str) -> Vec<String> {
        let word = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
        let all = self.value["findings"].as_array().expect("findings");
        let of_area = all.iter().filter(|one| one["area"] == area);
        of_area
            .map(|one| format!("{}: {}", word(one, "level"), word(one, "what")))
            .collect()
    }

    /// There is a finding of this area and level with these words.
    #[track_caller]
    fn has(&self, area: &str, level: &str, words: &str) {
        let found = self.of(area);
        let has = |line: &String| line.starts_with(level) && line.contains(words);
        assert!(
            found.iter().any(has),
            "no {level} {words:?} in {:#}",
            self.value
        );
    }

    /// No problem that does not lie in the machine that the tests run on.
    #[track_caller]
    fn is_well(&self) {
        for area in ["settings", "limits", "clamd", "agent", "canary"] {
            let found = self.of(area);
            assert!(!found.is_empty(), "nothing of {area} in {:#}", self.value);
            let bad = found.iter().any(|line| line.starts_with("problem"));
            assert!(!bad, "{found:?}");
        }
    }
}

fn command(conf: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(agent::binary());
    command
        .arg("doctor")
        .arg("--json")
        .arg(format!("--config-file={}", conf.display()))
        .args(more)
        .current_dir("/")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Its end and its words; it is killed if that takes too long.
fn finish(mut running: std::process::Child) -> Said {
    let status = child::wait_within(&mut running, 3 * LIMIT);
    if status.is_none() {
        child::kill(&mut running);
    }
    let output = running.wait_with_output().expect("its output");
    let status = status.expect("the doctor ends");
    let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        panic!("{error}: {status}: {text:?} {errors:?}")
    });
    let said = Said { status, value };
    let limited = said.value["limited"].as_bool().expect("limited");
    assert_eq!(said.status.code(), Some(i32::from(limited)));
    said
}

fn doctor(conf: &Path, more: &[&str]) -> Said {
    let mut command = command(conf, more);
    let running = sys::die_with_parent(&mut command).spawn();
    finish(running.expect("onacc starts"))
}

fn names(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("the directory is there");
    let mut names: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    names.sort();
    names
}

#[test]
fn a_healthy_agent_is_proved_to_refuse_and_is_not_disturbed() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let (good, bad) = (site.write("good", &clean()), site.write("bad", &infected()));
    let mut agent = site.agent().start();
    let before = names(&site.watched());
    let said = doctor(&agent.conf(), &[]);
    said.is_well();
    said.has("canary", "ok", "the test file was refused");
    said.has("clamd", "ok", "answers in");
    said.has("clamd", "ok", "it finds the EICAR test file");
    said.has("clamd", "note", "a database without a version");
    said.has("agent", "ok", &agent.pid().to_string());
    said.has("limits", "ok", "RLIMIT_NOFILE");
    for words in ["Linux", "fanotify", "BPF LSM", "eBPF", "coverage"] {
        let found = said.of("kernel");
        assert!(found.iter().any(|line| line.contains(words)), "{found:?}");
    }
    assert_eq!(names(&site.watched()), before, "nothing is left behind");
    assert!(agent.is_running());
    assert_opens(&good);
    assert_refused(&bad);
    agent.wait_for(".eicar: ", LIMIT).unwrap();
    assert!(agent.stop().0.success());
}

#[test]
fn without_prevention_the_report_is_the_proof() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let agent = Agent::builder(site.clamd())
        .prevention(false)
        .include(site.watched())
        .start();
    let said = doctor(&agent.conf(), &[]);
    // The log is named on the agent's own command line.
    said.is_well();
    said.has("canary", "ok", "was reported within");
    assert!(names(&site.watched()).is_empty());
}

#[test]
fn where_root_is_excluded_somebody_else_opens_the_canary() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let agent = site.agent().option("OnAccessExcludeRootUID yes").start();
    let said = doctor(&agent.conf(), &[]);
    said.is_well();
    said.has("settings", "note", "root is excluded");
    said.has("canary", "ok", "the test file was refused");
}

#[test]
fn without_an_agent_it_says_so_and_writes_nothing_unless_told_to() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let mut agent = site.agent().start();
    assert!(agent.stop().0.success());
    let said = doctor(&agent.conf(), &[]);
    said.has("agent", "problem", "no agent runs");
    assert!(said.of("canary").is_empty());
    let said = doctor(&agent.conf(), &["--canary"]);
    said.has("canary", "problem", "the test file OPENED");
    assert_eq!(said.status.code(), Some(1));
    assert!(names(&site.watched()).is_empty());
}

#[test]
fn a_clamd_that_is_gone_is_named_with_the_remedy_and_what_it_means() {
    require_root!();
    let mut site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let agent = site.agent().option("OnAccessCurlTimeout 500").start();
    site.end_clamd();
    let said = doctor(&agent.conf(), &[]);
    said.has("clamd", "problem", "clamd.sock");
    said.has("canary", "problem", "the test file OPENED");
    let all = said.value["findings"].as_array().unwrap();
    let of_clamd = all.iter().find(|one| one["area"] == "clamd").unwrap();
    let remedy = of_clamd["remedy"].as_str().unwrap();
    assert!(remedy.contains("start clamd"), "{remedy}");
    assert!(names(&site.watched()).is_empty());
}

#[test]
fn an_agent_that_refuses_everything_proves_nothing() {
    require_root!();
    let mut site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let agent = site
        .agent()
        .option("OnAccessCurlTimeout 500")
        .option("OnAccessDenyOnError yes")
        .start();
    site.end_clamd();
    let said = doctor(&agent.conf(), &[]);
    said.has("canary", "problem", "a clean file is refused");
    assert!(names(&site.watched()).is_empty());
}

#[test]
fn without_a_canary_no_alarm_is_raised() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let mut agent = site.agent().start();
    let said = doctor(&agent.conf(), &["--no-canary"]);
    said.is_well();
    said.has("canary", "note", "--no-canary");
    agent.stop();
    assert!(!agent.output().contains("FOUND"), "{}", agent.output());
}

#[test]
fn the_canary_is_removed_even_if_the_doctor_is_told_to_end() {
    require_root!();
    let asked = Arc::new(AtomicBool::new(false));
    let heard = Arc::clone(&asked);
    let site = or_skip!(FakeSite::ext4(move |_| {
        heard.store(true, Ordering::SeqCst);
        Behaviour::usual().after(Duration::from_secs(2))
    }));
    let agent = site.agent().start();
    let mut command = command(&agent.conf(), &["--canary"]);
    let mut running = sys::die_with_parent(&mut command).spawn().unwrap();
    assert!(wait_until(LIMIT, || asked.load(Ordering::SeqCst)));
    assert!(!names(&site.watched()).is_empty());
    let pid = Pid::from_raw(i32::try_from(running.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let status = child::wait_within(&mut running, LIMIT).expect("it ends");
    assert_eq!(status.signal(), Some(libc::SIGTERM));
    assert!(names(&site.watched()).is_empty());
}

#[test]
fn settings_that_cannot_be_used_are_named_by_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("clamd.conf");
    fs::write(&conf, "LocalSocket /run/x\nOnAccessPrevention maybe\n").unwrap();
    let said = doctor(&conf, &[]);
    said.has("settings", "problem", "clamd.conf:2:20: OnAccessPrevention");
    said.has("agent", "problem", "no agent runs");
    assert!(said.of("canary").is_empty());
}

#[test]
fn an_include_path_that_is_missing_is_a_problem() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let missing = site.scratch().join("not there");
    let agent = site.agent().include(&missing).start();
    let said = doctor(&agent.conf(), &[]);
    said.has("settings", "problem", "not there does not exist");
    said.has("canary", "problem", "not there does not exist");
    said.has("canary", "ok", "the test file was refused");
}

#[test]
fn few_open_files_of_the_agent_are_a_problem() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let agent = site.agent().open_files(300).start();
    let said = doctor(&agent.conf(), &[]);
    said.has("limits", "problem", "the agent may have 300 open files");
}

#[test]
fn another_user_is_told_to_be_root() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let agent = site.agent().start();
    let mut command = command(&agent.conf(), &["--canary"]);
    command.uid(4711).gid(4711);
    let running = or_skip!(
        command
            .spawn()
            .map_err(|error| format!("onacc as another user: {error}"))
    );
    let said = finish(running);
    said.has("kernel", "problem", "this is not root");
    assert!(names(&site.watched()).is_empty());
}

#[test]
fn for_people_it_ends_with_what_it_comes_to() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("clamd.conf");
    fs::write(&conf, "LocalSocket /run/x\n").unwrap();
    let output = Command::new(agent::binary())
        .arg("doctor")
        .arg(format!("--config-file={}", conf.display()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let last = text.lines().last().unwrap_or_default();
    assert!(last.ends_with("protection."), "{text}");
    assert!(
        text.contains("  PROBLEM  ") && text.contains("mend:"),
        "{text}"
    );
}
