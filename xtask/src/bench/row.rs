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

/// A number of one round, and what shows that it is what it claims to be.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// The number.
    pub value: f64,
    /// Remarks; those of the last round are kept.
    pub notes: Vec<String>,
}

/// The numbers of one column.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    /// One number for each round.
    pub series: Series,
    /// Remarks of the last round.
    pub notes: Vec<String>,
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
    cells: [Cell; 4],
}

impl From<f64> for Reading {
    fn from(value: f64) -> Self {
        Self {
            value,
            notes: Vec::new(),
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
}

impl Row {
    /// A row without numbers, whose baseline is the same without an agent.
    pub fn new(name: impl Into<String>, unit: Unit) -> Self {
        Self {
            name: name.into(),
            baseline: "no agent",
            unit,
            goal: None,
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

    /// The numbers of a column.
    pub fn cell(&self, column: Column) -> &Cell {
        &self.cells[column as usize]
    }

    /// Says that there can be no number in a column.
    pub fn absent(&mut self, column: Column, why: &str) {
        self.cells[column as usize].absent = Some(why.to_owned());
    }

    /// All columns and their names.
    pub fn columns(&self) -> [(Column, &'static str); 4] {
        [
            (Column::Baseline, self.baseline),
            (Column::MarksAlone, "marks alone"),
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
    fn what_is_absent_is_not_tried_and_no_trouble() {
        let mut rows = [Row::new("a workload", Unit::KiB)];
        rows[0].absent(Column::Onacc, "not available in this build");
        take(&mut rows, Column::Onacc, || panic!("tried"));
        assert!(rows[0].troubles().is_empty());
    }
}
