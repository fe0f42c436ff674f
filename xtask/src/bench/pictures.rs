//! The pictures: the columns of each kind of workload side by side, as SVG.
//!
//! Owns: what is drawn. Must not: leave a column out that was measured, or draw
//! one that was not.

use std::{fs, path::Path};

use plotters::prelude::*;

use crate::{
    bench::row::{Column, Row, Unit},
    shell::Result,
};

const COLOURS: [(Column, &str, RGBColor); 3] = [
    (
        Column::Baseline,
        "no agent, or what the row names",
        RGBColor(150, 150, 150),
    ),
    (Column::Onacc, "onacc", RGBColor(30, 110, 190)),
    (Column::Clamonacc, "clamonacc", RGBColor(210, 90, 40)),
];

/// One picture for each unit that has rows; returns their file names.
pub fn draw(rows: &[Row], dir: &Path) -> Result<Vec<String>> {
    fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let kinds = [
        (
            Unit::Nanoseconds,
            "opens.svg",
            "an operation, µs (logarithmic)",
            1e-3,
        ),
        (
            Unit::Milliseconds,
            "programs.svg",
            "a run, ms (logarithmic)",
            1.0,
        ),
        (
            Unit::PerSecond,
            "rates.svg",
            "opens a second (logarithmic)",
            1.0,
        ),
        (
            Unit::KiB,
            "memory.svg",
            "memory, MiB (logarithmic)",
            1.0 / 1024.0,
        ),
    ];
    let mut names = Vec::new();
    for (unit, name, axis, scale) in kinds {
        let of_kind: Vec<&Row> = rows
            .iter()
            .filter(|row| row.unit == unit && is_main(row))
            .collect();
        if !of_kind.is_empty() {
            let path = dir.join(name);
            bars(&of_kind, &path, (axis, scale))
                .map_err(|error| format!("drawing {}: {error}", path.display()))?;
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Of a distribution, the middle and the far end are drawn; all are in the table.
fn is_main(row: &Row) -> bool {
    !row.name.ends_with(", p90") && !row.name.ends_with(", p99.9") && !row.name.ends_with(", max")
}

/// Bars from left to right, a group for each row from top to bottom.
fn bars(
    rows: &[&Row],
    path: &Path,
    (axis, scale): (&str, f64),
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    const GROUP: u32 = 54;
    const BAR: i32 = 13;
    let count = u32::try_from(rows.len())?;
    let (width, names, height) = (1000, 390, GROUP * count + 90);
    let value = |row: &Row, column| {
        let median = row.cell(column).series.median()?;
        Some(median * scale).filter(|value| *value > 0.0)
    };
    let all = || {
        let each = |row: &&Row| COLOURS.map(|(column, ..)| value(row, column));
        rows.iter().flat_map(each).flatten()
    };
    let least = all().fold(f64::INFINITY, f64::min) / 2.0;
    let most = all().fold(0.0, f64::max);
    if !least.is_finite() {
        return Ok(());
    }
    let root = SVGBackend::new(path, (width, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let text = ("sans-serif", 14).into_font();
    let span = f64::from(width - names - 90);
    #[expect(clippy::cast_possible_truncation, reason = "a place in a picture")]
    let at = |value: f64| {
        names.cast_signed() + (span * (value / least).ln() / (most / least).ln()) as i32
    };
    for (number, (_, name, colour)) in COLOURS.iter().enumerate() {
        let x = 10 + 260 * i32::try_from(number)?;
        root.draw(&Rectangle::new([(x, 12), (x + 12, 24)], colour.filled()))?;
        root.draw(&Text::new(*name, (x + 18, 12), text.clone()))?;
    }
    root.draw(&Text::new(axis, (i32::try_from(names)?, 36), text.clone()))?;
    for (number, row) in rows.iter().enumerate() {
        let top = 62 + i32::try_from(number)? * i32::try_from(GROUP)?;
        root.draw(&Text::new(row.name.as_str(), (10, top + 12), text.clone()))?;
        for (place, (column, _, colour)) in COLOURS.iter().enumerate() {
            let y = top + i32::try_from(place)? * (BAR + 1);
            let start = i32::try_from(names)?;
            let words = match value(row, *column) {
                Some(value) => {
                    let end = at(value);
                    root.draw(&Rectangle::new(
                        [(start, y), (end, y + BAR)],
                        colour.filled(),
                    ))?;
                    (end + 5, format!("{value:.1}"))
                }
                None if row.cell(*column).failed.is_some() => (start + 5, "failed".to_owned()),
                None => continue,
            };
            root.draw(&Text::new(words.1, (words.0, y), text.clone()))?;
        }
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::row::{Reading, take};

    #[test]
    fn what_was_measured_is_drawn_and_a_failure_is_said() {
        let mut rows = [Row::new("opens of a file", Unit::Nanoseconds)];
        take(&mut rows, Column::Baseline, || {
            Ok(vec![Reading::from(2000.0)])
        });
        take(&mut rows, Column::Onacc, || Ok(vec![Reading::from(2500.0)]));
        take(&mut rows, Column::Clamonacc, || Err("it hangs".to_owned()));
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(draw(&rows, dir.path()).unwrap(), ["opens.svg"]);
        let svg = fs::read_to_string(dir.path().join("opens.svg")).unwrap();
        for words in ["opens of a file", "2.0", "2.5", "failed"] {
            assert!(svg.contains(words), "{words}: {svg}");
        }
    }
}
