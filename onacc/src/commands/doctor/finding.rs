//! What was found, as a person and as a program reads it.
//!
//! Owns the words around findings, and which of them count. Pure; tested here.

use std::fmt::Write as _;

use serde_json::json;

use crate::observe::printable_characters;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing; limits nothing that onacc promises.
    Note,
    /// Limits protection.
    Problem,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Problem => "problem",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it belongs to; findings of one area follow each other.
    pub area: &'static str,
    /// How much it matters.
    pub level: Level,
    /// What there is.
    pub what: String,
    /// What that means.
    pub meaning: String,
    /// How to mend it.
    pub remedy: String,
}

impl Finding {
    fn new(area: &'static str, level: Level, what: impl Into<String>) -> Self {
        Self {
            area,
            level,
            // Paths and clamd's words come from outside.
            what: printable_characters(what.into().chars()),
            meaning: String::new(),
            remedy: String::new(),
        }
    }

    /// As it should be.
    pub fn ok(area: &'static str, what: impl Into<String>) -> Self {
        Self::new(area, Level::Ok, what)
    }

    /// Worth knowing.
    pub fn note(area: &'static str, what: impl Into<String>) -> Self {
        Self::new(area, Level::Note, what)
    }

    /// Limits protection.
    pub fn problem(area: &'static str, what: impl Into<String>) -> Self {
        Self::new(area, Level::Problem, what)
    }

    /// Says what it means.
    pub fn means(mut self, meaning: impl Into<String>) -> Self {
        self.meaning = meaning.into();
        self
    }

    /// Says how to mend it.
    pub fn mend(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}

/// Whether something limits protection.
pub fn limits(findings: &[Finding]) -> bool {
    findings.iter().any(|one| one.level == Level::Problem)
}

/// For a person.
pub fn as_text(findings: &[Finding]) -> String {
    let mut text = String::new();
    let mut area = "";
    for one in findings {
        if one.area != area {
            area = one.area;
            let _ = writeln!(text, "{area}");
        }
        let mark = match one.level {
            Level::Ok => "  ok       ",
            Level::Note => "  note     ",
            Level::Problem => "  PROBLEM  ",
        };
        let _ = writeln!(text, "{mark}{}", one.what);
        if !one.meaning.is_empty() {
            let _ = writeln!(text, "           means: {}", one.meaning);
        }
        if !one.remedy.is_empty() {
            let _ = writeln!(text, "           mend:  {}", one.remedy);
        }
    }
    let problems = findings.iter().filter(|one| one.level == Level::Problem);
    let _ = match problems.count() {
        0 => writeln!(text, "Nothing limits protection."),
        1 => writeln!(text, "1 problem limits protection."),
        count => writeln!(text, "{count} problems limit protection."),
    };
    text
}

/// For a program.
pub fn as_json(findings: &[Finding]) -> String {
    let list: Vec<_> = findings
        .iter()
        .map(|one| {
            json!({
                "area": one.area,
                "level": one.level.word(),
                "what": one.what,
                "meaning": one.meaning,
                "remedy": one.remedy,
            })
        })
        .collect();
    let all = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "limited": limits(findings),
        "findings": list,
    });
    format!("{all:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Vec<Finding> {
        vec![
            Finding::ok("kernel", "Linux"),
            Finding::note("kernel", "no BTF").means("it costs more"),
            Finding::problem("clamd", "no\nclamd").mend("start it"),
        ]
    }

    #[test]
    fn a_problem_limits_and_a_note_does_not() {
        assert!(limits(&some()));
        assert!(!limits(&some()[..2]));
    }

    #[test]
    fn the_text_has_each_area_once_and_counts() {
        assert_eq!(
            as_text(&some()),
            "kernel\n  ok       Linux\n  note     no BTF\n           means: it costs more\n\
             clamd\n  PROBLEM  no\\nclamd\n           mend:  start it\n\
             1 problem limits protection.\n"
        );
        assert!(as_text(&some()[..1]).ends_with("Nothing limits protection.\n"));
    }

    #[test]
    fn the_json_can_be_read_back() {
        let value: serde_json::Value = serde_json::from_str(&as_json(&some())).unwrap();
        assert_eq!(value["limited"], true);
        assert_eq!(value["findings"][2]["level"], "problem");
        assert_eq!(value["findings"][2]["remedy"], "start it");
        assert_eq!(value["findings"].as_array().unwrap().len(), 3);
    }
}
