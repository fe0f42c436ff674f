//! Medians, spreads and ratios. Pure; tested below.

/// One number for each round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series(Vec<f64>);

impl Series {
    /// Adds the number of a round.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The numbers, in the order of the rounds.
    pub fn values(&self) -> &[f64] {
        &self.0
    }

    /// The middle one; `None` if there is none.
    pub fn median(&self) -> Option<f64> {
        median(self.0.clone())
    }

    /// The least and the greatest.
    pub fn range(&self) -> Option<(f64, f64)> {
        let least = self.0.iter().copied().reduce(f64::min)?;
        Some((least, self.0.iter().copied().reduce(f64::max)?))
    }

    /// The median of the ratios round by round: what disturbs a whole round
    /// disturbs both of its numbers.
    pub fn ratio_to(&self, other: &Self) -> Option<f64> {
        let pairs = self.0.iter().zip(&other.0);
        median(pairs.map(|(own, other)| own / other).collect())
    }
}

/// The middle of these; the mean of the two in the middle if they are even.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = values.len() / 2;
    let high = *values.get(upper)?;
    if values.len() % 2 == 1 {
        Some(high)
    } else {
        Some(f64::midpoint(values[upper - 1], high))
    }
}

/// The value below which this share (in thousandths) of sorted values lies.
pub fn quantile(sorted: &[u64], thousandths: usize) -> u64 {
    let last = sorted.len().saturating_sub(1);
    let at = (sorted.len() * thousandths / 1000).min(last);
    sorted.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Series {
        Series(values.to_vec())
    }

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        assert_eq!(series(&[9.0, 1.0, 2.0]).median(), Some(2.0));
        assert_eq!(series(&[4.0, 1.0, 2.0, 100.0]).median(), Some(3.0));
        assert_eq!(series(&[]).median(), None);
        assert_eq!(series(&[3.0, 1.0, 2.0]).range(), Some((1.0, 3.0)));
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The second round was disturbed as a whole, and changes nothing.
        let (own, other) = (series(&[2.0, 20.0, 2.0]), series(&[1.0, 10.0, 1.0]));
        assert_eq!(own.ratio_to(&other), Some(2.0));
        assert_eq!(own.ratio_to(&series(&[])), None);
    }

    #[test]
    fn quantiles_are_values_that_were_there() {
        let sorted: Vec<u64> = (0..1000).collect();
        assert_eq!(quantile(&sorted, 500), 500);
        assert_eq!(quantile(&sorted, 999), 999);
        assert_eq!(quantile(&sorted, 1000), 999);
        assert_eq!(quantile(&[7], 500), 7);
        assert_eq!(quantile(&[], 500), 0);
    }
}
