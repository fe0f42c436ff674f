//! What a soak leaves behind: its looks as a table, and their curves.
//!
//! Owns: `bench/soak.csv` and `bench/soak.svg`. Must not: judge them; `chaos/` does.

use std::{collections::BTreeMap, fmt::Write as _, fs, time::Duration};

use onacc_chaos::{resources::Resources, soak::Report};
use plotters::prelude::*;

use crate::shell::{Result, workspace};

/// Points of one curve: more would not be seen.
const POINTS: usize = 600;
/// What agents in scenes of their own are called in the picture.
const OTHERS: &str = "agents of one fault alone";

/// Writes every look; returns the words to print.
pub fn record(report: &Report) -> Result<String> {
    let path = workspace().join("bench/soak.csv");
    let mut text = String::from("seconds,agent,open files,threads,anonymous KiB,marks\n");
    for look in &report.looks {
        let held = &look.held;
        let _ = writeln!(
            text,
            "{:.1},\"{}\",{},{},{},{}",
            look.at.as_secs_f64(),
            look.who,
            held.fds,
            held.threads,
            held.memory,
            held.marks
        );
    }
    fs::create_dir_all(workspace().join("bench"))
        .and_then(|()| fs::write(&path, text))
        .map_err(|error| format!("writing {}: {error}", path.display()))?;
    let looks = report.looks.len();
    Ok(format!("{looks} looks, written to {}", path.display()))
}

/// Draws the curves; returns the words to print.
pub fn draw(report: &Report) -> Result<String> {
    let path = workspace().join("bench/soak.svg");
    let fail = |why: String| format!("drawing {}: {why}", path.display());
    let area = SVGBackend::new(&path, (900, 1000)).into_drawing_area();
    area.fill(&WHITE).map_err(|error| fail(error.to_string()))?;
    let panels = area.split_evenly((5, 1));
    let curves: [(&str, Of); 4] = [
        ("anonymous memory of the agents, KiB", |held| held.memory),
        ("open files of the agents", |held| held.fds),
        ("threads of the agents", |held| held.threads),
        ("marks of the agents", |held| held.marks),
    ];
    for (panel, (name, of)) in panels.iter().zip(curves) {
        curve(panel, name, &lines(report, of)).map_err(|error| fail(error.to_string()))?;
    }
    let waits = report.strikes.iter().filter_map(|strike| {
        let outcome = strike.result.as_ref().ok()?;
        let wait = outcome.longest.as_secs_f64() * 1e3;
        Some((strike.at.as_secs_f64(), wait))
    });
    let waits = BTreeMap::from([("each strike".to_owned(), waits.collect())]);
    curve(&panels[4], "longest wait of any opener, ms", &waits)
        .and_then(|()| Ok(area.present()?))
        .map_err(|error| fail(error.to_string()))?;
    Ok(format!("drawn in {}", path.display()))
}

type Of = fn(&Resources) -> u64;
type Points = Vec<(f64, f64)>;

/// A line for each resident, and one for all others.
#[expect(clippy::cast_precision_loss, reason = "counts of a picture")]
fn lines(report: &Report, of: Of) -> BTreeMap<String, Points> {
    let mut lines: BTreeMap<String, Points> = BTreeMap::new();
    for look in &report.looks {
        let is_resident = report.residents.iter().any(|(name, _)| *name == look.who);
        let name = if is_resident { &look.who } else { OTHERS };
        let line = lines.entry(name.to_owned()).or_default();
        line.push((look.at.as_secs_f64(), of(&look.held) as f64));
    }
    for line in lines.values_mut() {
        *line = thinned(line, report.time);
    }
    lines
}

/// The highest of each stretch of time, so that no peak is lost.
fn thinned(points: &[(f64, f64)], time: Duration) -> Points {
    if points.len() <= POINTS {
        return points.to_vec();
    }
    let stretch = (time.as_secs_f64() / f64::from(u16::try_from(POINTS).unwrap_or(1))).max(1.0);
    let mut thin: Points = Vec::new();
    for (at, value) in points {
        match thin.last_mut() {
            Some((last, highest)) if at - *last < stretch => *highest = highest.max(*value),
            _ => thin.push((*at, *value)),
        }
    }
    thin
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn curve(
    panel: &Area<'_>,
    name: &str,
    lines: &BTreeMap<String, Points>,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let colours = [
        BLUE,
        RGBColor(230, 120, 0),
        RGBColor(0, 130, 60),
        MAGENTA,
        RGBColor(120, 120, 120),
        RED,
    ];
    let all = || lines.values().flatten();
    let end = all().map(|point| point.0).fold(1.0, f64::max);
    let top = all().map(|point| point.1).fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(panel)
        .caption(name, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(22)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..end, 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_desc("seconds")
        .draw()?;
    for ((name, points), colour) in lines.iter().zip(colours.into_iter().cycle()) {
        chart
            .draw_series(LineSeries::new(points.iter().copied(), &colour))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 15, y)], colour));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.7))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_every_curve() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let area = SVGBackend::new(path.path(), (300, 100)).into_drawing_area();
        let lines = BTreeMap::from([("one".to_owned(), vec![(0.0, 1.0), (1.0, 5.0)])]);
        curve(&area, "memory", &lines).unwrap();
        area.present().unwrap();
        drop(area);
        let svg = fs::read_to_string(path.path()).unwrap();
        assert!(svg.contains("memory") && svg.contains("one") && svg.contains("polyline"));
    }

    #[test]
    fn no_peak_is_lost_by_thinning() {
        let points: Points = (0..5000)
            .map(|n| (f64::from(n), if n == 4321 { 9.0 } else { 1.0 }))
            .collect();
        let thin = thinned(&points, Duration::from_secs(5000));
        assert!(thin.len() <= POINTS && thin.iter().any(|(_, value)| *value > 8.0));
    }
}
