//! Stops when the held-out split no longer improves, and remembers which step was best.

use serde::{Deserialize, Serialize};

use super::config::ConfigError;
use super::examples::Examples;
use super::metrics::Evaluation;

/// What counts as better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Criterion {
    /// Lower held-out loss.
    #[default]
    Loss,
    /// Higher share of held-out pairs with a positive margin; some must have a rejected answer.
    Accuracy,
    /// Higher mean held-out margin; some must have a rejected answer.
    Margin,
}

/// Section `[early_stop]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EarlyStopConfig {
    /// Evaluations without an improvement after which the run ends; 0 never stops early. Default 0.
    pub patience: usize,
    /// What is watched. Default `loss`.
    pub criterion: Criterion,
    /// Improvement that counts, in the unit of the criterion, at least 0. Default 0.
    pub min_delta: f64,
    /// Give the adapter of the best evaluation instead of the last step's. Default false.
    pub keep_best: bool,
}

impl Default for EarlyStopConfig {
    fn default() -> Self {
        Self { patience: 0, criterion: Criterion::Loss, min_delta: 0.0, keep_best: false }
    }
}

impl EarlyStopConfig {
    /// Checks every key.
    ///
    /// # Errors
    /// `min_delta` below 0.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.min_delta.is_finite() && self.min_delta >= 0.0 {
            return Ok(());
        }
        let (key, value) = ("early_stop.min_delta", self.min_delta.to_string());
        Err(ConfigError::OutOfRange { key, value, allowed: "0 or more" })
    }

    /// Checks that there is something to watch. Accuracy and margin of pairs without a rejected answer are 0 at every
    /// evaluation, so that the first would be the best, whatever comes after it.
    ///
    /// # Errors
    /// Patience or the best evaluation hang on such a criterion, and no held-out pair has a rejected answer.
    pub(super) fn check_held_out(&self, held_out: &dyn Examples) -> Result<(), ConfigError> {
        let value = match self.criterion {
            Criterion::Loss => return Ok(()),
            Criterion::Accuracy => "accuracy".to_owned(),
            Criterion::Margin => "margin".to_owned(),
        };
        let decides = self.patience > 0 || self.keep_best;
        let nothing = !held_out.is_empty() && !(0..held_out.len()).any(|index| held_out.has_rejected(index));
        if decides && nothing {
            let (key, allowed) = ("early_stop.criterion", "loss: no held-out pair has a rejected answer");
            return Err(ConfigError::OutOfRange { key, value, allowed });
        }
        Ok(())
    }
}

/// What has been seen; part of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EarlyStop {
    /// Best value so far, turned so that higher is better.
    best: Option<f64>,
    /// The optimiser step of that value.
    pub best_step: Option<u64>,
    /// Evaluations since then.
    since: usize,
}

/// What an evaluation means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// It is the best so far.
    pub improved: bool,
    /// Patience is used up.
    pub stop: bool,
}

impl EarlyStop {
    /// Takes note of the evaluation after optimiser step `step`.
    pub fn observe(&mut self, config: &EarlyStopConfig, step: u64, evaluation: &Evaluation) -> Verdict {
        let value = match config.criterion {
            Criterion::Loss => -evaluation.loss,
            Criterion::Accuracy => evaluation.accuracy,
            Criterion::Margin => evaluation.margin,
        };
        let improved = match self.best {
            None => !value.is_nan(),
            Some(best) => value > best + config.min_delta,
        };
        if improved {
            (self.best, self.best_step, self.since) = (Some(value), Some(step), 0);
        } else {
            self.since += 1;
        }
        Verdict { improved, stop: config.patience > 0 && self.since >= config.patience }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(config: &EarlyStopConfig, losses: &[f64]) -> Vec<(bool, bool)> {
        let mut state = EarlyStop::default();
        let mut observe = |at: usize, loss: f64| {
            let evaluation = Evaluation { loss, accuracy: -loss, margin: -loss, ..Evaluation::default() };
            let verdict = state.observe(config, at as u64, &evaluation);
            (verdict.improved, verdict.stop)
        };
        losses.iter().enumerate().map(|(at, loss)| observe(at, *loss)).collect()
    }

    #[test]
    fn patience_counts_evaluations_without_improvement() {
        for criterion in [Criterion::Loss, Criterion::Accuracy, Criterion::Margin] {
            let config = EarlyStopConfig { patience: 2, criterion, min_delta: 0.1, keep_best: false };
            let got = verdicts(&config, &[1.0, 0.95, 0.8, 0.8, 0.75]);
            assert_eq!(got, [(true, false), (false, false), (true, false), (false, false), (false, true)]);
        }
    }

    #[test]
    fn no_patience_never_stops_and_nan_is_no_best() {
        let got = verdicts(&EarlyStopConfig::default(), &[f64::NAN, 2.0, 3.0, 4.0]);
        assert_eq!(got, [(false, false), (true, false), (false, false), (false, false)]);
    }
}
