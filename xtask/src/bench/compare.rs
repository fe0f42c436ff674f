//! `--compare OLD.json`: what changed beyond noise since an earlier run.
//!
//! Noise is what the rounds themselves show: a change counts if the medians
//! differ by more than a twentieth and the rounds of the two runs do not overlap
//! in their middle halves. Fewer than three rounds show no noise: then only what
//! has doubled or halved is told. p99.9 and max are the scheduler's, and are left
//! out. Owns: that judgement. Pure; tested below.

use std::fmt::Write as _;

use serde_json::Value;

use crate::shell::Result;

/// The least change that is told.
const LEAST: f64 = 0.05;
/// Rounds that show what is noise.
const ROUNDS: usize = 3;
/// What is told of fewer.
const FACTOR: f64 = 2.0;

/// The words to print.
pub fn changes(old: &str, new: &str) -> Result<String> {
    let parse = |text: &str, which: &str| -> Result<Value> {
        serde_json::from_str(text).map_err(|error| format!("the {which} results: {error}"))
    };
    let (old, new) = (parse(old, "old")?, parse(new, "new")?);
    let mut text = String::new();
    if old["machine"] != new["machine"] {
        text.push_str("not the same machine, kernel or build: compare ratios, not times\n");
    }
    let empty = Vec::new();
    let list = |value: &Value| value["workloads"].as_array().cloned().unwrap_or_default();
    let (before, after) = (list(&old), list(&new));
    let mut same = 0;
    for row in &after {
        let name = row["name"].as_str().unwrap_or_default();
        let Some(earlier) = before.iter().find(|other| other["name"] == row["name"]) else {
            let _ = writeln!(text, "new: {name}");
            continue;
        };
        if name.ends_with(", p99.9") || name.ends_with(", max") {
            continue;
        }
        for column in ["baseline", "marks_alone", "onacc", "clamonacc"] {
            let rounds = |row: &Value| -> Vec<f64> {
                let rounds = row[column]["rounds"].as_array().unwrap_or(&empty);
                rounds.iter().filter_map(Value::as_f64).collect()
            };
            if rounds(earlier).is_empty() != rounds(row).is_empty() {
                let how = ["is", "was"][usize::from(rounds(row).is_empty())];
                let other = ["was", "is"][usize::from(rounds(row).is_empty())];
                let _ = writeln!(text, "{name}: {column}: {how} measured, {other} not");
                continue;
            }
            if rounds(row).is_empty() {
                continue;
            }
            match change(&rounds(earlier), &rounds(row)) {
                Some(change) => {
                    let unit = row["unit"].as_str().unwrap_or_default();
                    let of = |row: &Value| row[column]["median"].as_f64().unwrap_or(f64::NAN);
                    let (was, is) = (of(earlier), of(row));
                    let percent = change * 100.0;
                    let _ = writeln!(
                        text,
                        "{name}: {column}: {was:.1} {unit} -> {is:.1} {unit} ({percent:+.0} %)"
                    );
                }
                None => same += 1,
            }
        }
    }
    for row in &before {
        if !after.iter().any(|other| other["name"] == row["name"]) {
            let _ = writeln!(text, "gone: {}", row["name"].as_str().unwrap_or_default());
        }
    }
    let _ = writeln!(text, "{same} numbers are the same within noise");
    Ok(text)
}

/// How much a number changed, if beyond noise.
fn change(old: &[f64], new: &[f64]) -> Option<f64> {
    let ([old_low, old_mid, old_high], [new_low, new_mid, new_high]) = (middle(old)?, middle(new)?);
    let change = new_mid / old_mid - 1.0;
    if old.len() < ROUNDS || new.len() < ROUNDS {
        let told = new_mid >= old_mid * FACTOR || old_mid >= new_mid * FACTOR;
        return told.then_some(change);
    }
    let apart = new_low > old_high || new_high < old_low;
    (apart && change.abs() > LEAST).then_some(change)
}

/// First quartile, median, third quartile.
fn middle(values: &[f64]) -> Option<[f64; 3]> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    Some([1, 2, 3].map(|quarter| sorted[last * quarter / 4]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(onacc: &str) -> String {
        format!(
            "{{\"machine\": {{}}, \"workloads\": [{{\"name\": \"opens\", \"unit\": \"ns\", \
             \"onacc\": {{\"median\": 1, \"rounds\": [{onacc}]}}}}]}}"
        )
    }

    #[test]
    fn a_change_beyond_noise_is_told_and_noise_is_not() {
        let old = results("100, 101, 102, 103, 104");
        let told = changes(&old, &results("140, 141, 142, 143, 144")).unwrap();
        assert!(
            told.contains("opens: onacc:") && told.contains("(+39 %)"),
            "{told}"
        );
        let told = changes(&old, &results("101, 99, 103, 104, 105")).unwrap();
        assert!(!told.contains("opens: onacc"), "{told}");
        // Far apart, but so are its own rounds.
        let told = changes(&old, &results("60, 90, 130, 200, 300")).unwrap();
        assert!(!told.contains("opens: onacc"), "{told}");
    }

    #[test]
    fn of_a_single_round_only_a_factor_of_two_is_told() {
        let told = changes(&results("100"), &results("180")).unwrap();
        assert!(told.contains("1 numbers are the same"), "{told}");
        let told = changes(&results("100"), &results("201")).unwrap();
        assert!(told.contains("(+101 %)"), "{told}");
        let told = changes(&results("100"), &results("49")).unwrap();
        assert!(told.contains("(-51 %)"), "{told}");
    }

    #[test]
    fn a_column_that_was_not_measured_is_told() {
        let told = changes(&results("100"), &results("")).unwrap();
        assert!(
            told.contains("opens: onacc: was measured, is not"),
            "{told}"
        );
        let told = changes(&results(""), &results("100")).unwrap();
        assert!(
            told.contains("opens: onacc: is measured, was not"),
            "{told}"
        );
    }

    #[test]
    fn what_is_new_or_gone_is_told_and_nonsense_is_an_error() {
        let none = "{\"machine\": {}, \"workloads\": []}";
        assert!(changes(none, &results("1")).unwrap().contains("new: opens"));
        assert!(
            changes(&results("1"), none)
                .unwrap()
                .contains("gone: opens")
        );
        assert!(changes("x", none).is_err());
    }
}
