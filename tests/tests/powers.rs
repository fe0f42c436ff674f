//! An agent that lacks a capability does its job all the same, or says which one it
//! lacks and what to do.
//!
//! Must not: need a capability that the machine does not grant (it is not missed
//! then).

mod common;

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command, thread};

use common::{
    NO_LONGER_YOUNG, SOON, Site, assert_opens, assert_refused, clean, infected, only_error,
    refused_within,
};
use onacc_tests::{or_skip, require_root, skip};

/// A program that runs onacc without these capabilities.
fn onacc_without(capabilities: &str, dir: &tempfile::TempDir) -> Result<PathBuf, String> {
    let without: Vec<String> = capabilities
        .split(' ')
        .map(|name| format!("-{name}"))
        .collect();
    let without = without.join(",");
    let setpriv = format!("setpriv --bounding-set={without} --inh-caps=-all");
    let tried = Command::new("sh")
        .args(["-c", &format!("{setpriv} true")])
        .output()
        .map_err(|error| format!("sh: {error}"))?;
    if !tried.status.success() {
        let why = String::from_utf8_lossy(&tried.stderr);
        return Err(format!("setpriv cannot take {capabilities} away: {why}"));
    }
    let wrapper = dir.path().join("onacc");
    let binary = onacc_tests::agent::binary();
    let script = format!("#!/bin/sh\nexec {setpriv} {} \"$@\"\n", binary.display());
    fs::write(&wrapper, script).map_err(|error| format!("the wrapper: {error}"))?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))
        .map_err(|error| format!("the wrapper: {error}"))?;
    Ok(wrapper)
}

/// Infected files are refused, and clean ones as soon as they are infected.
#[track_caller]
fn assert_protects(capabilities: &str) {
    let site = match Site::ext4() {
        Ok(site) => site,
        Err(why) => skip!("{why}"),
    };
    let dir = tempfile::tempdir().expect("a directory");
    let wrapper = match onacc_without(capabilities, &dir) {
        Ok(wrapper) => wrapper,
        Err(why) => skip!("{why}"),
    };
    let agent = site.agent().binary(&wrapper).start();
    assert_refused(&site.write("bad", &infected()));
    let paths: Vec<PathBuf> = (0..8)
        .map(|n| site.write(format!("good{n}"), &clean()))
        .collect();
    for _ in 0..3 {
        thread::sleep(NO_LONGER_YOUNG);
        for path in &paths {
            assert_opens(path);
        }
    }
    for path in &paths {
        fs::write(path, infected()).expect("writing");
        let refused = refused_within(path, SOON);
        assert!(refused.is_some(), "{}", agent.output());
    }
}

#[test]
fn without_bpf_and_perfmon_sys_admin_is_enough() {
    require_root!();
    assert_protects("bpf perfmon");
}

#[test]
fn without_sys_resource() {
    require_root!();
    assert_protects("sys_resource");
}

#[test]
fn without_what_makes_it_quick() {
    require_root!();
    assert_protects("sys_nice sys_ptrace");
}

#[test]
fn without_dac_read_search_no_mark_outlives_a_change() {
    require_root!();
    assert_protects("dac_read_search");
}

#[test]
fn without_sys_admin_it_ends_and_says_so() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.write("bad", &infected());
    let dir = tempfile::tempdir().unwrap();
    let wrapper = or_skip!(onacc_without("sys_admin", &dir));
    let exited = site.agent().binary(&wrapper).spawn_expect_exit();
    assert_eq!(exited.status.code(), Some(2), "{}", exited.output);
    let error = only_error(&exited);
    assert!(error.contains("CAP_SYS_ADMIN"), "{}", error);
    assert_opens(&bad);
}
