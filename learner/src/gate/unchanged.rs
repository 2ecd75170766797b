//! Questions whose answers are to stay what they are: what was not trained on should not move.

use std::path::Path;

use serde::Deserialize;

use super::rule::Rule;
use super::{EvaluationSet, GateConfig};
use crate::bpo::pair::PreferencePair;
use crate::eval::measure::Better;
use crate::eval::run::Asker;
use crate::eval::set::{image_in, read_jsonl};
use crate::eval::{EvalError, Measure, Query};

/// A line of such a set.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    /// The image's file name; a question may have none.
    #[serde(default)]
    image: Option<String>,
    /// What to ask.
    text: String,
}

/// One policy's answers to one set.
pub(super) struct Answers {
    set: String,
    answers: Vec<String>,
}

/// Asks a set.
pub(super) fn ask(dir: &Path, asker: &mut Asker<'_>, set: &EvaluationSet) -> Result<Answers, EvalError> {
    let images = dir.join(&set.images);
    let query = |item: Item| {
        let image = item.image.map(|name| image_in(&images, &name)).transpose()?;
        Ok(Query { image, question: item.text })
    };
    let items = read_jsonl::<Item>(&dir.join(&set.file))?;
    let queries = items.into_iter().map(query).collect::<Result<Vec<_>, EvalError>>()?;
    Ok(Answers { set: set.name.clone(), answers: asker.ask(&queries)? })
}

/// How often both say the same but for case, spacing and punctuation: the rule, the start's share, which is 1, and the
/// candidate's.
pub(super) fn compare(start: &Answers, candidate: &Answers, config: &GateConfig) -> (Rule, Measure, Measure) {
    let same = start.answers.iter().zip(&candidate.answers).map(|(a, b)| PreferencePair::same_content(a, b));
    let rule = Rule::worse(format!("{}: unchanged answers", start.set), Better::Higher, config.change_margin);
    (rule, Measure::share("unchanged", start.answers.iter().map(|_| true)), Measure::share("unchanged", same))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::Outcome;

    #[test]
    fn what_differs_in_words_counts_and_what_differs_in_dots_does_not() {
        let said = |answer: &str| Answers { set: "chat".into(), answers: vec![answer.to_owned(); 40] };
        let outcome = |candidate: &Answers| {
            let config = GateConfig::default();
            let (rule, start, candidate) = compare(&said("Four."), candidate, &config);
            rule.check(&start, &candidate, &config).unwrap()
        };
        assert_eq!(outcome(&said("four")).outcome, Outcome::Passed);
        let mut some = said("Four.");
        some.answers[..8].fill("Five.".to_owned());
        let check = outcome(&some);
        assert_eq!((check.outcome, check.candidate), (Outcome::Failed, Some(0.8)));
    }
}
