//! The four kinds of coverage, by option and by themselves: what each protects.
//!
//! The same table of cases in each kind that protects whole trees, on each
//! filesystem; then what is a kind's own. Must not: repeat what the other files
//! test in coverage "filesystem", the usual one.

mod common;
#[path = "common/settle.rs"]
mod settle;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use common::{
    LIMIT, Site, assert_opens, assert_refused, clean, counter, infected, open_until_marked,
    refused_within,
};
use onacc_tests::{Agent, ScratchFs, open_within, or_skip, require_root};
use settle::{MOUNT_WINDOW, Mounted, opens_within};

/// In coverage "directory" a new directory is protected by then.
const WINDOW: Duration = Duration::from_secs(2);

fn sites() -> [Result<Site, String>; 4] {
    [
        Site::ext4(),
        Site::tmpfs(),
        ScratchFs::xfs(320).and_then(Site::on),
        ScratchFs::btrfs(128).and_then(Site::on),
    ]
}

#[track_caller]
fn assert_soon_refused(path: &Path) {
    let took = refused_within(path, WINDOW);
    assert!(took.is_some(), "{} is not refused", path.display());
}

/// What holds in each kind that protects whole trees.
fn protects_the_tree(site: &Site, kind: &str) {
    let old: Vec<PathBuf> = (0..40)
        .map(|n| {
            site.scratch()
                .mkdir(format!("in/{}/{}/deep{n}", n % 3, n % 5));
            site.write(format!("{}/{}/deep{n}/bad", n % 3, n % 5), &infected())
        })
        .collect();
    for dir in ["in/off/on", "out/dir/below"] {
        site.scratch().mkdir(dir);
    }
    let (off, on) = (
        site.write("off/bad", &infected()),
        site.write("off/on/bad", &infected()),
    );
    let out = site.scratch().write("out/dir/below/bad", &infected());
    let good = site.write("0/good", &clean());
    symlink(site.scratch().join("out"), site.watched().join("link"))
        .expect("a scratch filesystem does as it is told");
    let agent = site
        .agent()
        .exclude(site.watched().join("off"))
        .include(site.watched().join("off/on"))
        .arg(&format!("--coverage={kind}"))
        .start();
    let said = format!("tier: coverage: {kind}");
    assert!(agent.output().contains(&said), "{}", agent.output());
    for path in old.iter().chain([&on]) {
        assert_refused(path);
    }
    for path in [&good, &off, &out] {
        assert_opens(path);
    }
    assert_opens(&site.watched().join("link/dir/below/bad"));
    // New ones, at each depth: in what had no sub-directories before, too.
    for path in old.iter().take(20) {
        let top = path.with_file_name("new").join("er");
        fs::create_dir_all(&top).expect("a scratch filesystem does as it is told");
        fs::write(top.join("bad"), infected()).expect("a scratch filesystem does as it is told");
        assert_soon_refused(&top.join("bad"));
    }
    // In, within, out.
    let (from, inside) = (site.scratch().join("out/dir"), site.watched().join("1/dir"));
    fs::rename(&from, &inside).expect("a scratch filesystem does as it is told");
    assert_soon_refused(&inside.join("below/bad"));
    let elsewhere = site.watched().join("2/other");
    fs::rename(&inside, &elsewhere).expect("a scratch filesystem does as it is told");
    assert_soon_refused(&elsewhere.join("below/bad"));
    fs::rename(&elsewhere, &from).expect("a scratch filesystem does as it is told");
    assert_opens(&out);
    // The include path itself, deleted and made anew.
    fs::remove_dir_all(site.watched().join("off/on"))
        .expect("a scratch filesystem does as it is told");
    fs::create_dir(site.watched().join("off/on")).expect("a scratch filesystem does as it is told");
    fs::write(&on, infected()).expect("a scratch filesystem does as it is told");
    assert_soon_refused(&on);
    // A filesystem below.
    let at = site.scratch().mkdir("in/mnt");
    if kind != "mount" {
        let mounted = Mounted::new("tmpfs", "size=1m", &at);
        let bad = mounted.join("bad");
        fs::write(&bad, infected()).expect("a scratch filesystem does as it is told");
        assert!(refused_within(&bad, WINDOW).is_some(), "{}", bad.display());
        fs::create_dir(mounted.join("dir")).expect("a scratch filesystem does as it is told");
        fs::write(mounted.join("dir/bad"), infected())
            .expect("a scratch filesystem does as it is told");
        assert_soon_refused(&mounted.join("dir/bad"));
        mounted.unmount_within(LIMIT);
    }
    assert_opens(&good);
    assert_eq!(counter(&agent, "timeouts"), 0);
}

#[test]
fn filesystem_coverage_protects_the_tree_on_each_filesystem() {
    require_root!();
    for site in sites() {
        protects_the_tree(&or_skip!(site), "filesystem");
    }
}

#[test]
fn directory_coverage_protects_the_tree_on_each_filesystem() {
    require_root!();
    for site in sites() {
        protects_the_tree(&or_skip!(site), "directory");
    }
}

#[test]
fn mount_coverage_protects_the_tree_on_each_filesystem() {
    require_root!();
    for site in sites() {
        protects_the_tree(&or_skip!(site), "mount");
    }
}

#[test]
fn the_kind_that_the_kernel_allows_is_chosen_and_said() {
    require_root!();
    let site = or_skip!(Site::tmpfs());
    let agent = site.agent().start();
    let output = agent.output();
    let line = output
        .lines()
        .find(|line| line.contains("tier: coverage:"))
        .unwrap();
    let whole = line.contains("filesystem (one mark each): the kernel has what it needs");
    let each = line.contains("this kernel has no ignore marks on directories");
    assert!(whole || each, "{line}");
}

#[test]
fn listed_coverage_protects_the_named_directories_alone() {
    require_root!();
    for option in ["OnAccessDisableDDD yes", "OnAccessDisableDDD no"] {
        let site = or_skip!(Site::ext4());
        site.scratch().mkdir("in/sub");
        site.scratch().mkdir("in/named");
        let named = [
            site.write("bad", &infected()),
            site.write("named/bad", &infected()),
        ];
        let below = site.write("sub/bad", &infected());
        let late = site.scratch().join("in/late");
        let mut builder = site
            .agent()
            .option(option)
            .include(site.watched().join("named"))
            .include(&late);
        if option.ends_with("no") {
            builder = builder.arg("--coverage=listed");
        }
        let agent = builder.start();
        assert!(agent.output().contains("tier: coverage: listed"));
        for path in &named {
            assert_refused(path);
        }
        assert_opens(&below);
        // One that was named and comes later, goes, and comes again.
        for _ in 0..3 {
            fs::create_dir(&late).unwrap();
            fs::write(late.join("bad"), infected()).unwrap();
            assert_soon_refused(&late.join("bad"));
            fs::remove_dir_all(&late).unwrap();
        }
        site.scratch().mkdir("in/sub/new");
        assert_opens(&site.write("sub/new/bad", &infected()));
        let good = site.write("good", &clean());
        assert_opens(&good);
    }
}

#[test]
fn mount_paths_prevent_and_heed_exclusions() {
    require_root!();
    for arg in ["--coverage=auto", "--coverage=mount"] {
        let site = or_skip!(Site::ext4());
        for dir in ["a/b", "off/dir"] {
            site.scratch().mkdir(dir);
        }
        let inside =
            ["bad", "a/b/bad", "in/bad"].map(|name| site.scratch().write(name, &infected()));
        let excluded = site.scratch().write("off/dir/bad", &infected());
        let agent = Agent::builder(site.clamd())
            .prevention(true)
            .option(&format!(
                "OnAccessMountPath {}",
                site.scratch().join("a/b").display()
            ))
            .exclude(site.scratch().join("off"))
            .option("OnAccessExcludeUID 4711")
            .arg(arg)
            .start();
        for path in &inside {
            assert_refused(path);
        }
        assert_opens(&excluded);
        assert!(onacc_tests::open_as(4711, &inside[0], LIMIT).is_open());
        let new = site.scratch().mkdir("new/dir").join("bad");
        fs::write(&new, infected()).unwrap();
        assert_refused(&new);
        let good = site.write("good", &clean());
        open_until_marked(&agent, std::slice::from_ref(&good));
        fs::write(&good, infected()).unwrap();
        assert_refused(&good);
        // Another mount of the same filesystem: seen by the one, not by the other.
        let elsewhere = tempfile::tempdir().unwrap();
        let bound = Mounted::bind(&site.scratch().join("a"), elsewhere.path());
        std::thread::sleep(MOUNT_WINDOW);
        let seen = open_within(&bound.join("b/bad"), LIMIT).is_refused();
        assert_eq!(seen, arg == "--coverage=auto", "{arg}");
        drop(agent);
        bound.unmount_within(LIMIT);
    }
}

#[test]
fn in_directory_coverage_what_is_moved_out_is_let_go_of() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("in/dir/below");
    let path = site.write("dir/below/file", &clean());
    let agent = site.agent().arg("--coverage=directory").start();
    assert_opens(&path);
    let outside = site.scratch().join("outside");
    fs::rename(site.watched().join("dir"), &outside).unwrap();
    let file = outside.join("below/file");
    assert!(opens_within(&file, WINDOW).is_some());
    // No event any more, and so no cost.
    let settled = onacc_tests::clamd::wait_until(LIMIT, || {
        let before = counter(&agent, "events");
        for _ in 0..5 {
            assert_opens(&file);
        }
        counter(&agent, "events") == before
    });
    assert!(settled, "its marks are still there");
}

#[test]
fn directory_coverage_protects_an_overlay_and_what_lies_beneath() {
    require_root!();
    let site = or_skip!(Site::ext4());
    for dir in ["lower/dir", "upper", "work", "merged"] {
        site.scratch().mkdir(Path::new("in").join(dir));
    }
    let lower = site.write("lower/dir/bad", &infected());
    let of = |name: &str| site.watched().join(name).display().to_string();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        of("lower"),
        of("upper"),
        of("work")
    );
    let make = || Mounted::new("overlay", &options, &site.watched().join("merged"));
    let check = |merged: &Mounted| {
        assert_soon_refused(&merged.join("dir/bad"));
        assert_refused(&lower);
        let new = merged.join("dir/new/er");
        fs::create_dir_all(&new).unwrap();
        fs::write(new.join("bad"), infected()).unwrap();
        fs::write(new.join("good"), clean()).unwrap();
        assert_soon_refused(&new.join("bad"));
        assert_opens(&new.join("good"));
        fs::remove_dir_all(merged.join("dir/new")).unwrap();
    };
    let merged = make();
    let agent = site.agent().arg("--coverage=directory").start();
    check(&merged);
    merged.unmount_within(LIMIT);
    let merged = make();
    check(&merged);
    assert_eq!(counter(&agent, "timeouts"), 0);
    drop(agent);
    merged.unmount_within(LIMIT);
}

#[test]
fn a_file_that_is_bound_into_the_scope_is_protected() {
    require_root!();
    for kind in ["filesystem", "directory", "listed"] {
        let site = or_skip!(Site::ext4());
        site.scratch().mkdir("out");
        let bad = site.scratch().write("out/bad", &infected());
        let other = site.scratch().write("out/other", &clean());
        let places = ["one", "two", "three"].map(|name| site.write(name, b""));
        let before = Mounted::bind(&bad, &places[0]);
        let agent = site.agent().arg(&format!("--coverage={kind}")).start();
        assert_refused(before.path());
        before.unmount_within(LIMIT);
        assert_opens(&places[0]);
        for place in &places[1..] {
            let bound = Mounted::bind(&bad, place);
            assert_soon_refused(bound.path());
            bound.unmount_within(LIMIT);
            assert!(
                opens_within(&bad, MOUNT_WINDOW).is_some(),
                "{kind}: outside again"
            );
        }
        // One that turns bad by its other name.
        let bound = Mounted::bind(&other, &places[0]);
        std::thread::sleep(MOUNT_WINDOW);
        assert_opens(bound.path());
        fs::write(&other, infected()).unwrap();
        assert_soon_refused(bound.path());
        bound.unmount_within(LIMIT);
        assert!(
            opens_within(&other, MOUNT_WINDOW).is_some(),
            "{kind}: outside again"
        );
        assert_eq!(counter(&agent, "timeouts"), 0);
    }
}
