//! The run's own held-out pairs: how likely their answers are, and what the model answers itself.

use std::collections::HashSet;
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

/// log π of a pair's answers, nats, and the tokens of the chosen one.
struct Scored {
    chosen: f64,
    rejected: Option<f64>,
    tokens: usize,
}

/// How likely the answers of pairs are: log π(y⁺) per token, and how often y⁺ is likelier than y⁻. `adapter` is off for a
/// run that started from the base.
pub(super) fn likelihood<P: Policy>(
    policy: &P,
    adapter: bool,
    examples: &dyn Examples,
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
    let likely = scored.iter().map(|pair| pair.chosen / pair.tokens as f64);
    let preferred = scored.iter().map(|pair| match pair.rejected {
        Some(rejected) => (f64::from(u8::from(pair.chosen > rejected)), 1.0),
        None => (0.0, 0.0),
    });
    let mut measured = vec![(
        Rule::worse("held-out pairs: log π(y⁺) per token", Better::Higher, config.max_chosen_drop),
        Measure::mean("log π(y⁺) per token", likely),
    )];
    if scored.iter().any(|pair| pair.rejected.is_some()) {
        measured.push((
            Rule::worse("held-out pairs: preference accuracy", Better::Higher, config.preference_margin),
            Measure::new("preference accuracy", preferred),
        ));
    }
    Ok(measured)
}

/// The pairs that ask something new, at most `most`: each picture and conversation once.
pub(super) fn prompts(pairs: &[PreferencePair], most: usize) -> Vec<PreferencePair> {
    let mut seen = HashSet::new();
    let new = |pair: &&PreferencePair| {
        seen.insert((pair.split_key(), serde_json::to_string(&pair.conversation).unwrap_or_default()))
    };
    pairs.iter().filter(new).take(most).cloned().collect()
}

/// What the model answers: the mean length, and the shares of answers that are empty or do not end, and that refuse.
pub(super) fn answers(
    model: &Model,
    adapter: Option<&Lora>,
    workers: &Workers,
    examples: &dyn Examples,
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
        words.push(PreferencePair::words(&text) as f64);
        broken.push(text.trim().is_empty() || completion.finish == Finish::Length);
        refused.push(is_refusal(&text));
    }
    Ok(vec![
        (
            Rule::factor("held-out prompts: answer length in words", config.max_length_ratio),
            Measure::mean("answer length", words),
        ),
        (
            Rule::worse("held-out prompts: empty or unfinished answers", Better::Lower, config.broken_margin),
            Measure::share("broken", broken),
        ),
        (
            Rule::worse("held-out prompts: refusals", Better::Lower, config.refusal_margin),
            Measure::share("refusals", refused),
        ),
    ])
}
