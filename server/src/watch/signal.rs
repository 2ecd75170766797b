//! What is compared, and the verdict.

use std::fmt;

use crate::config::WatchConfig;
use crate::rollout::{Behaviour, Sample};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// Share of the answers that failed through no fault of the caller.
    Failures,
    /// Seconds to the first token, the queue left out; geometric mean.
    FirstToken,
    /// Seconds per token after it; geometric mean.
    PerToken,
    /// Mean rating, -1 to 1.
    Ratings,
    /// What the picture adds to the log-probability of an answer, nats per token.
    Grounding,
}

/// Whether a signal is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is not looked at.
    Off,
    /// There are too few measurements.
    TooFew,
    /// It is within its threshold, or not beyond chance.
    Fine,
    /// It is worse than is allowed.
    Breach,
}

/// What a signal says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// What is compared.
    pub signal: Signal,
    /// Of the generation that is watched, in the signal's unit.
    pub new: f64,
    /// Measurements behind it.
    pub new_count: u64,
    /// Of what it is compared with.
    pub old: f64,
    /// Measurements behind it.
    pub old_count: u64,
    /// What is allowed: by how much, by which factor, or which share may be lost.
    pub threshold: f64,
    /// Whether it is.
    pub verdict: Verdict,
}

/// What the grounding probe measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Grounding {
    /// What the picture adds for the generation that is watched.
    pub(super) new: Sample,
    /// For the other one.
    pub(super) old: Sample,
    /// Of each answer: what the other one had of it that must be kept, less what the new one has.
    pub(super) missing: Sample,
}

impl Signal {
    /// As metrics and JSON name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failures => "failures",
            Self::FirstToken => "first_token",
            Self::PerToken => "per_token",
            Self::Ratings => "ratings",
            Self::Grounding => "grounding",
        }
    }
}

impl Verdict {
    /// As JSON names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::TooFew => "too_few",
            Self::Fine => "fine",
            Self::Breach => "breach",
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { signal, new, new_count, old, old_count, threshold, .. } = self;
        let (what, allowed) = match signal {
            Signal::Failures => ("answers that failed", "more"),
            Signal::FirstToken => ("seconds to the first token", "times as many"),
            Signal::PerToken => ("seconds per token", "times as many"),
            Signal::Ratings => ("mean rating", "lower"),
            Signal::Grounding => ("nats per token that the picture adds", "of it lost"),
        };
        write!(
            f,
            "{}: {new:.4} {what} (n = {new_count}) against {old:.4} (n = {old_count}); {threshold} {allowed} is allowed",
            signal.as_str()
        )
    }
}

/// How answers failed, and how fast they were.
pub(super) fn of_answers(new: &Behaviour, old: &Behaviour, config: &WatchConfig) -> [Figures; 3] {
    let enough = |sample: &Sample| sample.count() >= config.min_answers;
    // Where little is known of what was before it is taken to have never failed.
    let before = if enough(&old.failures) { old.failures } else { Sample::default() };
    let rise = new.failures.rise_above(&before, config.max_failure_rise);
    let failures = figures(Signal::Failures, (&new.failures, &before), config.max_failure_rise)
        .judged(enough(&new.failures), rise);
    let latency = |signal, new: &Sample, old: &Sample, factor: f64| {
        let figures = Figures { new: new.mean().exp(), old: old.mean().exp(), ..figures(signal, (new, old), factor) };
        if factor == 0.0 {
            return Figures { verdict: Verdict::Off, ..figures };
        }
        figures.judged(enough(new) && enough(old), new.rise_above(old, factor.ln()))
    };
    [
        failures,
        latency(Signal::FirstToken, &new.first_token, &old.first_token, config.max_first_token_factor),
        latency(Signal::PerToken, &new.per_token, &old.per_token, config.max_token_factor),
    ]
}

/// How answers were rated.
pub(super) fn of_ratings((new, old): (&Sample, &Sample), config: &WatchConfig) -> Figures {
    let enough = new.count() >= config.min_ratings && old.count() >= config.min_ratings;
    let drop = old.rise_above(new, config.max_rating_drop);
    figures(Signal::Ratings, (new, old), config.max_rating_drop).judged(enough, drop)
}

/// How much answers rest on their pictures. Where the other generation's do not, beyond chance, there is nothing to lose.
pub(super) fn of_grounding(grounding: &Grounding, config: &WatchConfig) -> Figures {
    let Grounding { new, old, missing } = grounding;
    let figures = figures(Signal::Grounding, (new, old), config.max_grounding_loss);
    if config.grounding_answers == 0 {
        return Figures { verdict: Verdict::Off, ..figures };
    }
    let nothing = Sample::default();
    let grounded = old.rise_above(&nothing, 0.0) > 0.0;
    let lost = if grounded { missing.rise_above(&nothing, 0.0) } else { 0.0 };
    figures.judged(old.count() >= config.min_grounding, lost)
}

fn figures(signal: Signal, (new, old): (&Sample, &Sample), threshold: f64) -> Figures {
    Figures {
        signal,
        new: new.mean(),
        new_count: new.count(),
        old: old.mean(),
        old_count: old.count(),
        threshold,
        verdict: Verdict::TooFew,
    }
}

impl Figures {
    fn judged(self, enough: bool, rise: f64) -> Self {
        let verdict = match (enough, rise > 0.0) {
            (false, _) => Verdict::TooFew,
            (true, false) => Verdict::Fine,
            (true, true) => Verdict::Breach,
        };
        Self { verdict, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(failed: usize, of: usize) -> Behaviour {
        let failures = (0..of).map(|n| f64::from(u8::from(n < failed))).collect();
        Behaviour { failures, ..Behaviour::default() }
    }

    fn fast(seconds: f64, of: usize) -> Behaviour {
        let times: Sample = (0..of).map(|n| (seconds * (1.0 + 0.01 * (n % 5) as f64)).ln()).collect();
        Behaviour { first_token: times, per_token: times, ..Behaviour::default() }
    }

    fn failures(new: Behaviour, old: Behaviour) -> Verdict {
        of_answers(&new, &old, &WatchConfig::default())[0].verdict
    }

    #[test]
    fn failures_count_once_there_are_enough_answers() {
        assert_eq!(failures(share(49, 49), share(0, 200)), Verdict::TooFew);
        assert_eq!(failures(share(25, 50), share(0, 200)), Verdict::Breach);
        assert_eq!(failures(share(25, 50), share(100, 200)), Verdict::Fine, "it was so before");
        assert_eq!(failures(share(3, 50), share(0, 200)), Verdict::Fine, "it may be chance");
        assert_eq!(failures(share(25, 50), share(3, 3)), Verdict::Breach, "three answers are no excuse");
    }

    #[test]
    fn latency_is_compared_by_factors_and_both_sides_must_be_known() {
        let config = WatchConfig { max_first_token_factor: 5.0, max_token_factor: 0.0, ..WatchConfig::default() };
        let verdicts = |new, old| of_answers(&new, &old, &config).map(|figures| figures.verdict);
        assert_eq!(verdicts(fast(0.6, 60), fast(0.1, 60)), [Verdict::TooFew, Verdict::Breach, Verdict::Off]);
        assert_eq!(verdicts(fast(0.4, 60), fast(0.1, 60))[1], Verdict::Fine);
        assert_eq!(verdicts(fast(0.6, 60), fast(0.1, 10))[1], Verdict::TooFew);
        let figures = of_answers(&fast(0.6, 60), &fast(0.1, 60), &config)[1];
        assert!((figures.new / figures.old - 6.0).abs() < 1e-6, "{figures}");
    }

    #[test]
    fn ratings_must_fall_by_more_than_is_allowed() {
        let config = WatchConfig::default();
        let rated =
            |mean: f64, of: usize| (0..of).map(|n| mean + if n % 2 == 0 { 0.1 } else { -0.1 }).collect::<Sample>();
        let verdict = |new: Sample, old: Sample| of_ratings((&new, &old), &config).verdict;
        assert_eq!(verdict(rated(-0.5, 40), rated(0.5, 40)), Verdict::Breach);
        assert_eq!(verdict(rated(0.3, 40), rated(0.5, 40)), Verdict::Fine);
        assert_eq!(verdict(rated(-0.5, 40), rated(0.5, 19)), Verdict::TooFew);
        assert_eq!(verdict(rated(0.9, 40), rated(-0.5, 40)), Verdict::Fine, "better is no breach");
    }

    #[test]
    fn grounding_must_not_lose_more_than_is_allowed_of_what_was_there() {
        let config = WatchConfig::default();
        let measured = |pairs: &[(f64, f64)]| {
            let mut grounding = Grounding::default();
            for (new, old) in pairs.iter().cycle().take(12) {
                grounding.new.add(*new);
                grounding.old.add(*old);
                grounding.missing.add((1.0 - config.max_grounding_loss) * old - new);
            }
            of_grounding(&grounding, &config).verdict
        };
        assert_eq!(measured(&[(0.1, 1.0), (0.2, 1.2), (0.0, 0.9)]), Verdict::Breach);
        assert_eq!(measured(&[(0.9, 1.0), (1.0, 1.2), (0.8, 0.9)]), Verdict::Fine);
        assert_eq!(measured(&[(-0.5, -0.1), (-0.5, 0.1), (-0.5, 0.0)]), Verdict::Fine, "there was nothing to lose");
        let off = WatchConfig { grounding_answers: 0, ..WatchConfig::default() };
        assert_eq!(of_grounding(&Grounding::default(), &off).verdict, Verdict::Off);
    }
}
