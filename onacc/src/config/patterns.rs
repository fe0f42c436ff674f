//! Patterns: regular expressions and shell patterns, checked and brought to one
//! form that the `regex` crate takes, for bytes.
//!
//! Owns what a pattern means. An extended regular expression of POSIX differs
//! from one of the `regex` crate in brackets (a backslash is itself there, and
//! `&&`, `~~`, `--` are nothing special); these are translated. Must not: match
//! anything; `policy::rules` does. Tested below.

use globset::GlobBuilder;
use regex::bytes::{Regex, RegexBuilder};

/// What tells a regular expression from a path.
const SIGNS: &[u8] = br"*+?|^$[](){}\";

/// How large the compiled form of one pattern may become, in bytes.
const LARGEST: usize = 4 << 20;

/// A pattern that compiles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// As it was written.
    pub written: String,
    /// For the `regex` crate.
    pub regex: String,
}

/// Whether a value of `OnAccessExcludePath` is a path, as up to clamd 1.4, and
/// not a regular expression, as from 1.5 on.
pub fn is_path(value: &[u8]) -> bool {
    value.first() == Some(&b'/') && !value.iter().any(|byte| SIGNS.contains(byte))
}

/// A regular expression that is looked for in the paths of directories, and
/// means what lies below those that it fits: it is to be looked for in the path
/// of the directory that a file is in. So an end of the path may as well be a
/// slash, and a slash at its own end may as well be the end of the path.
///
/// # Errors
/// What is wrong, on one line.
pub fn of_directories(written: &str) -> Result<Pattern, String> {
    checked(written, translated(written, Subject::Directories))
}

/// A regular expression that is looked for in the paths of files.
///
/// # Errors
/// What is wrong, on one line.
pub fn of_files(written: &str) -> Result<Pattern, String> {
    checked(written, translated(written, Subject::Files))
}

/// A shell pattern: without a slash it is compared with names, else with paths.
///
/// # Errors
/// What is wrong, on one line.
pub fn of_glob(written: &str) -> Result<Pattern, String> {
    let of_paths = written.contains('/');
    let whole = if of_paths {
        written.to_owned()
    } else {
        format!("**/{written}")
    };
    if of_paths && !written.starts_with('/') && !written.starts_with("**") {
        return Err("a pattern with a slash must start with / or **".to_owned());
    }
    let glob = GlobBuilder::new(&whole)
        .literal_separator(true)
        .backslash_escape(true)
        .build()
        .map_err(|error| error.kind().to_string())?;
    checked(written, glob.regex().to_owned())
}

/// Compiles a pattern as it is matched later.
pub(crate) fn builder(pattern: &str) -> RegexBuilder {
    let mut builder = RegexBuilder::new(pattern);
    builder
        .unicode(false)
        .dot_matches_new_line(true)
        .size_limit(LARGEST);
    builder
}

fn checked(written: &str, regex: String) -> Result<Pattern, String> {
    let compiled: Result<Regex, _> = builder(&regex).build();
    match compiled {
        Ok(_) => Ok(Pattern {
            written: written.to_owned(),
            regex,
        }),
        Err(regex::Error::CompiledTooBig(_)) => Err("it would take too much memory".to_owned()),
        // The parser draws the place over several lines; the last one says what it is.
        Err(error) => {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default();
            Err(last.trim().trim_start_matches("error: ").to_owned())
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    Directories,
    Files,
}

fn translated(written: &str, subject: Subject) -> String {
    const END: &str = "(?:/|$)";
    let mut out = String::with_capacity(written.len() + 8);
    let mut rest = written.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '\\' => {
                out.push('\\');
                out.extend(rest.next());
            }
            '[' => bracket(&mut rest, &mut out),
            '$' if subject == Subject::Directories => out.push_str(END),
            '/' if subject == Subject::Directories && rest.peek().is_none() => out.push_str(END),
            _ => out.push(character),
        }
    }
    out
}

/// A bracket expression, from behind its opening bracket on.
fn bracket(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, out: &mut String) {
    out.push('[');
    if rest.next_if_eq(&'^').is_some() {
        out.push('^');
    }
    if rest.next_if_eq(&']').is_some() {
        out.push_str("\\]");
    }
    while let Some(character) = rest.next() {
        match character {
            ']' => {
                out.push(']');
                return;
            }
            '[' if rest.peek() == Some(&':') => {
                // A class, up to its own closing bracket.
                out.push('[');
                for character in rest.by_ref() {
                    out.push(character);
                    if character == ']' {
                        break;
                    }
                }
            }
            '\\' | '[' | '&' | '~' => {
                out.push('\\');
                out.push(character);
            }
            // Last in the bracket it is itself; doubled it would be an operator.
            '-' if matches!(rest.peek(), Some(']' | '-')) => out.push_str("\\-"),
            _ => out.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fits(pattern: &Result<Pattern, String>, subject: &str) -> bool {
        let pattern = pattern.as_ref().unwrap();
        let regex = builder(&pattern.regex).build().unwrap();
        regex.is_match(subject.as_bytes())
    }

    #[test]
    fn the_form_tells_paths_from_expressions() {
        for path in ["/home/user2", "/srv/a.b-c", "/", "/a b#c"] {
            assert!(is_path(path.as_bytes()), "{path}");
        }
        for expression in [
            "^/home/x$",
            "/home/.*",
            "home",
            "/srv/c++",
            r"/a\b",
            "",
            "/x(y)",
        ] {
            assert!(!is_path(expression.as_bytes()), "{expression}");
        }
    }

    /// The subject is the directory that a file is in.
    #[test]
    fn directories_are_left_out_with_all_below_them() {
        let anchored = of_directories("^/home/x$");
        assert!(fits(&anchored, "/home/x") && fits(&anchored, "/home/x/a/b"));
        assert!(!fits(&anchored, "/home/xy") && !fits(&anchored, "/srv/home/x"));
        let loose = of_directories("/home/[^/]*/cache");
        assert!(fits(&loose, "/home/u/cache") && fits(&loose, "/mnt/home/u/cache2/a"));
        assert!(!fits(&loose, "/home/u/v/cache"));
        let slash = of_directories("/tmp/");
        assert!(fits(&slash, "/tmp") && fits(&slash, "/x/tmp/y") && !fits(&slash, "/tmpx"));
        let either = of_directories("/(a|b$)");
        assert!(fits(&either, "/ax") && fits(&either, "/b/c") && !fits(&either, "/bc"));
        let escaped = of_directories(r"/a\$");
        assert!(fits(&escaped, "/a$b") && !fits(&escaped, "/a"));
    }

    #[test]
    fn brackets_are_those_of_posix() {
        assert!(fits(&of_files(r"^a[\]b$"), r"a\b"));
        assert!(fits(&of_files("^[]x]$"), "]") && fits(&of_files("^[^]x]$"), "y"));
        assert!(fits(&of_files("^[a&&b]$"), "&") && fits(&of_files("^[a~~b]$"), "~"));
        assert!(fits(&of_files("^[a-]$"), "-") && fits(&of_files("^[[:digit:]]$"), "7"));
        assert!(fits(&of_files("^[[x]$"), "["));
        assert!(!fits(&of_files("^[a&&b]$"), "c"));
    }

    #[test]
    fn bytes_of_any_kind_match_a_dot() {
        let regex = builder(&of_files("^/a.b$").unwrap().regex).build().unwrap();
        assert!(regex.is_match(b"/a\xffb") && regex.is_match(b"/a\nb"));
        assert!(fits(&of_files("ü$"), "/ü"));
    }

    #[test]
    fn globs_without_a_slash_are_for_names() {
        let name = of_glob("*.iso");
        assert!(fits(&name, "/a/b.iso") && !fits(&name, "/a.iso/b"));
        let path = of_glob("/srv/*/cache/**");
        assert!(fits(&path, "/srv/x/cache/a/b") && !fits(&path, "/srv/x/y/cache/a"));
        let any = of_glob("**/node_modules/**");
        assert!(fits(&any, "/p/node_modules/q/r") && !fits(&any, "/p/node_modulesx/q"));
        assert!(of_glob("srv/*").is_err());
    }

    #[test]
    fn what_is_wrong_is_one_line() {
        for wrong in ["(", "[", "a{2", "*", "[[:nope:]]", r"\", "(?<n"] {
            for problem in [of_files(wrong), of_directories(wrong)] {
                if let Err(problem) = problem {
                    assert!(!problem.contains('\n') && !problem.is_empty());
                }
            }
        }
        assert_eq!(of_files("(").unwrap_err(), "unclosed group");
        assert_eq!(
            of_files("a{1000}{1000}").unwrap_err(),
            "it would take too much memory"
        );
        assert_eq!(
            of_glob("[").unwrap_err(),
            "unclosed character class; missing ']'"
        );
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,20}") {
            for pattern in [of_files(&text), of_directories(&text), of_glob(&text)] {
                if let Err(problem) = pattern {
                    prop_assert!(!problem.contains('\n'));
                }
            }
        }

        /// Text without signs is found wherever it stands.
        #[test]
        fn plain_text_is_itself(text in "[a-z/ ]{1,10}[a-z]", before in "[a-z/]{0,5}") {
            let subject = format!("/{before}{text}");
            prop_assert!(fits(&of_files(&text), &subject));
            prop_assert!(fits(&of_directories(&text), &subject));
        }
    }
}
