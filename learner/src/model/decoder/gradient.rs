//! The gradient of the LoRA tensors of one decoder layer, written out.
//!
//! candle's differentiation would keep every intermediate of every layer and add a pass over memory for each. Here a layer
//! either keeps what its backward pass needs ([`Saved`]) or, to save memory, is computed again from its input; no gradient
//! of a frozen weight is ever formed.

use candle_core::{DType, Result, Tensor};

use super::block::Block;
use super::{Decoder, Pass};
use crate::adapter::LoraWeights;
use crate::model::adapters::{delta, middle};
use crate::model::dropout::dropout;
use crate::model::lora::{Lora, Slot};
use crate::model::ops::attention::{self, attention};
use crate::model::ops::rope::{self, Angles, rope};
use crate::model::ops::{activation, rms_norm};

/// The adapter being trained or scored, and its dropout.
#[derive(Clone, Copy)]
pub(crate) struct Training<'a> {
    /// `None` for the base alone.
    pub(crate) lora: Option<&'a Lora>,
    /// Decides the dropout masks; `None` for no dropout.
    pub(crate) seed: Option<u64>,
}

/// Rows that the last layer computes: those that predict a token of an answer. The others serve as keys and values only.
#[derive(Clone)]
pub(crate) struct Tail {
    /// The rows, ascending.
    pub(crate) rows: Tensor,
    /// Angles of these rows.
    pub(crate) angles: Angles,
    /// What they see.
    pub(crate) spans: std::sync::Arc<[attention::Span]>,
}

/// What the backward pass of a layer needs.
pub(crate) struct Saved {
    x: Tensor,
    normed1: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attended: Tensor,
    residual: Tensor,
    normed2: Tensor,
    gate: Tensor,
    up: Tensor,
    inner: Tensor,
    middles: [Option<Tensor>; 7],
}

/// Gradients of the LoRA tensors: for each layer and linear layer, of A and B.
pub(crate) type LayerGradients = [Option<(Tensor, Tensor)>; 7];

impl Training<'_> {
    fn weights(&self, layer: usize, slot: Slot) -> Option<&LoraWeights> {
        self.lora?.weights(layer, slot)
    }

    fn dropped(&self, layer: usize, slot: Slot, x: &Tensor) -> Result<Tensor> {
        let p = self.lora.map_or(0.0, |lora| lora.config().lora_dropout);
        match self.seed {
            Some(seed) if p > 0.0 => {
                // An odd multiplier spreads neighbouring layers and slots over all bits.
                let place = (layer * Slot::ALL.len() + slot as usize) as u64 + 1;
                dropout(x, p, seed ^ place.wrapping_mul(0x9E37_79B9_7F4A_7C15))
            }
            _ => Ok(x.clone()),
        }
    }

    fn project(
        &self,
        block: &Block,
        layer: usize,
        slot: Slot,
        x: &Tensor,
        middles: &mut [Option<Tensor>; 7],
    ) -> Result<Tensor> {
        let y = block.weight(slot).apply(x)?;
        let Some(weights) = self.weights(layer, slot) else {
            return Ok(y);
        };
        let mid = middle(&self.dropped(layer, slot, x)?, weights)?;
        let y = (&y + delta(&mid, weights)?.to_dtype(y.dtype())?)?;
        middles[slot as usize] = Some(mid);
        Ok(y)
    }

    /// `dL/dx` of a projection; stores the gradients of its A and B.
    #[expect(
        clippy::too_many_arguments,
        reason = "a projection's place, its input, what was kept and where gradients go"
    )]
    fn project_backward(
        &self,
        block: &Block,
        layer: usize,
        slot: Slot,
        x: &Tensor,
        middles: &[Option<Tensor>; 7],
        dy: &Tensor,
        gradients: &mut LayerGradients,
    ) -> Result<Tensor> {
        let dx = dy.matmul(block.weight(slot).full()?)?;
        let (Some(weights), Some(mid)) = (self.weights(layer, slot), &middles[slot as usize]) else {
            return Ok(dx);
        };
        let dy = dy.to_dtype(DType::F32)?;
        let db = dy.t()?.matmul(mid)?;
        let dmid = (dy.matmul(&weights.b)? * weights.scale)?;
        let da = dmid.t()?.matmul(&self.dropped(layer, slot, x)?.to_dtype(DType::F32)?)?;
        gradients[slot as usize] = Some((da, db));
        // The same mask on the way back.
        let part = self.dropped(layer, slot, &dmid.matmul(&weights.a)?)?;
        &dx + part.to_dtype(dx.dtype())?
    }
}

impl Decoder {
    /// One layer forward. With a `tail`, only its rows come out.
    pub(crate) fn layer_forward(
        &self,
        layer: usize,
        x: &Tensor,
        pass: &Pass<'_>,
        tail: Option<&Tail>,
        training: Training<'_>,
    ) -> Result<(Tensor, Saved)> {
        let block = &self.blocks[layer];
        let mut middles: [Option<Tensor>; 7] = Default::default();
        let normed1 = rms_norm::forward(x, &block.norm1, pass.epsilon)?;
        let (queries, residual_in, q_angles, spans) = match tail {
            Some(tail) => {
                (normed1.index_select(&tail.rows, 0)?, x.index_select(&tail.rows, 0)?, &tail.angles, &tail.spans)
            }
            None => (normed1.clone(), x.clone(), &pass.angles, &pass.spans),
        };
        let q = rope(&training.project(block, layer, Slot::Q, &queries, &mut middles)?, q_angles)?;
        let k = rope(&training.project(block, layer, Slot::K, &normed1, &mut middles)?, &pass.angles)?;
        let v = training.project(block, layer, Slot::V, &normed1, &mut middles)?;
        let attended = attention(&q, &k, &v, spans, pass.heads)?;
        let residual = (residual_in + training.project(block, layer, Slot::O, &attended, &mut middles)?)?;
        let normed2 = rms_norm::forward(&residual, &block.norm2, pass.epsilon)?;
        let gate = training.project(block, layer, Slot::Gate, &normed2, &mut middles)?;
        let up = training.project(block, layer, Slot::Up, &normed2, &mut middles)?;
        let inner = activation::swiglu(&gate, &up)?;
        let y = (&residual + training.project(block, layer, Slot::Down, &inner, &mut middles)?)?;
        let saved = Saved { x: x.clone(), normed1, q, k, v, attended, residual, normed2, gate, up, inner, middles };
        Ok((y, saved))
    }

    /// One layer backward: `dL/dx` from `dL/dy`, and the gradients of its LoRA tensors. Without `wants_dx` (the first
    /// layer, whose input is frozen) what only `dL/dx` needs is left out and `None` returned.
    #[expect(clippy::too_many_arguments, reason = "the forward pass's arguments, what it kept, and what comes back")]
    pub(crate) fn layer_backward(
        &self,
        layer: usize,
        saved: &Saved,
        dy: &Tensor,
        pass: &Pass<'_>,
        tail: Option<&Tail>,
        training: Training<'_>,
        wants_dx: bool,
    ) -> Result<(Option<Tensor>, LayerGradients)> {
        let block = &self.blocks[layer];
        let mut gradients: LayerGradients = Default::default();
        let middles = &saved.middles;
        let mut back = |slot: Slot, x: &Tensor, dy: &Tensor| {
            training.project_backward(block, layer, slot, x, middles, dy, &mut gradients)
        };
        let dinner = back(Slot::Down, &saved.inner, dy)?;
        let (dgate, dup) = activation::swiglu_backward(&saved.gate, &saved.up, &dinner)?;
        let dnormed2 = (back(Slot::Gate, &saved.normed2, &dgate)? + back(Slot::Up, &saved.normed2, &dup)?)?;
        let dresidual = (dy + rms_norm::backward(&saved.residual, &block.norm2, pass.epsilon, &dnormed2)?)?;
        let dattended = back(Slot::O, &saved.attended, &dresidual)?;
        let (q_angles, spans) = match tail {
            Some(tail) => (&tail.angles, &tail.spans),
            None => (&pass.angles, &pass.spans),
        };
        let (dq, dk, dv) = attention::backward(&saved.q, &saved.k, &saved.v, spans, pass.heads, &dattended)?;
        let queries = match tail {
            Some(tail) => saved.normed1.index_select(&tail.rows, 0)?,
            None => saved.normed1.clone(),
        };
        let dqueries = back(Slot::Q, &queries, &rope::backward(&dq, q_angles)?)?;
        let dk = back(Slot::K, &saved.normed1, &rope::backward(&dk, &pass.angles)?)?;
        let dv = back(Slot::V, &saved.normed1, &dv)?;
        if !wants_dx {
            return Ok((None, gradients));
        }
        let keys = (dk + dv)?;
        let (dnormed1, through) = match tail {
            Some(tail) => {
                let through = keys.zeros_like()?.index_add(&tail.rows, &dresidual, 0)?;
                (keys.index_add(&tail.rows, &dqueries, 0)?, through)
            }
            None => ((keys + dqueries)?, dresidual),
        };
        let dx = (through + rms_norm::backward(&saved.x, &block.norm1, pass.epsilon, &dnormed1)?)?;
        Ok((Some(dx), gradients))
    }
}
