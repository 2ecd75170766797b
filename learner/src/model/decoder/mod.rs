//! The language model: a decoder of the Llama kind over packed sequences.
//!
//! # Layout
//! - [`DecoderConfig`], [`RopeScaling`]: sizes (`config`).
//! - [`Packed`]: sequences side by side in one matrix, prompts shared by answers (`packed`).
//! - `rotary`: angles of the positions.
//! - `block`: one layer, forward.
//! - `gradient`: one layer, forward with what the backward pass needs, and backward for the LoRA tensors.
//! - `batch`: all layers forward and backward for a batch of groups.
//! - `head`: log-probabilities of chosen tokens without ever holding all logits.
//! - [`KeyValues`]: keys and values of sequences being generated (`cache`), and the steps that fill them (`stepping`).

pub(crate) mod batch;
mod block;
mod cache;
mod config;
pub(crate) mod gradient;
pub(crate) mod head;
mod packed;
mod rotary;
mod stepping;

use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};

use block::Block;
pub use cache::KeyValues;
pub use config::{DecoderConfig, RopeScaling};
pub use packed::{AnswerRows, Packed};
use rotary::Rotary;

use super::adapters::Adapters;
use super::error::ModelError;
use super::lora::Slot;
use super::ops::attention::{Heads, Span};
use super::ops::linear;
use super::ops::rms_norm::rms_norm;
use super::ops::rope::Angles;
use super::weight::Weight;
use super::weights::Weights;
use crate::adapter::ModuleShapes;

/// The language model of a multimodal model.
pub struct Decoder {
    config: DecoderConfig,
    prefix: String,
    embedding: Tensor,
    blocks: Vec<Block>,
    norm: Tensor,
    head: Tensor,
    rotary: Rotary,
}

/// What the blocks share in one forward pass.
pub(crate) struct Pass<'a> {
    pub(crate) angles: Angles,
    pub(crate) spans: Arc<[Span]>,
    pub(crate) heads: Heads,
    pub(crate) epsilon: f64,
    pub(crate) adapters: &'a Adapters<'a>,
}

impl Decoder {
    /// Builds the decoder from tensors under `prefix` (`model.text_model`); `head` is the name of the output layer's
    /// weight, or `None` if it is the embedding. Variables among the tensors are trained by candle's differentiation.
    ///
    /// # Errors
    /// A missing tensor, or one of another shape.
    pub fn new(config: DecoderConfig, prefix: &str, head: Option<&str>, weights: &Weights) -> Result<Self, ModelError> {
        let table = [config.vocab_size, config.hidden_size];
        let embedding = weights.get(&format!("{prefix}.embed_tokens.weight"), &table)?;
        let head = match head {
            Some(name) => weights.get(name, &table)?,
            None => embedding.clone(),
        };
        let blocks = (0..config.layers)
            .map(|index| Block::new(&config, weights, &format!("{prefix}.layers.{index}")))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            rotary: Rotary::new(&config, embedding.device())?,
            norm: weights.get(&format!("{prefix}.norm.weight"), &[config.hidden_size])?,
            prefix: prefix.to_owned(),
            embedding,
            blocks,
            head,
            config,
        })
    }

    /// Its sizes.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Where its weights are.
    pub fn device(&self) -> &Device {
        self.embedding.device()
    }

    /// The type of its weights and activations.
    pub fn dtype(&self) -> DType {
        self.embedding.dtype()
    }

    /// Whether its linear layers are held in fewer bits than its activations. Nothing is trained on such a base.
    pub fn is_quantised(&self) -> bool {
        let quantised = |block: &Block| Slot::ALL.map(|slot| matches!(block.weight(slot), Weight::Quantised(_)));
        self.blocks.iter().flat_map(quantised).any(|quantised| quantised)
    }

    /// Whether a tensor of the checkpoint is the weight of a linear layer of the decoder under `prefix`.
    pub(crate) fn is_linear(prefix: &str, name: &str) -> bool {
        let in_block = name.strip_prefix(prefix).and_then(|name| name.strip_prefix(".layers."));
        let layer = in_block.and_then(|name| name.split_once('.')?.1.strip_suffix(".weight"));
        layer.is_some_and(|layer| Slot::ALL.into_iter().any(|slot| slot.name() == layer))
    }

    /// Paths of the linear layers of each block, as in the checkpoint.
    pub(crate) fn module_names(&self) -> Vec<[String; 7]> {
        (0..self.config.layers)
            .map(|layer| Slot::ALL.map(|slot| format!("{}.layers.{layer}.{}", self.prefix, slot.name())))
            .collect()
    }

    /// `(out, in)` of a linear layer.
    pub(crate) fn shape(&self, layer: usize, slot: Slot) -> candle_core::Result<(usize, usize)> {
        self.blocks[layer].weight(slot).shape()
    }

    /// Shapes of the linear layers that an adapter may change.
    ///
    /// # Errors
    /// None in practice: every weight is a matrix.
    pub fn module_shapes(&self) -> candle_core::Result<ModuleShapes> {
        let mut shapes = ModuleShapes::new();
        for (layer, names) in self.module_names().into_iter().enumerate() {
            for (slot, name) in Slot::ALL.into_iter().zip(names) {
                shapes.insert(name, self.shape(layer, slot)?);
            }
        }
        Ok(shapes)
    }

    pub(crate) fn heads(&self) -> Heads {
        Heads { query: self.config.heads, key: self.config.key_value_heads, width: self.config.head_dim }
    }

    pub(crate) fn pass<'a>(
        &self,
        positions: &[u32],
        spans: Arc<[Span]>,
        adapters: &'a Adapters<'a>,
    ) -> Result<Pass<'a>, ModelError> {
        let limit = self.config.max_positions;
        if let Some(position) = positions.iter().max().filter(|position| **position as usize >= limit) {
            return Err(ModelError::TooLong { length: *position as usize + 1, limit });
        }
        Ok(Pass {
            angles: self.rotary.at(positions)?,
            spans,
            heads: self.heads(),
            epsilon: self.config.rms_norm_eps,
            adapters,
        })
    }

    /// Embeddings of a packed batch, `[rows, hidden]`, image features in the place of the rows whose token is
    /// `image_token`, in order. Differentiable in the embedding and the features.
    ///
    /// # Errors
    /// A token outside the vocabulary; another number of image tokens than feature rows.
    pub fn embed(&self, packed: &Packed, image_token: Option<u32>) -> Result<Tensor, ModelError> {
        let vocabulary = self.config.vocab_size;
        if let Some(id) = packed.ids.iter().find(|id| **id as usize >= vocabulary) {
            return Err(ModelError::TokenId { id: *id, vocabulary });
        }
        let ids = Tensor::new(packed.ids.as_slice(), self.device())?;
        let text = self.embedding.index_select(&ids, 0)?;
        let feature_rows =
            packed.features.iter().map(|features| features.dim(0)).sum::<candle_core::Result<usize>>()?;
        let placeholders = packed.ids.iter().filter(|id| Some(**id) == image_token).count();
        if feature_rows != placeholders {
            return Err(ModelError::Placeholders { placeholders, images: feature_rows });
        }
        if feature_rows == 0 {
            return Ok(text);
        }
        let mut next = packed.ids.len() as u32;
        let order: Vec<u32> = packed
            .ids
            .iter()
            .enumerate()
            .map(|(row, id)| {
                if Some(*id) == image_token {
                    next += 1;
                    next - 1
                } else {
                    row as u32
                }
            })
            .collect();
        let mut pieces = vec![text];
        for features in &packed.features {
            pieces.push(features.to_dtype(self.dtype())?);
        }
        let order = Tensor::new(order.as_slice(), self.device())?;
        Ok(Tensor::cat(&pieces, 0)?.index_select(&order, 0)?)
    }

    /// Hidden states after the last block and before the final normalisation, `[rows, hidden]`. Differentiable in the
    /// embeddings and every weight that is a variable.
    ///
    /// # Errors
    /// A sequence longer than the model's positions; a failed tensor operation.
    pub fn hidden(&self, embeddings: &Tensor, packed: &Packed, adapters: &Adapters<'_>) -> Result<Tensor, ModelError> {
        let pass = self.pass(&packed.positions, packed.spans.clone(), adapters)?;
        let mut x = embeddings.clone();
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward(layer, &x, &pass)?;
        }
        Ok(x)
    }

    /// Logits of hidden states, `[rows, vocabulary]`: final normalisation and output layer.
    ///
    /// # Errors
    /// A failed tensor operation.
    pub fn logits(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        debug_assert_eq!(hidden.dim(D::Minus1)?, self.config.hidden_size);
        linear(&rms_norm(hidden, &self.norm, self.config.rms_norm_eps)?, &self.head, None)
    }
}
