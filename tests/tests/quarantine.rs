//! `--remove`, `--move`, `--copy`, and `onacc quarantine`: what becomes of an
//! infected file, and that no other file is ever touched.
//!
//! Real clamd, real kernel. The protocol that takes a name away from one inode
//! alone is tried harder in `respond/quarantine/name/tests.rs`.

mod common;

use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use common::{
    FakeSite, LIMIT, Site, assert_opens, assert_refused, clean, counter, counters, infected,
};
use nix::{
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
    sys::stat::utimes,
    sys::time::TimeVal,
};
use onacc_tests::{
    Agent, Behaviour, ScratchFs, agent::AgentBuilder, agent::binary, cat_as, clamd::EICAR_NAME,
    clamd::wait_until, open_as, open_within, or_skip, require_root, sys,
};
use serde_json::Value;

/// A directory for the quarantine, on a filesystem of its own.
struct Quarantine {
    filesystem: ScratchFs,
}

impl Quarantine {
    fn new(mib: u64) -> Result<Self, String> {
        let filesystem = ScratchFs::tmpfs(mib)?;
        let dir = filesystem.mkdir("q");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))
            .map_err(|error| format!("chmod: {error}"))?;
        Ok(Self { filesystem })
    }

    fn dir(&self) -> PathBuf {
        self.filesystem.join("q")
    }
}

fn moving(site: &Site, dir: &Path) -> AgentBuilder {
    site.agent().arg(&format!("--move={}", dir.display()))
}

/// Runs `onacc quarantine` on a directory.
fn quarantine(dir: &Path, args: &[&dyn AsRef<OsStr>]) -> Output {
    let mut command = Command::new(binary());
    command.arg("quarantine").arg("--directory").arg(dir);
    for arg in args {
        command.arg(arg);
    }
    command.stdin(Stdio::null());
    sys::die_with_parent(&mut command)
        .output()
        .expect("onacc starts")
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    said
}

#[track_caller]
fn fails(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What `list --json` says, by name.
#[track_caller]
fn listed(dir: &Path) -> Vec<Value> {
    let said = succeeds(&quarantine(dir, &[&"list", &"--json"]));
    let Value::Array(list) = serde_json::from_str(&said).expect("JSON") else {
        panic!("no list: {said}");
    };
    list
}

/// What is in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("the directory is there")
        .map(|entry| entry.expect("an entry").file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[track_caller]
fn assert_gone(agent: &Agent, path: &Path) {
    let gone = || fs::symlink_metadata(path).is_err();
    assert!(wait_until(LIMIT, gone), "{}", agent.output());
}

#[test]
fn an_infected_file_is_moved_with_all_that_is_known_of_it() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let home = or_skip!(Quarantine::new(4));
    let path = site.write("bad", &infected());
    std::os::unix::fs::chown(&path, Some(4711), Some(4712)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
    let before = fs::metadata(&path).unwrap();
    let agent = moving(&site, &home.dir()).start();
    assert!(cat_as(4711, &path, LIMIT).is_refused());
    let to = home.dir().join("bad");
    let line = format!("{}: moved to '{}'", path.display(), to.display());
    assert_eq!(agent.wait_for(&line, LIMIT).unwrap(), line);
    assert!(!path.exists());
    let after = fs::metadata(&to).unwrap();
    assert_eq!(
        (after.uid(), after.gid(), after.mode() & 0o7777),
        (0, 0, 0o600)
    );
    assert_eq!(fs::read(&to).unwrap(), infected());
    let sidecar = home.dir().join("bad.onacc.json");
    assert_eq!(fs::metadata(&sidecar).unwrap().mode() & 0o7777, 0o600);
    let record: Value = serde_json::from_slice(&fs::read(sidecar).unwrap()).unwrap();
    assert_eq!(record["state"], "moved");
    assert_eq!(record["origin"], path.to_str().unwrap());
    assert_eq!(record["signature"], EICAR_NAME);
    assert!(record["database"].as_str().unwrap().starts_with("ClamAV "));
    assert_eq!(
        (&record["uid"], &record["gid"], &record["mode"]),
        (&4711.into(), &4712.into(), &"4755".into())
    );
    assert_eq!(record["modified"]["seconds"], before.mtime());
    assert_eq!(record["modified"]["nanoseconds"], before.mtime_nsec());
    assert_eq!(record["inode"], before.ino());
    let sum = Command::new("sha256sum").arg(&to).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    assert_eq!(record["sha256"], sum.split_whitespace().next().unwrap());
    let process = &record["processes"][0];
    assert_eq!(
        (&process["uid"], &process["comm"]),
        (&4711.into(), &"cat".into())
    );
    assert!(
        process["exe"].as_str().unwrap().ends_with("/cat"),
        "{process}"
    );
    // Who it was stands in the log, too.
    let opened = format!("onacc: open refused: pid={} tid=", process["pid"]);
    let opened = agent.wait_for(&opened, LIMIT).unwrap();
    assert!(opened.contains("uid=4711 comm=cat exe=/"), "{opened}");
    assert!(
        opened.ends_with(&format!("file={}", path.display())),
        "{opened}"
    );
    assert_eq!(
        names(&site.watched()),
        Vec::<String>::new(),
        "nothing is left"
    );
}

#[test]
fn an_infected_file_is_removed() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let (bad, good) = (site.write("bad", &infected()), site.write("good", &clean()));
    let agent = site.agent().arg("--remove").start();
    assert_opens(&good);
    assert_refused(&bad);
    let line = format!("{}: Removed.", bad.display());
    assert_eq!(agent.wait_for(&line, LIMIT).unwrap(), line);
    assert_eq!(names(&site.watched()), ["good"]);
    assert_eq!(counter(&agent, "quarantined"), 1);
}

#[test]
fn an_infected_file_is_copied_once_and_stays_refused() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let home = or_skip!(Quarantine::new(4));
    let bad = site.write("bad", &infected());
    let agent = site
        .agent()
        .arg(&format!("--copy={}", home.dir().display()))
        .start();
    for _ in 0..5 {
        assert_refused(&bad);
    }
    let to = home.dir().join("bad");
    let line = format!("{}: copied to '{}'", bad.display(), to.display());
    assert_eq!(agent.wait_for(&line, LIMIT).unwrap(), line);
    let dealt = || counter(&agent, "quarantine_skipped") == 4;
    assert!(wait_until(LIMIT, dealt), "{:?}", counters(&agent));
    assert_eq!(names(&home.dir()), ["bad", "bad.onacc.json"]);
    assert_eq!(listed(&home.dir())[0]["status"], "copied");
    assert_refused(&bad);
}

#[test]
fn names_that_are_taken_get_numbers() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let home = or_skip!(Quarantine::new(4));
    let long = "\u{fc}".repeat(127);
    let agent = moving(&site, &home.dir()).start();
    fs::write(home.dir().join("bad.001"), "from before").unwrap();
    for dir in ["a", "b", "c"] {
        site.scratch().mkdir(Path::new("in").join(dir));
        for name in ["bad", "x.onacc.json", &long] {
            let path = site.write(Path::new(dir).join(name), &infected());
            // The prescan may have been faster.
            let open = open_within(&path, LIMIT);
            assert!(!open.is_open(), "{open:?}");
            assert_gone(&agent, &path);
        }
    }
    let list = listed(&home.dir());
    let origin = |name: &str| {
        let entry = list.iter().find(|entry| entry["name"] == name);
        let entry = entry.unwrap_or_else(|| panic!("{name} is not in {list:?}"));
        entry["record"]["origin"].as_str().unwrap().to_owned()
    };
    for (name, dir) in [("bad", "a"), ("bad.002", "b"), ("bad.003", "c")] {
        assert!(
            origin(name).ends_with(&format!("/in/{dir}/bad")),
            "{list:?}"
        );
    }
    assert!(origin("x.onacc.json_.002").ends_with("/in/c/x.onacc.json"));
    assert_eq!(list.len(), 10, "{list:?}");
    assert_eq!(
        fs::read(home.dir().join("bad.001")).unwrap(),
        b"from before"
    );
    let old = list
        .iter()
        .find(|entry| entry["name"] == "bad.001")
        .unwrap();
    assert_eq!(old["status"], "no record");
    assert_eq!(
        list.iter()
            .filter(|entry| entry["status"] == "moved")
            .count(),
        9
    );
}

#[test]
fn on_a_full_disk_the_file_stays_where_it_is_and_refused() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let home = or_skip!(Quarantine::new(1));
    let ballast = home.filesystem.write("ballast", &vec![1; 700 << 10]);
    let bad = site.write("bad", &common::marker().repeat(30_000));
    let agent = moving(&site, &home.dir()).start();
    assert_refused(&bad);
    let line = format!(
        "ERROR: Can't move file '{}' to '{}': ",
        bad.display(),
        home.dir().display()
    );
    let said = agent.wait_for(&line, LIMIT).unwrap();
    assert!(said.contains("No space left on device"), "{said}");
    assert_refused(&bad);
    assert_eq!(names(&home.dir()), Vec::<String>::new());
    assert_eq!(names(&site.watched()), ["bad"]);
    // With room again the next open has it moved, after the pause.
    fs::remove_file(ballast).unwrap();
    let moved = || {
        let open = open_within(&bad, LIMIT);
        assert!(!open.is_open(), "{open:?}");
        thread::sleep(Duration::from_millis(200));
        !bad.exists()
    };
    assert!(wait_until(2 * LIMIT, moved), "{}", agent.output());
    let errors = agent.output().matches("ERROR: Can't move").count();
    assert!(errors <= 2, "no flood: {}", agent.output());
}

#[test]
fn a_watched_quarantine_keeps_what_it_has_and_refuses_it() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let dir = site.scratch().mkdir("in/q");
    let bad = site.write("bad", &infected());
    let agent = moving(&site, &dir).start();
    assert_refused(&bad);
    assert_gone(&agent, &bad);
    let kept = dir.join("bad");
    assert!(wait_until(LIMIT, || counter(&agent, "quarantined") == 1));
    for _ in 0..3 {
        assert_refused(&kept);
    }
    thread::sleep(Duration::from_millis(300));
    let before = counters(&agent);
    thread::sleep(Duration::from_millis(500));
    let after = counters(&agent);
    assert_eq!(
        before["scans"], after["scans"],
        "it is not scanned for ever"
    );
    assert_eq!(before["prescans"], after["prescans"]);
    assert_eq!(after["quarantined"], 1);
    assert_eq!(names(&dir), ["bad", "bad.onacc.json"]);
    assert!(!agent.output().contains("ERROR"), "{}", agent.output());
    // And comes back from there by a second name: nobody has to open it.
    let other = site.scratch().join("restored");
    succeeds(&quarantine(&dir, &[&"restore", &"bad", &"--to", &other]));
    assert_eq!(fs::read(&other).unwrap(), infected());
    assert_eq!(names(&dir), Vec::<String>::new());
}

#[test]
fn what_is_only_reported_or_written_or_judged_late_is_moved_too() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let home = or_skip!(Quarantine::new(4));
    let reported = site.write("reported", &infected());
    let mut agent = Agent::builder(site.clamd())
        .prevention(false)
        .include(site.watched())
        .arg(&format!("--move={}", home.dir().display()))
        .start();
    assert_opens(&reported);
    assert_gone(&agent, &reported);
    agent.wait_for("onacc: open reported: pid=", LIMIT).unwrap();
    agent.stop();
    let agent = moving(&site, &home.dir()).start();
    let written = site.write("written", &infected());
    assert_gone(&agent, &written);
    drop(agent);
    let slow = or_skip!(FakeSite::ext4(|_| {
        Behaviour::infected("Late").after(Duration::from_millis(800))
    }));
    let late = slow.write("late", &infected());
    let agent = slow
        .agent()
        .option("OnAccessCurlTimeout 200")
        .arg(&format!("--move={}", home.dir().display()))
        .start();
    assert_opens(&late);
    assert_gone(&agent, &late);
    agent
        .wait_for("onacc: open answered before: pid=", LIMIT)
        .unwrap();
    let list = listed(&home.dir());
    let names: Vec<&Value> = list.iter().map(|entry| &entry["name"]).collect();
    assert_eq!(names, ["late", "reported", "written"]);
    assert_eq!(list[2]["record"]["processes"], Value::Array(Vec::new()));
}

#[test]
fn further_hard_links_are_said_and_go_when_they_are_opened() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let home = or_skip!(Quarantine::new(4));
    let (one, other) = (site.write("one", &infected()), site.watched().join("other"));
    fs::hard_link(&one, &other).unwrap();
    let agent = moving(&site, &home.dir()).start();
    assert_refused(&one);
    agent
        .wait_for(&format!("{}: 1 more names", one.display()), LIMIT)
        .unwrap();
    assert!(!one.exists() && other.exists());
    assert_refused(&other);
    assert_gone(&agent, &other);
    assert_eq!(listed(&home.dir()).len(), 2);
}

#[test]
fn a_symlink_is_never_taken_for_the_file() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.write("bad", &infected());
    let link = site.watched().join("link");
    symlink(&bad, &link).unwrap();
    let agent = site.agent().arg("--remove").start();
    assert_refused(&link);
    assert_gone(&agent, &bad);
    assert!(link.is_symlink());
}

/// Names are swapped under the agent all the time: infected files, precious
/// ones, symlinks, directories. Every infected file goes, nothing else does.
#[test]
fn swapped_paths_cost_no_other_file_its_place() {
    const FILES: usize = 150;
    require_root!();
    let site = or_skip!(Site::ext4());
    let home = or_skip!(Quarantine::new(16));
    let (one, two) = (site.watched().join("one"), site.watched().join("two"));
    let outside = site.scratch().mkdir("out");
    for dir in [&one, &two] {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("precious"), clean()).unwrap();
        symlink(outside.join("target"), dir.join("link")).unwrap();
    }
    fs::write(outside.join("target"), clean()).unwrap();
    let inode = |path: &Path| fs::symlink_metadata(path).unwrap().ino();
    let mut kept: Vec<u64> = [&one, &two]
        .iter()
        .flat_map(|dir| [inode(&dir.join("precious")), inode(&dir.join("link"))])
        .collect();
    kept.sort_unstable();
    let agent = moving(&site, &home.dir())
        .guard(Duration::from_mins(3))
        .start();
    let (stop, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let pairs = [
            (one.join("bad"), one.join("precious")),
            (two.join("precious"), one.join("bad")),
            (one.join("link"), one.join("bad")),
            (one.clone(), two.clone()),
        ];
        for (left, right) in pairs {
            let (stop, swaps) = (&stop, &swaps);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let flags = RenameFlags::RENAME_EXCHANGE;
                    if renameat2(AT_FDCWD, &left, AT_FDCWD, &right, flags).is_ok() {
                        swaps.fetch_add(1, Ordering::Relaxed);
                    }
                    thread::sleep(Duration::from_micros(50));
                }
            });
        }
        let mut until = Instant::now() + 3 * LIMIT;
        for number in 0..FILES {
            let made = outside.join("made");
            fs::write(&made, infected()).unwrap();
            let file = fs::File::open(&made).unwrap();
            let free = [
                "one/bad",
                "one/precious",
                "one/link",
                "two/bad",
                "two/precious",
                "two/link",
            ];
            let mut places = free.iter().cycle().map(|place| site.watched().join(place));
            loop {
                let flags = RenameFlags::RENAME_NOREPLACE;
                if renameat2(AT_FDCWD, &made, AT_FDCWD, &places.next().unwrap(), flags).is_ok() {
                    break;
                }
            }
            // Whatever the name leads to by then is opened until the file is gone.
            while file.metadata().unwrap().nlink() > 0 {
                let own = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
                let path = fs::read_link(own).unwrap();
                let _raced = open_within(&path, LIMIT);
                if Instant::now() > until {
                    stop.store(true, Ordering::Relaxed);
                    panic!("file {number} stays; {}", agent.output());
                }
            }
            until = Instant::now() + 3 * LIMIT;
        }
        stop.store(true, Ordering::Relaxed);
    });
    let mut left: Vec<u64> = [&one, &two]
        .iter()
        .flat_map(|dir| fs::read_dir(dir).unwrap())
        .map(|entry| inode(&entry.unwrap().path()))
        .collect();
    left.sort_unstable();
    let swaps = swaps.into_inner();
    assert_eq!(left, kept, "after {swaps} swaps: {}", agent.output());
    assert_eq!(fs::read(outside.join("target")).unwrap(), clean());
    assert!(swaps > 1000, "only {swaps} swaps");
    for entry in listed(&home.dir()) {
        assert_eq!(entry["record"]["size"], infected().len(), "{entry}");
    }
}

/// Killed at any moment, the agent leaves each file in its place or in
/// quarantine with its record, never neither.
#[test]
fn a_kill_in_the_middle_loses_nothing_and_hides_nothing() {
    const FILES: usize = 40;
    require_root!();
    let site = or_skip!(Site::ext4());
    let home = or_skip!(Quarantine::new(16));
    for round in 0..6u64 {
        let dir = site.watched().join(format!("{round}"));
        fs::create_dir(&dir).unwrap();
        let paths: Vec<PathBuf> = (0..FILES)
            .map(|n| dir.join(format!("{round}-{n}")))
            .collect();
        for path in &paths {
            fs::write(path, infected()).unwrap();
        }
        let mut agent = moving(&site, &home.dir()).start();
        for path in &paths {
            // Not waited for: some are under way when the end comes.
            drop(onacc_tests::Opening::start(path));
        }
        thread::sleep(Duration::from_millis(2 + 7 * round));
        agent.kill();
        let list = listed(&home.dir());
        let entry = |path: &Path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            list.iter().find(|entry| entry["name"] == name)
        };
        for path in &paths {
            let status = entry(path).map(|entry| entry["status"].as_str().unwrap());
            let there = path.exists();
            let fits = match status {
                None | Some("file missing, original untouched") => there,
                Some("moved") => !there,
                Some("interrupted, original may be there") => {
                    let copy = home.dir().join(path.file_name().unwrap());
                    // Whether the original was still there, the copy is whole.
                    fs::read(copy).unwrap() == infected()
                }
                Some(other) => panic!("{}: {other}", path.display()),
            };
            assert!(fits, "{}: {status:?}, there: {there}", path.display());
        }
        assert!(!names(&home.dir()).iter().any(|name| {
            let is_file = !name.ends_with(".onacc.json") && !name.starts_with(".onacc-new.");
            is_file && !home.dir().join(format!("{name}.onacc.json")).exists()
        }));
    }
    // The next agent goes on, and tidies up what was never finished.
    let agent = moving(&site, &home.dir()).start();
    for round in 0..6 {
        for number in 0..FILES {
            let path = site.watched().join(format!("{round}/{round}-{number}"));
            if path.exists() {
                let _refused_or_gone = open_within(&path, LIMIT);
                assert_gone(&agent, &path);
            }
        }
    }
    assert!(
        !names(&home.dir())
            .iter()
            .any(|name| name.starts_with(".onacc-new."))
    );
}

#[test]
fn what_changed_since_the_scan_is_not_removed() {
    require_root!();
    let slow = or_skip!(FakeSite::ext4(|_| {
        Behaviour::infected("Old").after(Duration::from_millis(500))
    }));
    let bad = slow.write("bad", &infected());
    let writer = OpenOptions::new().write(true).open(&bad).unwrap();
    let agent = slow.agent().arg("--remove").start();
    let open = onacc_tests::Opening::start(&bad);
    assert!(slow.fake().wait_for_scans(1, LIMIT));
    writer.write_all_at(b"mended", 0).unwrap();
    assert!(open.within(LIMIT).is_refused());
    let line = format!(
        "ERROR: Can't remove file '{}': it has changed",
        bad.display()
    );
    agent.wait_for(&line, LIMIT).unwrap();
    assert!(bad.exists());
}

#[test]
fn a_directory_that_cannot_serve_is_an_error_at_start() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let missing = site.scratch().join("missing");
    let exited = moving(&site, &missing).spawn_expect_exit();
    assert_eq!(exited.status.code(), Some(2));
    let output = exited.output;
    assert!(
        output.contains("ERROR: Clamonacc: can't setup client: "),
        "{output}"
    );
    assert!(output.contains("install -d -m 0700"), "{output}");
    let two = moving(&site, &missing).arg("--remove").spawn_expect_exit();
    assert_eq!(two.status.code(), Some(2));
    assert!(two.output.contains("cannot be used with"), "{}", two.output);
    // One that others may change is a warning.
    let open = site.scratch().mkdir("open");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let agent = moving(&site, &open).start();
    agent
        .wait_for("WARNING: onacc: the quarantine directory", LIMIT)
        .unwrap();
}

#[test]
fn files_are_listed_shown_restored_and_deleted() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let home = or_skip!(Quarantine::new(4));
    let dir = home.dir();
    let odd = site.watched().join(OsStr::new("odd \u{202e}name"));
    let paths = [site.watched().join("one"), site.watched().join("two"), odd];
    for path in &paths {
        fs::write(path, infected()).unwrap();
        std::os::unix::fs::chown(path, Some(4711), Some(4712)).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o6751)).unwrap();
        utimes(
            path,
            &TimeVal::new(1_000_000_007, 5),
            &TimeVal::new(1_000_000_000, 123_456),
        )
        .unwrap();
    }
    let mut agent = moving(&site, &dir).start();
    for path in &paths {
        assert!(open_as(4711, path, LIMIT).is_refused());
        assert_gone(&agent, path);
    }
    assert!(wait_until(LIMIT, || counter(&agent, "quarantined") == 3));
    agent.stop();
    let said = succeeds(&quarantine(&dir, &[&"list"]));
    assert_eq!(said.lines().count(), 3, "{said}");
    assert!(
        said.contains(&format!(
            "\t{EICAR_NAME}\t68\tmoved\t{}\n",
            paths[0].display()
        )),
        "{said}"
    );
    assert!(
        !said.contains('\u{202e}'),
        "no tricks on the terminal: {said}"
    );
    let said = succeeds(&quarantine(&dir, &[&"show", &"one"]));
    for part in [
        "uid 4711 gid 4712",
        "mode:       6751",
        "2001-09-09T01:46:40Z",
        "opened by:  pid ",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    let json = succeeds(&quarantine(&dir, &[&"show", &"one", &"--json"]));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["record"]["origin"], paths[0].to_str().unwrap());

    // Not over another file, not through a symlink, not from elsewhere.
    fs::write(&paths[0], "another").unwrap();
    let said = fails(&quarantine(&dir, &[&"restore", &"one"]));
    assert!(said.contains("exists, and is not overwritten"), "{said}");
    assert_eq!(fs::read(&paths[0]).unwrap(), b"another");
    fs::remove_file(&paths[0]).unwrap();
    let real = site.scratch().join("real");
    fs::rename(site.watched(), &real).unwrap();
    symlink(&real, site.watched()).unwrap();
    let said = fails(&quarantine(&dir, &[&"restore", &"one"]));
    assert!(said.contains("symlink"), "{said}");
    fs::remove_file(site.watched()).unwrap();
    fs::rename(&real, site.watched()).unwrap();
    for name in ["../one", "missing", ""] {
        fails(&quarantine(&dir, &[&"restore", &name]));
    }
    succeeds(&quarantine(&dir, &[&"restore", &"one"]));
    let after = fs::metadata(&paths[0]).unwrap();
    assert_eq!(
        (after.uid(), after.gid(), after.mode() & 0o7777),
        (4711, 4712, 0o6751)
    );
    assert_eq!(
        (after.mtime(), after.mtime_nsec()),
        (1_000_000_000, 123_456_000)
    );
    assert_eq!(fs::read(&paths[0]).unwrap(), infected());

    // One that was tampered with does not go back.
    let mut file = OpenOptions::new()
        .append(true)
        .open(dir.join("two"))
        .unwrap();
    file.write_all(b"more").unwrap();
    let said = fails(&quarantine(&dir, &[&"restore", &"two"]));
    assert!(said.contains("SHA-256"), "{said}");
    succeeds(&quarantine(&dir, &[&"delete", &"two"]));
    assert!(!dir.join("two").exists() && !dir.join("two.onacc.json").exists());
    assert_eq!(listed(&dir).len(), 1);
}
