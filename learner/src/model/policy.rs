//! A model with a trainable LoRA, as the BPO trainer sees it.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::decoder::Packed;
use super::decoder::batch::{Keep, Tape as BatchTape};
use super::decoder::gradient::{LayerGradients, Training};
use super::device::free_bytes;
use super::error::ModelError;
use super::lora::{Lora, Slot};
use super::multimodal::Model;
use super::workers::Workers;
use crate::bpo::policy::{Gradients, Group, Policy};

/// How a [`LoraPolicy`] spends time and memory. None of it changes what is computed, only the rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyOptions {
    /// Threads; 0 means one for each core. 1 for a model on a GPU.
    pub threads: usize,
    /// Rows (prompt and answer tokens) that go through the model at once, for each thread.
    pub rows_at_once: usize,
    /// Bytes of activations to keep between forward and backward, all threads together. Layers that do not fit are
    /// computed again from their inputs, which costs up to a half more time.
    pub activation_bytes: usize,
}

impl PolicyOptions {
    /// What suits a device: on the CPU these threads and the default, on a GPU larger products and, for activations, half of
    /// the memory that is free.
    pub fn on(device: &Device, threads: usize) -> Self {
        if device.is_cpu() {
            return Self { threads, ..Self::default() };
        }
        let activation_bytes = free_bytes(device).map_or(Self::default().activation_bytes, |free| free / 2);
        Self { threads: 1, rows_at_once: 16_384, activation_bytes }
    }
}

impl Default for PolicyOptions {
    /// All cores, 1024 rows, 256 MiB.
    fn default() -> Self {
        Self { threads: 0, rows_at_once: 1024, activation_bytes: 256 << 20 }
    }
}

/// A frozen base and a LoRA in training on it.
pub struct LoraPolicy {
    model: Arc<Model>,
    lora: Lora,
    workers: Arc<Workers>,
    options: PolicyOptions,
}

/// The batches of each worker: which groups, and what their backward pass needs.
pub struct Tape {
    parts: Vec<Vec<(Vec<usize>, Option<BatchTape>)>>,
}

type Scored = (Vec<usize>, Vec<Vec<f64>>, Option<BatchTape>);

impl LoraPolicy {
    /// A policy on a shared base.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn new(model: Arc<Model>, lora: Lora, options: PolicyOptions) -> std::result::Result<Self, ModelError> {
        let workers = Arc::new(Workers::new(options.threads)?);
        Ok(Self::sharing(model, lora, workers, options))
    }

    /// A policy on a shared base and on threads that are there already; `options.threads` is not looked at.
    pub fn sharing(model: Arc<Model>, lora: Lora, workers: Arc<Workers>, options: PolicyOptions) -> Self {
        Self { model, lora, workers, options }
    }

    /// The base.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Its threads. What else needs some should share them: a thread keeps memory that it freed, and gives it to no other.
    pub fn workers(&self) -> &Arc<Workers> {
        &self.workers
    }

    /// The adapter as it is now.
    pub fn lora(&self) -> &Lora {
        &self.lora
    }

    /// Groups by worker.
    fn parts(&self, groups: &[Group]) -> Vec<Vec<usize>> {
        let rows: Vec<usize> = groups.iter().map(rows).collect();
        self.workers.share(&rows)
    }

    fn run(&self, groups: &[Group], training: Training<'_>, keep: bool) -> Result<Vec<Vec<Scored>>> {
        let parts = self.parts(groups);
        let budget = self.options.activation_bytes / parts.len();
        let results = self.workers.map(parts, |part| -> Result<Vec<Scored>> {
            let mut left = budget;
            let mut scored = Vec::new();
            for batch in batches(&part, groups, self.options.rows_at_once) {
                let packed = Packed::new(batch.iter().map(|index| &groups[*index]))?;
                let embeddings = self.model.embed(&packed).map_err(candle)?;
                let a_layer = (packed.len() * self.model.decoder().activation_bytes()).max(1);
                let layers = (left / a_layer).min(self.model.decoder().config().layers);
                left -= layers * a_layer;
                let keep = if keep { Keep::Layers(layers) } else { Keep::Nothing };
                // Masks differ between batches; a batch is known by its first group.
                let first = batch.first().map_or(0, |index| *index as u64);
                let seed = training.seed.map(|seed| seed ^ first.wrapping_mul(0xD6E8_FEB8_6659_FD93));
                let training = Training { seed, ..training };
                let (sums, tape) = self.model.decoder().forward(embeddings, packed, training, keep).map_err(candle)?;
                scored.push((batch, sums, tape));
            }
            Ok(scored)
        });
        results.into_iter().collect()
    }
}

impl Policy for LoraPolicy {
    type Tape = Tape;

    fn forward(&self, groups: &[Group], seed: Option<u64>) -> Result<(Vec<Vec<f64>>, Tape)> {
        if self.model.decoder().is_quantised() {
            return Err(candle(ModelError::QuantisedBase));
        }
        let scored = self.run(groups, Training { lora: Some(&self.lora), seed }, true)?;
        let mut sums = vec![Vec::new(); groups.len()];
        let mut parts = Vec::with_capacity(scored.len());
        for part in scored {
            let mut tapes = Vec::with_capacity(part.len());
            for (batch, of_batch, tape) in part {
                for (index, of_group) in batch.iter().zip(of_batch) {
                    sums[*index] = of_group;
                }
                tapes.push((batch, tape));
            }
            parts.push(tapes);
        }
        Ok((sums, Tape { parts }))
    }

    fn backward(&self, tape: Tape, coefficients: &[Vec<f64>], gradients: &mut Gradients) -> Result<()> {
        let training = Training { lora: Some(&self.lora), seed: None };
        let results = self.workers.map(tape.parts, |part| -> Result<Option<Vec<LayerGradients>>> {
            let mut total: Option<Vec<LayerGradients>> = None;
            for (batch, tape) in part {
                let Some(tape) = tape else { continue };
                let of_batch = batch
                    .iter()
                    .map(|index| coefficients.get(*index).map(Vec::as_slice))
                    .collect::<Option<Vec<_>>>()
                    .ok_or_else(|| candle_core::Error::Msg("fewer coefficients than groups".to_owned()))?;
                let layers = self.model.decoder().backward(tape, &of_batch, training).map_err(candle)?;
                total = Some(match total {
                    None => layers,
                    Some(total) => add(total, layers)?,
                });
            }
            Ok(total)
        });
        let mut total: Option<Vec<LayerGradients>> = None;
        for part in results {
            total = match (total, part?) {
                (Some(total), Some(part)) => Some(add(total, part)?),
                (total, part) => total.or(part),
            };
        }
        for (layer, slots) in total.into_iter().flatten().enumerate() {
            for (slot, pair) in Slot::ALL.into_iter().zip(slots) {
                let Some((a, b)) = pair else { continue };
                for (half, gradient) in [a, b].into_iter().enumerate() {
                    let name = self.lora.tensor_name(layer, slot, half);
                    let sum = match gradients.get(&name) {
                        Some(before) => (before + gradient)?,
                        None => gradient,
                    };
                    gradients.insert(name, sum);
                }
            }
        }
        Ok(())
    }

    fn score(&self, groups: &[Group], adapter: bool) -> Result<Vec<Vec<f64>>> {
        // A new adapter changes nothing, and the reference of most runs is base + new adapter.
        let lora = if adapter && !self.lora.is_zero()? { Some(&self.lora) } else { None };
        let mut sums = vec![Vec::new(); groups.len()];
        for (batch, of_batch, _) in self.run(groups, Training { lora, seed: None }, false)?.into_iter().flatten() {
            for (index, of_group) in batch.iter().zip(of_batch) {
                sums[*index] = of_group;
            }
        }
        Ok(sums)
    }

    fn parameters(&self) -> BTreeMap<String, Tensor> {
        self.lora.parameters()
    }

    fn set_parameters(&mut self, parameters: &BTreeMap<String, Tensor>) -> Result<()> {
        self.lora.set_parameters(parameters)
    }
}

fn rows(group: &Group) -> usize {
    group.prompt.len() + group.answers.iter().map(|answer| answer.len()).sum::<usize>()
}

/// Groups in their order, cut so that no batch has more than `limit` rows unless a single group does.
fn batches(part: &[usize], groups: &[Group], limit: usize) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut filled = usize::MAX;
    for index in part {
        let rows = rows(&groups[*index]);
        match batches.last_mut() {
            Some(batch) if filled.saturating_add(rows) <= limit => {
                batch.push(*index);
                filled += rows;
            }
            _ => {
                batches.push(vec![*index]);
                filled = rows;
            }
        }
    }
    batches
}

fn add(total: Vec<LayerGradients>, part: Vec<LayerGradients>) -> Result<Vec<LayerGradients>> {
    total
        .into_iter()
        .zip(part)
        .map(|(total, part)| {
            let mut sum: LayerGradients = Default::default();
            for ((sum, total), part) in sum.iter_mut().zip(total).zip(part) {
                *sum = match (total, part) {
                    (Some((a, b)), Some((da, db))) => Some(((a + da)?, (b + db)?)),
                    (total, part) => total.or(part),
                };
            }
            Ok(sum)
        })
        .collect()
}

/// The trait speaks candle's errors: a trainer adds the run and the step to them.
fn candle(error: ModelError) -> candle_core::Error {
    match error {
        ModelError::Tensor(error) => error,
        other => candle_core::Error::wrap(other),
    }
}
