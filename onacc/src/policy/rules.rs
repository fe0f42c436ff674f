//! Rules beyond places and users: patterns for directories and files, limits
//! below paths, programs and control groups.
//!
//! Compiled once, when settings are taken up. What there is none of costs one
//! comparison. An event pays in this order: patterns (no system call; a
//! regular expression costs some hundred nanoseconds, all of a kind at once),
//! then, only for a file without a clean verdict, executable (one `statx`) and
//! control group (`openat`, `read`, `close`). Must not: make these calls; the
//! reader does. Tested below.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use regex::bytes::{RegexSet, RegexSetBuilder};

use crate::config::Settings;
use crate::config::patterns::Pattern;
use crate::kernel::file::ProgramId;

/// How large the compiled form of all patterns of a kind may become, in bytes.
const LARGEST_SET: usize = 64 << 20;
/// How large the cache of states of one thread may become, in bytes.
const LARGEST_CACHE: usize = 8 << 20;

/// The patterns cannot be compiled together.
#[derive(Debug, thiserror::Error)]
#[error(
    "{option}: all patterns together take too much memory: {source}; write fewer or simpler ones"
)]
pub struct TooManyPatterns {
    option: &'static str,
    source: regex::Error,
}

/// What the reader is to leave out.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Fit the path of the directory that a file is in.
    directories: Option<RegexSet>,
    /// Fit the whole path of a file.
    files: Option<RegexSet>,
    /// Ends of names, with their dots, in small letters.
    extensions: Vec<Vec<u8>>,
    /// Programs whose opens are not scanned.
    programs: Vec<ProgramId>,
    /// Control groups whose processes' opens are not scanned: paths.
    groups: Vec<Vec<u8>>,
}

/// What holds below a path, where it differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathLimits {
    /// Whether an open is denied when its scan fails.
    pub deny_on_error: Option<bool>,
    /// Larger files are not scanned.
    pub max_file_size: Option<u64>,
}

/// What a path is limited to: real paths.
pub type LimitedPaths = Vec<(PathBuf, PathLimits)>;

impl Rules {
    /// Compiles what the settings name. Programs are added when they are known.
    ///
    /// # Errors
    /// Each pattern compiles by itself, but not all together.
    pub fn of(settings: &Settings) -> Result<Self, TooManyPatterns> {
        let directories = settings.exclude_patterns.iter().map(|one| &one.value);
        let files = settings.exclusions.files.iter().map(|one| &one.value);
        let extensions = settings.exclusions.extensions.iter();
        let groups = settings.exclusions.cgroups.iter();
        Ok(Self {
            directories: compile("OnAccessExcludePath", directories)?,
            files: compile("Glob, Regex", files)?,
            extensions: extensions
                .map(|one| [b".", one.value.as_bytes()].concat())
                .collect(),
            programs: Vec::new(),
            groups: groups
                .map(|one| one.value.as_os_str().as_bytes().to_vec())
                .collect(),
        })
    }

    /// The same with these programs.
    #[must_use]
    pub fn with_programs(&self, mut programs: Vec<ProgramId>) -> Self {
        programs.sort_unstable();
        programs.dedup();
        Self {
            programs,
            ..self.clone()
        }
    }

    /// The programs in force.
    pub fn programs(&self) -> &[ProgramId] {
        &self.programs
    }

    /// Whether there are patterns that can leave out a directory.
    pub fn speak_of_directories(&self) -> bool {
        self.directories.is_some()
    }

    /// Whether a pattern leaves out what lies in this directory.
    pub fn leaves_out_directory(&self, directory: &[u8]) -> bool {
        let directories = self.directories.as_ref();
        directories.is_some_and(|set| set.is_match(directory))
    }

    /// Whether a pattern leaves out the directory of this file.
    pub fn leaves_out_directory_of(&self, file: &[u8]) -> bool {
        self.directories.is_some() && self.leaves_out_directory(parent(file))
    }

    /// Whether any rule speaks of paths.
    pub fn has_patterns(&self) -> bool {
        self.directories.is_some() || self.files.is_some() || !self.extensions.is_empty()
    }

    /// Whether a rule leaves out this file by its path.
    pub fn leaves_out_file(&self, file: &[u8]) -> bool {
        if !self.extensions.is_empty() {
            let start = file.iter().rposition(|byte| *byte == b'/');
            let name = &file[start.map_or(0, |slash| slash + 1)..];
            if self.extensions.iter().any(|end| ends_with(name, end)) {
                return true;
            }
        }
        self.files.as_ref().is_some_and(|set| set.is_match(file))
    }

    /// Whether the opener's program is to be asked for.
    pub fn ask_program(&self) -> bool {
        !self.programs.is_empty()
    }

    /// Whether this program's opens are left out.
    pub fn leaves_out_program(&self, program: ProgramId) -> bool {
        self.programs.contains(&program)
    }

    /// Whether the opener's control group is to be asked for.
    pub fn ask_group(&self) -> bool {
        !self.groups.is_empty()
    }

    /// Whether the opens of this control group are left out: it is named, or
    /// lies below one that is.
    pub fn leaves_out_group(&self, group: &[u8]) -> bool {
        self.groups.iter().any(|named| {
            let rest = group.strip_prefix(named.as_slice());
            rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        })
    }
}

impl PartialEq for Rules {
    fn eq(&self, other: &Self) -> bool {
        fn texts(set: Option<&RegexSet>) -> &[String] {
            set.map_or(&[], RegexSet::patterns)
        }
        texts(self.directories.as_ref()) == texts(other.directories.as_ref())
            && texts(self.files.as_ref()) == texts(other.files.as_ref())
            && self.extensions == other.extensions
            && self.programs == other.programs
            && self.groups == other.groups
    }
}

fn compile<'a>(
    option: &'static str,
    patterns: impl Iterator<Item = &'a Pattern>,
) -> Result<Option<RegexSet>, TooManyPatterns> {
    let patterns: Vec<&str> = patterns.map(|pattern| pattern.regex.as_str()).collect();
    if patterns.is_empty() {
        return Ok(None);
    }
    // As `config::patterns` has checked them.
    RegexSetBuilder::new(patterns)
        .unicode(false)
        .dot_matches_new_line(true)
        .size_limit(LARGEST_SET)
        .dfa_size_limit(LARGEST_CACHE)
        .build()
        .map(Some)
        .map_err(|source| TooManyPatterns { option, source })
}

/// Without regard to case; a name that is nothing but the end has no extension.
fn ends_with(name: &[u8], end: &[u8]) -> bool {
    name.len() > end.len() && name[name.len() - end.len()..].eq_ignore_ascii_case(end)
}

fn parent(file: &[u8]) -> &[u8] {
    let parent = Path::new(OsStr::from_bytes(file)).parent();
    parent.map_or(file, |parent| parent.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(lines: &str, native: &str) -> Rules {
        let native = format!(
            "[clamd]\nLocalSocket = \"/s\"\n[scope]\nOnAccessIncludePath = \"/\"\n{lines}\n[exclude]\n{native}\n"
        );
        Rules::of(&Settings::from_native(native.as_bytes(), Path::new("n")).unwrap()).unwrap()
    }

    /// What the patterns cost an event: `cargo test --release -p onacc --lib --
    /// --ignored --nocapture what_patterns_cost`.
    #[test]
    #[ignore = "a measurement, not a test"]
    fn what_patterns_cost() {
        let paths: Vec<String> = (0..1000)
            .map(|n| {
                format!("/home/user{n}/projects/some-project-{n}/src/deep/module{n}/file{n}.rs")
            })
            .collect();
        for (name, rules) in [
            ("none", rules("", "")),
            (
                "1 directory expression",
                rules("OnAccessExcludePath = '^/home/[^/]*/.cache$'", ""),
            ),
            (
                "10 globs, 10 expressions, 10 extensions",
                rules(
                    "OnAccessExcludePath = ['a1$', 'b2$', '/c3/', 'd4.*e', '^/f/[a-z]+$']",
                    "Glob = ['*.a', '*.b', '*.c', '/x/*/y', '**/node_modules/**', '*.d', '*.e', '*.f', '*.g', '*.h']\n\
                     Regex = ['a.*b$', 'b.*c$', 'c.*d$', 'd.*e$', '^/q/.*r', 'x[0-9]+y', 'foo', 'bar', 'baz', 'qux']\n\
                     Extension = ['i', 'j', 'k', 'l', 'm', 'n', 'o', 'p', 'q', 'r']",
                ),
            ),
        ] {
            let began = std::time::Instant::now();
            let mut out = 0;
            for _ in 0..200 {
                for path in &paths {
                    let path = path.as_bytes();
                    out += usize::from(rules.leaves_out_directory_of(path));
                    out += usize::from(rules.leaves_out_file(path));
                }
            }
            println!(
                "{name}: {:?} a file ({out} left out)",
                began.elapsed() / 200_000
            );
        }
    }

    #[test]
    fn without_rules_nothing_is_left_out() {
        let none = rules("", "");
        assert_eq!(none, Rules::default());
        assert!(!none.leaves_out_directory_of(b"/a/b") && !none.leaves_out_file(b"/a/b"));
        assert!(!none.ask_program() && !none.ask_group() && !none.has_patterns());
        assert!(rules("", "Extension = 'x'").has_patterns());
    }

    #[test]
    fn directories_are_left_out_with_their_files() {
        let rules = rules("OnAccessExcludePath = ['^/home/[^/]*/cache$', 'tmp/']", "");
        assert!(rules.leaves_out_directory_of(b"/home/u/cache/f"));
        assert!(rules.leaves_out_directory_of(b"/home/u/cache/made/later/f"));
        assert!(rules.leaves_out_directory(b"/home/u/cache"));
        assert!(rules.leaves_out_directory_of(b"/x/tmp/f"));
        // A file of such a name is no directory.
        assert!(!rules.leaves_out_directory_of(b"/home/u/cache"));
        assert!(!rules.leaves_out_directory_of(b"/home/u/cache2/f"));
        assert!(!rules.leaves_out_file(b"/home/u/cache/f"));
    }

    #[test]
    fn files_are_left_out_by_pattern_and_by_the_end_of_the_name() {
        let rules = rules(
            "",
            "Glob = ['*.iso', '/srv/*/x']\nRegex = ['/build/.*\\.o$']\nExtension = ['TAR.gz', '.bak']",
        );
        for out in [
            "/a/b.iso",
            "/srv/q/x",
            "/p/build/r/s.o",
            "/a.tar.GZ",
            "/a/b.BAK",
        ] {
            assert!(rules.leaves_out_file(out.as_bytes()), "{out}");
        }
        for scanned in [
            "/a/b.iso/c",
            "/srv/q/r/x",
            "/p/build/s.oo",
            "/a.gz",
            "/a/bak",
            "/a/.bak",
            "",
        ] {
            assert!(!rules.leaves_out_file(scanned.as_bytes()), "{scanned}");
        }
    }

    #[test]
    fn groups_are_left_out_with_those_below_them() {
        let rules = rules("", "Cgroup = '/system.slice/backup.service/'");
        assert!(rules.ask_group());
        assert!(rules.leaves_out_group(b"/system.slice/backup.service"));
        assert!(rules.leaves_out_group(b"/system.slice/backup.service/x"));
        assert!(!rules.leaves_out_group(b"/system.slice/backup.service2"));
        assert!(!rules.leaves_out_group(b"/") && !rules.leaves_out_group(b""));
    }

    #[test]
    fn programs_are_told_apart_by_their_birth() {
        let one = ProgramId {
            dev: (0, 1),
            ino: 2,
            born: 3,
        };
        let rules = Rules::default().with_programs(vec![one, one]);
        assert!(rules.ask_program() && rules.leaves_out_program(one));
        assert!(!rules.leaves_out_program(ProgramId { born: 4, ..one }));
        assert_eq!(rules.programs(), [one]);
        assert_ne!(rules, Rules::default());
    }
}
