//! Pictures of many small charts: growth along an axis, and whole distributions.
//!
//! Owns: which curves go into which picture, and the charts. Must not: draw what was
//! not measured.

use std::{error::Error, path::Path};

use plotters::{coord::combinators::BindKeyPoints, prelude::*};

use super::COLOURS;
use crate::bench::{
    report::shown,
    row::{Axis, Column, POINTS, Row, Unit},
};

type Drawn<T = ()> = std::result::Result<T, Box<dyn Error>>;

const WIDTH: u32 = 540;
const HEIGHT: u32 = 270;
const HEAD: u32 = 44;
/// Charts beside each other.
const ABREAST: usize = 2;
/// Openers of the distributions that are drawn.
const SHOWN_OPENERS: usize = 4;
/// p50, drawn as a line, and p99, dashed.
const MIDDLE: usize = 0;
const FAR: usize = 2;

/// One line of a chart.
struct Line {
    colour: RGBColor,
    dashed: bool,
    points: Vec<(f64, f64)>,
}

/// One chart.
struct Chart {
    title: String,
    unit: Unit,
    /// Places on the x axis, and their names.
    marks: Vec<(f64, String)>,
    lines: Vec<Line>,
}

/// Growth along these axes; `false` if there is nothing to draw.
pub fn growth(rows: &[Row], axes: &[Axis], path: &Path) -> Drawn<bool> {
    let mut curves: Vec<&str> = Vec::new();
    for row in rows {
        if let Some(place) = row
            .place
            .as_ref()
            .filter(|place| axes.contains(&place.axis))
            && !curves.contains(&place.curve.as_str())
        {
            curves.push(&place.curve);
        }
    }
    let charts: Vec<Chart> = curves
        .into_iter()
        .filter_map(|curve| growth_chart(rows, curve, axes))
        .collect();
    let legend = "line: p50, or the median; dashed: p99";
    draw(&charts, path, legend)
}

fn growth_chart(rows: &[Row], curve: &str, axes: &[Axis]) -> Option<Chart> {
    let of_curve = |point: usize| {
        rows.iter().filter_map(move |row| {
            let place = row.place.as_ref()?;
            let same = place.curve == curve && axes.contains(&place.axis);
            (same && place.point.unwrap_or(MIDDLE) == point).then_some((row, place))
        })
    };
    let (first, place) = of_curve(MIDDLE).next()?;
    let number = |at: usize| f64::from(u32::try_from(at).unwrap_or(u32::MAX));
    let marks: Vec<(f64, String)> = of_curve(MIDDLE)
        .map(|(_, place)| (number(place.at), count_shown(place.at)))
        .collect();
    let mut lines = Vec::new();
    for (column, _, colour) in COLOURS {
        for (point, dashed) in [(MIDDLE, false), (FAR, true)] {
            let points: Vec<(f64, f64)> = of_curve(point)
                .filter_map(|(row, place)| Some((number(place.at), value(row, column)?)))
                .collect();
            lines.push(Line {
                colour,
                dashed,
                points,
            });
        }
    }
    // A single point is no growth.
    (marks.len() > 1).then(|| Chart {
        title: format!("{curve}, by {}", place.axis.name()),
        unit: first.unit,
        marks,
        lines,
    })
}

/// Whole distributions, by a few openers.
pub fn distributions(rows: &[Row], path: &Path) -> Drawn<bool> {
    let points: Vec<&Row> = rows.iter().filter(|row| row.is_point()).collect();
    let mut charts = Vec::new();
    for rows in points.chunks_exact(POINTS.len()) {
        let Some(place) = &rows[0].place else {
            continue;
        };
        if (place.axis, place.at) != (Axis::Openers, SHOWN_OPENERS) {
            continue;
        }
        let at = |number: usize| f64::from(u32::try_from(number).unwrap_or(u32::MAX)) + 1.0;
        let lines = COLOURS.map(|(column, _, colour)| Line {
            colour,
            dashed: false,
            points: rows
                .iter()
                .enumerate()
                .filter_map(|(number, row)| Some((at(number), value(row, column)?)))
                .collect(),
        });
        let marks = POINTS.iter().enumerate();
        charts.push(Chart {
            title: format!("{}, {SHOWN_OPENERS} openers", place.curve),
            unit: Unit::Nanoseconds,
            marks: marks
                .map(|(number, (_, name))| (at(number), (*name).to_owned()))
                .collect(),
            lines: lines.into(),
        });
    }
    draw(&charts, path, "what an opener waits")
}

fn value(row: &Row, column: Column) -> Option<f64> {
    let cell = row.cell(column);
    // What failed in one round is not to be shown as whole.
    let median = cell.failed.is_none().then(|| cell.series.median())?;
    median.filter(|value| *value > 0.0)
}

fn count_shown(count: usize) -> String {
    if count >= 1000 && count.is_multiple_of(1000) {
        format!("{},000", count / 1000)
    } else {
        count.to_string()
    }
}

fn draw(charts: &[Chart], path: &Path, legend: &str) -> Drawn<bool> {
    if charts.is_empty() {
        return Ok(false);
    }
    let abreast = u32::try_from(ABREAST)?;
    let down = u32::try_from(charts.len().div_ceil(ABREAST))?;
    let size = (WIDTH * abreast, HEIGHT * down + HEAD);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, body) = root.split_vertically(HEAD);
    let text = ("sans-serif", 14).into_font();
    let mut x = 12;
    for (_, name, colour) in &COLOURS {
        head.draw(&Rectangle::new([(x, 14), (x + 14, 26)], colour.filled()))?;
        head.draw(&Text::new(*name, (x + 20, 13), text.clone()))?;
        x += 50 + 7 * i32::try_from(name.len())?;
    }
    head.draw(&Text::new(legend.to_owned(), (x + 10, 13), text.clone()))?;
    let places = body.split_evenly((usize::try_from(down)?, ABREAST));
    for (chart, area) in charts.iter().zip(&places) {
        draw_one(chart, area)?;
    }
    root.present()?;
    Ok(true)
}

fn draw_one(chart: &Chart, area: &DrawingArea<SVGBackend, plotters::coord::Shift>) -> Drawn {
    let values = || chart.lines.iter().flat_map(|line| &line.points);
    let least = values().map(|(_, y)| *y).fold(f64::INFINITY, f64::min);
    let most = values().map(|(_, y)| *y).fold(0.0, f64::max);
    let places = chart.marks.iter().map(|(x, _)| *x);
    let (from, to) = (
        places.clone().fold(f64::INFINITY, f64::min),
        places.clone().fold(0.0, f64::max),
    );
    if !least.is_finite() || from >= to {
        return Ok(());
    }
    let across = (from / 1.15..to * 1.15)
        .log_scale()
        .with_key_points(places.collect());
    let up = (least / 1.5..most * 1.5).log_scale();
    let mut context = ChartBuilder::on(area)
        .margin(8)
        .margin_right(20)
        .caption(&chart.title, ("sans-serif", 15))
        .x_label_area_size(24)
        .y_label_area_size(76)
        .build_cartesian_2d(across, up)?;
    let name = |x: &f64| {
        let mark = chart.marks.iter().find(|(at, _)| (at - x).abs() < 1e-6);
        mark.map_or_else(String::new, |(_, name)| name.clone())
    };
    context
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .label_style(("sans-serif", 12))
        .x_label_formatter(&name)
        .y_labels(6)
        .y_label_formatter(&|y| shown(chart.unit, *y))
        .draw()?;
    for line in &chart.lines {
        let points = line.points.iter().copied();
        if line.dashed {
            context.draw_series(DashedLineSeries::new(points, 5, 4, line.colour.into()))?;
        } else {
            context
                .draw_series(LineSeries::new(points, line.colour.stroke_width(2)).point_size(3))?;
        }
    }
    Ok(())
}
