//! `bench/results.json`, written by hand: flat, and few kinds of values.
//!
//! Owns: the form of the file. Must not: leave out a number that was measured,
//! or why one was not. Tested below.

use std::{fmt::Write as _, time::Duration};

use crate::bench::{
    machine::Machine,
    row::{Cell, Column, Goal, Row, Unit},
};

/// The whole file.
pub fn results(
    machine: &Machine,
    short: bool,
    took: Duration,
    rows: &[Row],
    (remarks, troubles): (&[String], &[String]),
) -> String {
    let machine: Vec<String> = machine
        .facts()
        .iter()
        .map(|(name, value)| format!("{}: {}", string(name), string(value)))
        .collect();
    let rows: Vec<String> = rows
        .iter()
        .map(|row| format!("    {}", row_value(row)))
        .collect();
    format!(
        "{{\n  \"machine\": {{{}}},\n  \"short\": {short},\n  \"seconds\": {},\n  \
         \"remarks\": {},\n  \"not_measured\": {},\n  \"workloads\": [\n{}\n  ]\n}}\n",
        machine.join(", "),
        number(took.as_secs_f64()),
        strings(remarks),
        strings(troubles),
        rows.join(",\n")
    )
}

fn row_value(row: &Row) -> String {
    let unit = match row.unit {
        Unit::Nanoseconds => "ns",
        Unit::Milliseconds => "ms",
        Unit::PerSecond => "1/s",
        Unit::KiB => "KiB",
    };
    let goal = match row.goal {
        None => "null".to_owned(),
        Some(goal) => {
            let (name, value) = match goal {
                Goal::RatioAtMost(value) => ("ratio_at_most", value),
                Goal::RatioAtLeast(value) => ("ratio_at_least", value),
                Goal::Below(value) => ("below", value),
                Goal::OfPeerAtMost(value) => ("of_clamonacc_at_most", value),
            };
            format!("{{{}: {}}}", string(name), number(value))
        }
    };
    let met = row
        .met()
        .map_or_else(|| "null".to_owned(), |met| met.to_string());
    let place = match &row.place {
        None => "null".to_owned(),
        Some(place) => format!(
            "{{\"curve\": {}, {}: {}}}",
            string(&place.curve),
            string(place.axis.name()),
            place.at
        ),
    };
    format!(
        "{{\"name\": {}, \"unit\": {}, \"baseline_is\": {}, \"baseline\": {}, \"marks_alone\": {}, \
         \"minimal_agent\": {}, \
         \"onacc\": {}, \"clamonacc\": {}, \"ratio\": {}, \"goal\": {goal}, \"met\": {met}, \
         \"place\": {place}}}",
        string(&row.name),
        string(unit),
        string(row.baseline),
        cell_value(row.cell(Column::Baseline)),
        cell_value(row.cell(Column::MarksAlone)),
        cell_value(row.cell(Column::MinimalAgent)),
        cell_value(row.cell(Column::Onacc)),
        cell_value(row.cell(Column::Clamonacc)),
        optional(row.ratio()),
    )
}

fn cell_value(cell: &Cell) -> String {
    if let Some(why) = cell.failed.as_ref().or(cell.absent.as_ref()) {
        return format!("{{\"not_measured\": {}}}", string(why));
    }
    let Some((least, greatest)) = cell.series.range() else {
        return "null".to_owned();
    };
    let values: Vec<String> = cell.series.values().iter().map(|v| number(*v)).collect();
    let cpu = cell.cpu().map_or_else(
        || "null".to_owned(),
        |cpu| {
            let (agent, clamd) = (number(cpu.agent), number(cpu.clamd));
            format!("{{\"agent\": {agent}, \"clamd\": {clamd}}}")
        },
    );
    format!(
        "{{\"median\": {}, \"min\": {}, \"max\": {}, \"rounds\": [{}], \
         \"processor_us_each\": {cpu}, \"notes\": {}}}",
        optional(cell.series.median()),
        number(least),
        number(greatest),
        values.join(", "),
        strings(&cell.notes)
    )
}

/// Four digits behind the point are more than any clock here gives.
fn number(value: f64) -> String {
    if value.is_finite() {
        format!("{value:.4}")
    } else {
        "null".to_owned()
    }
}

fn optional(value: Option<f64>) -> String {
    value.map_or_else(|| "null".to_owned(), number)
}

fn strings(values: &[String]) -> String {
    let values: Vec<String> = values.iter().map(|value| string(value)).collect();
    format!("[{}]", values.join(", "))
}

fn string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if u32::from(c) < 0x20 => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::row::{Reading, take};

    #[test]
    fn strings_are_quoted() {
        assert_eq!(string("a \"b\" \\ µ\n"), "\"a \\\"b\\\" \\\\ µ\\u000a\"");
    }

    #[test]
    fn a_row_holds_every_round_and_says_what_is_missing() {
        let mut rows = [Row::new("opens", Unit::Nanoseconds).goal(Goal::RatioAtMost(1.2))];
        for value in [2.0, 4.0] {
            take(&mut rows, Column::Baseline, || {
                Ok(vec![Reading::from(value)])
            });
        }
        take(&mut rows, Column::Clamonacc, || Err("hangs".to_owned()));
        let text = row_value(&rows[0]);
        assert!(text.contains("\"rounds\": [2.0000, 4.0000]"), "{text}");
        assert!(
            text.contains("\"clamonacc\": {\"not_measured\": \"hangs\"}"),
            "{text}"
        );
        assert!(text.contains("\"onacc\": null"), "{text}");
        assert!(text.contains("\"met\": null"), "{text}");
    }
}
