//! The run's own held-out pairs: how likely their answers are, and what the model answers itself.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::GateConfig;
use super::rule::Rule;
use crate::bootstrap::filter::is_refusal;
use crate::bpo::examples::{Example, ExampleError, Examples};
use crate::bpo::order::micro_batches;
use crate::bpo::pair::PreferencePair;
use crate::bpo::policy::{Group, Policy};
use crate::eval::Measure;
use crate::eval::measure::Better;
use crate::model::{Finish, Lora, Model, Request, Sampling, Workers};

/// Most pairs and tokens that are scored at once.
const MICRO: (usize, usize) = (16, 8192);

/// The measures of one policy, each with its rule. Start and candidate give the same ones in the same order.
pub(super) type Measured = Vec<(Rule, Measure)>;

/// Where an example comes from. Several pairs of one picture say much the same: they are one item of a measure, or an
/// interval would be narrower than what is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// Number of its picture, from 0.
    picture: usize,
    /// No example before has its picture, conversation and y⁺.
    new: bool,
}

impl Origin {
    /// Those of pairs, in their order.
    pub(super) fn of<'a>(pairs: impl Iterator<Item = &'a PreferencePair>) -> Vec<Self> {
        let (mut pictures, mut seen) = (HashMap::new(), HashSet::new());
        let origin = |pair: &PreferencePair| {
            let (subject, conversation) = question(pair);
            let next = pictures.len();
            let picture = *pictures.entry(subject.clone()).or_insert(next);
            Self { picture, new: seen.insert((subject, conversation, pair.chosen.clone())) }
        };
        pairs.map(origin).collect()
    }
}

/// What a pair is about, its pictures or, without any, its conversation; and the conversation.
fn question(pair: &PreferencePair) -> (String, String) {
    (pair.subjects().join("+"), pair.question())
}

/// A measure whose items are the examples' pictures.
fn by_picture(name: &str, origins: &[Origin], values: impl Iterator<Item = (f64, f64)>) -> Measure {
    Measure::by_picture(name, origins.iter().map(|origin| origin.picture).zip(values))
}

/// log π of a pair's answers, nats, and the tokens of the chosen one.
struct Scored {
    chosen: f64,
    rejected: Option<f64>,
    tokens: usize,
}

/// How likely the answers of pairs are: log π(y⁺) per token, each y⁺ once, and how often y⁺ is likelier than y⁻. `adapter` is
/// off for a run that started from the base.
pub(super) fn likelihood<P: Policy>(
    policy: &P,
    adapter: bool,
    examples: &dyn Examples,
    origins: &[Origin],
    config: &GateConfig,
) -> Result<Measured, ExampleError> {
    let indices: Vec<usize> = (0..examples.len()).collect();
    let mut scored = Vec::with_capacity(indices.len());
    for micro in micro_batches(&indices, |index| examples.tokens(index), MICRO.0, MICRO.1) {
        let loaded: Vec<Example> =
            micro.iter().map(|index| examples.example(*index, false)).collect::<Result<_, _>>()?;
        let groups: Vec<Group> = loaded.iter().map(|example| example.clean.clone()).collect();
        for (group, sums) in groups.iter().zip(policy.score(&groups, adapter)?) {
            let [chosen, rest @ ..] = sums.as_slice() else { return Err("a pair was given no log-probability".into()) };
            let tokens = group.answers.first().map_or(1, |answer| answer.len().max(1));
            scored.push(Scored { chosen: *chosen, rejected: rest.first().copied(), tokens });
        }
    }
    let likely = scored.iter().zip(origins).map(|(pair, origin)| match origin.new {
        true => (pair.chosen / pair.tokens as f64, 1.0),
        false => (0.0, 0.0),
    });
    let preferred = scored.iter().map(|pair| match pair.rejected {
        Some(rejected) => one_if(pair.chosen > rejected),
        None => (0.0, 0.0),
    });
    let mut measured = vec![(
        Rule::worse("held-out pairs: log π(y⁺) per token", Better::Higher, config.max_chosen_drop),
        by_picture("log π(y⁺) per token", origins, likely),
    )];
    if scored.iter().any(|pair| pair.rejected.is_some()) {
        measured.push((
            Rule::worse("held-out pairs: preference accuracy", Better::Higher, config.preference_margin),
            by_picture("preference accuracy", origins, preferred),
        ));
    }
    Ok(measured)
}

/// The pairs that ask something new, at most `most`: each picture and conversation once, and no picture a second time before each was
/// asked about, because pictures are what is counted.
pub(super) fn prompts(pairs: &[PreferencePair], most: usize) -> Vec<PreferencePair> {
    let (mut seen, mut about) = (HashSet::new(), HashMap::<_, usize>::new());
    let mut asked: Vec<(usize, &PreferencePair)> = Vec::new();
    for (pair, origin) in pairs.iter().zip(Origin::of(pairs.iter())) {
        if seen.insert(question(pair)) {
            let before = about.entry(origin.picture).or_default();
            asked.push((*before, pair));
            *before += 1;
        }
    }
    // Of those with as many before them, the first stays first.
    asked.sort_by_key(|(before, _)| *before);
    asked.into_iter().take(most).map(|(_, pair)| pair.clone()).collect()
}

/// What the model answers: the mean length, and the shares of answers that are empty or do not end, and that refuse.
pub(super) fn answers(
    model: &Model,
    adapter: Option<&Lora>,
    workers: &Workers,
    examples: &dyn Examples,
    origins: &[Origin],
    config: &GateConfig,
) -> Result<Measured, ExampleError> {
    let mut requests = Vec::with_capacity(examples.len());
    for index in 0..examples.len() {
        let Group { prompt, features, .. } = examples.example(index, false)?.clean;
        let (sampling, max_tokens) = (Sampling::greedy(), config.max_answer_tokens);
        requests.push(Request { prompt: Arc::clone(&prompt), features, adapter, sampling, max_tokens });
    }
    let (mut words, mut broken, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    let completions = if requests.is_empty() { Vec::new() } else { model.generate(&requests, workers)? };
    for completion in completions {
        let text = model.tokenizer().decode(&completion.ids)?;
        words.push((PreferencePair::words(&text) as f64, 1.0));
        broken.push(one_if(text.trim().is_empty() || completion.finish == Finish::Length));
        refused.push(one_if(is_refusal(&text)));
    }
    Ok(vec![
        (
            Rule::factor("held-out prompts: answer length in words", config.max_length_ratio).against_collapse(),
            by_picture("answer length", origins, words.into_iter()),
        ),
        (
            Rule::worse("held-out prompts: empty or unfinished answers", Better::Lower, config.broken_margin)
                .against_collapse(),
            by_picture("broken", origins, broken.into_iter()),
        ),
        (
            Rule::worse("held-out prompts: refusals", Better::Lower, config.refusal_margin),
            by_picture("refusals", origins, refused.into_iter()),
        ),
    ])
}

/// One item of a share.
fn one_if(holds: bool) -> (f64, f64) {
    (f64::from(u8::from(holds)), 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpo::pair::{ImageRef, Message, Part, Role, Source};

    fn pair(image: Option<&str>, question: &str, chosen: &str) -> PreferencePair {
        let content = vec![Part::Text { text: question.into() }];
        PreferencePair {
            id: format!("pair-{image:?}-{question}-{chosen}"),
            images: image.map(|digest| ImageRef { digest: digest.into(), width: 1, height: 1 }).into_iter().collect(),
            conversation: vec![Message { role: Role::User, content }],
            chosen: chosen.into(),
            rejected: Some("No.".into()),
            distortion: None,
            source: Source::Correction,
            negative: None,
        }
    }

    #[test]
    fn pairs_of_one_picture_are_one_item_and_an_answer_counts_once() {
        // One correction against two negatives, another question about the same picture, another picture; one text twice.
        let pairs = [
            pair(Some("a"), "What?", "A dog."),
            pair(Some("a"), "What?", "A dog."),
            pair(Some("a"), "Where?", "Left."),
            pair(Some("b"), "What?", "A dog."),
            pair(None, "Who?", "Nobody."),
            pair(None, "Who?", "Nobody."),
        ];
        let origins = Origin::of(pairs.iter());
        assert_eq!(origins.iter().map(|origin| origin.picture).collect::<Vec<_>>(), [0, 0, 0, 1, 2, 2]);
        assert_eq!(origins.iter().map(|origin| origin.new).collect::<Vec<_>>(), [true, false, true, true, true, false]);
        let measure = by_picture("share", &origins, [true, false, false, true, true, true].map(one_if).into_iter());
        assert_eq!(measure, Measure::new("share", [(1.0, 3.0), (1.0, 1.0), (2.0, 2.0)]));
        let asked = |most| prompts(&pairs, most).iter().map(PreferencePair::question).collect::<Vec<_>>();
        let all = asked(10);
        assert_eq!(all.len(), 4);
        // Every picture before a second question about one.
        let last = all.iter().position(|question| question.contains("Where?"));
        assert_eq!((last, asked(3)), (Some(3), all[..3].to_vec()));
    }
}
