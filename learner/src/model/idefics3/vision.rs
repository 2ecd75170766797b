//! The vision tower: patches, positions, a bidirectional transformer, and the connector that turns squares of patches
//! into tokens of the language model.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::config::Idefics3Config;
use crate::model::error::ModelError;
use crate::model::ops::attention::{Heads, Span, attention};
use crate::model::ops::layer_norm::layer_norm;
use crate::model::ops::{linear, linear_gelu_tanh};
use crate::model::weights::Weights;

struct Affine {
    weight: Tensor,
    bias: Tensor,
}

impl Affine {
    fn new(weights: &Weights, name: &str, outputs: usize, inputs: usize) -> Result<Self, ModelError> {
        Ok(Self {
            weight: weights.get(&format!("{name}.weight"), &[outputs, inputs])?,
            bias: weights.get(&format!("{name}.bias"), &[outputs])?,
        })
    }

    fn norm(weights: &Weights, name: &str, width: usize) -> Result<Self, ModelError> {
        Ok(Self {
            weight: weights.get(&format!("{name}.weight"), &[width])?,
            bias: weights.get(&format!("{name}.bias"), &[width])?,
        })
    }

    fn linear(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        linear(x, &self.weight, Some(&self.bias))
    }

    fn normalise(&self, x: &Tensor, epsilon: f64) -> candle_core::Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, epsilon)
    }
}

struct Layer {
    norm1: Affine,
    q: Affine,
    k: Affine,
    v: Affine,
    out: Affine,
    norm2: Affine,
    fc1: Affine,
    fc2: Affine,
}

impl Layer {
    fn new(weights: &Weights, name: &str, width: usize, inner: usize) -> Result<Self, ModelError> {
        Ok(Self {
            norm1: Affine::norm(weights, &format!("{name}.layer_norm1"), width)?,
            q: Affine::new(weights, &format!("{name}.self_attn.q_proj"), width, width)?,
            k: Affine::new(weights, &format!("{name}.self_attn.k_proj"), width, width)?,
            v: Affine::new(weights, &format!("{name}.self_attn.v_proj"), width, width)?,
            out: Affine::new(weights, &format!("{name}.self_attn.out_proj"), width, width)?,
            norm2: Affine::norm(weights, &format!("{name}.layer_norm2"), width)?,
            fc1: Affine::new(weights, &format!("{name}.mlp.fc1"), inner, width)?,
            fc2: Affine::new(weights, &format!("{name}.mlp.fc2"), width, inner)?,
        })
    }

    fn forward(&self, x: &Tensor, spans: &Arc<[Span]>, heads: Heads, epsilon: f64) -> candle_core::Result<Tensor> {
        let normed = self.norm1.normalise(x, epsilon)?;
        let (q, k, v) = (self.q.linear(&normed)?, self.k.linear(&normed)?, self.v.linear(&normed)?);
        let x = (x + self.out.linear(&attention(&q, &k, &v, spans, heads)?)?)?;
        let inner = linear_gelu_tanh(&self.norm2.normalise(&x, epsilon)?, &self.fc1.weight, &self.fc1.bias)?;
        &x + self.fc2.linear(&inner)?
    }
}

/// Vision tower and connector.
pub(super) struct Vision {
    /// `[width, channels · patch · patch]`: the convolution with stride = kernel as one product.
    patch: Affine,
    positions: Tensor,
    layers: Vec<Layer>,
    post_norm: Affine,
    projection: Tensor,
    config: Idefics3Config,
}

impl Vision {
    pub(super) fn new(config: &Idefics3Config, weights: &Weights) -> Result<Self, ModelError> {
        let (shape, root) = (&config.vision, "model.vision_model");
        let (width, edge, channels) = (shape.hidden_size, shape.patch_size, shape.num_channels);
        let kernel =
            weights.get(&format!("{root}.embeddings.patch_embedding.weight"), &[width, channels, edge, edge])?;
        let side = shape.image_size / edge;
        let layers = (0..shape.num_hidden_layers)
            .map(|index| Layer::new(weights, &format!("{root}.encoder.layers.{index}"), width, shape.intermediate_size))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            patch: Affine {
                weight: kernel,
                bias: weights.get(&format!("{root}.embeddings.patch_embedding.bias"), &[width])?,
            },
            positions: weights.get(&format!("{root}.embeddings.position_embedding.weight"), &[side * side, width])?,
            layers,
            post_norm: Affine::norm(weights, &format!("{root}.post_layernorm"), width)?,
            projection: weights.get(
                "model.connector.modality_projection.proj.weight",
                &[config.text.hidden_size, width * config.scale_factor * config.scale_factor],
            )?,
            config: config.clone(),
        })
    }

    /// Patch representations after the last normalisation, `[tiles · patches, width]`, patches row by row.
    /// `pixels` is `[tiles, channels, height, width]`, whole patches, every pixel valid.
    pub(super) fn patches(&self, pixels: &Tensor) -> Result<Tensor, ModelError> {
        let shape = &self.config.vision;
        let (tiles, channels, height, width) = pixels.dims4()?;
        let edge = shape.patch_size;
        let (rows, columns) = (height / edge, width / edge);
        let side = shape.image_size / edge;
        if channels != shape.num_channels || rows == 0 || columns == 0 || rows > side || columns > side {
            return Err(ModelError::Config {
                file: "preprocessor_config.json",
                key: "max_image_size",
                value: format!("{channels} × {height} × {width}"),
                why: format!("the vision tower is for {} channels and {} pixels", shape.num_channels, shape.image_size),
            });
        }
        let patches = pixels
            .to_dtype(self.positions.dtype())?
            .narrow(2, 0, rows * edge)?
            .narrow(3, 0, columns * edge)?
            .contiguous()?
            .reshape(&[tiles, channels, rows, edge, columns, edge][..])?
            .permute([0, 2, 4, 1, 3, 5])?
            .reshape((tiles * rows * columns, channels * edge * edge))?;
        let kernel = self.patch.weight.reshape((shape.hidden_size, channels * edge * edge))?;
        // The kernel's reshaped view is no variable itself, so a trainable one needs candle's own product.
        let embedded = if self.patch.weight.is_variable() {
            patches.matmul(&kernel.t()?)?.broadcast_add(&self.patch.bias)?
        } else {
            linear(&patches, &kernel, Some(&self.patch.bias))?
        };
        let ids = position_ids(rows, columns, side);
        let ids: Vec<u32> = (0..tiles).flat_map(|_| ids.iter().copied()).collect();
        let ids = Tensor::new(ids.as_slice(), pixels.device())?;
        let mut x = (embedded + self.positions.index_select(&ids, 0)?)?;

        let count = rows * columns;
        let spans: Arc<[Span]> = (0..tiles).map(|tile| Span::full(tile * count..(tile + 1) * count)).collect();
        let heads = Heads {
            query: shape.num_attention_heads,
            key: shape.num_attention_heads,
            width: shape.hidden_size / shape.num_attention_heads,
        };
        for layer in &self.layers {
            x = layer.forward(&x, &spans, heads, shape.layer_norm_eps)?;
        }
        Ok(self.post_norm.normalise(&x, shape.layer_norm_eps)?)
    }

    /// Tokens for the language model, `[tiles · tokens, hidden]`: squares of `scale_factor²` patches side by side
    /// (pixel shuffle), projected.
    pub(super) fn connect(&self, patches: &Tensor, tiles: usize) -> Result<Tensor, ModelError> {
        let scale = self.config.scale_factor;
        let (rows, width) = patches.dims2()?;
        let side = (rows / tiles.max(1)).isqrt();
        if side * side * tiles != rows || !side.is_multiple_of(scale) {
            return Err(ModelError::Config {
                file: "config.json",
                key: "scale_factor",
                value: scale.to_string(),
                why: format!("{rows} patches of {tiles} tiles are no squares that it divides"),
            });
        }
        let small = side / scale;
        let shuffled = patches
            .reshape(&[tiles, small, scale, small, scale, width][..])?
            .permute([0, 1, 3, 2, 4, 5])?
            .reshape((tiles * small * small, scale * scale * width))?;
        Ok(linear(&shuffled, &self.projection, None)?)
    }

    pub(super) fn device(&self) -> &Device {
        self.positions.device()
    }

    pub(super) fn dtype(&self) -> DType {
        self.positions.dtype()
    }
}

/// Place of each patch among the `side²` position embeddings: a grid of `rows × columns` is stretched over the whole
/// square, patch i of n getting bucket ⌊i·side/n⌋. transformers does it with fractional coordinates and `bucketize`.
fn position_ids(rows: usize, columns: usize, side: usize) -> Vec<u32> {
    (0..rows)
        .flat_map(|row| (0..columns).map(move |column| (row * side / rows) * side + column * side / columns))
        .map(|id| id as u32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// transformers' rule: boundaries k/side for k = 1 …, fractional coordinates i/n, number of boundaries ≤ coordinate.
    fn bucketize(index: usize, count: usize, side: usize) -> usize {
        let coordinate = index as f64 / count as f64;
        (1..side).filter(|k| *k as f64 / side as f64 <= coordinate + 1e-12).count()
    }

    #[test]
    fn positions_of_square_and_other_grids() {
        assert_eq!(position_ids(3, 3, 3), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(position_ids(2, 4, 4), [0, 1, 2, 3, 8, 9, 10, 11]);
        for side in 1..30 {
            for count in 1..=side {
                for index in 0..count {
                    assert_eq!(index * side / count, bucketize(index, count, side), "{index} of {count} in {side}");
                }
            }
        }
    }
}
