//! One decoder layer: attention and gated feed-forward, each behind an RMS normalisation and around a residual.

use candle_core::{Result, Tensor};

use super::Pass;
use super::config::DecoderConfig;
use crate::model::error::ModelError;
use crate::model::lora::Slot;
use crate::model::ops::activation::swiglu;
use crate::model::ops::attention::attention;
use crate::model::ops::rms_norm::rms_norm;
use crate::model::ops::rope::rope;
use crate::model::weight::Weight;
use crate::model::weights::Weights;

pub(crate) struct Block {
    pub(crate) norm1: Tensor,
    pub(crate) norm2: Tensor,
    weights: [Weight; 7],
}

impl Block {
    pub(super) fn new(config: &DecoderConfig, weights: &Weights, name: &str) -> std::result::Result<Self, ModelError> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.heads * config.head_dim, config.key_value_heads * config.head_dim);
        let get = |slot: Slot| {
            let shape = match slot {
                Slot::Q => [q, width],
                Slot::K | Slot::V => [kv, width],
                Slot::O => [width, q],
                Slot::Gate | Slot::Up => [inner, width],
                Slot::Down => [width, inner],
            };
            weights.linear(&format!("{name}.{}.weight", slot.name()), shape)
        };
        Ok(Self {
            norm1: weights.get(&format!("{name}.input_layernorm.weight"), &[width])?,
            norm2: weights.get(&format!("{name}.post_attention_layernorm.weight"), &[width])?,
            weights: [
                get(Slot::Q)?,
                get(Slot::K)?,
                get(Slot::V)?,
                get(Slot::O)?,
                get(Slot::Gate)?,
                get(Slot::Up)?,
                get(Slot::Down)?,
            ],
        })
    }

    pub(crate) fn weight(&self, slot: Slot) -> &Weight {
        &self.weights[slot as usize]
    }

    fn project(&self, layer: usize, slot: Slot, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        pass.adapters.add(layer, slot, x, self.weight(slot).apply(x)?)
    }

    /// Queries, keys (both with their positions) and values.
    pub(super) fn attend_to(&self, layer: usize, x: &Tensor, pass: &Pass<'_>) -> Result<(Tensor, Tensor, Tensor)> {
        let normed = rms_norm(x, &self.norm1, pass.epsilon)?;
        let q = rope(&self.project(layer, Slot::Q, &normed, pass)?, &pass.angles)?;
        let k = rope(&self.project(layer, Slot::K, &normed, pass)?, &pass.angles)?;
        Ok((q, k, self.project(layer, Slot::V, &normed, pass)?))
    }

    /// Everything after the attention.
    pub(super) fn finish(&self, layer: usize, x: &Tensor, attended: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let x = (x + self.project(layer, Slot::O, attended, pass)?)?;
        let normed = rms_norm(&x, &self.norm2, pass.epsilon)?;
        let gate = self.project(layer, Slot::Gate, &normed, pass)?;
        let up = self.project(layer, Slot::Up, &normed, pass)?;
        let inner = swiglu(&gate, &up)?;
        x + self.project(layer, Slot::Down, &inner, pass)?
    }

    pub(super) fn forward(&self, layer: usize, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let (q, k, v) = self.attend_to(layer, x, pass)?;
        let attended = attention(&q, &k, &v, &pass.spans, pass.heads)?;
        self.finish(layer, x, &attended, pass)
    }
}
