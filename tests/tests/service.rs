//! A service under systemd, which is played here: what it is told, its watchdog,
//! and the unit that is packaged.

mod common;

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use common::{
    FakeSite, LIMIT, Site, assert_opens, assert_refused, clean, infected, open_until_marked,
};
use nix::sys::signal::Signal;
use onacc_tests::{
    Behaviour, Opening, agent::AgentBuilder, or_skip, require_root, skip, workspace,
};

/// systemd's end of `NOTIFY_SOCKET`.
struct Systemd {
    socket: UnixDatagram,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Systemd {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        Self {
            socket,
            path,
            _dir: dir,
        }
    }

    /// The agent as systemd would start it.
    fn starts(&self, agent: AgentBuilder) -> AgentBuilder {
        agent
            .env("NOTIFY_SOCKET", &self.path)
            .env("WATCHDOG_USEC", "1500000")
    }

    /// The next message within this time; signs of life only if they are wanted.
    fn hear(&self, limit: Duration, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let until = Instant::now() + limit;
        let mut buffer = [0; 4096];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.socket.set_read_timeout(Some(left)).expect("a timeout");
            let Ok(count) = self.socket.recv(&mut buffer) else {
                return None;
            };
            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
            if wanted(&text) {
                return Some(text);
            }
        }
    }

    #[track_caller]
    fn must_hear(&self, start: &str) -> String {
        let heard = self.hear(LIMIT, |text| !text.starts_with("WATCHDOG=1"));
        let heard = heard.unwrap_or_else(|| panic!("nothing, and not {start}"));
        assert!(heard.starts_with(start), "{heard}, and not {start}");
        heard
    }
}

#[test]
fn it_is_told_of_protection_reloads_and_the_end() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let systemd = Systemd::new();
    let bad = site.write("bad", &infected());
    let mut agent = systemd.starts(site.agent()).spawn().unwrap();
    let ready = systemd.must_hear("READY=1\n");
    // Not a moment too early.
    assert_refused(&bad);
    assert!(
        ready.contains(&format!("\nMAINPID={}\n", agent.pid())),
        "{ready}"
    );
    assert!(ready.contains("\nSTATUS=Protecting: "), "{ready}");

    let conf = fs::read_to_string(agent.conf()).unwrap();
    for (line, said) in [
        ("OnAccessMaxFileSize 1M\n", "filesystems in scope: 1"),
        ("OnAccessMaxThreads 3\n", "filesystems in scope: 1"),
        ("NoSuchOption 1\n", "the settings in the files are wrong"),
    ] {
        fs::write(agent.conf(), format!("{line}{conf}")).unwrap();
        agent.signal(Signal::SIGHUP);
        let reloading = systemd.must_hear("RELOADING=1\nMONOTONIC_USEC=");
        let usec = reloading.rsplit_once('=').unwrap().1;
        assert!(usec.parse::<u64>().unwrap() > 0, "{reloading}");
        let ready = systemd.must_hear("READY=1\n");
        assert!(ready.contains(said), "{ready}");
    }
    agent.signal(Signal::SIGTERM);
    systemd.must_hear("STOPPING=1\n");
    assert!(agent.stop().0.success());
}

#[test]
fn one_that_cannot_protect_is_never_ready() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let systemd = Systemd::new();
    let exited = systemd
        .starts(site.agent())
        .option("NoSuchOption 1")
        .spawn_expect_exit();
    assert_eq!(exited.status.code(), Some(2));
    assert_eq!(systemd.hear(Duration::from_millis(100), |_| true), None);
}

#[test]
fn signs_of_life_come_while_it_lives_also_with_work_and_not_while_it_does_not_move() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::never()));
    let systemd = Systemd::new();
    let path = site.write("a", &clean());
    let agent = systemd
        .starts(site.agent())
        .option("OnAccessCurlTimeout 60000")
        .start();
    let alive = |limit| systemd.hear(limit, |text| text == "WATCHDOG=1").is_some();
    // Idle, and with a scan that never ends: no more than the time it has.
    for _ in 0..3 {
        assert!(alive(Duration::from_millis(1500)));
    }
    let opening = Opening::start(&path);
    assert!(site.fake().wait_for_scans(1, LIMIT));
    for _ in 0..3 {
        assert!(alive(Duration::from_millis(1500)));
    }
    agent.signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(50));
    while systemd.hear(Duration::from_millis(1), |_| true).is_some() {}
    assert!(!alive(Duration::from_secs(3)), "systemd would end it now");
    agent.signal(Signal::SIGCONT);
    assert!(alive(LIMIT));
    drop(agent);
    assert!(opening.within(LIMIT).is_open());
}

#[test]
fn without_systemd_and_with_one_that_is_gone_it_runs_all_the_same() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let good = site.write("good", &clean());
    let agent = site.agent().env("NOTIFY_SOCKET", "/nowhere/at/all").start();
    assert_opens(&good);
    assert!(agent.output().contains("NOTIFY_SOCKET: "));
}

#[test]
fn the_unit_has_nothing_that_systemd_does_not_understand() {
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        skip!("systemd-analyze is not installed");
    }
    let dir = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(workspace().join("dist/onacc.service")).unwrap();
    // The binary is not installed where the unit says.
    let text = text.replace(
        "/usr/sbin/onacc",
        onacc_tests::agent::binary().to_str().unwrap(),
    );
    let unit = dir.path().join("onacc.service");
    fs::write(&unit, &text).unwrap();
    let verified = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg(&unit)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success(), "{said}");
    let about_it: Vec<&str> = said.lines().filter(|line| line.contains("onacc")).collect();
    assert!(about_it.is_empty(), "{said}");
}

#[test]
fn the_powers_that_the_unit_leaves_it_are_enough() {
    use std::os::unix::fs::PermissionsExt as _;
    require_root!();
    let site = or_skip!(Site::ext4());
    let unit = fs::read_to_string(workspace().join("dist/onacc.service")).unwrap();
    let powers = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .expect("the unit bounds them");
    let powers: Vec<String> = powers
        .split_whitespace()
        .map(|power| power.trim_start_matches("CAP_").to_lowercase())
        .collect();
    let with = |powers: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("onacc");
        let set = powers
            .iter()
            .fold("-all".to_owned(), |set, power| set + ",+" + power);
        let text = format!(
            "#!/bin/sh\nexec setpriv --bounding-set={set} --inh-caps=-all --no-new-privs {} \"$@\"\n",
            onacc_tests::agent::binary().display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        (site.agent().binary(&script), dir)
    };
    let all: Vec<&str> = powers.iter().map(String::as_str).collect();
    let (agent, _dir) = with(&all);
    let agent = agent.start();
    assert_refused(&site.write("bad", &infected()));
    let good = site.write("good", &clean());
    open_until_marked(&agent, std::slice::from_ref(&good));
    drop(agent);
    // The bound is felt.
    let (agent, _dir) = with(&["bpf", "perfmon"]);
    assert_eq!(agent.spawn_expect_exit().status.code(), Some(2));
}
