//! clamd.conf: never a panic, and an error is one line.
#![no_main]
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use onacc::config::Settings;

fuzz_target!(|bytes: &[u8]| {
    match Settings::from_bytes(bytes, Path::new("/etc/clamav/clamd.conf")) {
        Ok(settings) => {
            assert!(!settings.include_paths.is_empty());
            assert!(settings.max_scans >= 1 && !settings.bound().is_zero());
        }
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
});
