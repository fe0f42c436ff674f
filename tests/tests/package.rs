//! The Debian package, installed into a tree of its own.
//!
//! `cargo xtask test` builds it and names it in `ONACC_DEB`. Must not: touch the
//! host's packages.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use onacc_tests::{require_root, skip, workspace};

fn dpkg(root: &Path, args: &[&str]) -> Output {
    let mut command = Command::new("dpkg");
    command
        .arg(format!("--root={}", root.display()))
        // The tree has no libc6 of its own to be depended on.
        .args(["--force-depends", "--force-not-root"])
        .args(args);
    command.output().expect("dpkg runs")
}

#[track_caller]
fn done(output: &Output) -> String {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// A tree in which maintainer scripts can run: the host's programs, read-only.
fn tree(root: &Path) {
    for dir in [
        "var/lib/dpkg/info",
        "var/lib/dpkg/updates",
        "etc",
        "var/log",
        "run",
        "tmp",
    ] {
        fs::create_dir_all(root.join(dir)).expect("a directory");
    }
    fs::write(root.join("var/lib/dpkg/status"), "").expect("a file");
    fs::write(root.join("var/lib/dpkg/available"), "").expect("a file");
    for dir in ["usr/bin", "usr/lib", "usr/lib64"] {
        fs::create_dir_all(root.join(dir)).expect("a directory");
    }
    for (link, to) in [
        ("bin", "usr/bin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
    ] {
        std::os::unix::fs::symlink(to, root.join(link)).expect("a link");
    }
    for program in ["sh", "mkdir", "rm"] {
        let found = Path::new("/usr/bin").join(program);
        fs::copy(&found, root.join("usr/bin").join(program)).expect("a program");
        let libraries = Command::new("ldd").arg(&found).output().expect("ldd runs");
        for word in String::from_utf8_lossy(&libraries.stdout).split_whitespace() {
            if word.starts_with('/') {
                let to = root.join(word.trim_start_matches('/'));
                fs::create_dir_all(to.parent().expect("a directory")).expect("a directory");
                fs::copy(word, to).expect("a library");
            }
        }
    }
}

#[test]
fn it_is_installed_removed_and_purged_in_a_tree_and_starts_nothing() {
    require_root!();
    let Some(deb) = env::var_os("ONACC_DEB").map(PathBuf::from) else {
        skip!("ONACC_DEB names no package: cargo xtask package");
    };
    let deb = deb.to_str().expect("a path");
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    tree(root);
    done(&dpkg(root, &["--install", deb]));
    for (file, mode) in [
        ("usr/sbin/onacc", 0o755),
        ("usr/lib/systemd/system/onacc.service", 0o644),
        ("etc/onacc/onacc.toml", 0o644),
        ("etc/logrotate.d/onacc", 0o644),
        ("usr/share/man/man8/onacc.8.gz", 0o644),
        ("usr/share/man/man5/onacc.toml.5.gz", 0o644),
        ("usr/share/bash-completion/completions/onacc", 0o644),
        ("usr/share/zsh/vendor-completions/_onacc", 0o644),
        ("usr/share/fish/vendor_completions.d/onacc.fish", 0o644),
    ] {
        let data = fs::metadata(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(data.permissions().mode() & 0o777, mode, "{file}");
        assert!(data.len() > 0, "{file}");
    }
    // Nothing was started or enabled.
    assert!(!root.join("etc/systemd").exists());
    let version = Command::new(root.join("usr/sbin/onacc"))
        .args(["--version"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&version.stdout).contains("onacc"));
    // The settings that come with it are right.
    let conf = dir.path().join("clamd.conf");
    fs::write(&conf, "LocalSocket /s\nOnAccessIncludePath /tmp\n").unwrap();
    let checked = Command::new(root.join("usr/sbin/onacc"))
        .arg(format!("--config-file={}", conf.display()))
        .arg(format!(
            "--settings={}",
            root.join("etc/onacc/onacc.toml").display()
        ))
        .args(["config", "check"])
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");

    fs::write(root.join("etc/onacc/onacc.toml"), "# mine\n").unwrap();
    done(&dpkg(root, &["--remove", "onacc"]));
    assert!(!root.join("usr/sbin/onacc").exists());
    let kept = fs::read_to_string(root.join("etc/onacc/onacc.toml")).unwrap();
    assert_eq!(kept, "# mine\n", "settings outlive a removal");
    let log = root.join("var/log/clamav/onacc.log");
    fs::write(&log, "a line\n").unwrap();
    done(&dpkg(root, &["--purge", "onacc"]));
    assert!(!root.join("etc/onacc/onacc.toml").exists() && !log.exists());
}

#[test]
fn the_unit_does_not_name_what_would_hide_the_hosts_mounts() {
    let unit = fs::read_to_string(workspace().join("dist/onacc.service")).unwrap();
    for setting in unit.lines().filter(|line| !line.starts_with('#')) {
        let name = setting.split('=').next().unwrap_or_default();
        for hides in [
            "ProtectSystem",
            "ProtectHome",
            "PrivateTmp",
            "PrivateDevices",
            "PrivateMounts",
            "PrivateUsers",
            "ProtectKernelTunables",
            "ProtectKernelModules",
            "ProtectKernelLogs",
            "ProtectControlGroups",
            "ProtectProc",
            "DynamicUser",
        ] {
            assert_ne!(name, hides);
        }
    }
}
