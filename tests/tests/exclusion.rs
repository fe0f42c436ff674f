//! Exclusions: whose opens are let through, exactly those, and nobody else's.
//!
//! Owns the settings `OnAccessExcludeUID`, `OnAccessExcludeRootUID` and
//! `OnAccessExcludeUname`. Must not: depend on accounts that Debian's base
//! system does not have.

mod common;

use std::{
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use common::{LIMIT, SOON, Site, assert_opens, assert_refused, counter, infected};
use nix::{
    mount::{MsFlags, mount},
    unistd::User,
};
use onacc_tests::{
    Opened, agent::AgentBuilder, cat_as, clamd::wait_until, open_as, open_within, or_skip,
    require_root, sys,
};

/// A user that is excluded, and some that are not but look like it.
const EXCLUDED: u32 = 4711;
const OTHERS: [u32; 4] = [471, 4712, 47110, 65534];

#[track_caller]
fn assert_refused_as(uid: u32, path: &Path) {
    let open = open_as(uid, path, LIMIT);
    assert!(open.is_refused(), "uid {uid}: {open:?}");
}

#[track_caller]
fn assert_opens_as(uid: u32, path: &Path) {
    let open = open_as(uid, path, LIMIT);
    assert!(open.is_open(), "uid {uid}: {open:?}");
}

fn uid_of(name: &str) -> Result<u32, String> {
    User::from_name(name)
        .ok()
        .flatten()
        .map(|user| user.uid.as_raw())
        .ok_or_else(|| format!("there is no user {name} here"))
}

#[test]
fn an_excluded_uid_opens_what_nobody_else_can() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("bad", &infected());
    let agent = site
        .agent()
        .option(&format!("OnAccessExcludeUID {EXCLUDED}"))
        .start();
    assert_opens_as(EXCLUDED, &path);
    assert!(cat_as(EXCLUDED, &path, LIMIT).content().is_some());
    assert_refused(&path);
    for uid in OTHERS {
        assert_refused_as(uid, &path);
    }
    assert!(cat_as(OTHERS[0], &path, LIMIT).is_refused());
    // And still, now that the file is known.
    assert_opens_as(EXCLUDED, &path);
    assert_eq!(counter(&agent, "excluded_uid"), 3);
}

#[test]
fn what_an_excluded_user_opened_is_not_open_to_others() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("bad", &infected());
    let _agent = site
        .agent()
        .option(&format!("OnAccessExcludeUID {EXCLUDED}"))
        .start();
    for _ in 0..5 {
        assert_opens_as(EXCLUDED, &path);
        thread::sleep(Duration::from_millis(20));
        assert_refused_as(OTHERS[0], &path);
    }
}

#[test]
fn several_uids_can_be_excluded() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("bad", &infected());
    let _agent = site
        .agent()
        .option(&format!("OnAccessExcludeUID {EXCLUDED}"))
        .option("OnAccessExcludeUID 65534")
        .option("OnAccessExcludeUname daemon")
        .start();
    for uid in [EXCLUDED, 65534, or_skip!(uid_of("daemon"))] {
        assert_opens_as(uid, &path);
    }
    assert_refused(&path);
    assert_refused_as(471, &path);
}

#[test]
fn root_is_excluded_by_its_own_option_and_by_no_uid_0() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("bad", &infected());
    let agent = site.agent().option("OnAccessExcludeUID 0").start();
    // As with clamonacc, where 0 turns the option off.
    agent
        .wait_for("OnAccessExcludeUID: 0 is ignored", LIMIT)
        .unwrap();
    assert_refused(&path);
    drop(agent);
    let _agent = site.agent().option("OnAccessExcludeRootUID yes").start();
    assert_opens(&path);
    for uid in OTHERS {
        assert_refused_as(uid, &path);
    }
}

#[test]
fn a_user_name_excludes_its_user_and_no_other() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let daemon = or_skip!(uid_of("daemon"));
    let path = site.write("bad", &infected());
    let agent = site.agent().option("OnAccessExcludeUname daemon").start();
    assert_opens_as(daemon, &path);
    assert_refused(&path);
    assert_refused_as(or_skip!(uid_of("bin")), &path);
    assert_refused_as(or_skip!(uid_of("nobody")), &path);
    assert!(!agent.output().contains("WARNING"), "{}", agent.output());
}

#[test]
fn a_user_name_is_no_prefix() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("bad", &infected());
    // `sys` is a user of its own, and the start of other users' names.
    let (short, long) = (or_skip!(uid_of("sys")), uid_of("systemd-network"));
    let agent = site
        .agent()
        .option("OnAccessExcludeUname daemo")
        .option("OnAccessExcludeUname nob")
        .option("OnAccessExcludeUname nobodyelse")
        .option("OnAccessExcludeUname sys")
        .start();
    assert_refused_as(or_skip!(uid_of("daemon")), &path);
    assert_refused_as(or_skip!(uid_of("nobody")), &path);
    assert_opens_as(short, &path);
    if let Ok(long) = long {
        assert_refused_as(long, &path);
    }
    for name in ["daemo", "nob", "nobodyelse"] {
        assert!(
            agent
                .output()
                .contains(&format!("'{name}' is not excluded: there is no such user")),
            "{name}: {}",
            agent.output()
        );
    }
}

#[test]
fn a_user_name_that_does_not_exist_is_warned_of_and_excludes_nobody() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("bad", &infected());
    let mut agent = site
        .agent()
        .option("OnAccessExcludeUname no-such-user-here")
        .start();
    let line = agent.wait_for("no-such-user-here", LIMIT).unwrap();
    assert!(
        line.starts_with("WARNING: ") && line.contains(": OnAccessExcludeUname: "),
        "{line}"
    );
    assert_refused(&path);
    // -1 is what a failed look-up might be taken for; the kernel has no such user.
    for uid in [EXCLUDED, u32::MAX - 1] {
        assert_refused_as(uid, &path);
    }
    assert!(agent.is_running());
}

/// Opens in a thread whose effective uid alone is changed.
fn open_with_effective_uid(uid: u32, path: &Path) -> Opened {
    thread::scope(|scope| {
        let opener = scope.spawn(|| {
            sys::set_effective_uid_on_this_thread(uid).expect("changing the user needs root");
            let before = std::time::Instant::now();
            let outcome = match fs::File::open(path) {
                Ok(file) => onacc_tests::Outcome::Open(file),
                Err(error) => onacc_tests::Outcome::Failed(nix::errno::Errno::from_raw(
                    error.raw_os_error().unwrap_or_default(),
                )),
            };
            let took = before.elapsed();
            Opened { outcome, took }
        });
        opener.join().expect("the thread does not panic")
    })
}

#[test]
fn a_thread_is_judged_by_its_own_effective_uid() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("bad", &infected());
    let with = |option: &str| site.agent().option(option).start();

    let agent = with(&format!("OnAccessExcludeUID {EXCLUDED}"));
    // This process is root, and not excluded.
    assert_refused(&path);
    assert!(open_with_effective_uid(EXCLUDED, &path).is_open());
    assert!(open_with_effective_uid(4712, &path).is_refused());
    assert_refused(&path);
    drop(agent);

    let _agent = with("OnAccessExcludeRootUID yes");
    assert_opens(&path);
    assert!(open_with_effective_uid(EXCLUDED, &path).is_refused());
    assert_opens(&path);
}

/// Runs `cat` on a file in new namespaces, as the user with this uid outside.
fn cat_in_namespaces(uid: u32, options: &[&str], path: &Path) -> Result<String, String> {
    let mut command = Command::new("unshare");
    command
        .args(options)
        .args(["sh", "-c", "echo it began; exec cat \"$1\"", "sh"])
        .arg(path)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .uid(uid)
        .gid(uid);
    let output = sys::die_with_parent(&mut command)
        .output()
        .map_err(|error| format!("unshare does not start: {error}"))?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if said.contains("it began") {
        Ok(said)
    } else {
        Err(format!("no such namespaces here: {said}"))
    }
}

#[test]
fn root_of_a_user_namespace_is_not_root() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("bad", &infected());
    let as_root = ["--user", "--map-root-user"];
    or_skip!(cat_in_namespaces(
        EXCLUDED,
        &as_root,
        Path::new("/dev/null")
    ));
    let agent = site.agent().option("OnAccessExcludeRootUID yes").start();
    let said = or_skip!(cat_in_namespaces(EXCLUDED, &as_root, &path));
    assert!(said.contains("Operation not permitted"), "{said}");
    drop(agent);
    let _agent = site
        .agent()
        .option(&format!("OnAccessExcludeUID {EXCLUDED}"))
        .start();
    let said = or_skip!(cat_in_namespaces(EXCLUDED, &as_root, &path));
    assert!(!said.contains("Operation not permitted"), "{said}");
}

#[test]
fn an_opener_in_a_pid_namespace_is_judged_like_any_other() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("bad", &infected());
    let options = ["--pid", "--fork"];
    or_skip!(cat_in_namespaces(0, &options, Path::new("/dev/null")));
    let agent = site.agent().start();
    let said = or_skip!(cat_in_namespaces(0, &options, &path));
    assert!(said.contains("Operation not permitted"), "{said}");
    drop(agent);
    let _agent = site.agent().option("OnAccessExcludeRootUID yes").start();
    let said = or_skip!(cat_in_namespaces(0, &options, &path));
    assert!(!said.contains("Operation not permitted"), "{said}");
}

/// Puts a copy of `/etc` above `/etc`, for this thread and its children alone.
fn private_etc() -> Result<tempfile::TempDir, String> {
    let copy = tempfile::tempdir().map_err(|error| format!("a directory: {error}"))?;
    let status = Command::new("cp")
        .args(["-a", "/etc/."])
        .arg(copy.path())
        .status();
    if !status.is_ok_and(|status| status.success()) {
        return Err("/etc cannot be copied".to_owned());
    }
    onacc_tests::scratch::enter_private_mounts()?;
    let none = None::<&str>;
    mount(Some(copy.path()), "/etc", none, MsFlags::MS_BIND, none)
        .map_err(|error| format!("binding a copy of /etc: {error}"))?;
    Ok(copy)
}

#[test]
fn a_user_that_is_made_later_is_excluded_from_then_on() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let etc = or_skip!(private_etc());
    let path = site.write("bad", &infected());
    let agent = site
        .agent()
        .option("OnAccessExcludeUname onacc-made-later")
        .start();
    assert_refused_as(EXCLUDED, &path);
    let write = |uid: u32| {
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let others = passwd.lines().filter(|line| !line.starts_with("onacc-"));
        let new = format!("onacc-made-later:x:{uid}:{uid}::/nonexistent:/bin/false\n");
        let text = others.chain([new.as_str()]).collect::<Vec<_>>().join("\n");
        let new = etc.path().join("passwd+");
        fs::write(&new, text).unwrap();
        fs::rename(&new, etc.path().join("passwd")).unwrap();
    };
    let opens_as = |uid| wait_until(SOON, || open_as(uid, &path, LIMIT).is_open());
    write(EXCLUDED);
    assert!(opens_as(EXCLUDED), "{}", agent.output());
    assert_refused_as(4712, &path);
    write(4712);
    assert!(opens_as(4712), "{}", agent.output());
    assert_refused_as(EXCLUDED, &path);
    assert!(open_within(&path, LIMIT).is_refused());
}

#[test]
fn an_excluded_path_is_excluded_for_everybody_and_an_excluded_user_everywhere() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("in/off");
    let (off, on) = (
        site.write("off/bad", &infected()),
        site.write("bad", &infected()),
    );
    let start = |builder: AgentBuilder| {
        builder
            .exclude(site.watched().join("off"))
            .option(&format!("OnAccessExcludeUID {EXCLUDED}"))
            .start()
    };
    let _agent = start(site.agent());
    for uid in [0, EXCLUDED, 4712] {
        assert_opens_as(uid, &off);
    }
    assert_opens_as(EXCLUDED, &on);
    assert_refused_as(0, &on);
    assert_refused_as(4712, &on);
}
