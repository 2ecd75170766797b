//! Ends a run that goes wrong, with a reason instead of an adapter.
//!
//! Three signs: a number that is not finite; a loss that stays far above what the same pairs give under the reference; and
//! chosen answers that become much less likely than under the reference, which plain preference losses do silently while
//! reward accuracy looks well (method.md: 95 % garbled captions at a reward accuracy above .9).
//!
//! The loss is compared with the reference's on the *same* pairs, because batches differ: pairs of like length share one, and
//! a batch of answers that the model knows by heart has a tenth of the loss of one of corrections.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::config::ConfigError;
use super::metrics::StepMetrics;

/// Why a run was ended.
#[derive(Clone, Debug, Error, PartialEq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum GuardError {
    /// NaN or infinity.
    #[error("step {step}: {what} is {value}: the run has no adapter to give")]
    NotFinite {
        /// Optimiser step, from 1.
        step: u64,
        /// Which number.
        what: &'static str,
        /// As text, because JSON has no NaN.
        value: String,
    },
    /// The loss diverged.
    #[error(
        "step {step}: the mean loss of the last {window} steps is {loss:.4}, more than {ratio} times the {reference:.4} that \
         the reference has on the same pairs: the run diverged, a smaller learning rate may help"
    )]
    Diverged {
        /// Optimiser step, from 1.
        step: u64,
        /// Steps averaged.
        window: usize,
        /// Mean loss over them.
        loss: f64,
        /// Mean loss of the same pairs under the reference.
        reference: f64,
        /// `guard.loss_ratio`.
        ratio: f64,
    },
    /// The policy unlearnt the chosen answers.
    #[error(
        "step {step}: over the last {window} steps the chosen answers are {drop:.3} nats per token less likely than under \
         the reference, the limit is {limit}: the policy is being broken (sft or anchor terms hold it)"
    )]
    ChosenDropped {
        /// Optimiser step, from 1.
        step: u64,
        /// Steps averaged.
        window: usize,
        /// Mean of [log π_ref(y⁺) − log π_θ(y⁺)] / |y⁺|.
        drop: f64,
        /// `guard.chosen_drop`.
        limit: f64,
    },
}

/// Section `[guard]`. The check for non-finite numbers has no switch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuardConfig {
    /// Steps that the other two checks average over, at least 1. Default 10.
    pub window: usize,
    /// Mean loss over that of the same pairs under the reference at which the run has diverged; above 1, or 0 for no check.
    /// Default 4.
    pub loss_ratio: f64,
    /// Nats per token by which chosen answers may fall below the reference; above 0, or 0 for no check. Default 1.
    pub chosen_drop: f64,
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self { window: 10, loss_ratio: 4.0, chosen_drop: 1.0 }
    }
}

impl GuardConfig {
    /// Checks every key.
    ///
    /// # Errors
    /// The first key out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |key, value: String, allowed| Err(ConfigError::OutOfRange { key, value, allowed });
        if self.window == 0 {
            return wrong("guard.window", self.window.to_string(), "at least 1");
        }
        if self.loss_ratio.is_nan() || (self.loss_ratio != 0.0 && self.loss_ratio <= 1.0) {
            return wrong("guard.loss_ratio", self.loss_ratio.to_string(), "0 (off) or above 1");
        }
        if self.chosen_drop.is_nan() || self.chosen_drop < 0.0 {
            return wrong("guard.chosen_drop", self.chosen_drop.to_string(), "0 (off) or more");
        }
        Ok(())
    }
}

/// What the guard remembers; part of a checkpoint, so that a resumed run ends at the same step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Guard {
    losses: Vec<f64>,
    #[serde(default)]
    reference_losses: Vec<f64>,
    drops: Vec<f64>,
}

impl Guard {
    /// Looks at the numbers of the step that is being taken.
    ///
    /// # Errors
    /// The reason why the run has to end.
    pub fn check(&mut self, config: &GuardConfig, metrics: &StepMetrics) -> Result<(), GuardError> {
        let StepMetrics { step, loss, loss_reference, grad_norm, chosen_drop, .. } = *metrics;
        for (what, value) in [("the loss", loss), ("the gradient norm", grad_norm), ("log π(y⁺)", chosen_drop)] {
            if !value.is_finite() {
                return Err(GuardError::NotFinite { step, what, value: value.to_string() });
            }
        }
        let window = config.window;
        let mean = |values: &mut Vec<f64>, value: f64| {
            values.push(value);
            if values.len() > window {
                values.remove(0);
            }
            (values.len() == window).then(|| values.iter().sum::<f64>() / window as f64)
        };
        let loss = mean(&mut self.losses, loss);
        let reference = mean(&mut self.reference_losses, loss_reference);
        let drop = mean(&mut self.drops, chosen_drop);
        // An SFT loss may be near 0 on a model that knows the answers; a quarter of a nat is no divergence.
        if let (Some(loss), Some(reference)) = (loss, reference)
            && config.loss_ratio > 0.0
            && loss > config.loss_ratio * reference.max(0.25)
        {
            return Err(GuardError::Diverged { step, window, loss, reference, ratio: config.loss_ratio });
        }
        if let Some(drop) = drop
            && config.chosen_drop > 0.0
            && drop > config.chosen_drop
        {
            return Err(GuardError::ChosenDropped { step, window, drop, limit: config.chosen_drop });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step with this loss, gradient norm and drop, whose pairs cost the reference 0.7 nats.
    fn step(step: u64, (loss, grad_norm, chosen_drop): (f64, f64, f64)) -> StepMetrics {
        StepMetrics { step, loss, loss_reference: 0.7, grad_norm, chosen_drop, ..StepMetrics::default() }
    }

    fn run(config: &GuardConfig, steps: &[(f64, f64, f64)]) -> Result<(), GuardError> {
        let mut guard = Guard::default();
        (1..).zip(steps).try_for_each(|(number, values)| guard.check(config, &step(number, *values)))
    }

    #[test]
    fn not_finite_ends_at_once() {
        for bad in [(f64::NAN, 1.0, 0.0), (1.0, f64::INFINITY, 0.0), (1.0, 1.0, f64::NAN)] {
            let error = run(&GuardConfig::default(), &[(0.7, 1.0, 0.0), bad]).unwrap_err();
            assert!(matches!(error, GuardError::NotFinite { step: 2, .. }), "{error}");
        }
    }

    #[test]
    fn divergence_and_drop_need_a_whole_window() {
        let config = GuardConfig { window: 3, ..GuardConfig::default() };
        let high = (9.0, 1.0, 0.0);
        assert!(
            run(&config, &[(0.7, 1.0, 0.0), high, (0.7, 1.0, 0.0), (0.7, 1.0, 0.0)]).is_err(),
            "mean of three is 3.47"
        );
        assert!(run(&config, &[(0.7, 1.0, 0.0), high]).is_ok(), "two are no window");
        let error = run(&config, &[(0.7, 1.0, 2.0); 3]).unwrap_err();
        assert!(matches!(error, GuardError::ChosenDropped { step: 3, .. }), "{error}");
        let off = GuardConfig { window: 1, loss_ratio: 0.0, chosen_drop: 0.0 };
        assert!(run(&off, &[(0.7, 1.0, 0.0), (1e9, 1.0, 50.0)]).is_ok());
    }

    /// A run of the demonstration ended here: its first batch held nothing but answers that the model knew.
    #[test]
    fn an_easy_first_batch_does_not_make_the_others_a_divergence() {
        let config = GuardConfig { window: 2, ..GuardConfig::default() };
        let mut guard = Guard::default();
        for (number, loss) in [(1, 0.8), (2, 3.5), (3, 3.6)] {
            let metrics = StepMetrics { loss_reference: loss, ..step(number, (loss, 1.0, 0.0)) };
            guard.check(&config, &metrics).unwrap();
        }
    }

    #[test]
    fn a_resumed_guard_remembers() {
        let config = GuardConfig { window: 3, ..GuardConfig::default() };
        let mut guard = Guard::default();
        guard.check(&config, &step(1, (0.7, 1.0, 2.0))).unwrap();
        guard.check(&config, &step(2, (0.7, 1.0, 2.0))).unwrap();
        let mut again: Guard = serde_json::from_str(&serde_json::to_string(&guard).unwrap()).unwrap();
        assert!(again.check(&config, &step(3, (0.7, 1.0, 2.0))).is_err());
    }
}
