use std::path::Path;

use onacc::config::{lists, patterns};

/// Lists of directories and patterns: paths are absolute, nothing is lost, and
/// what is wrong is one line.
pub fn lists(bytes: &[u8]) {
    let (paths, errors) = lists::parse(bytes, Path::new("l"), "--watch-list");
    let lines = bytes.split(|byte| *byte == b'\n').count();
    assert!(paths.len() + errors.len() <= lines);
    assert!(paths.iter().all(|path| path.value.is_absolute()));
    assert!(errors.iter().all(|error| !error.to_string().contains('\n')));
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    for make in [
        patterns::of_directories,
        patterns::of_files,
        patterns::of_glob,
    ] {
        match make(text) {
            Ok(pattern) => assert_eq!(pattern.written, text),
            Err(problem) => assert!(!problem.is_empty()),
        }
    }
}
