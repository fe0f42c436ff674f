//! The table on the terminal. Pure; tested below.

use std::fmt::Write as _;

use crate::bench::row::{Cell, Column, Goal, Row, Unit};

const HEADS: [&str; 7] = [
    "workload",
    "baseline",
    "onacc",
    "ratio",
    "goal",
    "met",
    "clamonacc",
];

/// A number with its unit, as short as it can be read.
pub fn shown(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Nanoseconds if value < 1e6 => format!("{:.2} µs", value / 1e3),
        Unit::Nanoseconds => format!("{:.2} ms", value / 1e6),
        Unit::Milliseconds if value < 1e3 => format!("{value:.1} ms"),
        Unit::Milliseconds => format!("{:.2} s", value / 1e3),
        Unit::PerSecond => format!("{value:.0}/s"),
        Unit::KiB => format!("{:.1} MiB", value / 1024.0),
    }
}

/// Median and spread.
fn cell_shown(unit: Unit, cell: &Cell) -> String {
    if let Some(why) = &cell.absent {
        return why.clone();
    }
    if cell.failed.is_some() {
        return "FAILED".to_owned();
    }
    match (cell.series.median(), cell.series.range()) {
        (Some(median), Some((least, greatest))) if cell.series.values().len() > 1 => format!(
            "{} ({}..{})",
            shown(unit, median),
            bare(unit, least),
            bare(unit, greatest)
        ),
        (Some(median), _) => shown(unit, median),
        (None, _) => "-".to_owned(),
    }
}

fn bare(unit: Unit, value: f64) -> String {
    let text = shown(unit, value);
    text.replace("/s", "").replace(" µs", "")
}

fn goal_shown(row: &Row) -> String {
    match row.goal {
        None => "-".to_owned(),
        Some(Goal::RatioAtMost(most)) => format!("<= {most}"),
        Some(Goal::RatioAtLeast(least)) => format!(">= {least}"),
        Some(Goal::Below(limit)) => format!("< {}", shown(row.unit, limit)),
        Some(Goal::OfPeerAtMost(most)) => format!("<= {most:.2} of clamonacc"),
    }
}

fn line(row: &Row) -> [String; 7] {
    let cell = |column| cell_shown(row.unit, row.cell(column));
    let baseline = match cell(Column::Baseline) {
        text if text == "-" => text,
        text => format!("{text} {}", row.baseline),
    };
    let met = match row.met() {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "-",
    };
    [
        row.name.clone(),
        baseline,
        cell(Column::Onacc),
        row.ratio()
            .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
        goal_shown(row),
        met.to_owned(),
        cell(Column::Clamonacc),
    ]
}

/// The table, and below it what shows that the numbers are what they claim.
pub fn table(rows: &[Row]) -> String {
    let lines: Vec<[String; 7]> = rows.iter().map(line).collect();
    let heads = HEADS.map(str::to_owned);
    let all = || std::iter::once(&heads).chain(&lines);
    let mut widths = [0; 7];
    for cells in all() {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for cells in all() {
        let padded: Vec<String> = cells
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        let _ = writeln!(text, "{}", padded.join("  ").trim_end());
    }
    text.push('\n');
    for row in rows {
        if let Some(ratio) = row.compared(Column::MarksAlone, Column::Baseline) {
            let shown = cell_shown(row.unit, row.cell(Column::MarksAlone));
            let _ = writeln!(
                text,
                "  {}: marks alone, no agent behind them: {shown}, ratio {ratio:.2}",
                row.name
            );
        }
        for (column, name) in row.columns() {
            for note in &row.cell(column).notes {
                let _ = writeln!(text, "  {}: {name}: {note}", row.name);
            }
        }
    }
    text
}

/// How many goals are met, and which are not.
pub fn summary(rows: &[Row]) -> String {
    let judged: Vec<(&Row, bool)> = rows
        .iter()
        .filter_map(|row| Some((row, row.met()?)))
        .collect();
    let met = judged.iter().filter(|(_, met)| *met).count();
    let mut text = format!("{met} of {} goals met", judged.len());
    for (row, _) in judged.iter().filter(|(_, met)| !met) {
        let _ = write!(text, "\n  missed: {}", row.name);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::row::{Reading, take};

    #[test]
    fn a_row_says_what_was_measured_and_what_was_not() {
        let mut rows = [Row::new("opens", Unit::Nanoseconds).goal(Goal::RatioAtMost(1.2))];
        for value in [2000.0, 3000.0, 2500.0] {
            take(&mut rows, Column::Baseline, || {
                Ok(vec![Reading::from(value)])
            });
            take(&mut rows, Column::Onacc, || {
                Ok(vec![Reading::from(value * 1.5).note("5 events")])
            });
        }
        take(&mut rows, Column::Clamonacc, || Err("hangs".to_owned()));
        let text = table(&rows);
        assert!(text.contains("2.50 µs (2.00..3.00) no agent"), "{text}");
        assert!(text.contains("1.50   <= 1.2  NO   FAILED"), "{text}");
        assert!(text.contains("opens: onacc: 5 events"), "{text}");
        assert_eq!(summary(&rows), "0 of 1 goals met\n  missed: opens");
    }

    #[test]
    fn numbers_are_shown_in_a_unit_that_fits() {
        assert_eq!(shown(Unit::Nanoseconds, 2712.0), "2.71 µs");
        assert_eq!(shown(Unit::Nanoseconds, 1_100_000.0), "1.10 ms");
        assert_eq!(shown(Unit::Milliseconds, 3400.0), "3.40 s");
        assert_eq!(shown(Unit::PerSecond, 5321.4), "5321/s");
        assert_eq!(shown(Unit::KiB, 1536.0), "1.5 MiB");
    }
}
