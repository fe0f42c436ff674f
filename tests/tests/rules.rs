//! Rules beyond users and places: patterns, programs, control groups, limits
//! below paths, triggers, lists, mount paths.
//!
//! Each holds for what it names, from the first open on and for what is made
//! later, and for nothing else. Must not: test the reading of settings, which
//! `config.rs` and the unit tests do.

mod common;
#[path = "common/groups.rs"]
mod groups;

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use common::{LIMIT, SOON, Site, assert_opens, assert_refused, counter, infected, marker};
use groups::Group;
use onacc_tests::{
    Agent, agent::AgentBuilder, clamd::wait_until, or_skip, require_root, skip, sys,
};

/// A file outside the site that lives as long as the test.
struct Native(tempfile::NamedTempFile);

impl Native {
    fn new(text: &str) -> Self {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(text.as_bytes()).expect("writing it");
        Self(file)
    }

    fn give(&self, agent: AgentBuilder, flag: &str) -> AgentBuilder {
        agent.arg(&format!("{flag}={}", self.0.path().display()))
    }
}

/// Writes a file into the protected directory, with the directories above it.
fn write(site: &Site, name: impl AsRef<Path>, content: &[u8]) -> PathBuf {
    let path = site.watched().join(name);
    fs::create_dir_all(path.parent().expect("below the directory")).expect("making directories");
    fs::write(&path, content).expect("writing a file");
    path
}

/// An agent of the site with these settings of onacc.toml.
fn with_native(site: &Site, text: &str) -> (Agent, Native) {
    let native = Native::new(text);
    let agent = native.give(site.agent(), "--settings").start();
    (agent, native)
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display())
}

/// Whether this program can read the file.
fn reads(program: &Path, file: &Path) -> bool {
    let mut command = Command::new(program);
    command
        .arg(file)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    sys::die_with_parent(&mut command)
        .status()
        .expect("the program starts")
        .success()
}

#[test]
fn an_excluded_path_holds_for_sub_directories_and_what_is_made_later() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let out = write(&site, "out/deep/er/bad", &infected());
    let agent = site.agent().exclude(site.watched().join("out")).start();
    assert_opens(&out);
    for name in ["out/made/later/bad", "out/bad"] {
        assert_opens(&write(&site, name, &infected()));
    }
    for name in ["out2/bad", "in/out/bad", "bad"] {
        assert_refused(&write(&site, name, &infected()));
    }
    assert!(agent.output().contains("ClamInotif: excluding '"));
}

#[test]
fn an_excluded_expression_holds_for_directories_made_later_and_not_for_files() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let early = write(&site, "user2/deep/bad", &infected());
    let agent = site
        .agent()
        .option(&format!(
            "OnAccessExcludePath ^{}/user[0-9]$",
            site.watched().display()
        ))
        .option("OnAccessExcludePath cache/")
        .start();
    let said = agent.output();
    assert!(
        said.contains("is taken as a regular expression for the paths of directories"),
        "{said}"
    );
    assert_opens(&early);
    for name in ["user3/bad", "user4/made/later/bad", "x/cache/y/bad"] {
        let path = write(&site, name, &infected());
        assert_opens(&path);
        assert_opens(&path);
    }
    // Longer names, and a file that is called like a directory to leave out.
    for name in ["user20/bad", "x/user2/bad", "cached/bad", "user5"] {
        assert_refused(&write(&site, name, &infected()));
    }
    // A directory that is renamed is judged by its new name.
    fs::rename(site.watched().join("user3"), site.watched().join("users")).unwrap();
    assert!(
        common::refused_within(&site.watched().join("users/bad"), SOON).is_some(),
        "{}",
        agent.output()
    );
}

#[test]
fn opens_below_an_excluded_expression_stay_in_the_kernel() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let paths: Vec<PathBuf> = (0..20)
        .map(|n| write(&site, format!("cache/file{n}"), &infected()))
        .collect();
    let agent = site.agent().option("OnAccessExcludePath /cache$").start();
    assert!(wait_until(LIMIT, || {
        assert_opens(&paths[0]);
        counter(&agent, "directories_ignored") > 0
    }));
    let before = counter(&agent, "events");
    for path in &paths {
        assert_opens(path);
    }
    let events = counter(&agent, "events") - before;
    assert!(events <= 2, "{events} events for 20 opens");
}

#[test]
fn files_are_left_out_by_pattern_and_only_they() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let place = site.watched();
    let (agent, _native) = with_native(
        &site,
        &format!(
            "[exclude]\nGlob = ['*.o', '{0}/logs/*.txt']\nRegex = ['/build-[0-9]+/.*\\.tmp$']\n\
             Extension = ['iso', 'tar.gz']\n",
            place.display()
        ),
    );
    for name in [
        "a.o",
        "deep/b.o",
        "logs/x.txt",
        "build-7/q/r.tmp",
        "c.ISO",
        "d.tar.gz",
    ] {
        assert_opens(&write(&site, name, &infected()));
    }
    for name in [
        "a.oo",
        "b.o/c",
        "logs/deep/x.txt",
        "build-x/r.tmp",
        "iso",
        "d.gz",
    ] {
        assert_refused(&write(&site, name, &infected()));
    }
    assert!(counter(&agent, "excluded_file") >= 6);
    // The same bytes under a name that is not left out.
    let hidden = write(&site, "e.o", &infected());
    assert_opens(&hidden);
    let shown = site.watched().join("e.txt");
    fs::hard_link(&hidden, &shown).unwrap();
    assert_refused(&shown);
    assert_opens(&hidden);
}

#[test]
fn a_program_is_left_out_by_its_file_and_not_by_its_name() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("reader");
    fs::copy("/bin/cat", &program).unwrap();
    let bad = write(&site, "bad", &infected());
    let rule = format!("[exclude]\nExecutable = [{}]\n", quoted(&program));
    let (agent, _native) = with_native(&site, &rule);
    assert!(reads(&program, &bad));
    assert!(!reads(Path::new("/bin/cat"), &bad));
    // Known by now, and still.
    assert!(reads(&program, &bad));
    assert_refused(&bad);
    assert!(counter(&agent, "excluded_process") >= 2);
    // Another file at the same path is not the program that was named, until
    // it is looked at again.
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&program, &link).unwrap();
    assert!(reads(&link, &bad));
    let other = dir.path().join("other");
    fs::copy("/bin/cat", &other).unwrap();
    assert!(!reads(&other, &bad));
    fs::rename(&other, &program).unwrap();
    assert!(
        wait_until(LIMIT, || reads(&program, &bad)),
        "an upgraded program is known again\n{}",
        agent.output()
    );
}

#[test]
fn a_control_group_is_left_out_with_its_processes() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let group = or_skip!(Group::new("out"));
    let other = or_skip!(Group::new("out2"));
    let bad = write(&site, "bad", &infected());
    let (agent, _native) = with_native(&site, &format!("[exclude]\nCgroup = '{}'\n", group.name()));
    // The test may run in another root of the hierarchy than the agent.
    if !group.read(&bad) {
        let seen = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        skip!("control groups cannot be used here: {seen}");
    }
    assert!(!other.read(&bad));
    assert_refused(&bad);
    assert!(counter(&agent, "excluded_process") >= 1);
}

#[test]
fn the_fail_policy_of_a_path_holds_there_alone() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let nobody = site.scratch().join("no-clamd-here");
    let inside = write(&site, "strict/file", b"clean one");
    let deeper = write(&site, "strict/lax/file", b"clean two");
    let outside = write(&site, "file", b"clean three");
    let native = Native::new(&format!(
        "[[path]]\nPath = {}\nOnAccessDenyOnError = true\n\
         [[path]]\nPath = {}\nOnAccessDenyOnError = false\n",
        quoted(&site.watched().join("strict")),
        quoted(&site.watched().join("strict/lax")),
    ));
    let agent = Agent::builder(&nobody)
        .prevention(true)
        .include(site.watched());
    let agent = native
        .give(agent.option("OnAccessCurlTimeout 300"), "--settings")
        .start();
    for _ in 0..2 {
        assert_refused(&inside);
        assert_opens(&outside);
        assert_opens(&deeper);
    }
    assert!(
        wait_until(LIMIT, || agent
            .log()
            .contains("denied (OnAccessDenyOnError)")),
        "{}",
        agent.log()
    );
}

#[test]
fn the_size_limit_of_a_path_holds_there_alone_and_large_files_are_told() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let mut large = marker();
    large.resize(200_000, b' ');
    let native = Native::new(&format!(
        "[log]\nLogVerbose = true\n[scan]\nOnAccessMaxFileSize = '100K'\n\
         [[path]]\nPath = {}\nOnAccessMaxFileSize = '1M'\n\
         [[path]]\nPath = {}\nOnAccessMaxFileSize = 5\n",
        quoted(&site.watched().join("large")),
        quoted(&site.watched().join("small")),
    ));
    let agent = native.give(site.agent(), "--settings").start();
    assert_refused(&write(&site, "large/bad", &large));
    let told = write(&site, "bad", &large);
    assert_opens(&told);
    assert_opens(&write(&site, "small/bad", &infected()));
    assert_refused(&write(&site, "also", &infected()));
    let line = format!(
        "{}: not scanned, its 200000 bytes are more than",
        told.display()
    );
    assert!(
        wait_until(LIMIT, || agent.log().contains(&line)),
        "{}",
        agent.log()
    );
    // What is out of scope is no matter, however large.
    let outside = site.scratch().write("outside", &large);
    assert_opens(&outside);
    assert_opens(&told);
    assert!(wait_until(LIMIT, || agent.log().matches(&line).count() >= 2));
    assert!(!agent.log().contains(&outside.display().to_string()));
}

#[test]
fn with_the_trigger_exec_alone_reading_is_free_and_running_is_not() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let mut program = fs::read("/bin/true").unwrap();
    program.extend(marker());
    let path = write(&site, "program", &program);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let clean = write(&site, "clean", &fs::read("/bin/true").unwrap());
    fs::set_permissions(&clean, fs::Permissions::from_mode(0o755)).unwrap();
    let (agent, _native) = with_native(&site, "[scope]\nTriggers = ['exec']\n");
    assert_opens(&path);
    let refused = |path: &Path| Command::new(path).status();
    assert_eq!(
        refused(&path).unwrap_err().raw_os_error(),
        Some(libc_eperm())
    );
    for _ in 0..10 {
        assert!(refused(&clean).unwrap().success());
    }
    assert_opens(&path);
    assert_eq!(
        refused(&path).unwrap_err().raw_os_error(),
        Some(libc_eperm())
    );
    assert_eq!(counter(&agent, "closed_after_write"), 0);
}

fn libc_eperm() -> i32 {
    nix::errno::Errno::EPERM as i32
}

#[test]
fn with_the_trigger_close_write_alone_files_are_told_and_none_is_refused() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let (agent, _native) = with_native(&site, "[scope]\nTriggers = ['close-write']\n");
    let path = write(&site, "bad", &infected());
    assert!(
        wait_until(LIMIT, || agent
            .log()
            .contains(&format!("{}: ", path.display()))),
        "{}",
        agent.log()
    );
    assert_opens(&path);
}

#[test]
fn lists_add_to_the_settings_and_need_no_last_newline() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let listed = site.scratch().mkdir("listed (x)*");
    let left_out = site.watched().join("left+out");
    fs::create_dir(&left_out).unwrap();
    let watch = Native::new(&format!("# made by a tool\r\n{}", listed.display()));
    let exclude = Native::new(&format!("\n{}", left_out.display()));
    let agent = watch.give(exclude.give(site.agent(), "--exclude-list"), "--watch-list");
    let _agent = agent.start();
    assert_refused(&write(&site, "bad", &infected()));
    assert_opens(&write(&site, "left+out/bad", &infected()));
    let bad = listed.join("bad");
    fs::write(&bad, infected()).unwrap();
    assert_refused(&bad);
}

#[test]
fn a_mount_path_has_prevention_and_exclusions() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let mount = site.scratch().join("");
    let agent = Agent::builder(site.clamd())
        .prevention(true)
        .option(&format!("OnAccessMountPath {}", mount.display()))
        .option(&format!(
            "OnAccessExcludePath {}/in/out",
            mount.display().to_string().trim_end_matches('/')
        ))
        .option("OnAccessExcludePath /cache$")
        .option("OnAccessExcludeUID 4711")
        .start();
    let bad = write(&site, "bad", &infected());
    assert_refused(&bad);
    assert_refused(&site.scratch().write("anywhere", &infected()));
    assert_opens(&write(&site, "out/bad", &infected()));
    assert_opens(&write(&site, "cache/made/later", &infected()));
    assert!(onacc_tests::open_as(4711, &bad, LIMIT).is_open());
    assert!(counter(&agent, "excluded_uid") >= 1);
}

/// What the reader leaves out must not be lost on who writes.
#[test]
fn a_left_out_file_that_is_renamed_is_scanned_under_its_new_name() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let (_agent, _native) = with_native(&site, "[exclude]\nExtension = 'part'\n");
    let part = write(&site, "download.part", &infected());
    assert_opens(&part);
    let whole = site.watched().join("download");
    fs::rename(&part, &whole).unwrap();
    assert_refused(&whole);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o644);
    let mut file: File = options.open(site.watched().join("again.part")).unwrap();
    file.write_all(&infected()).unwrap();
    drop(file);
    assert_opens(&site.watched().join("again.part"));
}
