use std::path::Path;

use onacc::config::settings::{Shown, migrated};
use onacc::config::{ConfigErrors, Settings};

/// clamd.conf: never a panic, an error is one line, and what is accepted can be
/// worked with, and comes back the same from the onacc.toml that is made of it.
pub fn clamd_conf(bytes: &[u8]) {
    match Settings::from_bytes(bytes, Path::new("/etc/clamav/clamd.conf")) {
        Ok(settings) => {
            assert!(!settings.include_paths.is_empty());
            assert!(settings.max_scans >= 1 && !settings.bound().is_zero());
            comes_back(&settings);
        }
        Err(errors) => are_lines(&errors),
    }
}

/// onacc.toml, in the same way.
pub fn onacc_toml(bytes: &[u8]) {
    match Settings::from_native(bytes, Path::new("/etc/onacc/onacc.toml")) {
        Ok(settings) => {
            assert!(!settings.include_paths.is_empty() && !settings.servers.is_empty());
            comes_back(&settings);
        }
        Err(errors) => are_lines(&errors),
    }
}

fn comes_back(settings: &Settings) {
    let text = migrated(settings);
    // What is no UTF-8 stays in clamd.conf.
    if text.contains("a path that is not UTF-8 can be written in clamd.conf alone") {
        return;
    }
    let again = match Settings::from_native(text.as_bytes(), Path::new("n")) {
        Ok(again) => again,
        Err(errors) => panic!("{errors}\nin\n{text}"),
    };
    assert_eq!(again.to_toml(Shown::File), settings.to_toml(Shown::File));
}

fn are_lines(errors: &ConfigErrors) {
    assert!(!errors.0.is_empty());
    for error in &errors.0 {
        assert!(!error.to_string().contains('\n'));
    }
}
