//! What the verifier had to do for each eBPF program, recorded and compared.
//!
//! Owns: the file of costs, and what rise is too much. The number is the
//! instructions that the verifier has processed (`verified_insns`, from 5.16 on):
//! beyond a million it refuses, and kernels differ. Must not: load a program; the
//! agent does. Tested below.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

use crate::shell::{Result, workspace};

/// Costs by kernel and program.
pub type Costs = BTreeMap<(String, String), u64>;

/// A rise by more than this many percent fails.
const MOST_RISE: u64 = 20;

const HEAD: &str = "\
# Instructions that the verifier has processed for each program, by kernel.
# Written by `cargo xtask vm --bless`; a rise of more than 20 % fails `cargo xtask vm`.
";

/// Where they are recorded.
pub fn file() -> PathBuf {
    workspace().join("onacc-ebpf/verifier-cost.txt")
}

/// What is recorded.
pub fn recorded() -> Result<Costs> {
    let path = file();
    let text = fs::read_to_string(&path).map_err(|error| {
        format!(
            "{}: {error}; write it with cargo xtask vm --bless",
            path.display()
        )
    })?;
    parse(&text).map_err(|error| format!("{}:{error}", path.display()))
}

/// Records these, in place of what was recorded for their kernels.
pub fn bless(measured: &Costs) -> Result<()> {
    let mut costs = recorded().unwrap_or_default();
    costs.retain(|(kernel, _), _| !measured.keys().any(|(other, _)| other == kernel));
    costs.extend(measured.clone());
    let path = file();
    fs::write(&path, write(&costs)).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(costs: &Costs) -> String {
    let mut text = HEAD.to_owned();
    for ((kernel, program), count) in costs {
        let _ = writeln!(text, "{kernel} {program} {count}");
    }
    text
}

fn parse(text: &str) -> Result<Costs> {
    let mut costs = Costs::new();
    for (number, line) in text.lines().enumerate() {
        if line.starts_with('#') || line.trim().is_empty() {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let count = match words[..] {
            [kernel, program, count] => count
                .parse()
                .ok()
                .map(|count| ((kernel.to_owned(), program.to_owned()), count)),
            _ => None,
        };
        let (key, count) = count.ok_or(format!("{}: not KERNEL PROGRAM COUNT", number + 1))?;
        costs.insert(key, count);
    }
    Ok(costs)
}

/// What there is to say of each program, and whether it is an error.
pub fn compare(recorded: &Costs, measured: &Costs) -> Vec<(String, bool)> {
    let mut said = Vec::new();
    for ((kernel, program), &now) in measured {
        let key = (kernel.clone(), program.clone());
        let head = format!("verifier cost on {kernel}: {program}: {now}");
        said.push(match recorded.get(&key) {
            None => (
                format!("{head}, none is recorded: cargo xtask vm --bless"),
                true,
            ),
            Some(&before) if now * 100 > before * (100 + MOST_RISE) => (
                format!("{head}, recorded {before}: a rise of more than {MOST_RISE} %"),
                true,
            ),
            Some(before) => (format!("{head} (recorded {before})"), false),
        });
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(list: &[(&str, &str, u64)]) -> Costs {
        let one = |(kernel, program, count): &(&str, &str, u64)| {
            ((kernel.to_string(), program.to_string()), *count)
        };
        list.iter().map(one).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let some = costs(&[("6.1", "inode_dirtied", 90), ("6.12", "open", 1_000)]);
        assert_eq!(parse(&write(&some)), Ok(some));
        assert_eq!(
            parse("# x\n\n6.1 open many\n"),
            Err("3: not KERNEL PROGRAM COUNT".to_owned())
        );
    }

    #[test]
    fn a_rise_of_more_than_a_fifth_is_an_error_and_so_is_what_nobody_recorded() {
        let before = costs(&[("6.1", "a", 100), ("6.1", "b", 100), ("6.1", "gone", 9)]);
        let now = costs(&[("6.1", "a", 120), ("6.1", "b", 121), ("6.12", "a", 10)]);
        let said = compare(&before, &now);
        let wrong: Vec<bool> = said.iter().map(|(_, wrong)| *wrong).collect();
        assert_eq!(wrong, [false, true, true], "{said:?}");
    }

    #[test]
    fn the_checked_in_file_can_be_read() {
        assert!(!recorded().unwrap().is_empty());
    }
}
