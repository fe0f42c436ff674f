//! The log: its form, its limit, its rotation; and that nothing that happens to
//! it makes an opener wait.
//!
//! Must not: leave a `/dev/log` behind.

mod common;

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use common::{LIMIT, SOON, Site, assert_opens, assert_refused, clean, infected};
use nix::sys::{signal::Signal, stat::Mode};
use onacc_tests::{
    Agent, Clamd, ScratchFs, agent::AgentBuilder, clamd::wait_until, or_skip, require_root, skip,
};

const READY: &str = "onacc: protection is on";

/// Starts it where its first lines may have a time before them.
fn start_with_time(builder: AgentBuilder) -> Agent {
    let agent = builder.spawn().expect("its process");
    agent.wait_for(READY, LIMIT).expect("it protects");
    agent
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn found_lines(text: &str) -> usize {
    text.lines().filter(|line| line.ends_with(" FOUND")).count()
}

/// Waits until the log holds this.
#[track_caller]
fn logged(path: &Path, needle: &str) {
    let there = wait_until(LIMIT, || read(path).contains(needle));
    assert!(there, "not in {}: {needle}\n{}", path.display(), read(path));
}

/// `Tue Nov 24 12:30:29 2026 -> text`: the text.
fn behind_time(line: &str) -> Option<&str> {
    let (time, text) = line.split_once(" -> ")?;
    let words: Vec<&str> = time.split_whitespace().collect();
    let [day, month, date, clock, year] = words[..] else {
        return None;
    };
    let names = "Sun Mon Tue Wed Thu Fri Sat Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec";
    let known = [day, month].iter().all(|word| names.contains(word));
    let numbers = date.parse::<u8>().is_ok() && year.parse::<u16>().is_ok();
    let formed = clock.len() == 8 && clock.matches(':').count() == 2 && time.len() == 24;
    (known && numbers && formed).then_some(text)
}

#[test]
fn the_time_stands_before_each_line_as_clamd_writes_it() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.write("bad", &infected());
    let agent = start_with_time(site.agent().option("LogTime yes"));
    assert_refused(&bad);
    logged(agent.log_path(), " FOUND");
    let log = agent.log();
    let mut lines = log.lines();
    assert_eq!(lines.next(), Some("--------------------------------------"));
    for line in lines {
        assert!(behind_time(line).is_some(), "{line}");
    }
    // clamd's own, from the same host.
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own.log");
    let clamd = Clamd::builder(dir.path())
        .option(&format!("LogFile {}", own.display()))
        .option("LogTime yes")
        .start();
    let theirs = read(&own);
    let stamped = theirs.lines().filter(|line| behind_time(line).is_some());
    assert!(stamped.count() > 3, "{theirs}");
    drop(clamd);
}

#[test]
fn a_log_that_grows_beyond_its_limit_is_rotated_and_no_line_is_lost() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("onacc.log");
    let agent = site
        .agent()
        .option("LogFileMaxSize 2K")
        .option("LogRotate yes")
        .log_path(&log)
        .start();
    for n in 0..100 {
        assert_refused(&site.write(format!("bad{n}"), &infected()));
    }
    let all = || -> Vec<String> {
        let entries = fs::read_dir(dir.path()).unwrap();
        entries.map(|entry| read(&entry.unwrap().path())).collect()
    };
    // Some are found twice, once scanned ahead.
    let complete = wait_until(LIMIT, || {
        let all = all().join("");
        (0..100).all(|n| all.contains(&format!("/bad{n}: ")))
    });
    assert!(complete, "{:?}", all());
    let sizes: Vec<usize> = all().iter().map(String::len).collect();
    assert!(sizes.len() >= 4, "{sizes:?}");
    // One line at most is written beyond the limit.
    assert!(sizes.iter().all(|size| *size < 2048 + 300), "{sizes:?}");
    assert!(agent.output().contains(READY));
}

#[test]
fn a_log_that_was_moved_away_is_made_anew_on_hup_also_when_the_settings_are_wrong() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.write("bad", &infected());
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let agent = site.agent().log_path(&log).start();
    assert_refused(&bad);
    logged(&log, " FOUND");
    for (round, settings) in ["", "NoSuchOption yes\n"].iter().enumerate() {
        let conf = read(&agent.conf());
        fs::write(agent.conf(), format!("{settings}{conf}")).unwrap();
        let old = dir.path().join(format!("log.{round}"));
        fs::rename(&log, &old).unwrap();
        agent.signal(Signal::SIGHUP);
        assert!(wait_until(LIMIT, || log.exists()), "{}", agent.output());
        let before = read(&old);
        assert_refused(&bad);
        logged(&log, " FOUND");
        assert_eq!(found_lines(&read(&old)), found_lines(&before));
    }
    logged(&log, "old ones stay in force");
}

#[test]
fn logrotate_itself_with_our_file_loses_nothing() {
    require_root!();
    let site = or_skip!(Site::ext4());
    if Command::new("logrotate").arg("--version").output().is_err() {
        skip!("logrotate is not installed");
    }
    let bad = site.write("bad", &infected());
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("onacc.log");
    let agent = site.agent().log_path(&log).start();
    assert_refused(&bad);
    logged(&log, " FOUND");
    // The packaged file, with this log and this process.
    let ours = read(&onacc_tests::workspace().join("dist/logrotate"));
    assert!(ours.contains("/var/log/clamav/onacc.log"));
    let ours = ours
        .replace("/var/log/clamav/onacc.log", &log.display().to_string())
        .replace("su root clamav", "su root root")
        .replace("create 640 root adm", "create 640 root root");
    let reload = format!("kill -HUP {}", agent.pid());
    let script: Vec<&str> = ours
        .lines()
        .map(|line| {
            let is_reload = line.contains("systemctl") || line.contains("kill ");
            if is_reload { reload.as_str() } else { line }
        })
        .collect();
    let conf = dir.path().join("logrotate.conf");
    fs::write(&conf, script.join("\n") + "\n").unwrap();
    let status = Command::new("logrotate")
        .arg("--force")
        .arg("--state")
        .arg(dir.path().join("state"))
        .arg(&conf)
        .status()
        .expect("logrotate runs");
    assert!(status.success());
    assert!(dir.path().join("onacc.log.1").exists(), "it was rotated");
    logged(&log, "onacc: settings reloaded");
    assert_refused(&bad);
    logged(&log, " FOUND");
}

#[test]
fn a_flood_of_one_verdict_comes_to_some_lines_and_a_count() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let (bad, other) = (site.write("bad", &infected()), site.write("b", &infected()));
    let mut agent = site.agent().start();
    for _ in 0..400 {
        assert_refused(&bad);
    }
    assert_refused(&other);
    logged(agent.log_path(), &format!("{}: ", other.display()));
    agent.stop();
    let log = agent.log();
    let of_bad = log
        .lines()
        .filter(|line| line.starts_with(&format!("{}: ", bad.display())));
    let (mut written, mut counted) = (0, 0);
    for line in of_bad {
        match line.split_once(" (") {
            None => written += 1,
            Some((_, rest)) => {
                let (count, words) = rest.split_once(' ').unwrap();
                assert_eq!(words, "more times in 10 s)");
                counted += count.parse::<u32>().unwrap();
            }
        }
    }
    assert_eq!(written + counted, 400, "{log}");
    assert!(counted > 0, "{log}");
}

#[test]
fn a_full_disk_holds_nobody_up_and_what_is_lost_is_said() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let small = or_skip!(ScratchFs::tmpfs(1));
    let log = small.join("log");
    let agent = site.agent().log_path(&log).start();
    let fill = small.join("fill");
    let _no_room_left = fs::write(&fill, vec![0; 2 << 20]);
    let before = Instant::now();
    // Beyond the last page that the log has already.
    for n in 0..150 {
        assert_refused(&site.write(format!("a rather long name {n}"), &infected()));
    }
    assert!(before.elapsed() < LIMIT);
    agent
        .wait_for("the log cannot be written (disk full?)", LIMIT)
        .unwrap();
    fs::remove_file(&fill).unwrap();
    assert_refused(&site.write("later", &infected()));
    logged(&log, " log lines lost");
    logged(&log, "/later: ");
}

#[test]
fn a_log_that_takes_nothing_holds_nobody_up_nor_the_end() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let (bad, good) = (site.write("bad", &infected()), site.write("good", &clean()));
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o600)).unwrap();
    // Held open, so that it can be opened for writing; never read.
    let _reader = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&fifo)
        .unwrap();
    let mut agent = site.agent().log_path(&fifo).arg("--verbose").start();
    let mut slowest = Duration::ZERO;
    for n in 0..1000 {
        let path = if n % 2 == 0 { &bad } else { &good };
        let before = Instant::now();
        if n % 2 == 0 {
            assert_refused(path);
        } else {
            assert_opens(path);
        }
        slowest = slowest.max(before.elapsed());
        if n % 20 == 0 {
            agent.signal(Signal::SIGUSR1);
        }
    }
    // More than the pipe holds is waiting by now.
    assert!(slowest < SOON, "{slowest:?}");
    let (status, took) = agent.stop();
    assert!(
        status.success() && took < Duration::from_millis(1500),
        "{status}, {took:?}"
    );
}

/// A system logger, if the host has none; gone when dropped.
struct DevLog(UnixDatagram);

impl DevLog {
    fn bind() -> Result<Self, String> {
        let logger = UnixDatagram::bind("/dev/log")
            .map_err(|error| format!("/dev/log is the host's own or cannot be made: {error}"))?;
        logger
            .set_read_timeout(Some(LIMIT))
            .map_err(|error| error.to_string())?;
        Ok(Self(logger))
    }

    /// Reads on, as a logger does, until a line holds this.
    fn wait_for(&self, needle: &str) -> Option<String> {
        let mut buffer = [0; 8192];
        loop {
            let count = self.0.recv(&mut buffer).ok()?;
            let line = String::from_utf8_lossy(&buffer[..count]).into_owned();
            if line.contains(needle) {
                return Some(line);
            }
        }
    }
}

impl Drop for DevLog {
    fn drop(&mut self) {
        let _ = fs::remove_file("/dev/log");
    }
}

#[test]
fn syslog_gets_each_line_and_one_that_reads_nothing_holds_nobody_up() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let logger = or_skip!(DevLog::bind());
    let bad = site.write("bad", &infected());
    let (agent, line) = thread::scope(|scope| {
        let reads = scope.spawn(|| logger.wait_for(" FOUND"));
        let agent = site
            .agent()
            .option("LogSyslog yes")
            .option("LogFacility LOG_LOCAL3")
            .start();
        assert_refused(&bad);
        (agent, reads.join().unwrap().expect("a line for syslog"))
    });
    assert!(line.starts_with("<158>"), "{line}");
    let text = format!(" onacc[{}]: {}: ", agent.pid(), bad.display());
    assert!(line.contains(&text), "{line}");
    // Nobody reads any more, and its queue is short.
    for _ in 0..20 {
        agent.signal(Signal::SIGUSR1);
        assert_refused(&bad);
        thread::sleep(Duration::from_millis(5));
    }
    assert_refused(&site.write("another", &infected()));
    logged(agent.log_path(), "/another: ");
    logged(agent.log_path(), " log lines lost");
}

#[test]
fn how_the_log_looks_is_as_the_file_says_after_hup() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.write("bad", &infected());
    let agent = site.agent().start();
    assert_refused(&bad);
    logged(agent.log_path(), " FOUND");
    let conf = read(&agent.conf());
    fs::write(agent.conf(), format!("LogTime yes\nLogVerbose yes\n{conf}")).unwrap();
    agent.signal(Signal::SIGHUP);
    let stamped = wait_until(LIMIT, || {
        assert_refused(&bad);
        let log = agent.log();
        let last = log.lines().rfind(|line| line.ends_with(" FOUND"));
        last.is_some_and(|line| behind_time(line).is_some())
    });
    assert!(stamped, "{}", agent.log());
    // What is said under --verbose alone.
    assert!(wait_until(LIMIT, || {
        fs::create_dir_all(site.scratch().join("elsewhere")).unwrap();
        fs::write(
            agent.conf(),
            format!(
                "LogTime yes\nLogVerbose yes\nOnAccessExcludePath {}\n{conf}",
                site.scratch().join("elsewhere").display()
            ),
        )
        .unwrap();
        agent.signal(Signal::SIGHUP);
        thread::sleep(Duration::from_millis(50));
        agent.log().contains("all clean marks taken away")
    }));
}
