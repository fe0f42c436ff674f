//! Which places and files are protected, and which are left out.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use super::reader::{Reader, bad, main_file};
use super::{Exclusions, PathRule};
use crate::config::entry::{Located, Origin};
use crate::config::error::{ConfigError, shown};
use crate::config::lists;
use crate::config::patterns::{self, Pattern};

/// The remedy for most paths.
const WHOLE_PATH: &str = "write the whole path, from / on";

/// Paths, and patterns.
type PathsAndPatterns = (Vec<Located<PathBuf>>, Vec<Located<Pattern>>);

impl Reader<'_> {
    /// What to watch: the include paths, the watch list, and the mount paths
    /// behind them.
    pub(super) fn include_paths(
        &mut self,
        mount_paths: &[Located<PathBuf>],
    ) -> Vec<Located<PathBuf>> {
        let before = self.errors.len();
        let mut paths = self.paths("OnAccessIncludePath");
        paths.extend(self.list("WatchList", "list of directories to watch", "--watch-list"));
        paths.extend(mount_paths.iter().cloned());
        if paths.is_empty() && self.errors.len() == before {
            self.errors.push(ConfigError::NothingToWatch {
                file: main_file(&self.sources).to_owned(),
            });
        }
        paths
    }

    pub(super) fn exclude_paths(&mut self) -> PathsAndPatterns {
        let (mut paths, mut found) = (Vec::new(), Vec::new());
        for value in self.texts("OnAccessExcludePath") {
            if patterns::is_path(value.value.as_bytes()) {
                paths.push(value.with(PathBuf::from(&value.value)));
            } else if let Some(pattern) = self.directory_pattern(&value) {
                self.warnings.push(format!(
                    "{value}: '{}' is taken as a regular expression for the paths of directories; a path that looks so can be named in a file with --exclude-list=FILE",
                    shown(value.value.as_bytes())
                ));
                found.push(pattern);
            }
        }
        let listed = self.list(
            "ExcludeList",
            "list of directories to leave out",
            "--exclude-list",
        );
        paths.extend(listed);
        (paths, found)
    }

    fn directory_pattern(&mut self, value: &Located<OsString>) -> Option<Located<Pattern>> {
        self.pattern(
            value,
            patterns::of_directories,
            "regular expression",
            "correct it, or write the whole path of a directory, from / on, without any of *+?|^$[](){}\\",
        )
    }

    fn pattern(
        &mut self,
        value: &Located<OsString>,
        make: fn(&str) -> Result<Pattern, String>,
        what: &'static str,
        remedy: &'static str,
    ) -> Option<Located<Pattern>> {
        let Some(text) = value.value.to_str() else {
            let wanted = "a pattern in UTF-8";
            let remedy = "write a dot for each other byte";
            self.errors
                .push(bad(value, value.value.as_bytes(), wanted, remedy));
            return None;
        };
        match make(text) {
            Ok(pattern) => Some(value.with(pattern)),
            Err(problem) => {
                let found = shown(value.value.as_bytes());
                let problem = crate::observe::printable_characters(problem.chars());
                self.errors.push(ConfigError::BadPattern {
                    at: value.place(),
                    problem: format!("'{found}' is no {what}: {problem}; {remedy}"),
                });
                None
            }
        }
    }

    pub(super) fn exclusions(&mut self) -> Exclusions {
        let mut files = Vec::new();
        for glob in self.texts("Glob") {
            let remedy = "correct it; a backslash before a sign makes it an ordinary letter";
            files.extend(self.pattern(&glob, patterns::of_glob, "shell pattern", remedy));
        }
        for regex in self.texts("Regex") {
            let remedy = "correct it; a backslash before a sign makes it an ordinary letter";
            files.extend(self.pattern(&regex, patterns::of_files, "regular expression", remedy));
        }
        Exclusions {
            files,
            extensions: self.extensions(),
            executables: self.paths("Executable"),
            cgroups: self.cgroups(),
        }
    }

    fn extensions(&mut self) -> Vec<Located<String>> {
        let mut out = Vec::new();
        for extension in self.utf8("Extension", "a text in UTF-8", "write a Glob instead") {
            let bare = extension.value.trim_start_matches('.').to_ascii_lowercase();
            if bare.is_empty() || bare.contains(['/', '*', '?']) {
                self.errors.push(bad(
                    &extension,
                    extension.value.as_bytes(),
                    "the end of a name",
                    "write it without dot and signs, for example iso; or write a Glob",
                ));
            } else {
                out.push(extension.with(bare));
            }
        }
        out
    }

    fn cgroups(&mut self) -> Vec<Located<PathBuf>> {
        let groups = self.paths("Cgroup");
        let mut out = Vec::new();
        for group in groups {
            if group.value.components().count() < 2 {
                self.errors.push(ConfigError::Conflict {
                    at: group.place(),
                    problem: "the root group holds every process, so nothing would be scanned; name a group below it",
                });
            } else {
                // Without a slash at the end, and without doubled ones.
                out.push(group.with(group.value.components().collect()));
            }
        }
        out
    }

    pub(super) fn path_rules(&mut self) -> Vec<Located<PathRule>> {
        let mut rules: Vec<Located<PathRule>> = Vec::new();
        for rule in std::mem::take(&mut self.sources.native.path_rules) {
            if rules
                .iter()
                .any(|other| other.value.path == rule.value.path)
            {
                self.errors.push(ConfigError::Conflict {
                    at: rule.place(),
                    problem: "there is another [[path]] table for this path; make it one",
                });
                continue;
            }
            rules.push(rule);
        }
        rules
    }

    /// The directories that the list names which this option names.
    fn list(
        &mut self,
        name: &'static str,
        what: &'static str,
        remedy: &'static str,
    ) -> Vec<Located<PathBuf>> {
        let Some(file) = self.texts(name).into_iter().next() else {
            return Vec::new();
        };
        let path = PathBuf::from(&file.value);
        match (self.read)(&path) {
            Ok(bytes) => {
                let (paths, errors) = lists::parse(&bytes, &path, file.option);
                self.errors.extend(errors);
                self.sources.files.push(path);
                paths
            }
            Err(source) => {
                self.errors.push(ConfigError::Unreadable {
                    file: path,
                    what,
                    remedy,
                    source,
                });
                Vec::new()
            }
        }
    }

    /// The value of an option that must be an absolute path.
    pub(super) fn path(&mut self, name: &'static str) -> Option<Located<PathBuf>> {
        let text = self.texts(name).into_iter().next()?;
        self.absolute(&text, WHOLE_PATH)
    }

    /// All values of an option whose values must be absolute paths.
    pub(super) fn paths(&mut self, name: &'static str) -> Vec<Located<PathBuf>> {
        let texts = self.texts(name);
        let paths = texts.iter().map(|path| self.absolute(path, WHOLE_PATH));
        paths.collect::<Vec<_>>().into_iter().flatten().collect()
    }

    pub(super) fn absolute(
        &mut self,
        path: &Located<OsString>,
        remedy: &'static str,
    ) -> Option<Located<PathBuf>> {
        if path.value.as_bytes().starts_with(b"/") {
            return Some(path.with(PathBuf::from(&path.value)));
        }
        // Who gives a flag means the directory that the shell is in.
        if path.origin == Origin::CommandLine
            && let Ok(whole) = std::path::absolute(&path.value)
        {
            return Some(path.with(whole));
        }
        let found = path.value.as_bytes();
        self.errors
            .push(bad(path, found, "an absolute path", remedy));
        None
    }
}
