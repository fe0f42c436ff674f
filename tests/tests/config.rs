//! Configuration and command line: what bad input gets.
//!
//! One line on stderr with the file, the line, the option and the remedy, and
//! the right exit status; where clamonacc goes on, a warning. Must not: start
//! an agent that watches anything but a scratch filesystem.

mod common;

use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use common::{LIMIT, SOON, Site, assert_opens, assert_refused, infected, refused_within};
use onacc_tests::{Agent, agent, child, clamd::wait_until, or_skip, require_root, sys};

/// What a process came to that was not to go on.
#[derive(Debug)]
struct Ended {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs a command to its end; it is killed if that takes too long.
fn run(command: &mut Command) -> Ended {
    command
        .current_dir("/")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut running = sys::die_with_parent(command)
        .spawn()
        .expect("the process starts");
    let status = child::wait_within(&mut running, Duration::from_secs(10));
    if status.is_none() {
        child::kill(&mut running);
    }
    let output = running.wait_with_output().expect("its output");
    Ended {
        status: status.and_then(|status| status.code()),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs the agent with these arguments.
fn onacc<S: AsRef<OsStr>>(arguments: &[S]) -> Ended {
    run(Command::new(agent::binary()).args(arguments))
}

/// Runs the agent in the foreground with this configuration file.
fn onacc_with(conf: &Path) -> Ended {
    onacc(&[
        "--foreground".to_owned(),
        format!("--config-file={}", conf.display()),
    ])
}

/// Status and a single line on stderr, which holds all of these words.
#[track_caller]
fn assert_one_line(ended: &Ended, status: i32, words: &[&str]) {
    assert_eq!(ended.status, Some(status), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert!(ended.stderr.starts_with("ERROR: "), "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "no {word:?} in {ended:?}");
    }
    assert!(ended.stdout.is_empty(), "{ended:?}");
}

#[test]
fn a_bad_line_is_named_with_file_line_option_and_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("clamd.conf");
    // What is bad, what must be said of it beyond the place, the remedy's words.
    for (line, words) in [
        (
            "OnAccesIncludePath /tmp",
            "OnAccesIncludePath: unknown option; did you mean OnAccessIncludePath?",
        ),
        (
            "NoSuchOption yes",
            "NoSuchOption: unknown option; remove the line",
        ),
        (
            "onaccessprevention yes",
            "onaccessprevention: unknown option",
        ),
        (
            "OnAccessPrevention maybe",
            "OnAccessPrevention: 'maybe' is not a truth value; write yes or no",
        ),
        (
            "OnAccessCurlTimeout 5s",
            "OnAccessCurlTimeout: '5s' is not a number; write digits",
        ),
        (
            "OnAccessExcludeUID -1",
            "OnAccessExcludeUID: '-1' is not a number; write digits",
        ),
        (
            "OnAccessExcludeUID 4294967295",
            "OnAccessExcludeUID: 4294967295 is too large; write at most",
        ),
        (
            "OnAccessMaxFileSize 5T",
            "OnAccessMaxFileSize: '5T' is not a size; write digits",
        ),
        (
            "OnAccessIncludePath srv",
            "OnAccessIncludePath: 'srv' is not an absolute path; write the whole path",
        ),
        (
            "OnAccessIncludePath ./srv",
            "OnAccessIncludePath: './srv' is not an absolute path",
        ),
        (
            "OnAccessExcludePath /srv/(x",
            "OnAccessExcludePath: '/srv/(x' is no regular expression: unclosed group; correct it",
        ),
        (
            "OnAccessIncludePath",
            "OnAccessIncludePath: the value is missing; write it behind the name",
        ),
        (
            "OnAccessIncludePath \"/srv",
            "OnAccessIncludePath: the closing double quote is missing",
        ),
        (
            "Example",
            "Example: this is still the sample file; edit it and remove the Example line",
        ),
        (
            "LocalSocket clamd.sock",
            "LocalSocket: 'clamd.sock' is not an absolute path; write the whole path",
        ),
    ] {
        let lines =
            format!("# a comment\n\n{line}\nLocalSocket /x\nOnAccessIncludePath /nowhere\n");
        fs::write(&conf, lines).unwrap();
        let place = format!("{}:3:", conf.display());
        assert_one_line(&onacc_with(&conf), 2, &[&place, words]);
    }
}

#[test]
fn what_is_missing_is_named_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("clamd.conf");
    let name = conf.display().to_string();
    for (lines, words) in [
        (
            "LocalSocket /x\n",
            ["OnAccessIncludePath", "nothing would be protected"],
        ),
        (
            "OnAccessIncludePath /nowhere\n",
            ["LocalSocket", "for example LocalSocket /"],
        ),
        (
            "TCPSocket 3310\nOnAccessIncludePath /nowhere\n",
            ["TCPAddr is missing", "add a LocalSocket line"],
        ),
    ] {
        fs::write(&conf, lines).unwrap();
        let [first, second] = words;
        assert_one_line(&onacc_with(&conf), 2, &[&name, first, second]);
    }
    fs::write(&conf, "").unwrap();
    let ended = onacc_with(&conf);
    assert_eq!(ended.status, Some(2), "{ended:?}");
    let said: Vec<&str> = ended.stderr.lines().collect();
    assert_eq!(said.len(), 2, "{ended:?}");
    assert!(
        said[0].contains(": LocalSocket: the option is missing"),
        "{ended:?}"
    );
    assert!(
        said[1].contains(": OnAccessIncludePath: the option is missing"),
        "{ended:?}"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.conf");
    let unreadable = dir.path().to_path_buf();
    let broken_link = dir.path().join("link.conf");
    symlink("/nowhere/at/all", &broken_link).unwrap();
    for (path, why) in [
        (&missing, "No such file"),
        (&broken_link, "No such file"),
        (&unreadable, "Is a directory"),
    ] {
        let name = path.display().to_string();
        let words = [name.as_str(), why, "--config-file=FILE"];
        assert_one_line(&onacc_with(path), 2, &words);
    }
}

#[test]
fn bytes_of_any_kind_in_the_configuration_make_one_printable_line() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("clamd.conf");
    for bytes in [
        b"\x1b[2J\xff\xfe\r\n".to_vec(),
        b"LocalSocket /a\0b\n".to_vec(),
        vec![0; 4096],
        vec![b'x'; 100_000],
        b"OnAccessPrevention \x1b[31myes\x07\n".to_vec(),
    ] {
        fs::write(&conf, bytes).unwrap();
        let ended = onacc_with(&conf);
        assert_one_line(&ended, 2, &[&conf.display().to_string()]);
        let line = ended.stderr.trim_end();
        assert!(!line.contains(char::is_control), "{line:?}");
        assert!(line.len() < 1000, "{} bytes", line.len());
    }
}

#[test]
fn the_command_line_has_help_version_and_errors() {
    for flag in ["--help", "-h"] {
        let ended = onacc(&[flag]);
        assert_eq!(ended.status, Some(0), "{ended:?}");
        for word in [
            "--foreground",
            "--config-file",
            "--log",
            "--verbose",
            "--bpf",
        ] {
            assert!(ended.stdout.contains(word), "no {word} in {ended:?}");
        }
    }
    for flag in ["--version", "-V"] {
        let ended = onacc(&[flag]);
        assert_eq!(ended.status, Some(0), "{ended:?}");
        assert!(ended.stdout.starts_with("onacc "), "{ended:?}");
        assert_eq!(ended.stdout.lines().count(), 1);
    }
    for arguments in [
        vec!["--no-such-flag"],
        vec!["--bpf=maybe"],
        vec!["--log="],
        vec!["stray"],
        vec!["--config-file"],
    ] {
        let ended = onacc(&arguments);
        assert_eq!(ended.status, Some(2), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.starts_with("error: "), "{ended:?}");
        assert!(ended.stderr.contains("--help"), "{ended:?}");
    }
}

#[test]
fn a_log_that_cannot_be_written_ends_the_start_with_3() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let dir = tempfile::tempdir().unwrap();
    for (log, why) in [
        (dir.path().join("missing/log"), "No such file"),
        (dir.path().to_path_buf(), "Is a directory"),
        (PathBuf::from("/proc/nothing-here"), "No such file"),
    ] {
        let exited = site.agent().log_path(&log).spawn_expect_exit();
        let name = log.display().to_string();
        assert_eq!(exited.status.code(), Some(3), "{}", exited.output);
        assert_eq!(exited.output.lines().count(), 1, "{}", exited.output);
        for word in ["ERROR: ", &name, why, "--log=FILE"] {
            assert!(exited.output.contains(word), "{word}: {}", exited.output);
        }
    }
}

#[test]
fn a_second_agent_on_the_same_log_ends_with_3_and_disturbs_nothing() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.write("bad", &infected());
    let mut first = site.agent().start();
    let exited = site.agent().log_path(first.log_path()).spawn_expect_exit();
    assert_eq!(exited.status.code(), Some(3), "{}", exited.output);
    let name = first.log_path().display().to_string();
    assert!(exited.output.contains(&name), "{}", exited.output);
    assert!(exited.output.contains("another onacc"), "{}", exited.output);
    assert_eq!(exited.output.lines().count(), 1, "{}", exited.output);
    assert!(first.is_running());
    assert_refused(&bad);
    first.stop();
    let second = site.agent().log_path(first.log_path()).start();
    assert_refused(&bad);
    drop(second);
}

/// The agent's binary at a place that everybody may enter.
fn binary_for_all(dir: &Path) -> PathBuf {
    fs::set_permissions(dir, Permissions::from_mode(0o755)).expect("changing the mode");
    let copy = dir.join("onacc");
    fs::copy(agent::binary(), &copy).expect("copying");
    copy
}

#[test]
fn without_privilege_the_start_ends_with_2_and_says_what_is_missing() {
    require_root!();
    let dir = tempfile::tempdir().unwrap();
    let binary = binary_for_all(dir.path());
    let conf = dir.path().join("clamd.conf");
    for prevention in ["yes", "no"] {
        let lines = format!(
            "LocalSocket /x\nOnAccessIncludePath /nowhere\nOnAccessPrevention {prevention}\n"
        );
        fs::write(&conf, lines).unwrap();
        for how in [
            ["--reuid=65534", "--regid=65534", "--clear-groups"],
            ["--bounding-set=-sys_admin", "--inh-caps=-all", "--nnp"],
        ] {
            let ended = run(Command::new("setpriv")
                .args(how)
                .arg(&binary)
                .arg("--foreground")
                .arg(format!("--config-file={}", conf.display())));
            assert_one_line(&ended, 2, &["root", "CAP_SYS_ADMIN"]);
        }
    }
    // Whoever may not read the configuration is told that.
    fs::set_permissions(&conf, Permissions::from_mode(0o600)).unwrap();
    let ended = run(Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&binary)
        .arg(format!("--config-file={}", conf.display())));
    assert_one_line(&ended, 2, &["Permission denied", "clamd.conf"]);
    // Help and version need no privilege.
    for flag in ["--help", "--version"] {
        let ended = run(Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&binary)
            .arg(flag));
        assert_eq!(ended.status, Some(0), "{ended:?}");
    }
}

#[test]
fn an_include_path_that_does_not_exist_is_warned_of_and_protected_when_it_does() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let later = site.scratch().join("not/yet/here");
    let other = site.write("bad", &infected());
    let mut agent = site.agent().include(&later).start();
    let line = agent.wait_for("does not exist", LIMIT).unwrap();
    let (place, name) = (
        agent.conf().display().to_string(),
        later.display().to_string(),
    );
    assert!(
        line.starts_with("WARNING: ")
            && line.contains(&format!("{place}:"))
            && line.contains("OnAccessIncludePath")
            && line.contains(&name),
        "{line}"
    );
    assert!(agent.is_running());
    assert_refused(&other);
    // Files beside it are not protected, before and after.
    site.scratch().mkdir("not/yet");
    let beside = site.scratch().write("not/yet/bad", &infected());
    assert_opens(&beside);
    fs::create_dir(&later).unwrap();
    let bad = later.join("bad");
    fs::write(&bad, infected()).unwrap();
    assert_refused(&bad);
    assert_opens(&beside);
}

#[test]
fn an_include_path_that_is_made_as_a_link_later_is_protected_soon() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.scratch().write("bad", &infected());
    let link = site.scratch().join("link");
    let agent = Agent::builder(site.clamd())
        .prevention(true)
        .include(site.watched())
        .include(&link)
        .start();
    assert_opens(&bad);
    site.scratch().mkdir("real");
    let real = site.scratch().write("real/bad", &infected());
    symlink("real", &link).unwrap();
    assert!(
        refused_within(&real, Duration::from_secs(15)).is_some(),
        "{}",
        agent.output()
    );
}

#[test]
fn a_filesystem_that_is_mounted_below_an_include_path_later_is_protected() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let place = site.watched().join("mounted");
    fs::create_dir(&place).unwrap();
    let _agent = site.agent().start();
    let none = None::<&str>;
    nix::mount::mount(
        Some("onacc-test"),
        &place,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        none,
    )
    .unwrap();
    let bad = place.join("bad");
    fs::write(&bad, infected()).unwrap();
    // The kernel tells of a new mount after it can be used.
    let took = refused_within(&bad, SOON);
    nix::mount::umount2(&place, nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert!(took.is_some());
}

#[test]
fn nothing_that_can_be_protected_ends_the_start_with_2() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let exited = Agent::builder(site.clamd())
        .prevention(true)
        .include("/proc/sys")
        .spawn_expect_exit();
    assert_eq!(exited.status.code(), Some(2), "{}", exited.output);
    let last = exited.output.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("ERROR: nothing can be protected") && last.contains("OnAccessIncludePath"),
        "{}",
        exited.output
    );
}

#[test]
fn what_clamonacc_survives_is_warned_of() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.write("bad", &infected());
    let agent = site
        .agent()
        .option("ScanOnAccess yes")
        .option("OnAccessMaxThreads 0")
        .option("OnAccessMaxThreads 3")
        .option("OnAccessCurlTimeout 0")
        .option("MaxScanSize 100M")
        .start();
    assert_refused(&bad);
    let said = agent.output();
    for words in [
        "WARNING: Ignoring deprecated option ScanOnAccess at ",
        "OnAccessMaxThreads: 0 would stop all scans",
        "OnAccessMaxThreads: ignored, line ",
        "OnAccessCurlTimeout: 0 would stop all scans",
    ] {
        assert!(said.contains(words), "no {words:?} in\n{said}");
    }
    assert!(!said.contains("MaxScanSize"), "{said}");
}

#[test]
fn clamonaccs_flags_are_taken() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.write("bad", &infected());
    let agent = site.agent().arg("--fdpass").arg("-v").start();
    assert_refused(&bad);
    assert!(wait_until(LIMIT, || agent.log().contains(" FOUND")));
}

/// A configuration that can be used, in a directory of its own.
fn usable() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let conf = dir.path().join("clamd.conf");
    let lines = "LocalSocket /run/x\nOnAccessIncludePath /nowhere\nOnAccessPrevention yes\n\
                 OnAccessExcludePath ^/nowhere/[a-z]+$\nScanOnAccess yes\n";
    fs::write(&conf, lines).expect("writing it");
    (dir, conf)
}

/// Runs `onacc config` without /etc/onacc/onacc.toml having a say.
fn config(conf: &Path, settings: &Path, arguments: &[&str]) -> Ended {
    let files = [
        format!("--config-file={}", conf.display()),
        format!("--settings={}", settings.display()),
    ];
    let mut all: Vec<&str> = files.iter().map(String::as_str).collect();
    all.push("config");
    all.extend(arguments);
    onacc(&all)
}

#[test]
fn config_check_tells_every_error_of_every_file_with_line_and_column() {
    let (dir, conf) = usable();
    let empty = dir.path().join("empty.toml");
    fs::write(&empty, "").unwrap();
    let good = config(&conf, &empty, &["check"]);
    assert_eq!(good.status, Some(0), "{good:?}");
    assert!(
        good.stdout.contains("The configuration can be used."),
        "{good:?}"
    );
    assert!(
        good.stderr
            .contains("WARNING: Ignoring deprecated option ScanOnAccess at "),
        "{good:?}"
    );

    fs::write(
        &conf,
        "LocalSocket x\nNope 1\n  OnAccessPrevention  maybe\n",
    )
    .unwrap();
    let toml = dir.path().join("onacc.toml");
    fs::write(
        &toml,
        "[scan]\nOnAccessMaxThreads = \"5\"\nNope = 1\n[nope]\n",
    )
    .unwrap();
    let bad = config(&conf, &toml, &["check"]);
    assert_eq!(bad.status, Some(2), "{bad:?}");
    let (conf, toml) = (conf.display(), toml.display());
    for place in [
        format!("ERROR: {conf}:1:13: LocalSocket: "),
        format!("ERROR: {conf}:2:1: Nope: unknown option; "),
        format!("ERROR: {conf}:3:23: OnAccessPrevention: 'maybe' is not a truth value; "),
        format!("ERROR: {toml}:2:22: OnAccessMaxThreads: this is a string; write a number"),
        format!("ERROR: {toml}:3:1: Nope: unknown key; "),
        format!("ERROR: {toml}:4:2: nope: unknown table; "),
    ] {
        let lines = bad.stderr.lines().filter(|line| line.starts_with(&place));
        assert_eq!(lines.count(), 1, "{place} in {bad:?}");
    }
    assert_eq!(bad.stderr.lines().count(), 6, "{bad:?}");
}

#[test]
fn config_show_tells_what_holds_and_who_says_so() {
    let (dir, conf) = usable();
    let toml = dir.path().join("onacc.toml");
    fs::write(&toml, "[scan]\nOnAccessPrevention = false\n").unwrap();
    let mut arguments = vec!["show"];
    let all = config(&conf, &toml, &arguments);
    assert_eq!(all.status, Some(0), "{all:?}");
    for line in [
        format!("OnAccessPrevention = false  # {}:2", toml.display()),
        format!(
            "OnAccessIncludePath = [\"/nowhere\"]  # {}:2",
            conf.display()
        ),
        "OnAccessMaxThreads = 5  # default".to_owned(),
    ] {
        assert!(
            all.stdout.lines().any(|shown| shown == line),
            "{line} in {all:?}"
        );
    }
    arguments.push("--set");
    let set = config(&conf, &toml, &arguments);
    assert!(!set.stdout.contains("default"), "{set:?}");
    let flagged = onacc(&[
        "--coverage=listed".to_owned(),
        format!("--config-file={}", conf.display()),
        format!("--settings={}", toml.display()),
        "config".to_owned(),
        "show".to_owned(),
    ]);
    let line = "Coverage = \"listed\"  # command line";
    assert!(
        flagged.stdout.lines().any(|shown| shown == line),
        "{flagged:?}"
    );
}

#[test]
fn config_migrate_makes_a_file_that_can_stand_alone() {
    let (dir, conf) = usable();
    let empty = dir.path().join("empty.toml");
    fs::write(&empty, "").unwrap();
    let made = dir.path().join("made.toml");
    let output = format!("--output={}", made.display());
    let migrated = config(&conf, &empty, &["migrate", &output]);
    assert_eq!(migrated.status, Some(0), "{migrated:?}");
    // Alone, with an empty clamd.conf, it says the same.
    let shown = |conf: &Path, toml: &Path| {
        let shown = config(conf, toml, &["show"]);
        assert_eq!(shown.status, Some(0), "{shown:?}");
        let lines = shown
            .stdout
            .lines()
            .map(|line| line.split("  # ").next().unwrap().to_owned());
        lines
            .filter(|line| !line.starts_with('#'))
            .collect::<Vec<_>>()
    };
    assert_eq!(shown(&empty, &made), shown(&conf, &empty));
    // What is there already stays.
    let again = config(&conf, &empty, &["migrate", &output]);
    assert_eq!(again.status, Some(2), "{again:?}");
    assert!(again.stderr.contains("File exists") && again.stderr.contains("--output=FILE"));
}

#[test]
fn man_pages_and_completions_are_printed() {
    for (page, heading) in [("onacc", ".TH onacc 8"), ("onacc.toml", ".TH onacc.toml 5")] {
        let ended = onacc(&["man", page]);
        assert_eq!(ended.status, Some(0), "{ended:?}");
        assert!(ended.stdout.contains(heading), "{ended:?}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let ended = onacc(&["completions", shell]);
        assert_eq!(ended.status, Some(0), "{ended:?}");
        assert!(ended.stdout.contains("--exclude-list") || ended.stdout.contains("exclude-list"));
    }
}

#[test]
fn two_ways_to_deal_with_infected_files_are_an_error() {
    let ended = onacc(&["--move=/x", "--remove"]);
    assert_eq!(ended.status, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("cannot be used with"), "{ended:?}");
}
