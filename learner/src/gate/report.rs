//! `DIR/gate.json`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The verdict and what led to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateReport {
    /// Whether the candidate may have traffic: no check failed, and one at least that looks for collapse had enough items.
    pub passed: bool,
    /// BLAKE3 digest of the base, 64 hexadecimal digits.
    pub base_digest: String,
    /// BLAKE3 digest of the run's dataset.
    pub dataset_digest: String,
    /// Held-out pairs that were scored.
    pub pairs: usize,
    /// The checks, in the order in which they were made.
    pub checks: Vec<Check>,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What was measured, with the set it was measured on: `captions, balanced: CHAIR_i`.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What it takes to pass, in words.
    pub rule: String,
    /// The start's value.
    pub start: Option<f64>,
    /// The candidate's value.
    pub candidate: Option<f64>,
    /// Candidate − start, on the same items.
    pub difference: Option<f64>,
    /// Lower end of the difference's confidence interval.
    pub low: Option<f64>,
    /// Its upper end.
    pub high: Option<f64>,
    /// Items measured: pictures, or questions whose answers are to stay.
    pub items: usize,
    /// Whether it looks for collapse: at how long answers are, or at whether they are whole. Without it nothing passes:
    /// likelihoods and yes/no questions look well while captions turn to garbage.
    #[serde(default)]
    pub collapse: bool,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// With confidence not worse than allowed.
    Passed,
    /// Worse than allowed, or not sure enough that it is not.
    Failed,
    /// Too few items to say anything.
    Skipped,
}

impl GateReport {
    /// The verdict over `checks`.
    pub(super) fn new(base_digest: String, dataset_digest: String, pairs: usize, checks: Vec<Check>) -> Self {
        let any = |outcome| checks.iter().any(|check| check.outcome == outcome);
        let whole = checks.iter().any(|check| check.collapse && check.outcome == Outcome::Passed);
        let passed = whole && !any(Outcome::Failed);
        Self { passed, base_digest, dataset_digest, pairs, checks }
    }

    /// Why the candidate may have no traffic: the names of the checks that failed, or what was not looked at; empty if it may.
    pub fn reasons(&self) -> Vec<String> {
        let failed: Vec<String> = self.failed().map(|check| check.name.clone()).collect();
        if self.passed || !failed.is_empty() {
            return failed;
        }
        let looked = self.checks.iter().filter(|check| check.collapse).map(|check| check.items).max();
        let most = looked.unwrap_or(0);
        vec![format!("too few answers to see whether the model has collapsed (of {most} pictures at most)")]
    }

    /// The checks that failed.
    pub fn failed(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.outcome == Outcome::Failed)
    }

    /// The check of this name.
    pub fn check(&self, name: &str) -> Option<&Check> {
        self.checks.iter().find(|check| check.name == name)
    }
}

impl fmt::Display for GateReport {
    /// One line a check, and the verdict.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"));
        for check in &self.checks {
            let outcome = match check.outcome {
                Outcome::Passed => "passed ",
                Outcome::Failed => "FAILED ",
                Outcome::Skipped => "skipped",
            };
            let (start, candidate) = (number(check.start), number(check.candidate));
            let (low, high) = (number(check.low), number(check.high));
            let Check { name, rule, items, .. } = check;
            writeln!(formatter, "{outcome} {name}: {start} → {candidate} ({low} … {high}, {items} items; {rule})")?;
        }
        writeln!(formatter, "{}", if self.passed { "The gate passed." } else { "The gate did not pass." })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(outcome: Outcome) -> Check {
        let (name, rule) = ("captions: Cover".to_owned(), "falls by less than 0.03".to_owned());
        Check {
            name,
            outcome,
            rule,
            start: Some(0.8),
            candidate: None,
            difference: None,
            low: None,
            high: None,
            items: 3,
            collapse: false,
        }
    }

    /// The verdict on checks that look for collapse, and on others.
    fn report(collapse: &[Outcome], others: &[Outcome]) -> GateReport {
        let collapse = collapse.iter().map(|outcome| Check { collapse: true, ..check(*outcome) });
        let checks = collapse.chain(others.iter().map(|outcome| check(*outcome))).collect();
        GateReport::new(String::new(), String::new(), 0, checks)
    }

    #[test]
    fn one_failure_fails_and_nothing_passes_on_nothing() {
        use Outcome::{Failed, Passed, Skipped};
        let passed = |collapse: &[Outcome], others: &[Outcome]| report(collapse, others).passed;
        assert!(passed(&[Passed, Skipped], &[Passed, Skipped]));
        assert!(passed(&[Passed], &[]));
        assert!(!passed(&[Passed], &[Passed, Failed]));
        assert!(!passed(&[Passed, Failed], &[Passed]));
        assert!(!passed(&[Skipped], &[Skipped]));
        assert!(!passed(&[], &[]));
    }

    #[test]
    fn what_was_not_looked_at_for_collapse_does_not_pass_and_says_so() {
        use Outcome::{Failed, Passed, Skipped};
        for unseen in [report(&[Skipped, Skipped], &[Passed]), report(&[], &[Passed, Passed])] {
            assert!(!unseen.passed);
            assert!(unseen.reasons()[0].starts_with("too few answers to see whether the model has collapsed"));
        }
        assert_eq!(report(&[Skipped], &[Failed]).reasons(), ["captions: Cover"]);
        assert!(report(&[Passed], &[Passed]).reasons().is_empty());
    }

    #[test]
    fn the_report_survives_json_and_reads_as_lines() {
        let report = GateReport::new("b".into(), "d".into(), 3, vec![check(Outcome::Failed)]);
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<GateReport>(&json).unwrap(), report);
        assert!(json.contains("\"outcome\":\"failed\""), "{json}");
        let text = report.to_string();
        assert!(
            text.starts_with("FAILED  captions: Cover: 0.800 → – (– … –, 3 items; falls by less than 0.03)"),
            "{text}"
        );
    }
}
