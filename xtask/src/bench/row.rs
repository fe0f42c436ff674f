//! One workload's numbers: baseline, onacc, clamonacc, and the goal.
//!
//! Owns: what a number means, and whether a goal is met. Must not: measure, or
//! fill in a number that was not measured. Tested below.

use crate::{bench::stats::Series, shell::Result};

/// What is measured in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// The same without an agent, or what the row names.
    Baseline,
    /// With onacc.
    Onacc,
    /// With Debian's clamonacc, on the same clamd.
    Clamonacc,
    /// With the marks that the kernel needs for it, and no agent behind them: no
    /// agent can do better this way.
    MarksAlone,
    /// With an agent of one thread that has each open scanned and does nothing else.
    MinimalAgent,
}

/// What numbers count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Nanoseconds.
    Nanoseconds,
    /// Milliseconds.
    Milliseconds,
    /// Events in a second.
    PerSecond,
    /// KiB of memory.
    KiB,
}

/// What is to be reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// onacc to baseline, not more.
    RatioAtMost(f64),
    /// onacc to baseline, not less.
    RatioAtLeast(f64),
    /// onacc alone, less, in the row's unit.
    Below(f64),
    /// onacc to clamonacc, not more.
    OfPeerAtMost(f64),
}

/// What grows along a curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Openers at the same time.
    Openers,
    /// Files that are opened.
    Files,
    /// Directories that are watched.
    Directories,
}

impl Axis {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Openers => "openers",
            Self::Files => "files",
            Self::Directories => "directories",
        }
    }
}

/// The points of a distribution, in thousandths, with their names.
pub const POINTS: [(usize, &str); 5] = [
    (500, "p50"),
    (900, "p90"),
    (990, "p99"),
    (999, "p99.9"),
    (1000, "max"),
];

/// Where a row stands among others of its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The kind of workload, the same along a curve.
    pub curve: String,
    /// What grows.
    pub axis: Axis,
    /// To how much.
    pub at: usize,
    /// Which point of a distribution, by its place in `POINTS`; `None` if the row
    /// is all there is.
    pub point: Option<usize>,
}

/// Processor time that fell to an operation, or to a run, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cpu {
    /// Of the agent.
    pub agent: f64,
    /// Of clamd.
    pub clamd: f64,
}

/// A number of one round, and what shows that it is what it claims to be.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// The number.
    pub value: f64,
    /// Remarks; those of the last round are kept.
    pub notes: Vec<String>,
    /// What the agent and clamd needed meanwhile.
    pub cpu: Option<Cpu>,
}

/// The numbers of one column.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    /// One number for each round.
    pub series: Series,
    /// Remarks of the last round.
    pub notes: Vec<String>,
    /// Processor time of the agent, and of clamd: one number for each round.
    cpu: [Series; 2],
    /// Why there is no number although there should be one.
    pub failed: Option<String>,
    /// Why there can be no number.
    pub absent: Option<String>,
}

/// The numbers of one workload.
#[derive(Clone, Debug)]
pub struct Row {
    /// What is measured.
    pub name: String,
    /// What the baseline is.
    pub baseline: &'static str,
    /// What the numbers count.
    pub unit: Unit,
    /// What is to be reached, if anything.
    pub goal: Option<Goal>,
    /// Where it stands in a curve.
    pub place: Option<Place>,
    cells: [Cell; 5],
}

impl From<f64> for Reading {
    fn from(value: f64) -> Self {
        Self {
            value,
            ..Self::default()
        }
    }
}

impl Reading {
    /// Adds a remark.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Adds what the agent and clamd needed.
    #[must_use]
    pub fn cpu(mut self, cpu: Cpu) -> Self {
        self.cpu = Some(cpu);
        self
    }
}

impl Cell {
    /// The medians of what the agent and clamd needed.
    pub fn cpu(&self) -> Option<Cpu> {
        let [agent, clamd] = &self.cpu;
        Some(Cpu {
            agent: agent.median()?,
            clamd: clamd.median()?,
        })
    }
}

impl Row {
    /// A row without numbers, whose baseline is the same without an agent.
    pub fn new(name: impl Into<String>, unit: Unit) -> Self {
        Self {
            name: name.into(),
            baseline: "no agent",
            unit,
            goal: None,
            place: None,
            cells: Default::default(),
        }
    }

    /// Names another baseline.
    #[must_use]
    pub fn beside(mut self, baseline: &'static str) -> Self {
        self.baseline = baseline;
        self
    }

    /// Sets the goal.
    #[must_use]
    pub fn goal(mut self, goal: Goal) -> Self {
        self.goal = Some(goal);
        self
    }

    /// Puts it into a curve.
    #[must_use]
    pub fn at(mut self, curve: impl Into<String>, axis: Axis, at: usize) -> Self {
        self.place = Some(Place {
            curve: curve.into(),
            axis,
            at,
            point: None,
        });
        self
    }

    /// The rows of a distribution, one for each of its points, in a curve.
    pub fn distribution(curve: &str, axis: Axis, at: usize) -> Vec<Self> {
        let points = POINTS.iter().enumerate();
        points
            .map(|(number, (_, point))| {
                let name = format!("{curve}, {at} {}, {point}", axis.name());
                let mut row = Self::new(name, Unit::Nanoseconds).at(curve, axis, at);
                if let Some(place) = &mut row.place {
                    place.point = Some(number);
                }
                row
            })
            .collect()
    }

    /// Whether it is but a point of a distribution, which has a table of its own.
    pub fn is_point(&self) -> bool {
        (self.place.as_ref()).is_some_and(|place| place.point.is_some())
    }

    /// The numbers of a column.
    pub fn cell(&self, column: Column) -> &Cell {
        &self.cells[column as usize]
    }

    /// Says that there can be no number in a column.
    pub fn absent(&mut self, column: Column, why: &str) {
        self.cells[column as usize].absent = Some(why.to_owned());
    }

    /// All columns and their names.
    pub fn columns(&self) -> [(Column, &'static str); 5] {
        [
            (Column::Baseline, self.baseline),
            (Column::MarksAlone, "marks alone"),
            (Column::MinimalAgent, "minimal agent"),
            (Column::Onacc, "onacc"),
            (Column::Clamonacc, "clamonacc"),
        ]
    }

    /// onacc to baseline.
    pub fn ratio(&self) -> Option<f64> {
        self.compared(Column::Onacc, Column::Baseline)
    }

    /// One column to another; `None` if either has failed in any round.
    pub fn compared(&self, column: Column, to: Column) -> Option<f64> {
        let [own, other] = [column, to].map(|column| self.cell(column));
        let whole = own.failed.is_none() && other.failed.is_none();
        whole.then(|| own.series.ratio_to(&other.series))?
    }

    /// Whether the goal is met; `None` without a goal or without the numbers.
    pub fn met(&self) -> Option<bool> {
        let onacc = self.cell(Column::Onacc);
        match self.goal? {
            Goal::RatioAtMost(most) => self.ratio().map(|ratio| ratio <= most),
            Goal::RatioAtLeast(least) => self.ratio().map(|ratio| ratio >= least),
            Goal::Below(limit) => (onacc.failed.is_none())
                .then(|| onacc.series.median())?
                .map(|value| value < limit),
            Goal::OfPeerAtMost(most) => self
                .compared(Column::Onacc, Column::Clamonacc)
                .map(|ratio| ratio <= most),
        }
    }

    /// What should have been measured and was not.
    pub fn troubles(&self) -> Vec<String> {
        // The points of a distribution fail together.
        let point = self.place.as_ref().and_then(|place| place.point);
        if point.is_some_and(|number| number > 0) {
            return Vec::new();
        }
        self.columns()
            .into_iter()
            .filter_map(|(column, name)| {
                let why = self.cell(column).failed.as_ref()?;
                Some(format!("{}: {name}: {why}", self.name))
            })
            .collect()
    }
}

/// Measures one round of one column for all of these rows at once, and enters
/// it: one reading for each row. A column that failed once is not tried again.
pub fn take(rows: &mut [Row], column: Column, measure: impl FnOnce() -> Result<Vec<Reading>>) {
    let cells = || rows.iter().map(|row| row.cell(column));
    if cells().any(|cell| cell.failed.is_some() || cell.absent.is_some()) {
        return;
    }
    let (readings, failed) = match measure() {
        Ok(readings) if readings.len() == rows.len() => (readings, None),
        Ok(readings) => {
            let why = format!("{} readings for {} rows", readings.len(), rows.len());
            (Vec::new(), Some(why))
        }
        Err(why) => (Vec::new(), Some(why)),
    };
    if let Some(why) = failed {
        for row in rows {
            row.cells[column as usize].failed = Some(why.clone());
        }
        return;
    }
    for (row, reading) in rows.iter_mut().zip(readings) {
        let cell = &mut row.cells[column as usize];
        cell.series.push(reading.value);
        cell.notes = reading.notes;
        if let Some(cpu) = reading.cpu {
            cell.cpu[0].push(cpu.agent);
            cell.cpu[1].push(cpu.clamd);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(goal: Goal, baseline: &[f64], onacc: &[f64], peer: &[f64]) -> Row {
        let mut rows = [Row::new("a workload", Unit::Nanoseconds).goal(goal)];
        for (column, values) in [
            (Column::Baseline, baseline),
            (Column::Onacc, onacc),
            (Column::Clamonacc, peer),
        ] {
            for value in values {
                take(&mut rows, column, || Ok(vec![Reading::from(*value)]));
            }
        }
        let [row] = rows;
        row
    }

    #[test]
    fn goals_are_met_or_not() {
        let met = |goal, onacc| row(goal, &[10.0], &[onacc], &[30.0]).met();
        assert_eq!(met(Goal::RatioAtMost(1.2), 12.0), Some(true));
        assert_eq!(met(Goal::RatioAtMost(1.2), 12.1), Some(false));
        assert_eq!(met(Goal::RatioAtLeast(0.8), 8.0), Some(true));
        assert_eq!(met(Goal::RatioAtLeast(0.8), 7.9), Some(false));
        assert_eq!(met(Goal::Below(50.0), 50.0), Some(false));
        assert_eq!(met(Goal::OfPeerAtMost(0.5), 15.0), Some(true));
        assert_eq!(row(Goal::RatioAtMost(2.0), &[], &[1.0], &[]).met(), None);
    }

    #[test]
    fn a_failed_column_is_trouble_and_is_not_tried_again() {
        let mut rows = [Row::new("a workload", Unit::KiB)];
        take(&mut rows, Column::Clamonacc, || Err("it hangs".to_owned()));
        take(&mut rows, Column::Clamonacc, || panic!("tried again"));
        assert_eq!(rows[0].troubles(), ["a workload: clamonacc: it hangs"]);
    }

    #[test]
    fn what_failed_in_one_round_meets_no_goal() {
        let mut rows = [row(Goal::RatioAtMost(2.0), &[1.0], &[1.0], &[])];
        assert_eq!(rows[0].met(), Some(true));
        take(&mut rows, Column::Onacc, || Err("it ended".to_owned()));
        assert_eq!((rows[0].met(), rows[0].ratio()), (None, None));
    }

    #[test]
    fn processor_times_are_medians_of_rounds() {
        let mut rows = [Row::new("a workload", Unit::Nanoseconds)];
        for agent in [3.0, 1.0, 2.0] {
            let cpu = Cpu { agent, clamd: 7.0 };
            take(&mut rows, Column::Onacc, || {
                Ok(vec![Reading::from(1.0).cpu(cpu)])
            });
        }
        let cpu = rows[0].cell(Column::Onacc).cpu().unwrap();
        assert_eq!((cpu.agent, cpu.clamd), (2.0, 7.0));
        assert_eq!(rows[0].cell(Column::Baseline).cpu(), None);
    }

    #[test]
    fn a_distribution_has_a_row_for_each_point() {
        let rows = Row::distribution("first opens", Axis::Openers, 4);
        assert_eq!(rows.len(), POINTS.len());
        assert_eq!(rows[3].name, "first opens, 4 openers, p99.9");
        assert!(rows.iter().all(Row::is_point));
        assert!(
            !Row::new("start-up", Unit::KiB)
                .at("x", Axis::Files, 1)
                .is_point()
        );
    }

    #[test]
    fn what_is_absent_is_not_tried_and_no_trouble() {
        let mut rows = [Row::new("a workload", Unit::KiB)];
        rows[0].absent(Column::Onacc, "not available in this build");
        take(&mut rows, Column::Onacc, || panic!("tried"));
        assert!(rows[0].troubles().is_empty());
    }
}
