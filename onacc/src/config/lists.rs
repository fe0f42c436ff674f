//! Lists of directories: the files of `--watch-list` and `--exclude-list`.
//!
//! Owns their format: one absolute path on each line, as it is, blanks included.
//! A CR at the line end does not count, and the last line needs no line end;
//! empty lines and lines that start with `#` say nothing. Must not: look whether
//! a directory exists. Tested below.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::entry::{Located, Origin};
use super::error::{ConfigError, shown};

/// The directories that a list names, and every line that cannot be used.
pub fn parse(
    bytes: &[u8],
    file: &Path,
    option: &'static str,
) -> (Vec<Located<PathBuf>>, Vec<ConfigError>) {
    let (mut paths, mut errors) = (Vec::new(), Vec::new());
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.trim_ascii().is_empty() || line[0] == b'#' {
            continue;
        }
        let at = Located {
            value: (),
            origin: Origin::File {
                file: file.to_owned(),
                line: index + 1,
                column: 1,
            },
            option,
        };
        if line.contains(&0) {
            errors.push(ConfigError::NulByte { at: at.place() });
        } else if line[0] == b'/' {
            paths.push(at.with(PathBuf::from(OsString::from_vec(line.to_vec()))));
        } else {
            errors.push(ConfigError::BadValue {
                at: at.place(),
                found: shown(line),
                wanted: "an absolute path",
                remedy: "write the whole path, from / on, or put a # before the line",
            });
        }
    }
    (paths, errors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> (Vec<String>, Vec<String>) {
        let (paths, errors) = parse(text.as_bytes(), Path::new("l"), "--watch-list");
        let paths = paths
            .iter()
            .map(|path| path.value.to_str().unwrap().to_owned());
        (
            paths.collect(),
            errors.iter().map(ToString::to_string).collect(),
        )
    }

    #[test]
    fn a_last_line_needs_no_line_end() {
        assert_eq!(read("/home\n/srv").0, ["/home", "/srv"]);
        assert_eq!(read("/home\r\n/srv\r\n").0, ["/home", "/srv"]);
        assert_eq!(read("\n# all of it\n/a b \n\n").0, ["/a b "]);
        assert_eq!(read(""), (vec![], vec![]));
    }

    #[test]
    fn every_bad_line_is_told() {
        let (paths, errors) = read("home\n/srv\n./x\n/a\0b\n");
        assert_eq!(paths, ["/srv"]);
        assert_eq!(
            errors,
            [
                "l:1:1: --watch-list: 'home' is not an absolute path; write the whole path, from / on, or put a # before the line",
                "l:3:1: --watch-list: './x' is not an absolute path; write the whole path, from / on, or put a # before the line",
                "l:4:1: --watch-list: the value holds a NUL byte; remove it, and check that the file is plain text",
            ]
        );
    }

    #[test]
    fn lines_are_located() {
        let (paths, _) = parse(b"#\n/srv", Path::new("l"), "--exclude-list");
        assert_eq!(paths[0].to_string(), "l:2: --exclude-list");
    }

    proptest! {
        #[test]
        fn all_paths_are_absolute(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (paths, errors) = parse(&bytes, Path::new("l"), "--watch-list");
            prop_assert!(paths.iter().all(|path| path.value.is_absolute()));
            prop_assert!(errors.iter().all(|error| !error.to_string().contains('\n')));
        }
    }
}
