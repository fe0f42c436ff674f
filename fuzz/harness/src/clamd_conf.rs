use std::path::Path;

use onacc::config::Settings;

/// clamd.conf: never a panic, an error is one line, and what is accepted can be
/// worked with.
pub fn clamd_conf(bytes: &[u8]) {
    match Settings::from_bytes(bytes, Path::new("/etc/clamav/clamd.conf")) {
        Ok(settings) => {
            assert!(!settings.include_paths.is_empty());
            assert!(settings.max_scans >= 1 && !settings.bound().is_zero());
        }
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
}
