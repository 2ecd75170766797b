//! What the trainer needs of a model: sequence log-probabilities, and the gradient of any weighted sum of them.
//!
//! Every term of the BPO loss depends on the model through sequence log-probabilities only, so its gradient is
//! `Σ cᵢ ∇ log π(yᵢ|v,x)` with coefficients `cᵢ` in closed form. A policy therefore never sees the loss: it returns the
//! numbers, is told the coefficients, and adds the gradient.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Result, Tensor};

/// One image-conditioned prompt and the answers to score under it. The prompt is computed once for all its answers.
#[derive(Clone, Debug)]
pub struct Group {
    /// Prompt token ids, image placeholders already expanded.
    pub prompt: Arc<[u32]>,
    /// What the frozen vision tower and connector made of the prompt's images, `[image tokens, hidden]`; `None` without image.
    pub features: Option<Tensor>,
    /// Token ids of each answer, end-of-turn token included.
    pub answers: Vec<Arc<[u32]>>,
}

/// Gradients by LoRA tensor name, in the order of the names.
pub type Gradients = BTreeMap<String, Tensor>;

/// A base model with a trainable LoRA on it.
pub trait Policy {
    /// What [`Policy::forward`] keeps so that [`Policy::backward`] can recompute the rest.
    type Tape;

    /// `log π(y|v,x)` (natural log, summed over the answer's tokens) of each answer of each group, with the adapter on.
    /// `seed` decides LoRA dropout; `None` switches it off.
    fn forward(&self, groups: &[Group], seed: Option<u64>) -> Result<(Vec<Vec<f64>>, Self::Tape)>;

    /// Adds `Σ coefficients[g][a] · ∇ log π(answer a of group g)` to `gradients`.
    fn backward(&self, tape: Self::Tape, coefficients: &[Vec<f64>], gradients: &mut Gradients) -> Result<()>;

    /// The same log-probabilities without a tape; `adapter = false` scores the base alone.
    fn score(&self, groups: &[Group], adapter: bool) -> Result<Vec<Vec<f64>>>;

    /// The trainable tensors by name, f32.
    fn parameters(&self) -> BTreeMap<String, Tensor>;

    /// Replaces trainable tensors: names and shapes as in [`Policy::parameters`].
    fn set_parameters(&mut self, parameters: &BTreeMap<String, Tensor>) -> Result<()>;
}
