//! `--debug-limits`: sizes of the agent's tables, made small.
//!
//! For tests of what happens when a table is full: nobody can mount 16,384
//! filesystems for one. Not shown in any help. Must not: be of use otherwise.

use std::str::FromStr;

/// Which size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugSize {
    /// Clean marks.
    Marks,
    /// Bytes of records about opens that wait.
    Backlog,
    /// Bytes of records about changed files that wait, in whole pages.
    Records,
    /// Filesystems that the eBPF programs are told of.
    Filesystems,
    /// Excluded uids, likewise.
    Uids,
}

/// One of them, limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugLimit {
    /// What.
    pub what: DebugSize,
    /// At most so many.
    pub most: u32,
}

impl FromStr for DebugLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, most) = text.split_once('=').ok_or("write NAME=NUMBER")?;
        let what = match name {
            "marks" => DebugSize::Marks,
            "backlog" => DebugSize::Backlog,
            "records" => DebugSize::Records,
            "filesystems" => DebugSize::Filesystems,
            "uids" => DebugSize::Uids,
            _ => return Err("not one of marks, backlog, records, filesystems, uids".to_owned()),
        };
        match most.parse() {
            Ok(most) if most > 0 => Ok(Self { what, most }),
            _ => Err(format!("{most}: not a number from 1 to {}", u32::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_wrong_is_said() {
        let limit = |text: &str| text.parse::<DebugLimit>();
        let four = DebugLimit {
            what: DebugSize::Filesystems,
            most: 4,
        };
        assert_eq!(limit("filesystems=4"), Ok(four));
        for wrong in [
            "",
            "filesystems",
            "filesystems=0",
            "filesystems=x",
            "files=4",
        ] {
            assert!(limit(wrong).is_err(), "{wrong}");
        }
    }
}
