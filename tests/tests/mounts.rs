//! Mounts that come, go and move while the agent runs.
//!
//! The scope is one of places on filesystems: by whatever mount a file is
//! reached, it is judged alike. Must not: test what a filesystem does with
//! stores and stamps (`filesystems.rs`).

mod common;
#[path = "common/settle.rs"]
mod settle;

use std::{fs, path::Path, thread, time::Duration};

use common::{
    FakeSite, LIMIT, NO_LONGER_YOUNG, STORES, Site, WRITES, assert_opens, assert_refused, clean,
    clean_pages, counter, counters, infected, marker, open_until_marked, refused_within,
};
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::signal::Signal,
};
use onacc_tests::{
    Behaviour, ScratchFs, clamd::wait_until, open_within, or_skip, require_root, skip, sys,
};
use settle::{Image, MOUNT_WINDOW, Mounted, opens_within, settle};

/// A file that appears in the scope with a mount is refused within the window.
#[track_caller]
fn assert_soon_refused(path: &Path) {
    let took = refused_within(path, MOUNT_WINDOW);
    let took = took.unwrap_or_else(|| panic!("{} is not refused", path.display()));
    eprintln!("{}: refused after {took:?}", path.display());
}

fn open_refused(path: &Path) -> bool {
    open_within(path, LIMIT).is_refused()
}

/// A filesystem that is mounted at `at` is protected, let go of, and protected
/// again when it comes back.
fn comes_and_goes(site: &Site, at: &Path, mount: &dyn Fn() -> Mounted) {
    let agent = site.agent().start();
    for round in 0..4 {
        let mounted = mount();
        let bad = mounted.join(format!("bad{round}"));
        fs::write(&bad, infected()).expect("writing");
        assert_soon_refused(&bad);
        let good = mounted.join(format!("good{round}"));
        fs::write(&good, clean()).expect("writing");
        assert_opens(&good);
        let took = mounted.unmount_within(LIMIT);
        eprintln!("{}: unmounted after {took:?}", at.display());
        assert_opens(at);
    }
    assert_eq!(counter(&agent, "timeouts"), 0);
}

#[test]
fn a_filesystem_mounted_below_the_include_path_is_covered_and_let_go_of() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let at = site.scratch().mkdir("in/mnt");
    comes_and_goes(&site, &at, &|| Mounted::new("tmpfs", "size=4m", &at));
    let image = or_skip!(Image::ext4(8));
    comes_and_goes(&site, &at, &|| image.mount(&at));
}

#[test]
fn a_filesystem_in_use_by_nobody_can_be_unmounted_at_once() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let at = site.scratch().mkdir("in/mnt");
    let image = or_skip!(Image::ext4(8));
    let agent = site.agent().start();
    let mut busy = Vec::new();
    for round in 0..12 {
        let mounted = image.mount(&at);
        let path = mounted.join("file");
        let what = ["written", "written and read", "read, after a while"][round % 3];
        if what == "read, after a while" {
            thread::sleep(Duration::from_millis(300));
        } else {
            fs::write(&path, [clean(), vec![b'0'; round]].concat()).unwrap();
        }
        if what != "written" {
            assert_opens(&path);
        }
        if let Err((error, again)) = mounted.unmount() {
            assert_eq!(error, Errno::EBUSY);
            busy.push((what, again.unmount_within(LIMIT)));
        }
    }
    drop(agent);
    eprintln!("EBUSY at first, and for how long: {busy:?}");
    // A scan that is under way holds the file; nothing may hold it for longer.
    let long = busy
        .iter()
        .filter(|(_, took)| *took > Duration::from_millis(30));
    assert!(long.count() <= 2, "{busy:?}");
}

#[test]
fn a_filesystem_remounted_while_the_agent_looks_away_is_covered() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let at = site.scratch().mkdir("in/mnt");
    let agent = site.agent().start();
    let make = |name: &str| {
        let mounted = Mounted::new("tmpfs", "size=4m", &at);
        let bad = mounted.join(name);
        fs::write(&bad, infected()).unwrap();
        (mounted, bad)
    };
    let (mut mounted, bad) = make("first");
    assert_soon_refused(&bad);
    for round in 0..5 {
        // Device and mount id are the same ones again, but nothing else is.
        let again = loop {
            agent.signal(Signal::SIGSTOP);
            let gone = mounted.unmount();
            let remounted = gone.map(|()| make(&format!("bad{round}")));
            agent.signal(Signal::SIGCONT);
            match remounted {
                Ok(again) => break again,
                // It was stopped with a file in its hand.
                Err((error, still)) => {
                    assert_eq!(error, Errno::EBUSY);
                    mounted = still;
                    thread::sleep(Duration::from_millis(5));
                }
            }
        };
        assert_soon_refused(&again.1);
        assert_refused(&again.1);
        mounted = again.0;
    }
}

#[test]
fn a_filesystem_changed_while_it_was_not_mounted_is_judged_anew() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let at = site.scratch().mkdir("in/stick");
    let image = or_skip!(Image::ext4(8));
    let agent = site.agent().start();
    let mut harmless = infected();
    harmless.reverse();
    let path = at.join("file");
    let mounted = image.mount(&at);
    fs::write(&path, &harmless).unwrap();
    thread::sleep(common::NO_LONGER_YOUNG);
    for _ in 0..3 {
        assert_opens(&path);
    }
    mounted.unmount_within(LIMIT);
    // On another machine, by somebody who leaves the stamps as they are.
    let mut bytes = fs::read(image.file()).unwrap();
    let found: Vec<usize> = bytes
        .windows(harmless.len())
        .enumerate()
        .filter(|(_, window)| *window == harmless)
        .map(|(place, _)| place)
        .collect();
    assert!(!found.is_empty(), "the file's bytes are in the image");
    for place in found {
        bytes[place..place + harmless.len()].copy_from_slice(&infected());
    }
    fs::write(image.file(), bytes).unwrap();
    let mounted = image.mount(&at);
    let refused = refused_within(&path, MOUNT_WINDOW).is_some() && open_refused(&path);
    let counted = common::counters(&agent);
    drop(agent);
    assert_eq!(fs::read(&path).unwrap(), infected(), "that is in it now");
    mounted.unmount_within(LIMIT);
    assert!(refused, "{counted:?}");
}

#[test]
fn the_included_directory_is_protected_where_it_is_bound_to_a_learned_place() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let place = site.scratch().mkdir("out/place");
    let hidden = site.scratch().write("out/place/bad", &infected());
    site.write("bad", &infected());
    let agent = site.agent().start();
    settle(&agent, &[&hidden]);
    for _ in 0..3 {
        let bound = Mounted::bind(&site.watched(), &place);
        assert_refused(&bound.join("bad"));
        bound.unmount_within(LIMIT);
        assert_opens(&hidden);
    }
}

#[test]
fn a_learned_directory_that_is_bound_into_the_scope_is_protected() {
    require_root!();
    for site in [Site::ext4(), Site::tmpfs()] {
        let site = or_skip!(site);
        site.scratch().mkdir("out/dir/deep");
        let outside = site.scratch().write("out/dir/bad", &infected());
        let deep = site.scratch().write("out/dir/deep/bad", &infected());
        let at = site.scratch().mkdir("in/bound");
        let agent = site.agent().start();
        for _ in 0..3 {
            settle(&agent, &[&outside, &deep]);
            let bound = Mounted::bind(&site.scratch().join("out/dir"), &at);
            assert_soon_refused(&bound.join("bad"));
            assert_soon_refused(&bound.join("deep/bad"));
            bound.unmount_within(LIMIT);
            let took = opens_within(&outside, MOUNT_WINDOW);
            assert!(took.is_some(), "it is outside again");
        }
    }
}

#[test]
fn a_file_of_a_learned_directory_that_is_bound_into_the_scope_is_protected() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("out");
    let outside = site.scratch().write("out/bad", &infected());
    let at = site.write("place", b"");
    let agent = site.agent().start();
    settle(&agent, &[&outside]);
    let bound = Mounted::bind(&outside, &at);
    assert_soon_refused(bound.path());
    bound.unmount_within(LIMIT);
    let took = opens_within(&outside, MOUNT_WINDOW);
    assert!(took.is_some(), "it is outside again");
}

#[test]
fn a_mount_that_covers_the_include_path_is_protected_and_so_is_what_it_hides() {
    require_root!();
    covers_the_include_path("filesystem");
    covers_the_include_path("directory");
}

fn covers_the_include_path(kind: &str) {
    let site = or_skip!(Site::ext4());
    let below = site.write("below", &infected());
    let elsewhere = tempfile::tempdir().expect("a scratch filesystem does as it is told");
    let _view = Mounted::bind(&site.watched(), elsewhere.path());
    let _agent = site.agent().arg(&format!("--coverage={kind}")).start();
    let cover = Mounted::new("tmpfs", "size=4m", &site.watched());
    let above = cover.join("above");
    fs::write(&above, infected()).expect("a scratch filesystem does as it is told");
    assert_soon_refused(&above);
    assert_opens(&site.scratch().path().join("in"));
    // Hidden at the include path's own name, in sight elsewhere.
    let hidden = elsewhere.path().join("below");
    let what = if open_within(&hidden, LIMIT).is_refused() {
        "is still refused"
    } else {
        "opens"
    };
    eprintln!("a file hidden by a mount over the include path {what} by another mount");
    cover.unmount_within(LIMIT);
    assert_soon_refused(&below);
    assert_soon_refused(&hidden);
}

#[test]
fn a_covered_mount_is_protected_where_it_is_moved_to_within_the_scope() {
    require_root!();
    a_mount_moves("filesystem");
    a_mount_moves("directory");
}

fn a_mount_moves(kind: &str) {
    let site = or_skip!(Site::ext4());
    let (here, there) = (
        site.scratch().mkdir("in/here"),
        site.scratch().mkdir("in/there"),
    );
    let out = site.scratch().mkdir("out");
    let agent = site.agent().arg(&format!("--coverage={kind}")).start();
    let mut mounted = Mounted::new("tmpfs", "size=4m", &here);
    fs::write(mounted.join("bad"), infected()).expect("a scratch filesystem does as it is told");
    assert_soon_refused(&mounted.join("bad"));
    for _ in 0..3 {
        mounted.move_to(&there);
        // No window: what cannot be placed meanwhile is scanned.
        assert_refused(&there.join("bad"));
        mounted.move_to(&here);
        assert_refused(&here.join("bad"));
    }
    mounted.move_to(&out);
    let took = opens_within(&out.join("bad"), MOUNT_WINDOW);
    assert!(took.is_some(), "it is out of scope now");
    let let_go = wait_until(LIMIT, || {
        let before = counter(&agent, "events");
        assert_opens(&out.join("bad"));
        counter(&agent, "events") == before
    });
    assert!(let_go, "{kind}");
    mounted.move_to(&here);
    assert_soon_refused(&here.join("bad"));
    mounted.unmount_within(LIMIT);
}

#[test]
fn an_overlay_below_the_include_path_is_protected_in_all_its_layers() {
    require_root!();
    let site = or_skip!(Site::ext4());
    for dir in ["out/lower/dir", "out/upper", "out/work", "in/merged"] {
        site.scratch().mkdir(dir);
    }
    let lower = site.scratch().write("out/lower/dir/bad", &infected());
    site.scratch().write("out/lower/dir/good", &clean());
    let agent = site.agent().start();
    settle(&agent, &[&lower]);
    let of = |name: &str| site.scratch().join(name).display().to_string();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        of("out/lower"),
        of("out/upper"),
        of("out/work")
    );
    let merged = Mounted::new("overlay", &options, &site.scratch().join("in/merged"));
    let (bad, good) = (merged.join("dir/bad"), merged.join("dir/good"));
    assert_soon_refused(&bad);
    for _ in 0..3 {
        assert_refused(&bad);
        assert_opens(&good);
    }
    // Copied up, by the metadata alone and with its bytes.
    fs::set_permissions(&bad, fs::metadata(&good).unwrap().permissions()).unwrap();
    assert_refused(&bad);
    let mut file = fs::OpenOptions::new().append(true).open(&good).unwrap();
    std::io::Write::write_all(&mut file, &marker()).unwrap();
    drop(file);
    assert!(Path::new(&of("out/upper/dir/good")).exists(), "copied up");
    for _ in 0..3 {
        assert_refused(&good);
    }
    let new = merged.join("new");
    fs::write(&new, infected()).unwrap();
    assert_refused(&new);
    fs::rename(&new, merged.join("renamed")).unwrap();
    assert_refused(&merged.join("renamed"));
    assert_eq!(counter(&agent, "timeouts"), 0);
    let took = merged.unmount_within(LIMIT);
    eprintln!("overlay unmounted after {took:?}");
}

/// Mounts an overlay with these layers, directories in `in`.
fn overlay(scratch: &ScratchFs, lower: &str, upper: &str, at: &str) -> Mounted {
    let dirs = [lower, upper, &format!("{upper}.work"), at]
        .map(|dir| scratch.mkdir(Path::new("in").join(dir)));
    let [lower, upper, work, at] = &dirs;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    Mounted::new("overlay", &options, at)
}

#[test]
fn one_scan_serves_the_file_beneath_and_all_overlays_that_share_it() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    site.scratch().mkdir("in/lower");
    let (good, bad) = (
        site.write("lower/good", &clean()),
        site.write("lower/bad", &infected()),
    );
    let one = overlay(site.scratch(), "lower", "upper1", "merged1");
    let two = overlay(site.scratch(), "lower", "upper2", "merged2");
    if !sys::overlay_tells_what_is_beneath(&fs::File::open(one.join("good")).unwrap()) {
        skip!("this kernel does not tell what lies beneath a file of an overlay");
    }
    thread::sleep(2 * NO_LONGER_YOUNG);
    let agent = site.agent().start();
    for _ in 0..3 {
        for path in [&one.join("good"), &two.join("good"), &good] {
            assert_opens(path);
        }
    }
    assert_eq!(site.fake().count("FILDES"), 1, "{:?}", counters(&agent));
    for _ in 0..3 {
        for path in [&two.join("bad"), &bad, &one.join("bad")] {
            assert_refused(path);
        }
    }
    assert_eq!(site.fake().count("FILDES"), 2, "{:?}", counters(&agent));
    // Copied up, it is another file.
    let mut copied = fs::OpenOptions::new()
        .append(true)
        .open(one.join("good"))
        .unwrap();
    std::io::Write::write_all(&mut copied, b"more").unwrap();
    drop(copied);
    fs::write(one.join("good"), infected()).unwrap();
    thread::sleep(2 * NO_LONGER_YOUNG);
    for _ in 0..3 {
        assert_refused(&one.join("good"));
        assert_opens(&two.join("good"));
        assert_opens(&good);
    }
    // Of its own, above no other: known, too, and judged anew when written.
    let own = two.join("own");
    fs::write(&own, clean()).unwrap();
    thread::sleep(2 * NO_LONGER_YOUNG);
    assert_opens(&own);
    let before = site.fake().count("FILDES");
    for _ in 0..3 {
        assert_opens(&own);
    }
    assert_eq!(site.fake().count("FILDES"), before);
    fs::write(&own, infected()).unwrap();
    assert_refused(&own);
    assert_eq!(counter(&agent, "timeouts"), 0);
    drop(agent);
    one.unmount_within(LIMIT);
    two.unmount_within(LIMIT);
}

#[test]
fn a_known_clean_file_on_an_overlay_that_changes_is_refused_at_once() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let merged = overlay(site.scratch(), "lower", "upper", "merged");
    let agent = site.agent().start();
    // The source of a copy would have to be out of scope.
    let ways: Vec<_> = WRITES
        .iter()
        .chain(STORES)
        .filter(|way| way.name != "copy_file_range")
        .collect();
    let paths: Vec<_> = (0..ways.len())
        .map(|n| {
            let path = merged.join(format!("file{n}"));
            fs::write(&path, clean_pages(n)).unwrap();
            path
        })
        .collect();
    for _ in 0..3 {
        thread::sleep(2 * NO_LONGER_YOUNG);
        for path in &paths {
            assert_opens(path);
        }
    }
    for (way, path) in ways.iter().zip(&paths) {
        let held = (way.infect)(path);
        // No window: no mark of the file beneath keeps this event back.
        assert!(open_refused(path), "{}: {:?}", way.name, counters(&agent));
        drop(held);
        assert!(open_refused(path), "{}, closed", way.name);
    }
    drop(agent);
    merged.unmount_within(LIMIT);
}

/// Runs in a thread with a mount namespace of its own, as a service has it.
fn in_another_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
            work()
        });
        thread.join().expect("the thread's result")
    })
}

#[test]
fn an_infected_file_is_refused_in_any_mount_namespace() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let early = site.write("bad", &infected());
    let late = site.watched().join("late");
    let good = site.write("good", &clean());
    let agent = site.agent().start();
    in_another_namespace(|| {
        for _ in 0..3 {
            assert_refused(&early);
            assert_opens(&good);
        }
        fs::write(&late, infected()).unwrap();
        assert_refused(&late);
        fs::write(&good, infected()).unwrap();
        assert_refused(&good);
    });
    assert_refused(&late);
    assert_refused(&good);
    assert_eq!(counter(&agent, "timeouts"), 0);
}

#[test]
fn what_is_out_of_scope_opens_in_any_mount_namespace() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("out");
    site.scratch().mkdir("in/off");
    let outside = site.scratch().write("out/bad", &infected());
    let excluded = site.write("off/bad", &infected());
    let _agent = site.agent().exclude(site.watched().join("off")).start();
    let refused = in_another_namespace(|| {
        [&outside, &excluded]
            .into_iter()
            .filter(|path| !open_within(path, LIMIT).is_open())
            .collect::<Vec<_>>()
    });
    assert!(refused.is_empty(), "refused: {refused:?}");
}

#[test]
fn a_filesystem_that_was_there_at_the_start_can_be_unmounted() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let at = tempfile::tempdir().unwrap();
    let image = or_skip!(Image::ext4(8));
    let mounted = image.mount(at.path());
    let write = |name: &str, content: &[u8]| {
        let path = mounted.join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let (bad, good) = (write("bad", &infected()), write("good", &clean()));
    let agent = site.agent().include(at.path()).start();
    assert_refused(&bad);
    open_until_marked(&agent, std::slice::from_ref(&good));
    let took = mounted.unmount_within(LIMIT);
    eprintln!("unmounted after {took:?}");
    let _again = image.mount(at.path());
    assert_soon_refused(&bad);
    assert_refused(&site.write("bad", &infected()));
}
