//! xfs and btrfs as the watched filesystem, with btrfs' subvolumes.
//!
//! ext4 and tmpfs are what all other files test. Must not: test more than what
//! depends on the filesystem: marks, stamps, identities.

mod common;
#[path = "common/settle.rs"]
mod settle;

use std::{fs, path::Path, process::Command};

use common::{
    LIMIT, MOVE_WINDOW, NO_LONGER_YOUNG, STORES, Site, WRITES, assert_opens, assert_refused, clean,
    counter, infected, marker, opened, refused_within,
};
use onacc_tests::{ScratchFs, open_within, or_skip, require_root};
use settle::{Image, MOUNT_WINDOW, Mounted, run, settle};

/// Both, of the least size that they accept.
fn sites() -> [Result<Site, String>; 2] {
    [
        ScratchFs::xfs(320).and_then(Site::on),
        ScratchFs::btrfs(128).and_then(Site::on),
    ]
}

/// Opens a clean file until no scan is needed for it any more.
#[track_caller]
fn open_until_known(agent: &onacc_tests::Agent, path: &Path) {
    for _ in 0..100 {
        let before = counter(agent, "scans");
        assert_opens(path);
        if counter(agent, "scans") == before {
            return;
        }
    }
    panic!("{} is scanned each time", path.display());
}

#[test]
fn infected_files_are_refused_and_clean_ones_open_and_are_known_on_xfs_and_btrfs() {
    require_root!();
    for site in sites() {
        let site = or_skip!(site);
        let (bad, good) = (site.write("bad", &infected()), site.write("good", &clean()));
        let agent = site.agent().start();
        assert_refused(&bad);
        open_until_known(&agent, &good);
        // By the userspace cache: stores there are seen by the stamps alone.
        assert!(counter(&agent, "known_clean") > 0);
        assert_eq!(counter(&agent, "marks_placed"), 0);
        open_until_refused_without_scan(&agent, &bad);
    }
}

#[track_caller]
fn open_until_refused_without_scan(agent: &onacc_tests::Agent, path: &Path) {
    for _ in 0..100 {
        let before = counter(agent, "scans");
        assert_refused(path);
        if counter(agent, "scans") == before {
            return;
        }
    }
    panic!("{} is scanned each time", path.display());
}

#[test]
fn a_known_clean_file_that_becomes_infected_is_refused_at_once_on_xfs_and_btrfs() {
    require_root!();
    for site in sites() {
        let site = or_skip!(site);
        let agent = site.agent().start();
        for (n, way) in WRITES.iter().chain(STORES).enumerate() {
            let path = site.write(format!("file{n}"), &clean());
            open_until_known(&agent, &path);
            let _held = (way.infect)(&path);
            let open = open_within(&path, LIMIT);
            assert!(open.is_refused(), "{}: {open:?}", way.name);
        }
        assert_eq!(counter(&agent, "timeouts"), 0);
    }
}

#[test]
fn a_store_through_a_mapping_is_seen_again_and_again_on_xfs_and_btrfs() {
    require_root!();
    for site in sites() {
        let site = or_skip!(site);
        let path = site.write("file", &clean());
        let agent = site.agent().start();
        let start = clean()[..infected().len()].to_vec();
        for round in 0..20 {
            let mut mapping = common::map(&path);
            // Known or not, with the writer there and without.
            if round % 2 == 0 {
                open_until_known_or_ten(&agent, &path);
            }
            mapping.store(0, &infected());
            assert_refused(&path);
            if round % 3 == 0 {
                drop(mapping);
                assert_refused(&path);
                // It cannot be opened for writing: a new file in its place.
                fs::remove_file(&path).unwrap();
                fs::write(&path, clean()).unwrap();
            } else {
                mapping.store(0, &start);
                opened(open_within(&path, LIMIT), &path);
            }
        }
    }
}

/// With a writer it is never known.
fn open_until_known_or_ten(agent: &onacc_tests::Agent, path: &Path) {
    let before = counter(agent, "known_clean");
    for _ in 0..10 {
        assert_opens(path);
    }
    assert_eq!(
        counter(agent, "known_clean"),
        before,
        "it is mapped for writing"
    );
}

#[test]
fn directories_are_learned_and_followed_on_xfs_and_btrfs() {
    require_root!();
    for site in sites() {
        let site = or_skip!(site);
        site.scratch().mkdir("out/top/deep");
        let outside = site.scratch().write("out/top/deep/bad", &infected());
        let inside = site.watched().join("top/deep/bad");
        let agent = site.agent().start();
        for _ in 0..3 {
            settle(&agent, &[&outside]);
            fs::rename(site.scratch().join("out/top"), site.watched().join("top")).unwrap();
            assert!(refused_within(&inside, MOVE_WINDOW).is_some());
            fs::rename(site.watched().join("top"), site.scratch().join("out/top")).unwrap();
            assert_opens(&outside);
        }
    }
}

/// What stands directly beside an include path is ignored like all that is out of
/// scope, and still the include path may become another thing at any time.
#[test]
fn beside_the_include_path_opens_end_in_the_kernel_and_a_file_in_its_place_is_seen() {
    require_root!();
    let sites = [Site::ext4(), Site::tmpfs()].into_iter().chain(sites());
    for site in sites {
        let site = or_skip!(site);
        let beside = site.scratch().write("beside", &infected());
        let bad = site.write("bad", &infected());
        let (include, away) = (&site.watched(), site.scratch().join("away"));
        let agent = site.agent().start();
        settle(&agent, &[&beside]);
        assert_refused(&bad);
        // A file that is put in place of the directory.
        let file = site.scratch().write("file", &infected());
        fs::rename(include, &away).unwrap();
        fs::rename(&file, include).unwrap();
        assert!(refused_within(include, MOVE_WINDOW).is_some());
        fs::remove_file(include).unwrap();
        fs::rename(&away, include).unwrap();
        assert_refused(&bad);
        settle(&agent, &[&beside]);
        // Deleted while somebody is in it, and a file made instead.
        let inside = fs::File::open(include).unwrap();
        fs::remove_dir_all(include).unwrap();
        fs::write(include, infected()).unwrap();
        assert!(refused_within(include, MOVE_WINDOW).is_some());
        drop(inside);
        // And a directory again.
        fs::remove_file(include).unwrap();
        fs::create_dir(include).unwrap();
        fs::write(&bad, infected()).unwrap();
        assert_refused(&bad);
        settle(&agent, &[&beside]);
    }
}

#[test]
fn opens_in_btrfs_subvolumes_out_of_scope_end_in_the_kernel_and_moves_are_seen() {
    require_root!();
    let site = or_skip!(ScratchFs::btrfs(128).and_then(Site::on));
    site.scratch().mkdir("out");
    let volume = site.scratch().join("out/volume");
    or_skip!(subvolume(&volume));
    site.scratch().mkdir("out/volume/dir");
    let paths = ["dir/bad", "bad"].map(|name| {
        let path = volume.join(name);
        fs::write(&path, infected()).unwrap();
        path
    });
    let agent = site.agent().start();
    let inside = site.watched().join("volume");
    for _ in 0..3 {
        settle(&agent, &[&paths[0], &paths[1]]);
        fs::rename(&volume, &inside).unwrap();
        for name in ["dir/bad", "bad"] {
            assert!(refused_within(&inside.join(name), MOVE_WINDOW).is_some());
        }
        fs::rename(&inside, &volume).unwrap();
        assert_opens(&paths[0]);
    }
}

fn subvolume(at: &Path) -> Result<(), String> {
    run(Command::new("btrfs")
        .args(["-q", "subvolume", "create"])
        .arg(at))
}

#[test]
fn a_btrfs_subvolume_below_the_include_path_is_protected_like_a_directory() {
    require_root!();
    subvolumes_are_protected("filesystem");
    subvolumes_are_protected("directory");
    subvolumes_are_protected("mount");
}

fn subvolumes_are_protected(kind: &str) {
    let site = or_skip!(ScratchFs::btrfs(128).and_then(Site::on));
    let early = site.watched().join("early");
    or_skip!(subvolume(&early));
    let (bad, good) = (
        site.write("early/bad", &infected()),
        site.write("early/good", &clean()),
    );
    let agent = site.agent().arg(&format!("--coverage={kind}")).start();
    let late = site.watched().join("late");
    subvolume(&late).expect("a scratch filesystem does as it is told");
    let late_bad = site.write("late/bad", &infected());
    // Marks on directories follow.
    assert!(refused_within(&late_bad, MOUNT_WINDOW).is_some(), "{kind}");
    for _ in 0..3 {
        assert_refused(&bad);
        assert_refused(&late_bad);
    }
    open_until_known(&agent, &good);
    // Two subvolumes have the same inode numbers.
    let twin = site.write("late/good", &[clean(), marker()].concat());
    assert_refused(&twin);
    assert_opens(&good);
    let snapshot = site.watched().join("snapshot");
    run(Command::new("btrfs")
        .args(["-q", "subvolume", "snapshot"])
        .args([&early, &snapshot]))
    .expect("a scratch filesystem does as it is told");
    let took = refused_within(&snapshot.join("bad"), MOUNT_WINDOW);
    assert!(took.is_some(), "{kind}");
    assert_opens(&snapshot.join("good"));
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(snapshot.join("good"))
        .expect("a scratch filesystem does as it is told");
    std::io::Write::write_all(&mut file, &marker())
        .expect("a scratch filesystem does as it is told");
    drop(file);
    assert_refused(&snapshot.join("good"));
    assert_opens(&good);
}

#[test]
fn a_btrfs_subvolume_that_is_moved_into_the_scope_is_protected() {
    require_root!();
    let site = or_skip!(ScratchFs::btrfs(128).and_then(Site::on));
    site.scratch().mkdir("out");
    let outside = site.scratch().join("out/volume");
    or_skip!(subvolume(&outside));
    site.scratch().mkdir("out/volume/dir");
    let files = ["bad", "dir/bad"].map(|name| {
        let path = outside.join(name);
        fs::write(&path, infected()).unwrap();
        path
    });
    let agent = site.agent().start();
    for path in &files {
        for _ in 0..5 {
            assert_opens(path);
        }
    }
    let inside = site.watched().join("volume");
    fs::rename(&outside, &inside).unwrap();
    for name in ["bad", "dir/bad"] {
        let took = refused_within(&inside.join(name), MOVE_WINDOW);
        assert!(took.is_some(), "{name}: {:?}", common::counters(&agent));
    }
}

/// Mounts the subvolume `volume` at the top of the site's filesystem.
fn mount_subvolume(site: &Site, at: &Path) -> Mounted {
    let table = fs::read_to_string("/proc/thread-self/mounts").expect("reading");
    let place = site.scratch().path().to_str().expect("a path in ASCII");
    let device = table
        .lines()
        .find(|line| line.split(' ').nth(1) == Some(place))
        .and_then(|line| line.split(' ').next())
        .expect("it is there");
    run(Command::new("mount")
        .args(["-o", "subvol=volume", device])
        .arg(at))
    .expect("running a tool");
    Mounted::adopt(at)
}

/// As on a machine whose `/` or `/home` is a subvolume. Such opens need not
/// settle (README: a known cost), but what is moved in is protected.
#[test]
fn what_was_out_of_scope_in_a_mounted_btrfs_subvolume_is_protected_once_moved_in() {
    require_root!();
    let site = or_skip!(ScratchFs::btrfs(128).and_then(Site::on));
    or_skip!(subvolume(&site.scratch().join("volume")));
    let at = tempfile::tempdir().unwrap();
    let mounted = mount_subvolume(&site, at.path());
    fs::create_dir_all(mounted.join("out/dir")).unwrap();
    fs::create_dir(mounted.join("in")).unwrap();
    let outside = mounted.join("out/dir/bad");
    fs::write(&outside, infected()).unwrap();
    let agent = site.agent().include(mounted.join("in")).start();
    for _ in 0..20 {
        assert_opens(&outside);
    }
    let inside = mounted.join("in/dir");
    fs::rename(mounted.join("out/dir"), &inside).unwrap();
    let took = refused_within(&inside.join("bad"), MOVE_WINDOW);
    assert!(took.is_some(), "{:?}", common::counters(&agent));
}

#[test]
fn a_btrfs_subvolume_mounted_by_itself_is_covered() {
    require_root!();
    let site = or_skip!(ScratchFs::btrfs(128).and_then(Site::on));
    let volume = site.scratch().join("volume");
    or_skip!(subvolume(&volume));
    fs::write(volume.join("bad"), infected()).unwrap();
    fs::write(volume.join("good"), clean()).unwrap();
    let at = site.scratch().mkdir("in/mnt");
    let agent = site.agent().start();
    assert_opens(&volume.join("bad"));
    let mounted = mount_subvolume(&site, &at);
    let took = refused_within(&mounted.join("bad"), MOUNT_WINDOW);
    assert!(took.is_some(), "{:?}", common::counters(&agent));
    open_until_known(&agent, &mounted.join("good"));
    mounted.unmount_within(LIMIT);
}

/// A server may change a file, and no event tells.
#[test]
fn files_on_fuse_are_scanned_at_each_open_and_never_remembered() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let at = site.scratch().mkdir("in/fuse");
    // The server ends some time after the mount, so that each has its own image.
    let images = [or_skip!(Image::ext4(16)), or_skip!(Image::ext4(16))];
    let before = or_skip!(images[0].serve(&at));
    let agent = site.agent().start();
    is_never_remembered(&agent, &before);
    before.unmount_within(LIMIT);
    let later = images[1].serve(&at).unwrap();
    is_never_remembered(&agent, &later);
    drop(agent);
    later.unmount_within(LIMIT);
}

fn is_never_remembered(agent: &onacc_tests::Agent, mounted: &Mounted) {
    let (bad, good) = (mounted.join("bad"), mounted.join("good"));
    fs::write(&bad, infected()).expect("a filesystem of the test's own");
    fs::write(&good, clean()).expect("a filesystem of the test's own");
    assert!(refused_within(&bad, MOUNT_WINDOW).is_some());
    std::thread::sleep(NO_LONGER_YOUNG);
    let before = common::counters(agent);
    for _ in 0..3 {
        assert_opens(&good);
        assert_refused(&bad);
    }
    let after = common::counters(agent);
    assert_eq!(after["scans"] - before["scans"], 6, "{after:?}");
    assert_eq!(after["marks_placed"], before["marks_placed"]);
}
