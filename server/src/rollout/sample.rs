//! Means of many measurements, and whether two of them differ by more than chance.
//!
//! ```text
//! rise = m − m′ − allowed        lower bound = rise − z √( s² / n + s′² / n′ )
//! ```
//!
//! m, s², n of what is new, m′, s′², n′ of what it is compared with. What is new counts as worse once the lower bound is above 0. It is
//! looked at again and again, so that z must be wider than for a single look: with z = 3 one look in 740 is wrong where nothing
//! changed and the threshold is 0.

use reground_learner::store::rows;

/// Standard errors by which a difference must exceed what is allowed.
const Z: f64 = 3.0;

/// What is known of many measurements of one thing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    count: u64,
    mean: f64,
    /// Sum of the squares of the distances from the mean (Welford).
    squares: f64,
}

impl Sample {
    /// One more measurement; one that is not finite is left out.
    pub fn add(&mut self, value: f64) {
        if !value.is_finite() {
            return;
        }
        self.count += 1;
        let distance = value - self.mean;
        self.mean += distance / self.count as f64;
        self.squares += distance * (value - self.mean);
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their mean; 0 if there are none.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// The square of the mean's standard error; 0 for fewer than two.
    #[must_use]
    pub fn variance_of_mean(&self) -> f64 {
        if self.count < 2 { 0.0 } else { self.squares / (self.count - 1) as f64 / self.count as f64 }
    }

    /// By how much this mean is above another one and `allowed` together, beyond chance; above 0: it is.
    #[must_use]
    pub fn rise_above(&self, other: &Self, allowed: f64) -> f64 {
        let chance = (self.variance_of_mean() + other.variance_of_mean()).sqrt();
        self.mean - other.mean - allowed - Z * chance
    }
}

impl FromIterator<f64> for Sample {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut sample = Self::default();
        values.into_iter().for_each(|value| sample.add(value));
        sample
    }
}

impl From<rows::Sample> for Sample {
    fn from(rows::Sample { count, mean, squares }: rows::Sample) -> Self {
        Self { count, mean, squares }
    }
}

impl From<Sample> for rows::Sample {
    fn from(Sample { count, mean, squares }: Sample) -> Self {
        Self { count, mean, squares }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_its_error_by_hand() {
        let sample: Sample = [1.0, 2.0, 3.0, 6.0, f64::NAN, f64::INFINITY].into_iter().collect();
        assert_eq!((sample.count(), sample.mean()), (4, 3.0));
        // (4 + 1 + 0 + 9) / 3 / 4
        assert!((sample.variance_of_mean() - 14.0 / 12.0).abs() < 1e-12);
        assert_eq!(Sample::default().variance_of_mean(), 0.0);
    }

    #[test]
    fn a_difference_counts_once_it_is_beyond_chance_and_what_is_allowed() {
        let share = |failed: usize, of: usize| (0..of).map(|n| f64::from(u8::from(n < failed))).collect::<Sample>();
        let old = share(1, 100);
        assert!(share(20, 20).rise_above(&old, 0.05) > 0.0);
        assert!(share(15, 50).rise_above(&old, 0.05) > 0.0);
        assert!(share(2, 20).rise_above(&old, 0.05) < 0.0, "two of twenty may be chance");
        assert!(share(60, 1000).rise_above(&old, 0.5) < 0.0, "it is allowed");
    }
}
