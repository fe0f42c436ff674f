//! Prevention: what is infected cannot be opened, all else is left alone.
//!
//! Real clamd, real kernel, one scratch filesystem a test. Must not: ask how
//! the agent does it; `freshness.rs` and `bpfmodes.rs` are about its marks.

mod common;

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::{self, File, OpenOptions, Permissions},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{PermissionsExt, symlink},
        },
    },
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use common::{
    FakeSite, LIMIT, MARKER_NAME, MOVE_WINDOW, Site, assert_opens, assert_refused, clean, counter,
    infected, marker, open_all, opened, refused_within, shown,
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    mount::{MsFlags, mount, umount},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, mkdirat},
    unistd::mkfifo,
};
use onacc_tests::{
    Agent, Behaviour, Opening, cat, clamd::EICAR_NAME, clamd::wait_until, open_within, or_skip,
    require_root,
};

#[test]
fn an_infected_file_is_refused_and_named_in_the_log_and_on_the_console() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("bad", &infected());
    let agent = site.agent().start();
    assert_refused(&path);
    assert!(cat(&path, LIMIT).is_refused());
    let line = format!("{}: {EICAR_NAME} FOUND", path.display());
    let said = agent.wait_for(&line, LIMIT).unwrap();
    assert_eq!(said, line, "the line holds nothing else");
    let in_log = || agent.log().lines().any(|logged| logged == line);
    assert!(wait_until(LIMIT, in_log), "the log:\n{}", agent.log());
    let write = OpenOptions::new().write(true).open(&path).unwrap_err();
    assert_eq!(write.raw_os_error(), Some(libc::EPERM), "for writing too");
}

#[test]
fn a_clean_file_opens_and_holds_what_it_held() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("good", &clean());
    let agent = site.agent().start();
    assert_eq!(cat(&path, LIMIT).content(), Some(clean().as_slice()));
    fs::write(&path, b"changed").unwrap();
    assert_eq!(cat(&path, LIMIT).content(), Some(b"changed".as_slice()));
    let made = site.write("made", &clean());
    assert_opens(&made);
    let counted = common::counters(&agent);
    assert_eq!((counted["infected"], counted["timeouts"]), (0, 0));
    assert!(!agent.output().contains("FOUND"));
}

#[test]
fn what_is_outside_or_excluded_opens_and_what_is_included_again_does_not() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let write = |dir: &str| {
        site.scratch().mkdir(dir);
        site.scratch().write(format!("{dir}/bad"), &infected())
    };
    let (outside, sibling) = (write("out"), write("inner"));
    let (inside, excluded) = (write("in/deep/er"), write("in/off"));
    let (excluded_deep, included) = (write("in/off/deep"), write("in/off/on"));
    let (included_deep, not_excluded) = (write("in/off/on/deep"), write("in/offline"));
    let agent = site
        .agent()
        .exclude(site.watched().join("off"))
        .include(site.watched().join("off/on"))
        .start();
    for path in [&inside, &included, &included_deep, &not_excluded] {
        assert_refused(path);
    }
    for path in [&outside, &sibling, &excluded, &excluded_deep] {
        assert_opens(path);
    }
    assert_eq!(counter(&agent, "infected"), 4);
}

#[test]
fn a_new_directory_is_protected_at_once_two_hundred_times_in_a_row() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let _agent = site.agent().start();
    let slipped: Vec<usize> = (0..200)
        .filter(|round| {
            let dir = site.watched().join(format!("{round}/a/b/c/d"));
            fs::create_dir_all(&dir).unwrap();
            let path = dir.join("bad");
            fs::write(&path, infected()).unwrap();
            !open_within(&path, LIMIT).is_refused()
        })
        .collect();
    assert!(slipped.is_empty(), "opened in rounds {slipped:?}");
}

#[test]
fn an_infected_file_cannot_be_executed() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let executable = |name: &str, content: &[u8]| {
        let path = site.write(name, content);
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path
    };
    let script = b"#!/bin/sh\necho it ran\n# ".to_vec();
    let clean_script = executable("clean.sh", &script);
    let infected_script = executable("bad.sh", &[script, marker()].concat());
    let program = fs::read("/bin/true").unwrap();
    let clean_program = executable("clean", &program);
    let infected_program = executable("bad", &[program, marker()].concat());
    let eicar = executable("eicar.com", &infected());
    // Before the agent starts, so that it is the agent that refuses.
    assert!(Command::new(&infected_script).status().unwrap().success());
    assert!(Command::new(&infected_program).status().unwrap().success());
    let agent = site.agent().start();
    for path in [&infected_script, &infected_program, &eicar] {
        let error = Command::new(path).status().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{path:?}: {error}");
    }
    let by_shell = Command::new("sh").arg(&infected_script).output().unwrap();
    assert!(!by_shell.status.success() && by_shell.stdout.is_empty());
    for path in [&clean_script, &clean_program] {
        assert!(Command::new(path).status().unwrap().success(), "{path:?}");
    }
    let line = format!("{}: {MARKER_NAME} FOUND", infected_program.display());
    agent.wait_for(&line, LIMIT).unwrap();
}

#[test]
fn a_single_file_can_be_the_include_path() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let named = site.scratch().write("named", &infected());
    let sibling = site.scratch().write("named2", &infected());
    let _agent = Agent::builder(site.clamd())
        .prevention(true)
        .include(&named)
        .start();
    assert_refused(&named);
    assert_opens(&sibling);
}

#[test]
fn an_include_path_that_is_a_link_protects_what_it_leads_to() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("bad", &infected());
    let link = site.scratch().join("link");
    symlink(site.watched(), &link).unwrap();
    let _agent = Agent::builder(site.clamd())
        .prevention(true)
        .include(&link)
        .start();
    assert_refused(&path);
    assert_refused(&link.join("bad"));
}

#[test]
fn hard_links_and_symlinks_to_an_infected_file_are_refused() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("bad", &infected());
    let _agent = site.agent().start();
    let hard = site.watched().join("hard");
    fs::hard_link(&path, &hard).unwrap();
    let soft = site.watched().join("soft");
    symlink(&path, &soft).unwrap();
    let from_outside = site.scratch().join("soft");
    symlink("in/bad", &from_outside).unwrap();
    for path in [&hard, &soft, &from_outside] {
        assert_refused(path);
    }
}

#[test]
fn an_infected_file_is_refused_wherever_it_is_moved_to_inside() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("bad", &infected());
    let _agent = site.agent().start();
    assert_refused(&path);
    let renamed = site.watched().join("renamed");
    fs::rename(&path, &renamed).unwrap();
    assert_refused(&renamed);
    let deep = site.watched().join("deep");
    fs::create_dir(&deep).unwrap();
    let moved = deep.join("moved");
    fs::rename(&renamed, &moved).unwrap();
    assert_refused(&moved);
    let directory = site.watched().join("deeper");
    fs::rename(&deep, &directory).unwrap();
    assert_refused(&directory.join("moved"));
}

#[test]
fn what_is_moved_in_is_protected_and_what_is_moved_out_is_not() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("out/tree/deep");
    let outside = site.scratch().write("out/bad", &infected());
    let deep = site.scratch().write("out/tree/deep/bad", &infected());
    let _agent = site.agent().start();
    // Opened more than once: the agent may have learned that these are outside.
    for _ in 0..3 {
        assert_opens(&outside);
        assert_opens(&deep);
        thread::sleep(Duration::from_millis(20));
    }
    let inside = site.watched().join("bad");
    fs::rename(&outside, &inside).unwrap();
    assert_refused(&inside);
    let tree = site.watched().join("tree");
    fs::rename(site.scratch().join("out/tree"), &tree).unwrap();
    // The kernel ignores the directory until the agent has heard of the move.
    let took = refused_within(&tree.join("deep/bad"), MOVE_WINDOW);
    assert!(took.is_some(), "refused within {MOVE_WINDOW:?} of the move");
    fs::rename(&tree, site.scratch().join("out/tree")).unwrap();
    assert_opens(&deep);
    fs::rename(&inside, &outside).unwrap();
    assert_opens(&outside);
}

#[test]
fn a_bind_mount_shows_the_protected_directory_as_protected() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("bad", &infected());
    site.scratch().mkdir("in/sub");
    site.write("sub/bad", &infected());
    let outside = site.scratch().write("bad", &infected());
    let bind = |from: &Path, to: &Path| {
        let none = None::<&str>;
        mount(Some(from), to, none, MsFlags::MS_BIND, none).unwrap();
    };
    let (early, late) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    bind(&site.watched(), early.path());
    let agent = site.agent().start();
    bind(&site.watched().join("sub"), late.path());
    // Several times: at first the agent may not know the new mount.
    for _ in 0..3 {
        assert_refused(&early.path().join("bad"));
        assert_refused(&late.path().join("bad"));
        assert_refused(&path);
        thread::sleep(Duration::from_millis(50));
    }
    assert_opens(&outside);
    // A mount that nobody but its own thread sees.
    let watched = site.watched();
    let place = tempfile::tempdir().unwrap();
    let hidden = thread::scope(|scope| {
        let work = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            bind(&watched, place.path());
            open_within(&place.path().join("bad"), LIMIT).is_refused()
        });
        work.join().unwrap()
    });
    assert!(hidden, "by a mount of another mount namespace");
    drop(agent);
    for place in [early.path(), late.path()] {
        umount(place).unwrap();
    }
}

#[test]
fn sixty_four_openers_of_sixty_four_files_get_the_right_answers() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let content = |n: usize| {
        if n.is_multiple_of(2) {
            clean()
        } else {
            infected()
        }
    };
    let paths: Vec<PathBuf> = (0..64)
        .map(|n| site.write(format!("{n}"), &[content(n), vec![b'0'; n]].concat()))
        .collect();
    let agent = site.agent().start();
    for round in 0..3 {
        let outcomes = open_all(&paths, LIMIT);
        for (n, open) in outcomes.iter().enumerate() {
            let right = if n.is_multiple_of(2) {
                open.is_open()
            } else {
                open.is_refused()
            };
            assert!(right, "round {round}, file {n}: {open:?}");
        }
    }
    assert_eq!(counter(&agent, "timeouts"), 0);
}

#[test]
fn sixty_four_openers_of_one_file_get_the_same_answer() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let (bad, good) = (site.write("bad", &infected()), site.write("good", &clean()));
    let agent = site.agent().start();
    let mixed: Vec<PathBuf> = (0_usize..64)
        .map(|n| if n.is_multiple_of(2) { &good } else { &bad }.clone())
        .collect();
    for paths in [vec![bad; 64], vec![good; 64], mixed] {
        for (path, open) in paths.iter().zip(open_all(&paths, LIMIT)) {
            if path.ends_with("good") {
                opened(open, path);
            } else {
                assert!(open.is_refused(), "{open:?}");
            }
        }
    }
    assert_eq!(counter(&agent, "timeouts"), 0);
}

/// Makes directories below `top` until the path of the last is longer than
/// `length` bytes, each by way of the one before. Returns the last, open.
fn deep_directory(top: &Path, length: usize) -> (OwnedFd, usize) {
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut directory: OwnedFd = File::open(top).expect("opening").into();
    let mut reached = top.as_os_str().len();
    let name = "d".repeat(200);
    while reached <= length {
        mkdirat(&directory, name.as_str(), Mode::from_bits_truncate(0o755))
            .expect("making a directory");
        directory =
            openat(&directory, name.as_str(), flags, Mode::empty()).expect("opening a directory");
        reached += 1 + name.len();
    }
    (directory, reached)
}

#[test]
fn paths_of_any_length_are_protected() {
    require_root!();
    let site = or_skip!(Site::ext4());
    // Beyond what clamonacc, what an int16 and what one path can hold.
    let deep: Vec<(OwnedFd, usize)> = [1023, 3800, 4096, 9000]
        .into_iter()
        .map(|length| {
            let top = site.scratch().mkdir(format!("in/{length}"));
            deep_directory(&top, length)
        })
        .collect();
    let agent = site.agent().start();
    for (directory, length) in &deep {
        // The kernel resolves this; no path as long as the file's is passed.
        let reach = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        let (bad, good) = (reach.join("bad"), reach.join("good"));
        fs::write(&bad, infected()).unwrap();
        fs::write(&good, clean()).unwrap();
        assert_refused(&bad);
        assert_opens(&good);
        let found = || agent.output().matches(" FOUND\n").count();
        let index = deep.iter().position(|(_, other)| other == length).unwrap();
        assert!(wait_until(LIMIT, || found() > index), "length {length}");
    }
}

#[test]
fn strange_names_are_protected_and_forge_no_line() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let names: [&[u8]; 8] = [
        b"new\nline",
        b"a: OK\nb: Forged FOUND\nc",
        b"not\xff\xfeutf8",
        b"\x1b[2J\x07\r",
        "gr\u{fc}\u{df}e \u{202e}dne".as_bytes(),
        b" # \"quoted\" \\134 ",
        b"name (deleted)",
        &[b'n'; 255],
    ];
    // Before the agent starts: none is scanned ahead, which makes a line too.
    let paths = names.map(|name| site.write(OsStr::from_bytes(name), &infected()));
    let agent = site.agent().start();
    for path in &paths {
        assert_refused(path);
    }
    let whole = "n".repeat(255);
    agent.wait_for(&format!("{whole}: "), LIMIT).unwrap();
    let in_log = || agent.log().contains(&whole);
    assert!(wait_until(LIMIT, in_log), "the log:\n{}", agent.log());
    for said in [agent.output(), agent.log()] {
        let found: Vec<&str> = said.lines().filter(|l| l.contains(" FOUND")).collect();
        let start = site.watched().join("").display().to_string();
        assert!(
            found
                .iter()
                .all(|line| line.starts_with(&start) && line.ends_with(" FOUND")),
            "{said}"
        );
        assert_eq!(found.len(), names.len(), "one line a verdict:\n{said}");
        // Nor does it play tricks on a terminal, by control or direction.
        for trick in ['\x1b', '\r', '\u{7}', '\u{202e}'] {
            assert!(!said.contains(trick), "{trick:?}");
        }
    }
}

#[test]
fn a_file_larger_than_the_limit_opens_and_is_not_scanned() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let of_size = |name: &str, size: usize| {
        let mut content = infected();
        content.resize(size, b' ');
        site.write(name, &content)
    };
    let limit = 256 << 10;
    let (large, fits) = (of_size("large", limit + 1), of_size("fits", limit));
    let agent = site.agent().option("OnAccessMaxFileSize 256K").start();
    assert_opens(&large);
    let counted = common::counters(&agent);
    assert_eq!((counted["too_large"], counted["scans"]), (1, 0));
    assert_refused(&fits);
}

#[test]
fn what_is_no_file_with_bytes_in_it_is_not_scanned() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let empty = site.write("empty", b"");
    let fifo = site.watched().join("fifo");
    mkfifo(&fifo, Mode::from_bits_truncate(0o644)).unwrap();
    let agent = site.agent().start();
    for path in [&empty, &fifo, &site.watched()] {
        assert_opens(path);
    }
    assert_eq!(counter(&agent, "scans"), 0);
}

#[test]
fn a_file_is_refused_by_way_of_another_process_too() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("bad", &infected());
    let held = File::open(&path).unwrap();
    let _agent = site.agent().start();
    let again = PathBuf::from(format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        held.as_raw_fd()
    ));
    assert_refused(&again);
    fs::remove_file(&path).unwrap();
    // Deleted, but for those who hold it open.
    assert_refused(&again);
    assert_eq!(open_within(&path, LIMIT).errno(), Some(Errno::ENOENT));
}

#[test]
fn scans_run_at_the_same_time_and_no_more_than_allowed() {
    require_root!();
    let slow = |_: &_| Behaviour::usual().after(Duration::from_millis(150));
    for (option, most) in [("OnAccessMaxThreads 3", 3), ("# the default", 5)] {
        let site = or_skip!(FakeSite::ext4(slow));
        let paths = site.clean_files(24);
        let agent = site.agent().option(option).start();
        for (path, open) in paths.iter().zip(open_all(&paths, LIMIT)) {
            opened(open, path);
        }
        let peak = site.fake().peak();
        assert!(
            peak > 1 && peak <= most,
            "{option}: {peak} scans at once, of at most {most}"
        );
        let scanned: HashSet<_> = site
            .fake()
            .requests()
            .into_iter()
            .filter_map(|request| request.path)
            .collect();
        assert_eq!(scanned, paths.iter().cloned().collect(), "by passed fd");
        assert_eq!(counter(&agent, "clean"), 24);
    }
}

#[test]
fn an_opener_that_is_killed_while_it_waits_holds_nothing_up() {
    require_root!();
    let slow = |_: &_| Behaviour::usual().after(Duration::from_millis(500));
    let site = or_skip!(FakeSite::ext4(slow));
    let (path, other) = (site.write("a", &clean()), site.write("b", &infected()));
    let _agent = site.agent().start();
    let mut reader = Command::new("cat").arg(&path).spawn().unwrap();
    assert!(site.fake().wait_for_scans(1, LIMIT), "{}", shown(&path));
    reader.kill().unwrap();
    reader.wait().unwrap();
    let waiting = Opening::start(&path);
    assert_refused(&other);
    opened(waiting.within(LIMIT), &path);
}
