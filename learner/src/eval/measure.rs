//! Ratios of sums over items, with bootstrap confidence intervals.
//!
//! Accuracy, CHAIR, Cover, precision, F1: each is Σ numerator / Σ denominator over items. Keeping the two numbers per
//! item lets one resampling of *items* give the interval of any of them, and two models asked the same items be
//! compared pair by pair, which is far sharper than comparing two intervals. Items must not hang together: all that is
//! asked about one picture is one item ([`Measure::by_picture`]).
//!
//! ```
//! use reground_learner::eval::Measure;
//! // Three captions with 2, 1 and 1 mentions, one of them wrong: 1 / 4.
//! let chair = Measure::new("CHAIR_i", [(1.0, 2.0), (0.0, 1.0), (0.0, 1.0)]);
//! assert_eq!(chair.value(), Some(0.25));
//! ```

use std::collections::HashMap;
use std::hash::Hash;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use super::error::EvalError;

/// How intervals are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bootstrap {
    /// How often the items are resampled.
    pub resamples: usize,
    /// The share of resampled values inside the interval, e.g. 0.95.
    pub confidence: f64,
    /// Decides the resamples.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { resamples: 2000, confidence: 0.95, seed: 0 }
    }
}

/// A named ratio of sums, with the two summands of each item.
#[derive(Clone, Debug, PartialEq)]
pub struct Measure {
    name: String,
    items: Vec<(f64, f64)>,
}

/// A measured value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// What was measured.
    pub name: String,
    /// The ratio over all items; `None` if its denominator is zero ("precision" of a model that never says yes).
    pub value: Option<f64>,
    /// Lower end of the confidence interval.
    pub low: Option<f64>,
    /// Upper end of the confidence interval.
    pub high: Option<f64>,
    /// Items measured. What is asked about one picture is one of them.
    pub items: usize,
}

/// The difference candidate − baseline on the same items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// What was measured.
    pub name: String,
    /// Candidate − baseline over all items; `None` if either has no value.
    pub difference: Option<f64>,
    /// Lower end of the confidence interval.
    pub low: Option<f64>,
    /// Upper end of the confidence interval.
    pub high: Option<f64>,
    /// Items compared: those that have something to measure on one side at least.
    pub items: usize,
}

/// Which way a measure gets better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// More is better (accuracy, Cover).
    Higher,
    /// Less is better (CHAIR, error rates).
    Lower,
}

impl Comparison {
    /// Whether the candidate is worse by less than `margin`, with confidence: the bad end of the interval stays inside.
    /// `false` if there is no interval or no difference that is a number, since a gate must not pass on nothing.
    pub fn not_worse(&self, better: Better, margin: f64) -> bool {
        self.is_finite() && self.is_within(better, margin)
    }

    /// Whether there is a difference, and it is a finite number.
    pub fn is_finite(&self) -> bool {
        self.difference.is_some_and(f64::is_finite)
    }

    fn is_within(&self, better: Better, margin: f64) -> bool {
        match better {
            Better::Higher => self.low.is_some_and(|low| low > -margin),
            Better::Lower => self.high.is_some_and(|high| high < margin),
        }
    }
}

impl Measure {
    /// A measure from (numerator, denominator) of each item.
    pub fn new(name: impl Into<String>, items: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self { name: name.into(), items: items.into_iter().collect() }
    }

    /// A measure whose items are pictures, in the order in which they are first seen: the (numerator, denominator) of
    /// all that is about one are added up. Several questions about a picture are often right or wrong together;
    /// resampled one by one they would give a narrower interval than what is known.
    pub fn by_picture<P: Eq + Hash>(
        name: impl Into<String>,
        values: impl IntoIterator<Item = (P, (f64, f64))>,
    ) -> Self {
        let (mut places, mut items) = (HashMap::new(), Vec::<(f64, f64)>::new());
        for (picture, (numerator, denominator)) in values {
            let place = *places.entry(picture).or_insert(items.len());
            if place == items.len() {
                items.push((0.0, 0.0));
            }
            items[place].0 += numerator;
            items[place].1 += denominator;
        }
        Self::new(name, items)
    }

    /// The share of items for which something holds.
    pub fn share(name: impl Into<String>, items: impl IntoIterator<Item = bool>) -> Self {
        Self::new(name, items.into_iter().map(|hit| (f64::from(u8::from(hit)), 1.0)))
    }

    /// The mean of one number per item.
    pub fn mean(name: impl Into<String>, items: impl IntoIterator<Item = f64>) -> Self {
        Self::new(name, items.into_iter().map(|value| (value, 1.0)))
    }

    /// What is measured.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The ratio over all items.
    pub fn value(&self) -> Option<f64> {
        ratio(self.items.iter().copied())
    }

    /// The ratio with its percentile bootstrap interval.
    pub fn estimate(&self, bootstrap: Bootstrap) -> Estimate {
        let interval = interval(self.items.len(), bootstrap, |picks| ratio(picks.iter().map(|&pick| self.items[pick])));
        Estimate {
            name: self.name.clone(),
            value: self.value(),
            low: interval.map(|(low, _)| low),
            high: interval.map(|(_, high)| high),
            items: self.items.len(),
        }
    }

    /// Compares with `baseline`, measured on the same items in the same order: each resample takes the same items of both.
    ///
    /// # Errors
    /// [`EvalError::Unpaired`] if the numbers of items differ.
    pub fn compare(&self, baseline: &Self, bootstrap: Bootstrap) -> Result<Comparison, EvalError> {
        if self.items.len() != baseline.items.len() {
            return Err(EvalError::Unpaired { candidate: self.items.len(), baseline: baseline.items.len() });
        }
        let difference = |picks: &[usize]| {
            let candidate = ratio(picks.iter().map(|&pick| self.items[pick]))?;
            let baseline = ratio(picks.iter().map(|&pick| baseline.items[pick]))?;
            Some(candidate - baseline)
        };
        let all: Vec<usize> = (0..self.items.len()).collect();
        let measured = self.items.iter().zip(&baseline.items).filter(|(one, other)| one.1 != 0.0 || other.1 != 0.0);
        let interval = interval(self.items.len(), bootstrap, difference);
        Ok(Comparison {
            name: self.name.clone(),
            difference: difference(&all),
            low: interval.map(|(low, _)| low),
            high: interval.map(|(_, high)| high),
            items: measured.count(),
        })
    }
}

fn ratio(items: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let (numerator, denominator) = items.fold((0.0, 0.0), |sum, item| (sum.0 + item.0, sum.1 + item.1));
    (denominator != 0.0).then(|| numerator / denominator)
}

/// The percentile interval of `statistic` over resampled item indices. Resamples without a value are left out. There is
/// no interval if a value is not finite: sorted to one end, it would not be seen at the other.
fn interval(items: usize, bootstrap: Bootstrap, statistic: impl Fn(&[usize]) -> Option<f64>) -> Option<(f64, f64)> {
    if items == 0 {
        return None;
    }
    let mut random = ChaCha8Rng::seed_from_u64(bootstrap.seed);
    let mut picks = vec![0; items];
    let mut values: Vec<f64> = (0..bootstrap.resamples)
        .filter_map(|_| {
            for pick in &mut picks {
                *pick = random.random_range(0..items);
            }
            statistic(&picks)
        })
        .collect();
    if !values.iter().all(|value| value.is_finite()) {
        return None;
    }
    values.sort_by(f64::total_cmp);
    let tail = (1.0 - bootstrap.confidence) / 2.0;
    Some((percentile(&values, tail)?, percentile(&values, 1.0 - tail)?))
}

/// The value below which `share` of the sorted `values` lie, linearly interpolated between neighbours.
fn percentile(values: &[f64], share: f64) -> Option<f64> {
    let position = share.clamp(0.0, 1.0) * values.len().checked_sub(1)? as f64;
    let (below, above) = (values[position.floor() as usize], values[position.ceil() as usize]);
    Some(below + (above - below) * position.fract())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn percentiles_interpolate() {
        let values = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!(percentile(&values, 0.0), Some(1.0));
        assert_eq!(percentile(&values, 0.5), Some(3.0));
        assert_eq!(percentile(&values, 0.625), Some(3.5));
        assert_eq!(percentile(&values, 1.0), Some(5.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn the_interval_of_a_share_has_about_its_textbook_width() {
        // 100 of 400: standard error sqrt(.25 * .75 / 400) = .02165, so 95 % lies within 1.96 of them.
        let estimate = Measure::share("share", (0..400).map(|item| item % 4 == 0)).estimate(Bootstrap::default());
        assert_eq!(estimate.value, Some(0.25));
        let (low, high) = (estimate.low.unwrap(), estimate.high.unwrap());
        assert!((low - (0.25 - 1.96 * 0.02165)).abs() < 0.005, "{low}");
        assert!((high - (0.25 + 1.96 * 0.02165)).abs() < 0.005, "{high}");
    }

    #[test]
    fn pairing_sees_a_small_but_steady_difference() {
        // The candidate is right wherever the baseline is, and on ten items more.
        let baseline = Measure::share("accuracy", (0..400).map(|item| item % 2 == 0));
        let candidate = Measure::share("accuracy", (0..400).map(|item| item % 2 == 0 || item < 20));
        let comparison = candidate.compare(&baseline, Bootstrap::default()).unwrap();
        assert!((comparison.difference.unwrap() - 0.025).abs() < 1e-12);
        assert!(comparison.low.unwrap() > 0.0);
        assert!(comparison.not_worse(Better::Higher, 0.0));
        assert!(!comparison.not_worse(Better::Lower, 0.01));
        assert!(comparison.not_worse(Better::Lower, 0.05));
    }

    #[test]
    fn nothing_to_divide_by_is_no_value_and_never_passes() {
        let empty = Measure::new("precision", [(0.0, 0.0); 3]);
        let estimate = empty.estimate(Bootstrap::default());
        assert_eq!((estimate.value, estimate.low), (None, None));
        let comparison = empty.compare(&empty, Bootstrap::default()).unwrap();
        assert!(!comparison.not_worse(Better::Higher, 1.0) && !comparison.not_worse(Better::Lower, 1.0));
        let unpaired = empty.compare(&Measure::share("x", [true]), Bootstrap::default()).unwrap_err();
        assert_eq!(unpaired.to_string(), "a paired comparison needs the same items on both sides: 3 and 1 were given");
    }

    #[test]
    fn what_is_no_number_gives_no_interval_and_never_passes() {
        let baseline = Measure::mean("log π", vec![-1.0; 40]);
        for broken in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            // All others are better, so that most of what is resampled looks well.
            let candidate = Measure::mean("log π", (0..40).map(|item| if item == 7 { broken } else { -0.5 }));
            let estimate = candidate.estimate(Bootstrap::default());
            assert_eq!((estimate.low, estimate.high), (None, None), "{broken}");
            let comparison = candidate.compare(&baseline, Bootstrap::default()).unwrap();
            assert_eq!((comparison.low, comparison.high), (None, None), "{broken}");
            assert!(!comparison.not_worse(Better::Higher, 9.0) && !comparison.not_worse(Better::Lower, 9.0));
        }
        let unknown = Comparison {
            name: "log π".to_owned(),
            difference: Some(f64::NAN),
            low: Some(0.0),
            high: Some(0.0),
            items: 40,
        };
        assert!(!unknown.not_worse(Better::Higher, 9.0) && !unknown.not_worse(Better::Lower, 9.0));
    }

    #[test]
    fn what_is_said_of_one_picture_is_resampled_together() {
        // Ten questions about each of two pictures, all right about the one and all wrong about the other.
        let value = |question: usize| (f64::from(u8::from(question < 10)), 1.0);
        let pictures = Measure::by_picture("accuracy", (0..20).map(|question| (question / 10, value(question))));
        assert_eq!(pictures, Measure::new("accuracy", [(10.0, 10.0), (0.0, 10.0)]));
        let estimate = pictures.estimate(Bootstrap::default());
        assert_eq!((estimate.value, estimate.items), (Some(0.5), 2));
        assert_eq!((estimate.low, estimate.high), (Some(0.0), Some(1.0)));
        let apart = Measure::new("accuracy", (0..20).map(value)).estimate(Bootstrap::default());
        assert!(apart.value == Some(0.5) && apart.low > Some(0.2) && apart.high < Some(0.8), "{apart:?}");
        // They need not come one after the other.
        let mixed = Measure::by_picture("share", [("a", (1.0, 1.0)), ("b", (0.0, 1.0)), ("a", (0.5, 2.0))]);
        assert_eq!(mixed, Measure::new("share", [(1.5, 3.0), (0.0, 1.0)]));
    }

    proptest! {
        #[test]
        fn intervals_hold_the_value_and_repeat(hits in prop::collection::vec(any::<bool>(), 1..60), seed in any::<u64>()) {
            let measure = Measure::share("share", hits);
            let bootstrap = Bootstrap { resamples: 200, seed, ..Bootstrap::default() };
            let estimate = measure.estimate(bootstrap);
            let (value, low, high) = (estimate.value.unwrap(), estimate.low.unwrap(), estimate.high.unwrap());
            prop_assert!(low <= value + 0.1 && value - 0.1 <= high && (0.0..=1.0).contains(&low) && high <= 1.0);
            prop_assert_eq!(measure.estimate(bootstrap), estimate);
            let same = measure.compare(&measure, bootstrap).unwrap();
            prop_assert_eq!((same.difference, same.low, same.high), (Some(0.0), Some(0.0), Some(0.0)));
        }
    }
}
