//! A batch of groups through all layers, and the gradient of its log-probabilities back.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::gradient::{LayerGradients, Saved, Tail, Training};
use super::{Decoder, Packed, Pass};
use crate::model::adapters::Adapters;
use crate::model::error::ModelError;
use crate::model::ops::attention::Span;

/// What [`Decoder::backward`] needs of a batch.
pub(crate) struct Tape {
    packed: Packed,
    tail: Tail,
    layers: Vec<Kept>,
    /// Row of the tail that predicts each scored token.
    predicting: Tensor,
    /// Gradient of each scored token's log-probability with respect to the hidden state that predicts it.
    unit: Tensor,
    seed: Option<u64>,
}

/// A layer's activations, or its input from which they are computed again.
enum Kept {
    Activations(Box<Saved>),
    Input(Tensor),
}

/// What of a forward pass to keep for the gradient.
#[derive(Clone, Copy)]
pub(crate) enum Keep {
    /// Nothing: the log-probabilities are all that is wanted.
    Nothing,
    /// The input of every layer, and the activations of this many of the last layers.
    Layers(usize),
}

impl Decoder {
    /// Bytes that a row's activations take in one layer.
    pub(crate) fn activation_bytes(&self) -> usize {
        let config = &self.config;
        let (q, kv) = (
            config.heads * config.head_dim,
            config.key_value_heads * config.head_dim,
        );
        let values = 4 * config.hidden_size + 2 * q + 2 * kv + 3 * config.intermediate_size;
        values * self.dtype().size_in_bytes()
    }

    /// `log π(answer)` of each answer of each group, and the tape if one is to be kept and any token is scored.
    pub(crate) fn forward(
        &self,
        embeddings: Tensor,
        packed: Packed,
        training: Training<'_>,
        keep: Keep,
    ) -> Result<(Vec<Vec<f64>>, Option<Tape>), ModelError> {
        let (rows, spans, predicting, targets) = tail_of(&packed);
        if rows.is_empty() {
            return Ok((
                packed
                    .answers
                    .iter()
                    .map(|answers| vec![0.0; answers.len()])
                    .collect(),
                None,
            ));
        }
        let adapters = Adapters::none();
        let pass = self.pass(&packed.positions, packed.spans.clone(), &adapters)?;
        let positions: Vec<u32> = rows
            .iter()
            .map(|row| packed.positions[*row as usize])
            .collect();
        let tail = Tail {
            rows: Tensor::new(rows.as_slice(), self.device())?,
            angles: self.rotary.at(&positions)?,
            spans,
        };
        let count = self.blocks.len();
        let mut layers = Vec::with_capacity(count);
        let mut x = embeddings;
        for layer in 0..count {
            let (y, saved) = self.layer_forward(
                layer,
                &x,
                &pass,
                (layer + 1 == count).then_some(&tail),
                training,
            )?;
            match keep {
                Keep::Nothing => {}
                Keep::Layers(kept) if layer + kept >= count => {
                    layers.push(Kept::Activations(Box::new(saved)))
                }
                Keep::Layers(_) => layers.push(Kept::Input(x)),
            }
            x = y;
        }
        let predicting = Tensor::new(predicting.as_slice(), self.device())?;
        let hidden = x.index_select(&predicting, 0)?;
        let (log_probs, tape) = match keep {
            Keep::Nothing => (self.log_probs(&hidden, &targets)?, None),
            Keep::Layers(_) => {
                let (log_probs, unit) = self.log_probs_with_gradient(&hidden, &targets)?;
                let tape = Tape {
                    packed: packed.clone(),
                    tail,
                    layers,
                    predicting,
                    unit,
                    seed: training.seed,
                };
                (log_probs, Some(tape))
            }
        };
        let mut next = log_probs.iter();
        let sums = packed
            .answers
            .iter()
            .map(|answers| {
                let sum = |rows: usize| {
                    next.by_ref()
                        .take(rows)
                        .map(|value| f64::from(*value))
                        .sum()
                };
                answers
                    .iter()
                    .map(|answer| answer.rows.len())
                    .map(sum)
                    .collect()
            })
            .collect();
        Ok((sums, tape))
    }

    /// Gradients of `Σ coefficients[g][a] · log π(answer a of group g)` for the LoRA tensors of each layer.
    pub(crate) fn backward(
        &self,
        tape: Tape,
        coefficients: &[&[f64]],
        training: Training<'_>,
    ) -> Result<Vec<LayerGradients>, ModelError> {
        let Tape {
            packed,
            tail,
            mut layers,
            predicting,
            unit,
            seed,
        } = tape;
        let training = Training { seed, ..training };
        let mut weights = Vec::with_capacity(predicting.elem_count());
        for (answers, coefficients) in packed.answers.iter().zip(coefficients) {
            if answers.len() != coefficients.len() {
                return Err(candle_core::Error::Msg(format!(
                    "{} coefficients for {} answers",
                    coefficients.len(),
                    answers.len()
                ))
                .into());
            }
            for (answer, coefficient) in answers.iter().zip(*coefficients) {
                weights.extend(std::iter::repeat_n(*coefficient as f32, answer.rows.len()));
            }
        }
        let weights = Tensor::new(weights.as_slice(), self.device())?
            .to_dtype(unit.dtype())?
            .unsqueeze(1)?;
        let rows = (tail.rows.dim(0)?, self.config.hidden_size);
        let mut dx = Tensor::zeros(rows, unit.dtype(), self.device())?.index_add(
            &predicting,
            &unit.broadcast_mul(&weights)?,
            0,
        )?;
        let adapters = Adapters::none();
        let pass: Pass<'_> = self.pass(&packed.positions, packed.spans.clone(), &adapters)?;
        let count = self.blocks.len();
        let mut gradients = Vec::with_capacity(count);
        for layer in (0..count).rev() {
            let tail = (layer + 1 == count).then_some(&tail);
            let saved = match layers.pop() {
                Some(Kept::Activations(saved)) => saved,
                Some(Kept::Input(x)) => {
                    Box::new(self.layer_forward(layer, &x, &pass, tail, training)?.1)
                }
                None => {
                    return Err(
                        candle_core::Error::Msg("a tape without its layers".to_owned()).into(),
                    );
                }
            };
            let (back, layer_gradients) =
                self.layer_backward(layer, &saved, &dx, &pass, tail, training, layer > 0)?;
            gradients.push(layer_gradients);
            if let Some(back) = back {
                dx = back;
            }
        }
        gradients.reverse();
        Ok(gradients)
    }
}

/// Rows that predict a scored token (ascending), what they see, the place among them of each scored token's predictor,
/// and the scored tokens.
fn tail_of(packed: &Packed) -> (Vec<u32>, Arc<[Span]>, Vec<u32>, Vec<u32>) {
    let (mut rows, mut spans) = (Vec::new(), Vec::new());
    let (mut predicting, mut targets) = (Vec::new(), Vec::new());
    let mut place = HashMap::new();
    for answers in &packed.answers {
        let Some(before) = answers
            .iter()
            .find(|answer| !answer.rows.is_empty())
            .map(|answer| answer.before)
        else {
            continue;
        };
        // The prompt's span is the one that ends with the row before every answer.
        let prompt = packed
            .spans
            .iter()
            .find(|span| span.queries.end == before + 1);
        let prompt = prompt.map_or(before..before + 1, |span| span.own.clone());
        place.insert(before, rows.len() as u32);
        spans.push(Span {
            queries: rows.len()..rows.len() + 1,
            prefix: prompt.end..prompt.end,
            own: prompt.clone(),
            causal: true,
            first: prompt.len() - 1,
        });
        rows.push(before as u32);
        for answer in answers {
            let inner = answer.rows.len().saturating_sub(1);
            if inner > 0 {
                spans.push(Span {
                    queries: rows.len()..rows.len() + inner,
                    prefix: prompt.clone(),
                    own: answer.rows.clone(),
                    causal: true,
                    first: 0,
                });
            }
            for row in answer.rows.clone().take(inner) {
                place.insert(row, rows.len() as u32);
                rows.push(row as u32);
            }
            predicting.extend(
                answer
                    .predicting()
                    .filter_map(|row| place.get(&row).copied()),
            );
            targets.extend(answer.rows.clone().map(|row| packed.ids[row]));
        }
    }
    (rows, spans.into(), predicting, targets)
}
