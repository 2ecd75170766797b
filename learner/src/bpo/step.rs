//! The gradient of one effective batch, accumulated over its forward passes.

use super::config::TrainSection;
use super::error::TrainError;
use super::examples::{Example, Examples};
use super::guard::GuardError;
use super::loss::{Coefficients, Loss, PairScores, Scores};
use super::metrics::Sums;
use super::order::micro_batches;
use super::policy::{Gradients, Policy};
use super::reference::{Reference, Row, groups, load, rows};
use super::seed::{self, Purpose};

/// What one batch gave.
#[derive(Debug)]
pub(super) struct Batch {
    /// Gradient of the mean loss.
    pub(super) gradients: Gradients,
    /// Its metrics, not yet divided.
    pub(super) sums: Sums,
    /// Prompt and answer tokens that went through the model.
    pub(super) tokens: usize,
}

/// What a batch needs to know besides its examples.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    pub(super) loss: &'a Loss,
    pub(super) train: &'a TrainSection,
    pub(super) seed: u64,
    /// Optimiser steps taken before this one.
    pub(super) step: u64,
}

/// Loss and gradient of the mean over `batch`.
pub(super) fn accumulate<P: Policy>(
    policy: &P,
    examples: &dyn Examples,
    reference: &Reference,
    batch: &[usize],
    context: Context<'_>,
) -> Result<Batch, TrainError> {
    let Context { loss, train, step, .. } = context;
    let mut out = Batch { gradients: Gradients::new(), sums: Sums::default(), tokens: 0 };
    let micros = micro_batches(batch, |index| examples.tokens(index), train.micro_batch, train.micro_tokens);
    for (pass, micro) in micros.iter().enumerate() {
        let loaded = load(examples, micro, loss.needs_rejected(), loss.needs_distorted())?;
        let dropout = seed::derive(context.seed, Purpose::Dropout, &[step, pass as u64], "");
        let (logps, tape) = policy.forward(&groups(&loaded), Some(dropout))?;
        let mut coefficients = Vec::new();
        for ((index, example), row) in micro.iter().zip(&loaded).zip(rows(&loaded, &logps)?) {
            let scores = scores(example, row, reference.row(*index));
            let value = loss.of(&scores);
            if !value.loss.is_finite() {
                // Before the backward pass: its gradient would be of no use.
                let what = "the loss";
                return Err(GuardError::NotFinite { step: step + 1, what, value: value.loss.to_string() }.into());
            }
            out.sums.add(loss, &scores, &value);
            push_coefficients(&mut coefficients, example, &value.coefficients, batch.len());
        }
        policy.backward(tape, &coefficients, &mut out.gradients)?;
        out.tokens += groups(&loaded).iter().map(tokens).sum::<usize>();
    }
    Ok(out)
}

/// Policy and reference side by side; NaN in a row means that the sequence is not there.
pub(super) fn scores(example: &Example, policy: Row, reference: Option<Row>) -> PairScores {
    let reference = reference.unwrap_or(Row { chosen: f64::NAN, rejected: f64::NAN, distorted: f64::NAN });
    let answers = &example.clean.answers;
    let tokens = |answer: usize| answers.get(answer).map_or(1, |ids| ids.len());
    let chosen = Scores { policy: policy.chosen, reference: reference.chosen, tokens: tokens(0) };
    let rejected = Scores { policy: policy.rejected, reference: reference.rejected, tokens: tokens(1) };
    let distorted = Scores { policy: policy.distorted, reference: reference.distorted, tokens: tokens(0) };
    PairScores {
        chosen,
        rejected: (answers.len() > 1).then_some(rejected),
        distorted: example.distorted.is_some().then_some(distorted),
    }
}

fn push_coefficients(into: &mut Vec<Vec<f64>>, example: &Example, by: &Coefficients, batch: usize) {
    let share = 1.0 / batch as f64;
    let clean = [by.chosen * share, by.rejected * share];
    into.push(clean[..example.clean.answers.len().min(2)].to_vec());
    if example.distorted.is_some() {
        into.push(vec![by.distorted * share]);
    }
}

fn tokens(group: &super::policy::Group) -> usize {
    group.prompt.len() + group.answers.iter().map(|answer| answer.len()).sum::<usize>()
}
