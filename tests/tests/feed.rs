//! Notify-only mode where eBPF tells of opens: exact for openers that are gone
//! at once, by whatever way they came to the file, and nothing lost in silence.
//!
//! Must not: repeat `notify.rs`, which holds without eBPF, too.

mod common;
#[path = "common/groups.rs"]
mod groups;
#[path = "common/settle.rs"]
mod settle;

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use common::{
    FakeSite, LIMIT, NO_LONGER_YOUNG, Site, assert_opens, cat_and_be_gone, clean, infected,
};
use groups::Group;
use onacc_tests::{
    Agent, Behaviour, Counters, ScratchFs, agent::AgentBuilder, clamd::wait_until, or_skip,
    require_root, skip, sys,
};
use settle::run;

/// An agent that reports only, and the tests below need one that eBPF tells of opens.
fn reporting(site: &Site) -> AgentBuilder {
    Agent::builder(site.clamd())
        .prevention(false)
        .include(site.watched())
}

fn told(builder: AgentBuilder) -> Result<Agent, String> {
    let agent = builder.try_start()?;
    if agent.output().contains("opens are told by eBPF") {
        Ok(agent)
    } else {
        Err("no hook on opens is granted here; the agent says why".to_owned())
    }
}

fn all(agent: &Agent) -> Counters {
    agent.counters().expect("counters")
}

fn is_reported(agent: &Agent, path: &Path) -> bool {
    agent
        .output()
        .contains(&format!("{}: ", common::shown(path)))
}

#[test]
fn short_lived_openers_are_told_apart_exactly() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad: Vec<PathBuf> = (0..80)
        .map(|n| site.write(format!("bad{n:02}x"), &infected()))
        .collect();
    let agent = or_skip!(told(reporting(&site).option("OnAccessExcludeUID 4711")));
    for (n, path) in bad.iter().enumerate() {
        cat_and_be_gone(4711 + u32::from(n % 2 == 1), path);
    }
    for (n, path) in bad.iter().enumerate().filter(|(n, _)| n % 2 == 1) {
        let seen = wait_until(LIMIT, || is_reported(&agent, path));
        assert!(seen, "opener {n} was missed: {:?}", all(&agent));
    }
    // What would be said of the others has been said by then.
    for (n, path) in bad.iter().enumerate().filter(|(n, _)| n % 2 == 0) {
        assert!(!is_reported(&agent, path), "opener {n} is excluded");
    }
    let counts = all(&agent);
    assert!(counts["bpf_open_dropped_excluded_uid"] >= 40, "{counts:?}");
    assert_eq!(counts["told_not_found"] + counts["told_lost"], 0);
}

#[test]
fn who_changes_its_identity_between_two_opens_is_judged_at_each() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let (first, second) = (
        site.write("first", &infected()),
        site.write("second", &infected()),
    );
    let agent = or_skip!(told(reporting(&site).option("OnAccessExcludeUID 4711")));
    let paths = (first.clone(), second.clone());
    // The effective uid of one thread of many.
    thread::spawn(move || {
        sys::set_effective_uid_on_this_thread(4711).expect("seteuid");
        drop(File::open(&paths.0).expect("opens"));
        sys::set_effective_uid_on_this_thread(0).expect("seteuid");
        drop(File::open(&paths.1).expect("opens"));
    })
    .join()
    .unwrap();
    assert!(wait_until(LIMIT, || is_reported(&agent, &second)));
    assert!(!is_reported(&agent, &first));
}

#[test]
fn a_repeat_open_of_a_clean_file_ends_in_the_kernel_until_it_changes() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("good", &clean());
    let agent = or_skip!(told(reporting(&site)));
    let settled = wait_until(LIMIT, || {
        thread::sleep(NO_LONGER_YOUNG);
        let before = all(&agent);
        for _ in 0..50 {
            assert_opens(&path);
        }
        let after = all(&agent);
        after["told_opens"] == before["told_opens"]
            && after["bpf_open_dropped_clean"] >= before["bpf_open_dropped_clean"] + 50
    });
    assert!(settled, "{:?}", all(&agent));
    fs::write(&path, infected()).unwrap();
    assert_opens(&path);
    assert!(wait_until(LIMIT, || is_reported(&agent, &path)));
}

#[test]
fn opens_out_of_scope_end_in_the_kernel_and_a_move_into_scope_is_seen() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("outside/sub");
    let path = site.scratch().write("outside/sub/bad", &infected());
    let agent = or_skip!(told(reporting(&site)));
    let settled = wait_until(LIMIT, || {
        let before = all(&agent)["told_opens"];
        for _ in 0..20 {
            assert_opens(&path);
        }
        thread::sleep(Duration::from_millis(20));
        all(&agent)["told_opens"] == before
    });
    assert!(settled, "{:?}", all(&agent));
    assert!(!is_reported(&agent, &path));
    let moved = site.watched().join("moved");
    fs::rename(site.scratch().join("outside"), &moved).unwrap();
    let path = moved.join("sub/bad");
    let seen = wait_until(LIMIT, || {
        assert_opens(&path);
        is_reported(&agent, &path)
    });
    assert!(seen, "{:?}", all(&agent));
}

#[test]
fn a_directory_made_anew_under_its_old_name_is_judged_anew() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let later = site.scratch().join("later");
    let agent = or_skip!(told(reporting(&site).include(&later)));
    for round in 0..3 {
        fs::create_dir(&later).unwrap();
        let bad = later.join(format!("bad{round}"));
        fs::write(&bad, infected()).unwrap();
        cat_and_be_gone(4712, &bad);
        assert!(wait_until(LIMIT, || is_reported(&agent, &bad)), "{round}");
        fs::remove_dir_all(&later).unwrap();
    }
}

#[test]
fn files_opened_in_other_namespaces_or_under_other_mounts_are_found() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.write("by another mount", &infected());
    site.scratch().mkdir("in/dir");
    let hidden = site.write("dir/hidden", &infected());
    let agent = or_skip!(told(reporting(&site)));
    let elsewhere = tempfile::tempdir().unwrap();
    let script = "mount --bind \"$1\" \"$2\" && exec cat \"$2/by another mount\"";
    or_skip!(run(Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(site.watched())
        .arg(elsewhere.path())
        .stdout(Stdio::null())));
    assert!(wait_until(LIMIT, || is_reported(&agent, &bad)));

    // Mounted over before the agent looks: the path leads elsewhere.
    let dir = File::open(site.watched().join("dir")).unwrap();
    let over = settle::Mounted::new("tmpfs", "", &site.watched().join("dir"));
    let opened = nix::fcntl::openat(
        &dir,
        "hidden",
        nix::fcntl::OFlag::O_RDONLY,
        nix::sys::stat::Mode::empty(),
    );
    drop(opened.unwrap());
    let seen = wait_until(LIMIT, || agent.output().matches(" FOUND").count() >= 2);
    assert!(seen, "{}\n{:?}", agent.output(), all(&agent));
    drop(over);
    assert!(hidden.exists());
}

#[test]
fn a_filesystem_that_is_mounted_in_a_container_alone_is_found_while_it_lives() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let agent = or_skip!(told(reporting(&site)));
    // In scope by its device alone: the same filesystem, of which the container
    // sees a sub-directory as its root, in pid and user namespaces of its own.
    let bad = site.write("inner", &infected());
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--pid", "--fork", "--mount"])
        .args(["sh", "-c", "cat \"$1\" && sleep 0.1", "sh"])
        .arg(&bad)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("unshare runs");
    if !status.success() {
        skip!("no user namespaces here: {status}");
    }
    assert!(wait_until(LIMIT, || is_reported(&agent, &bad)));
    drop(agent);
}

#[test]
fn renamed_unlinked_and_oddly_named_files_are_found_or_counted() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let agent = or_skip!(told(reporting(&site)));
    let odd: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    let odd = site.write(OsStr::from_bytes(&odd), &infected());
    let mut deep = site.watched();
    for _ in 0..70 {
        deep.push("ab");
        fs::create_dir(&deep).unwrap();
    }
    let deep = deep.join("leaf");
    fs::write(&deep, infected()).unwrap();
    for (n, path) in [&odd, &deep].into_iter().enumerate() {
        cat_and_be_gone(4712, path);
        let reported = || agent.output().matches(" FOUND\n").count() > n;
        assert!(wait_until(LIMIT, reported), "{:?}", all(&agent));
    }
    let sum = |counts: &Counters| {
        counts["infected"] + counts["known_infected"] + counts["told_not_found"]
    };
    let before = sum(&all(&agent));
    for n in 0..40 {
        let path = site.write(format!("gone{n}"), &infected());
        let file = assert_opens(&path);
        if n % 2 == 0 {
            fs::rename(&path, site.watched().join(format!("renamed{n}"))).unwrap();
        } else {
            fs::remove_file(&path).unwrap();
        }
        drop(file);
    }
    let none_in_silence = wait_until(LIMIT, || sum(&all(&agent)) >= before + 40);
    assert!(none_in_silence, "{:?}", all(&agent));
}

#[test]
fn what_finds_no_room_in_the_ring_buffer_is_caught_up_with() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let filler = site.write("filler", &clean());
    let bad: Vec<PathBuf> = (0..60)
        .map(|n| site.write(format!("late{n:02}x"), &infected()))
        .collect();
    let agent = or_skip!(told(
        reporting(&site)
            .open_files(256)
            .option("OnAccessCurlTimeout 60000")
            .arg("--debug-limits=backlog=100000")
    ));
    site.clamd().stop();
    let full = wait_until(LIMIT, || {
        for _ in 0..2000 {
            drop(File::open(&filler).unwrap());
        }
        all(&agent)["bpf_open_missed"] > 0
    });
    for path in &bad {
        drop(File::open(path).unwrap());
    }
    site.clamd().cont();
    assert!(full, "{:?}", all(&agent));
    for path in &bad {
        let seen = wait_until(LIMIT, || is_reported(&agent, path));
        assert!(seen, "{} {:?}", path.display(), all(&agent));
    }
    let counts = all(&agent);
    assert!(counts["told_caught_up"] >= 60, "{counts:?}");
    assert_eq!(counts["told_lost"], 0);
}

/// More files than the ring buffer and the fds in flight have room for, while clamd
/// does nothing at all: what is not taken out of the kernel at once is missed.
#[test]
fn twenty_thousand_files_opened_at_once_are_all_looked_at() {
    const FILES: usize = 20_000;
    /// The ring buffer holds 12,700, and 64 files are in flight.
    const MISSED_IF_NOT_TAKEN_AT_ONCE: u64 = 7000;
    require_root!();
    // An inode for each 16 KiB.
    let site = or_skip!(ScratchFs::ext4(512).and_then(Site::on));
    let all_files: Vec<PathBuf> = (0..FILES)
        .map(|n| {
            let content = if n % 1000 == 999 { infected() } else { clean() };
            site.write(format!("file{n}"), &content)
        })
        .collect();
    let agent = or_skip!(told(
        reporting(&site)
            .open_files(256)
            .option("OnAccessCurlTimeout 60000")
    ));
    site.clamd().stop();
    for (n, path) in all_files.iter().enumerate() {
        drop(File::open(path).unwrap());
        if n % 500 == 0 {
            thread::sleep(Duration::from_millis(3));
        }
    }
    let counts = all(&agent);
    assert!(counts["told_opens"] < 10_000, "clamd holds: {counts:?}");
    assert!(
        counts["bpf_open_missed"] < MISSED_IF_NOT_TAKEN_AT_ONCE / 2,
        "{counts:?}"
    );
    site.clamd().cont();
    let done = wait_until(4 * LIMIT, || {
        let counts = all(&agent);
        counts["clean"] + counts["infected"] >= FILES as u64
    });
    let counts = all(&agent);
    assert!(done, "{counts:?}");
    assert_eq!(counts["told_lost"] + counts["told_not_found"], 0);
    for path in all_files.iter().skip(999).step_by(1000) {
        let seen = wait_until(LIMIT, || is_reported(&agent, path));
        assert!(seen, "{}", path.display());
    }
}

#[test]
fn executions_and_special_files() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let program = site.write(
        "program",
        &[b"#!/bin/sh\nexit 0\n#".to_vec(), common::marker()].concat(),
    );
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let fifo = site.watched().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let agent = or_skip!(told(reporting(&site)));
    assert!(Command::new(&program).status().unwrap().success());
    assert!(wait_until(LIMIT, || is_reported(&agent, &program)));
    let before = all(&agent)["told_opens"];
    let both = fs::OpenOptions::new().read(true).write(true).open(&fifo);
    drop(both.unwrap());
    drop(File::open(site.watched()).unwrap());
    let counts = all(&agent);
    assert_eq!(counts["told_opens"], before, "{counts:?}");
    assert!(counts["bpf_open_dropped_not_regular"] >= 2);
}

#[test]
fn ten_thousand_excluded_uids_are_excluded() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let (theirs, other) = (
        site.write("theirs", &infected()),
        site.write("other", &infected()),
    );
    let mut builder = reporting(&site);
    for uid in 20_000..30_000 {
        builder = builder.option(&format!("OnAccessExcludeUID {uid}"));
    }
    let agent = or_skip!(told(builder));
    for uid in [20_000, 25_555, 29_999] {
        cat_and_be_gone(uid, &theirs);
    }
    cat_and_be_gone(30_000, &other);
    assert!(wait_until(LIMIT, || is_reported(&agent, &other)));
    assert!(!is_reported(&agent, &theirs));
    assert!(all(&agent)["bpf_open_dropped_excluded_uid"] >= 3);
}

#[test]
fn in_a_pid_namespace_of_its_own_the_agent_says_so_and_uses_fanotify() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.write("bad", &infected());
    let wrapper = tempfile::tempdir().unwrap();
    let wrapper = wrapper.path().join("onacc");
    let script = format!(
        "#!/bin/sh\nexec unshare --pid --fork --kill-child --mount-proc {} \"$@\"\n",
        onacc_tests::agent::binary().display()
    );
    fs::create_dir_all(wrapper.parent().unwrap()).unwrap();
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let agent = reporting(&site).binary(&wrapper).start();
    let line = agent.wait_for("first pid namespace", LIMIT).unwrap();
    assert!(line.contains("use the host's pid namespace"), "{line}");
    assert!(agent.output().contains("opens are told by fanotify"));
    assert_opens(&bad);
    assert!(wait_until(LIMIT, || is_reported(&agent, &bad)));
}

#[test]
fn a_control_group_is_left_out_though_its_openers_are_gone() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let (out, other) = (
        or_skip!(Group::new("told")),
        or_skip!(Group::new("told-not")),
    );
    // Few: to move a process into a group takes up to a second in a machine.
    let bad: Vec<PathBuf> = (0..12)
        .map(|n| site.write(format!("bad{n:02}x"), &infected()))
        .collect();
    let settings = site.scratch().write(
        "onacc.toml",
        format!("[exclude]\nCgroup = '{}'\n", out.name()).as_bytes(),
    );
    let flag = format!("--settings={}", settings.display());
    let agent = or_skip!(told(reporting(&site).arg(&flag)));
    for (n, path) in bad.iter().enumerate() {
        let group = if n % 2 == 0 { &out } else { &other };
        assert!(group.read(path), "{}", path.display());
    }
    for (n, path) in bad.iter().enumerate().filter(|(n, _)| n % 2 == 1) {
        let seen = wait_until(LIMIT, || is_reported(&agent, path));
        assert!(seen, "opener {n} was missed: {:?}", all(&agent));
    }
    for (n, path) in bad.iter().enumerate().filter(|(n, _)| n % 2 == 0) {
        assert!(!is_reported(&agent, path), "opener {n} is excluded");
    }
    assert_eq!(all(&agent)["excluded_process"], 6);
}

#[test]
fn one_scan_serves_a_file_and_the_overlays_above_it() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let [lower, upper, work, at] =
        ["lower", "upper", "work", "merged"].map(|dir| site.scratch().mkdir(format!("in/{dir}")));
    let (good, bad) = (
        site.write("lower/good", &clean()),
        site.write("lower/bad", &infected()),
    );
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    let merged = settle::Mounted::new("overlay", &options, &at);
    if !sys::overlay_tells_what_is_beneath(&File::open(merged.join("good")).unwrap()) {
        skip!("this kernel does not tell what lies beneath a file of an overlay");
    }
    thread::sleep(2 * NO_LONGER_YOUNG);
    let agent = or_skip!(told(
        Agent::builder(site.fake())
            .prevention(false)
            .include(site.watched())
    ));
    for (file, scans) in [("good", 1), ("bad", 2)] {
        for path in [merged.join(file), lower.join(file), merged.join(file)] {
            let before = all(&agent)["told_opens"];
            assert_opens(&path);
            // Looked at, and scanned if it had to be, before the next one comes.
            let done = wait_until(LIMIT, || {
                let counts = all(&agent);
                (counts["told_opens"] > before || counts["bpf_open_dropped_clean"] > 0)
                    && counts["clean"] + counts["infected"] >= scans
            });
            assert!(done, "{}: {:?}", path.display(), all(&agent));
        }
    }
    assert_eq!(site.fake().count("FILDES"), 2, "{:?}", all(&agent));
    assert!(wait_until(LIMIT, || is_reported(&agent, &bad)));
    assert!(!is_reported(&agent, &good));
    drop(agent);
    merged.unmount_within(LIMIT);
}
