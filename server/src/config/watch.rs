//! `[watch]`.

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// When a generation that got traffic is taken back by itself.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct WatchConfig {
    /// Watch at all.
    pub enabled: bool,
    /// Seconds from the change that a generation is watched.
    pub window_s: u64,
    /// Seconds between two looks.
    pub interval_s: u64,
    /// Answers of both generations below which failures and latency say nothing.
    pub min_answers: u64,
    /// By how much the share of answers that failed may be higher.
    pub max_failure_rise: f64,
    /// By which factor the first token may come later; 0: this is not looked at.
    pub max_first_token_factor: f64,
    /// By which factor the tokens after it may come more slowly; 0: this is not looked at.
    pub max_token_factor: f64,
    /// Rated answers of both generations below which ratings say nothing.
    pub min_ratings: u64,
    /// By how much the mean rating, from -1 to 1, may be lower.
    pub max_rating_drop: f64,
    /// Recorded answers to pictures that the grounding probe scores at most; 0: there is no such probe.
    pub grounding_answers: usize,
    /// Answers below which it says nothing.
    pub min_grounding: u64,
    /// Share of what the picture adds to an answer's log-probability that may be lost.
    pub max_grounding_loss: f64,
}

impl Default for WatchConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            window_s: 1800,
            interval_s: 10,
            min_answers: 50,
            max_failure_rise: 0.05,
            max_first_token_factor: 0.0,
            max_token_factor: 0.0,
            min_ratings: 20,
            max_rating_drop: 0.25,
            grounding_answers: 16,
            min_grounding: 8,
            max_grounding_loss: 0.5,
        }
    }
}

impl WatchConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::range("watch.window_s", self.window_s, 2..=31_536_000)?;
        ConfigError::range("watch.interval_s", self.interval_s, 1..=3600)?;
        ConfigError::range("watch.min_answers", self.min_answers, 2..=1000)?;
        ConfigError::range("watch.max_failure_rise", self.max_failure_rise, 0.0..=1.0)?;
        for (key, factor) in [
            ("watch.max_first_token_factor", self.max_first_token_factor),
            ("watch.max_token_factor", self.max_token_factor),
        ] {
            if factor != 0.0 && !(1.0..=1e6).contains(&factor) {
                return Err(ConfigError::value(key, factor, "a factor of 1 or more, or 0 to leave it out"));
            }
        }
        ConfigError::range("watch.min_ratings", self.min_ratings, 2..=1000)?;
        ConfigError::range("watch.max_rating_drop", self.max_rating_drop, 0.0..=2.0)?;
        ConfigError::range("watch.grounding_answers", self.grounding_answers, 0..=1000)?;
        ConfigError::range("watch.min_grounding", self.min_grounding, 2..=1000)?;
        ConfigError::range("watch.max_grounding_loss", self.max_grounding_loss, 0.0..=1.0)?;
        self.check_verdicts()
    }

    /// Something must be looked at, and there must be enough of it for a verdict: else nothing is ever taken back, and nobody is told.
    fn check_verdicts(&self) -> Result<(), ConfigError> {
        if self.interval_s >= self.window_s {
            let allowed = format!(
                "less than watch.window_s = {}, so that a look falls into the window, or watch.window_s must be larger",
                self.window_s
            );
            return Err(ConfigError::value("watch.interval_s", self.interval_s, allowed));
        }
        let (scored, needed) = (self.grounding_answers as u64, self.min_grounding);
        if scored != 0 && scored < needed {
            let allowed = format!(
                "at least watch.min_grounding = {needed}, below which the probe says nothing, or 0 for no probe, or watch.min_grounding must be lower"
            );
            return Err(ConfigError::value("watch.grounding_answers", scored, allowed));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_below_one_is_refused_and_zero_is_off() {
        for (factor, works) in [(0.0, true), (1.0, true), (0.5, false), (-1.0, false), (f64::NAN, false)] {
            let config = WatchConfig { max_token_factor: factor, ..WatchConfig::default() };
            assert_eq!(config.validate().is_ok(), works, "{factor}");
        }
    }

    #[test]
    fn a_look_falls_into_the_window() {
        WatchConfig::default().validate().unwrap();
        for (window_s, interval_s, works) in [(2, 1, true), (11, 10, true), (10, 10, false), (5, 3600, false)] {
            let config = WatchConfig { window_s, interval_s, ..WatchConfig::default() };
            assert_eq!(config.validate().is_ok(), works, "{interval_s} of {window_s}");
        }
        let error = WatchConfig { window_s: 5, ..WatchConfig::default() }.validate().unwrap_err().to_string();
        assert!(error.starts_with("watch.interval_s is `10`"), "{error}");
        assert!(error.contains("less than watch.window_s = 5"), "{error}");
    }

    #[test]
    fn the_probe_can_score_as_many_answers_as_its_verdict_needs() {
        for (grounding_answers, min_grounding, works) in
            [(0, 8, true), (1, 8, false), (7, 8, false), (8, 8, true), (16, 17, false)]
        {
            let config = WatchConfig { grounding_answers, min_grounding, ..WatchConfig::default() };
            assert_eq!(config.validate().is_ok(), works, "{grounding_answers} of {min_grounding}");
        }
        let error = WatchConfig { grounding_answers: 4, ..WatchConfig::default() }.validate().unwrap_err().to_string();
        assert!(error.starts_with("watch.grounding_answers is `4`"), "{error}");
        assert!(error.contains("at least watch.min_grounding = 8"), "{error}");
    }
}
