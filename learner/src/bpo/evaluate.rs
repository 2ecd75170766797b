//! The held-out split under the current policy.

use super::config::RunConfig;
use super::error::TrainError;
use super::examples::Examples;
use super::guard::GuardError;
use super::loss::Loss;
use super::metrics::{Evaluation, Sums};
use super::order::micro_batches;
use super::policy::Policy;
use super::reference::{Reference, load, score};
use super::step::scores;

/// Scores `examples` without dropout and without a tape, after `step` optimiser steps.
///
/// # Errors
/// The model or an example fails, or the loss is not finite.
pub(super) fn evaluate<P: Policy>(
    policy: &P,
    examples: &dyn Examples,
    reference: &Reference,
    loss: &Loss,
    config: &RunConfig,
    step: u64,
) -> Result<Evaluation, TrainError> {
    let mut sums = Sums::default();
    let mut indices = (0..examples.len()).collect::<Vec<_>>();
    indices.sort_by_key(|index| (std::cmp::Reverse(examples.tokens(*index)), *index));
    let distorted = config.evaluation.conditional || loss.needs_distorted();
    let (pairs, tokens) = (config.train.micro_batch, config.train.micro_tokens);
    for micro in micro_batches(&indices, |index| examples.tokens(index), pairs, tokens) {
        let loaded = load(examples, &micro, true, distorted)?;
        for ((index, example), row) in micro.iter().zip(&loaded).zip(score(policy, &loaded, true)?) {
            let scores = scores(example, row, reference.row(*index));
            sums.add(loss, &scores, &loss.of(&scores));
        }
    }
    let evaluation = sums.into_evaluation(step);
    if !evaluation.loss.is_finite() {
        let (what, value) = ("the held-out loss", evaluation.loss.to_string());
        return Err(GuardError::NotFinite { step, what, value }.into());
    }
    Ok(evaluation)
}
