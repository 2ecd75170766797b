//! When a check passes.

use super::GateConfig;
use super::report::{Check, Outcome};
use crate::eval::measure::Better;
use crate::eval::{EvalError, Measure};

/// The name of a check, and what the candidate may lose.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) name: String,
    pub(super) allowed: Allowed,
    /// See [`Check::collapse`].
    pub(super) collapse: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Allowed {
    /// The difference to the start may be worse by less than the margin, with confidence.
    Worse(Better, f64),
    /// The candidate's value over the start's may be neither above this factor nor below its inverse.
    Factor(f64),
}

impl Rule {
    pub(super) fn worse(name: impl Into<String>, better: Better, margin: f64) -> Self {
        Self { name: name.into(), allowed: Allowed::Worse(better, margin), collapse: false }
    }

    pub(super) fn factor(name: impl Into<String>, factor: f64) -> Self {
        Self { name: name.into(), allowed: Allowed::Factor(factor), collapse: false }
    }

    /// A rule that a collapsed model breaks: how long answers are, and whether they are whole.
    pub(super) fn against_collapse(self) -> Self {
        Self { collapse: true, ..self }
    }

    /// Judges the candidate against the start, both measured on the same items in the same order.
    pub(super) fn check(&self, start: &Measure, candidate: &Measure, config: &GateConfig) -> Result<Check, EvalError> {
        let comparison = candidate.compare(start, config.bootstrap())?;
        let (start, candidate) = (start.value(), candidate.value());
        let (passed, rule) = match self.allowed {
            Allowed::Worse(better, margin) => {
                let way = if better == Better::Higher { "falls" } else { "rises" };
                (comparison.not_worse(better, margin), format!("{way} by less than {margin}"))
            }
            Allowed::Factor(factor) => {
                let within =
                    |(start, candidate): (f64, f64)| candidate <= start * factor && candidate * factor >= start;
                let passed = comparison.is_finite() && start.zip(candidate).is_some_and(within);
                (passed, format!("changes by a factor of at most {factor}"))
            }
        };
        let outcome = match passed {
            _ if comparison.items < config.min_items => Outcome::Skipped,
            true => Outcome::Passed,
            false => Outcome::Failed,
        };
        Ok(Check {
            name: self.name.clone(),
            outcome,
            rule,
            start,
            candidate,
            difference: comparison.difference,
            low: comparison.low,
            high: comparison.high,
            items: comparison.items,
            collapse: self.collapse,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(hits: usize, of: usize) -> Measure {
        Measure::share("share", (0..of).map(|item| item < hits))
    }

    fn outcome(rule: &Rule, start: &Measure, candidate: &Measure) -> Outcome {
        rule.check(start, candidate, &GateConfig::default()).unwrap().outcome
    }

    #[test]
    fn not_worse_needs_confidence_and_items() {
        let rule = Rule::worse("accuracy", Better::Higher, 0.03);
        assert_eq!(outcome(&rule, &share(80, 100), &share(80, 100)), Outcome::Passed);
        assert_eq!(outcome(&rule, &share(80, 100), &share(90, 100)), Outcome::Passed);
        assert_eq!(outcome(&rule, &share(80, 100), &share(70, 100)), Outcome::Failed);
        // Two points lower is allowed, but a hundred items cannot show that it is not four.
        assert_eq!(outcome(&rule, &share(80, 100), &share(78, 100)), Outcome::Failed);
        assert_eq!(outcome(&rule, &share(8000, 10_000), &share(7800, 10_000)), Outcome::Passed);
        assert_eq!(outcome(&rule, &share(9, 10), &share(0, 10)), Outcome::Skipped);
        let rises = Rule::worse("CHAIR_i", Better::Lower, 0.02);
        assert_eq!(outcome(&rises, &share(5, 100), &share(20, 100)), Outcome::Failed);
        assert_eq!(outcome(&rises, &share(20, 100), &share(5, 100)), Outcome::Passed);
    }

    #[test]
    fn a_factor_holds_both_ways_and_never_on_nothing() {
        let rule = Rule::factor("length", 1.5);
        let length = |words: f64| Measure::mean("length", vec![words; 40]);
        assert_eq!(outcome(&rule, &length(10.0), &length(14.0)), Outcome::Passed);
        assert_eq!(outcome(&rule, &length(10.0), &length(7.0)), Outcome::Passed);
        assert_eq!(outcome(&rule, &length(10.0), &length(16.0)), Outcome::Failed);
        assert_eq!(outcome(&rule, &length(10.0), &length(6.0)), Outcome::Failed);
        assert_eq!(outcome(&rule, &length(10.0), &length(0.0)), Outcome::Failed);
        assert_eq!(outcome(&rule, &length(f64::NAN), &length(1.0)), Outcome::Failed);
        assert_eq!(outcome(&rule, &length(f64::INFINITY), &length(f64::INFINITY)), Outcome::Failed);
    }

    #[test]
    fn one_value_that_is_no_number_fails() {
        let rule = Rule::worse("log π(y⁺) per token", Better::Higher, 0.05);
        let likely = |broken: f64| Measure::mean("log π", (0..40).map(|item| if item == 0 { broken } else { -1.0 }));
        assert_eq!(outcome(&rule, &likely(-1.0), &likely(-1.0)), Outcome::Passed);
        assert_eq!(outcome(&rule, &likely(-1.0), &likely(f64::NAN)), Outcome::Failed);
        assert_eq!(outcome(&rule, &likely(f64::NEG_INFINITY), &likely(-1.0)), Outcome::Failed);
    }

    #[test]
    fn items_that_measure_nothing_do_not_count() {
        let rule = Rule::worse("preference accuracy", Better::Higher, 0.1);
        let preferred = |hit: f64, of: usize| {
            Measure::new("share", (0..40).map(|item| if item < of { (hit, 1.0) } else { (0.0, 0.0) }))
        };
        assert_eq!(outcome(&rule, &preferred(1.0, 5), &preferred(1.0, 5)), Outcome::Skipped);
        assert_eq!(outcome(&rule, &preferred(1.0, 30), &preferred(1.0, 30)), Outcome::Passed);
        // What only the start has something to measure of is a loss, not nothing.
        assert_eq!(outcome(&rule, &preferred(1.0, 30), &preferred(1.0, 0)), Outcome::Failed);
    }
}
