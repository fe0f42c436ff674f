//! The table on the terminal. Pure; tested below.

use std::fmt::Write as _;

use crate::bench::row::{Cell, Column, Cpu, Goal, POINTS, Row, Unit};

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

/// Lines of cells, one below the other.
fn aligned<const N: usize>(heads: [&str; N], lines: &[[String; N]]) -> String {
    let heads = heads.map(str::to_owned);
    let all = || std::iter::once(&heads).chain(lines);
    let mut widths = [0; N];
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
    text
}

/// All tables, and below them what shows that the numbers are what they claim.
pub fn table(rows: &[Row]) -> String {
    let whole = rows.iter().filter(|row| !row.is_point());
    let lines: Vec<[String; 7]> = whole.map(line).collect();
    let mut text = String::new();
    if !lines.is_empty() {
        let _ = writeln!(text, "{}", aligned(HEADS, &lines));
    }
    text += &distributions(rows);
    text += &processor_times(rows);
    for row in rows {
        if let Some(ratio) = row.compared(Column::MarksAlone, Column::Baseline) {
            let shown = cell_shown(row.unit, row.cell(Column::MarksAlone));
            let _ = writeln!(
                text,
                "  {}: marks alone, no agent behind them: {shown}, ratio {ratio:.2}",
                row.name
            );
        }
        if let Some(ratio) = row.compared(Column::MinimalAgent, Column::Baseline) {
            let shown = cell_shown(row.unit, row.cell(Column::MinimalAgent));
            let onacc = row.compared(Column::Onacc, Column::MinimalAgent);
            let onacc = onacc.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
            let _ = writeln!(
                text,
                "  {}: a minimal agent, which scans and does nothing else: {shown}, \
                 ratio {ratio:.2}; onacc to it {onacc}",
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

/// What openers wait: a line for each column of each distribution.
fn distributions(rows: &[Row]) -> String {
    let points: Vec<&Row> = rows.iter().filter(|row| row.is_point()).collect();
    let mut lines = Vec::new();
    for rows in points.chunks_exact(POINTS.len()) {
        let Some(place) = &rows[0].place else {
            continue;
        };
        let name = format!("{}, {} {}", place.curve, place.at, place.axis.name());
        for (column, who) in rows[0].columns() {
            let cells = [0, 1, 2, 3, 4].map(|point| {
                let cell = rows[point].cell(column);
                match cell.series.median() {
                    Some(median) => shown(rows[point].unit, median),
                    None => cell_shown(rows[point].unit, cell),
                }
            });
            if cells[0] != "-" {
                let [p50, p90, p99, p999, max] = cells;
                lines.push([name.clone(), who.to_owned(), p50, p90, p99, p999, max]);
            }
        }
    }
    if lines.is_empty() {
        return String::new();
    }
    let [p50, p90, p99, p999, max] = POINTS.map(|(_, name)| name);
    let heads = ["what an opener waits", "with", p50, p90, p99, p999, max];
    aligned(heads, &lines) + "\n"
}

/// What the agents and clamd needed for each operation or run.
fn processor_times(rows: &[Row]) -> String {
    let times = |cpu: Option<Cpu>| match cpu {
        Some(cpu) => [cpu.agent, cpu.clamd].map(|us| shown(Unit::Nanoseconds, us * 1e3)),
        None => ["-".to_owned(), "-".to_owned()],
    };
    let mut lines = Vec::new();
    for row in rows {
        let [ours, theirs] =
            [Column::Onacc, Column::Clamonacc].map(|column| row.cell(column).cpu());
        if ours.is_some() || theirs.is_some() {
            let [agent, clamd] = times(ours);
            let [peer, its_clamd] = times(theirs);
            let name = row.name.trim_end_matches(", p50").to_owned();
            lines.push([name, agent, clamd, peer, its_clamd]);
        }
    }
    if lines.is_empty() {
        return String::new();
    }
    let heads = [
        "processor time, each operation or run",
        "onacc",
        "clamd with it",
        "clamonacc",
        "clamd with it",
    ];
    aligned(heads, &lines) + "\n"
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
    use crate::bench::row::{Axis, Reading, take};

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
    fn distributions_and_processor_times_have_tables_of_their_own() {
        let mut rows = Row::distribution("first opens", Axis::Openers, 4);
        let readings = || {
            let mut readings: Vec<Reading> = [1e3, 2e3, 3e3, 4e3, 5e6].map(Reading::from).into();
            readings[0].cpu = Some(Cpu {
                agent: 0.5,
                clamd: 1500.0,
            });
            Ok(readings)
        };
        take(&mut rows, Column::Onacc, readings);
        take(&mut rows, Column::Clamonacc, || Err("hangs".to_owned()));
        let text = table(&rows);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| {
                line.split("  ")
                    .map(str::trim)
                    .filter(|s| !s.is_empty())
                    .collect()
            })
            .collect();
        let waits = ["1.00 µs", "2.00 µs", "3.00 µs", "4.00 µs", "5.00 ms"];
        let name = "first opens, 4 openers";
        assert_eq!(lines[1], [&[name, "onacc"], &waits[..]].concat(), "{text}");
        let failed = [
            name,
            "clamonacc",
            "FAILED",
            "FAILED",
            "FAILED",
            "FAILED",
            "FAILED",
        ];
        assert_eq!(lines[2], failed, "{text}");
        assert_eq!(lines[5], [name, "0.50 µs", "1.50 ms", "-", "-"], "{text}");
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
