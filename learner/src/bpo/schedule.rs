//! The learning rate over a run: linear warm-up, then cosine, linear or constant.
//!
//! ```text
//! warm-up   lr(s) = peak · (s + 1) / W                               s = 0 … W − 1
//! cosine    lr(s) = floor + (peak − floor) · (1 + cos(π p)) / 2      p = (s − W) / (S − W)
//! linear    lr(s) = floor + (peak − floor) · (1 − p)
//! ```
//!
//! s counts optimiser steps from 0 and S is their total. The first step already learns (`(s + 1) / W`): libraries that
//! start at exactly 0 spend a whole batch on an update of nothing.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a [`Schedule`] cannot be used.
#[derive(Debug, Error, PartialEq)]
#[error("schedule.{key} is {value}, it must be {allowed}")]
pub struct ScheduleError {
    /// The configuration key.
    pub key: &'static str,
    /// What it was set to.
    pub value: f64,
    /// What it may be.
    pub allowed: &'static str,
}

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Half a cosine wave down to the floor; the paper's.
    #[default]
    Cosine,
    /// A straight line down to the floor.
    Linear,
    /// No decay.
    Constant,
}

/// Section `[schedule]` of a run's configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// Shape after the warm-up. Default `cosine`.
    pub decay: Decay,
    /// Share of all steps spent warming up, 0 to 1, rounded up to whole steps. Default 0.03.
    pub warmup: f64,
    /// Where the decay ends, as a share of the peak, 0 to 1. Default 0.
    pub floor: f64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { decay: Decay::Cosine, warmup: 0.03, floor: 0.0 }
    }
}

impl Schedule {
    /// Checks the two shares.
    ///
    /// # Errors
    /// The first key outside 0 to 1.
    pub fn validate(&self) -> Result<(), ScheduleError> {
        for (key, value) in [("warmup", self.warmup), ("floor", self.floor)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(ScheduleError { key, value, allowed: "between 0 and 1" });
            }
        }
        Ok(())
    }

    /// Learning rate of optimiser step `step` (from 0) of `total`, where `peak` is the configured learning rate.
    /// A step past the end gets the last step's rate.
    pub fn learning_rate(&self, peak: f64, step: u64, total: u64) -> f64 {
        let warmup = (self.warmup * total as f64).ceil() as u64;
        if step < warmup {
            return peak * (step + 1) as f64 / warmup as f64;
        }
        let left = total.saturating_sub(warmup).max(1);
        let done = (step - warmup).min(left - 1) as f64 / left as f64;
        let share = match self.decay {
            Decay::Cosine => (1.0 + (std::f64::consts::PI * done).cos()) / 2.0,
            Decay::Linear => 1.0 - done,
            Decay::Constant => return peak,
        };
        peak * (self.floor + (1.0 - self.floor) * share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: &Schedule, total: u64) -> Vec<f64> {
        (0..total).map(|step| schedule.learning_rate(1.0, step, total)).collect()
    }

    #[test]
    fn linear_by_hand() {
        let schedule = Schedule { decay: Decay::Linear, warmup: 0.2, floor: 0.0 };
        let expected = [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125];
        for (got, want) in rates(&schedule, 10).into_iter().zip(expected) {
            assert!((got - want).abs() < 1e-12, "{got} {want}");
        }
    }

    #[test]
    fn cosine_starts_at_the_peak_passes_the_middle_and_never_dies_early() {
        let schedule = Schedule { decay: Decay::Cosine, warmup: 0.0, floor: 0.1 };
        let all = rates(&schedule, 100);
        assert!((all[0] - 1.0).abs() < 1e-12);
        assert!((all[50] - 0.55).abs() < 1e-12);
        assert!(all.windows(2).all(|pair| pair[1] < pair[0]) && all[99] > 0.1);
    }

    #[test]
    fn constant_after_warmup_and_past_the_end() {
        let schedule = Schedule { decay: Decay::Constant, warmup: 0.03, floor: 0.0 };
        assert_eq!(rates(&schedule, 20), vec![1.0; 20]);
        assert_eq!(Schedule::default().learning_rate(1.0, 50, 10), Schedule::default().learning_rate(1.0, 9, 10));
        assert_eq!(Schedule::default().learning_rate(2e-6, 0, 1), 2e-6);
    }

    #[test]
    fn validation_names_the_key() {
        let wrong = Schedule { warmup: 1.5, ..Schedule::default() };
        assert_eq!(wrong.validate().unwrap_err().to_string(), "schedule.warmup is 1.5, it must be between 0 and 1");
        assert!(Schedule { floor: f64::NAN, ..Schedule::default() }.validate().is_err());
    }
}
