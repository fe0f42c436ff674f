//! The pictures: the columns of each kind of workload side by side, as SVG.
//!
//! Owns: what is drawn. Must not: leave a column out that was measured, or draw
//! one that was not.

mod panels;

use std::{fs, path::Path};

use plotters::prelude::*;

use crate::{
    bench::row::{Axis, Column, Row, Unit},
    shell::Result,
};

const COLOURS: [(Column, &str, RGBColor); 3] = [
    (
        Column::Baseline,
        "no agent (or what the row names)",
        RGBColor(150, 150, 150),
    ),
    (Column::Onacc, "onacc", RGBColor(30, 110, 190)),
    (Column::Clamonacc, "clamonacc", RGBColor(210, 90, 40)),
];

/// What is drawn of a row in a column, already in the picture's unit.
type Value = fn(&Row, Column) -> Option<f64>;

/// A picture of bars.
struct Bars {
    file: &'static str,
    axis: &'static str,
    value: Value,
    wanted: fn(&Row) -> bool,
}

const BARS: [Bars; 5] = [
    Bars {
        file: "opens.svg",
        axis: "an operation, µs (logarithmic)",
        value: |row, column| Some(row.cell(column).series.median()? / 1e3),
        wanted: |row| row.unit == Unit::Nanoseconds,
    },
    Bars {
        file: "programs.svg",
        axis: "a run, ms (logarithmic)",
        value: |row, column| row.cell(column).series.median(),
        wanted: |row| row.unit == Unit::Milliseconds,
    },
    Bars {
        file: "rates.svg",
        axis: "opens a second (logarithmic)",
        value: |row, column| row.cell(column).series.median(),
        wanted: |row| row.unit == Unit::PerSecond,
    },
    Bars {
        file: "memory.svg",
        axis: "memory, MiB (logarithmic)",
        value: |row, column| Some(row.cell(column).series.median()? / 1024.0),
        wanted: |row| row.unit == Unit::KiB,
    },
    Bars {
        file: "processor.svg",
        axis: "processor time of agent and clamd together, µs each operation or run (logarithmic)",
        value: |row, column| {
            let cpu = row.cell(column).cpu()?;
            Some(cpu.agent + cpu.clamd)
        },
        wanted: |row| row.cell(Column::Onacc).cpu().is_some(),
    },
];

/// The pictures of everything that was measured; returns their file names.
pub fn draw(rows: &[Row], dir: &Path) -> Result<Vec<String>> {
    fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut names = Vec::new();
    for picture in &BARS {
        // Points of distributions have pictures of their own.
        let of_kind: Vec<&Row> = rows
            .iter()
            .filter(|row| !row.is_point() && (picture.wanted)(row))
            .collect();
        if !of_kind.is_empty() {
            let path = dir.join(picture.file);
            bars(&of_kind, &path, picture)
                .map_err(|error| format!("drawing {}: {error}", path.display()))?;
            names.push(picture.file.to_owned());
        }
    }
    let sizes = [Axis::Files, Axis::Directories];
    for (file, drawn) in [
        (
            "growth-openers.svg",
            panels::growth(rows, &[Axis::Openers], &dir.join("growth-openers.svg")),
        ),
        (
            "growth-sizes.svg",
            panels::growth(rows, &sizes, &dir.join("growth-sizes.svg")),
        ),
        (
            "waits.svg",
            panels::distributions(rows, &dir.join("waits.svg")),
        ),
    ] {
        if drawn.map_err(|error| format!("drawing {file}: {error}"))? {
            names.push(file.to_owned());
        }
    }
    Ok(names)
}

/// Bars from left to right, a group for each row from top to bottom.
fn bars(
    rows: &[&Row],
    path: &Path,
    picture: &Bars,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    const GROUP: u32 = 54;
    const BAR: i32 = 13;
    let count = u32::try_from(rows.len())?;
    let (width, names, height) = (1080, 520, GROUP * count + 90);
    let value = |row: &Row, column| (picture.value)(row, column).filter(|value| *value > 0.0);
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
    root.draw(&Text::new(
        picture.axis,
        (i32::try_from(names)?, 36),
        text.clone(),
    ))?;
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
                    (end + 5, short(value))
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

/// As many digits as one can use.
fn short(value: f64) -> String {
    if value < 10.0 {
        format!("{value:.2}")
    } else if value < 1000.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
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
        for words in ["opens of a file", "2.00", "2.50", "failed"] {
            assert!(svg.contains(words), "{words}: {svg}");
        }
    }

    #[test]
    fn growth_and_distributions_are_drawn_side_by_side() {
        let mut rows = Vec::new();
        for openers in [1, 4] {
            let mut some = Row::distribution("first opens", Axis::Openers, openers);
            for column in [Column::Onacc, Column::Clamonacc] {
                take(&mut some, column, || {
                    Ok([1e3, 2e3, 3e3, 4e3, 5e3].map(Reading::from).into())
                });
            }
            rows.extend(some);
        }
        let dir = tempfile::tempdir().unwrap();
        let names = draw(&rows, dir.path()).unwrap();
        assert_eq!(names, ["growth-openers.svg", "waits.svg"]);
        for (name, words) in [
            ("growth-openers.svg", "first opens, by openers"),
            ("waits.svg", "p99.9"),
        ] {
            let svg = fs::read_to_string(dir.path().join(name)).unwrap();
            assert!(svg.contains(words), "{svg}");
            // A line for each column that was measured.
            for colour in ["#1E6EBE", "#D25A28"] {
                let drawn = svg.matches(colour).count();
                assert!(drawn > 1, "{colour}: {drawn}: {svg}");
            }
        }
    }
}
