//! The recipes of the `ClamAV` manual (On-Access Scanning), with what it says
//! comes of them, each on a filesystem of its own in the place of `/` and
//! `/home`.
//!
//! Must not: add a setting that the manual does not have, but for the clamd of
//! the test and, where the opener is root, whom it is.

mod common;

use std::path::{Path, PathBuf};

use common::{LIMIT, Site, assert_opens, assert_refused, clean, infected, open_and_live_on};
use nix::unistd::User;
use onacc_tests::{
    Agent, ScratchFs, agent::AgentBuilder, cat, clamd::EICAR_NAME, open::Cat, or_skip, require_root,
};

/// A user that is neither root nor clamd's.
const USER: u32 = 4711;

/// All recipes carry this line for versions up to 0.101.
const OLD_LINE: &str = "ScanOnAccess yes ## versions <= 0.101.x";
/// And this one; Debian's clamd runs as that user.
const CLAMD: &str = "OnAccessExcludeUname clamav";

fn recipe(site: &Site) -> AgentBuilder {
    Agent::builder(site.clamd()).option(OLD_LINE).option(CLAMD)
}

fn line_of(path: &Path) -> String {
    format!("{}: {EICAR_NAME} FOUND", path.display())
}

/// Opens a file as a user and waits until the agent has said what it found.
#[track_caller]
fn assert_reported(agent: &Agent, uid: u32, path: &Path) {
    let mut opener = open_and_live_on(uid, path);
    let said = agent.wait_for(&line_of(path), LIMIT);
    drop(opener.stdin.take());
    opener.wait().expect("the opener ends");
    assert_eq!(said.as_deref(), Ok(&*line_of(path)));
}

/// Opens a file as a user, and something that is reported after it; the first
/// must not be.
#[track_caller]
fn assert_not_reported(agent: &Agent, uid: u32, path: &Path, reported: &Path) {
    let mut opener = open_and_live_on(uid, path);
    let before = agent.output().matches(" FOUND").count();
    let mut other = open_and_live_on(USER, reported);
    let seen =
        onacc_tests::clamd::wait_until(LIMIT, || agent.output().matches(" FOUND").count() > before);
    for child in [&mut opener, &mut other] {
        drop(child.stdin.take());
        child.wait().expect("the opener ends");
    }
    assert!(seen, "{}", agent.output());
    assert!(
        !agent.output().contains(&line_of(path)),
        "{}",
        agent.output()
    );
}

fn site_with_clamav() -> Result<Site, String> {
    match User::from_name("clamav") {
        Ok(Some(_)) => Site::on(ScratchFs::ext4(64)?),
        _ => Err("there is no user clamav: apt-get install clamav-daemon".to_owned()),
    }
}

fn write(site: &Site, name: &str) -> PathBuf {
    let path = site.scratch().join(name);
    std::fs::create_dir_all(path.parent().expect("it has one")).expect("directories are made");
    std::fs::write(&path, infected()).expect("a file is written");
    path
}

#[test]
fn recipe_0x0_whole_filesystem_notify_only() {
    require_root!();
    let site = or_skip!(site_with_clamav());
    let (top, deep) = (write(&site, "top"), write(&site, "a/b/c/deep"));
    let by_root = write(&site, "by-root");
    let by_clamd = write(&site, "by-clamd");
    let agent = recipe(&site)
        .option(&format!(
            "OnAccessMountPath {}",
            site.scratch().path().display()
        ))
        .option("OnAccessExcludeRootUID yes")
        .start();
    // Only processes that are not root's and not clamd's trigger scans.
    assert_reported(&agent, USER, &top);
    assert_reported(&agent, USER, &deep);
    assert_not_reported(&agent, 0, &by_root, &top);
    let clamav = User::from_name("clamav").unwrap().unwrap().uid.as_raw();
    assert_not_reported(&agent, clamav, &by_clamd, &top);
    // Notify-only.
    assert_opens(&top);
}

#[test]
fn recipe_0x1_some_homes_notify_only() {
    require_root!();
    let site = or_skip!(site_with_clamav());
    let home = site.scratch().mkdir("home");
    let (one, deep) = (
        write(&site, "home/user1/bad"),
        write(&site, "home/user1/d/e/bad"),
    );
    let excluded = [
        write(&site, "home/user2/bad"),
        write(&site, "home/user2/sub/dir/bad"),
        write(&site, "home/user4/bad"),
    ];
    let alike = write(&site, "home/user20/bad");
    let outside = write(&site, "elsewhere/bad");
    let agent = recipe(&site)
        .include(&home)
        .exclude(home.join("user2"))
        .exclude(home.join("user4"))
        .start();
    for path in [&one, &deep, &alike] {
        assert_reported(&agent, USER, path);
    }
    for path in excluded.iter().chain([&outside]) {
        assert_not_reported(&agent, USER, path, &one);
    }
    // Also what is made there later.
    let later = write(&site, "home/user2/later/bad");
    assert_not_reported(&agent, USER, &later, &one);
    let new = write(&site, "home/user3/new/bad");
    assert_reported(&agent, USER, &new);
    assert_opens(&one);
}

#[test]
fn recipe_0x2_one_directory_without_sub_directories_blocking() {
    require_root!();
    let site = or_skip!(site_with_clamav());
    let downloads = site.scratch().mkdir("home/user/Downloads");
    let bad = write(&site, "home/user/Downloads/bad");
    let below = write(&site, "home/user/Downloads/sub/bad");
    let beside = write(&site, "home/user/bad");
    let good = site.scratch().write("home/user/Downloads/good", &clean());
    let agent = recipe(&site)
        .include(&downloads)
        .option("OnAccessPrevention yes")
        .option("OnAccessDisableDDD yes")
        .start();
    assert_refused(&bad);
    assert!(cat(&bad, LIMIT).is_refused());
    agent.wait_for(&line_of(&bad), LIMIT).unwrap();
    assert_opens(&good);
    for path in [&below, &beside] {
        assert_opens(path);
    }
    assert_eq!(
        agent.output().matches(" FOUND").count(),
        2,
        "{}",
        agent.output()
    );
}

#[test]
fn the_simple_recipe_blocks_eicar() {
    require_root!();
    let site = or_skip!(site_with_clamav());
    let agent = recipe(&site)
        .include(site.watched())
        .option("OnAccessPrevention yes")
        .start();
    let eicar = site.write("eicar.com", &infected());
    let Cat::Ended(output) = cat(&eicar, LIMIT) else {
        panic!("cat hangs: {}", agent.output());
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let path = eicar.display();
    assert_eq!(said, format!("cat: {path}: Operation not permitted\n"));
}
