//! The resource curves of a soak: what the agents held, look by look.
//!
//! Owns: the samples and their picture. Must not: judge them; `chaos/` does.

use std::{
    fs,
    time::{Duration, Instant},
};

use onacc_chaos::{Outcome, resources::Resources};
use plotters::prelude::*;

use crate::shell::{Result, workspace};

/// What is collected.
pub struct Soak {
    began: Instant,
    looks: Vec<(Duration, Resources)>,
    /// Longest wait of each fault's run, in milliseconds, and when it ended.
    waits: Vec<(Duration, f64)>,
}

impl Soak {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            began: Instant::now(),
            looks: Vec::new(),
            waits: Vec::new(),
        }
    }

    /// Looks at the agent with this id; one that has just ended is passed over.
    pub fn look(&mut self, pid: u32) {
        if let Ok(resources) = Resources::of(pid) {
            self.looks.push((self.began.elapsed(), resources));
        }
    }

    /// A fault has been played to its end.
    pub fn ended(&mut self, outcome: &Outcome) {
        let now = self.began.elapsed();
        self.looks.push((now, outcome.resources[1]));
        self.waits.push((now, outcome.longest.as_secs_f64() * 1e3));
    }

    /// Draws the curves; returns the words to print.
    pub fn draw(&self) -> Result<String> {
        let path = workspace().join("bench/soak.svg");
        let fail = |why: String| format!("drawing {}: {why}", path.display());
        fs::create_dir_all(workspace().join("bench")).map_err(|error| fail(error.to_string()))?;
        let seconds = |at: &Duration| at.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "counts of a picture")]
        let series = |of: fn(&Resources) -> u64| -> Vec<(f64, f64)> {
            let points = self.looks.iter();
            points
                .map(|(at, look)| (seconds(at), of(look) as f64))
                .collect()
        };
        let waits = self.waits.iter().map(|(at, wait)| (seconds(at), *wait));
        let curves = [
            (
                "anonymous memory of the agent, KiB",
                series(|look| look.memory),
            ),
            ("open files of the agent", series(|look| look.fds)),
            ("threads of the agent", series(|look| look.threads)),
            ("longest wait of any opener, ms", waits.collect()),
        ];
        let area = SVGBackend::new(&path, (900, 800)).into_drawing_area();
        area.fill(&WHITE).map_err(|error| fail(error.to_string()))?;
        for (panel, (name, points)) in area.split_evenly((4, 1)).iter().zip(&curves) {
            curve(panel, name, points).map_err(|error| fail(error.to_string()))?;
        }
        area.present().map_err(|error| fail(error.to_string()))?;
        let looks = self.looks.len();
        Ok(format!("{looks} looks, drawn in {}", path.display()))
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn curve(
    panel: &Area<'_>,
    name: &str,
    points: &[(f64, f64)],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(1.0, f64::max);
    let end = most(&mut points.iter().map(|point| point.0));
    let top = most(&mut points.iter().map(|point| point.1)) * 1.1;
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
    chart.draw_series(LineSeries::new(points.iter().copied(), &BLUE))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_every_curve() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let area = SVGBackend::new(path.path(), (300, 100)).into_drawing_area();
        curve(&area, "memory", &[(0.0, 1.0), (1.0, 5.0)]).unwrap();
        area.present().unwrap();
        drop(area);
        let svg = fs::read_to_string(path.path()).unwrap();
        assert!(svg.contains("memory") && svg.contains("polyline"));
    }
}
