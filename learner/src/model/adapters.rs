//! Adapters at work: which rows of a batch get which.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use super::lora::{Lora, Slot};
use crate::adapter::LoraWeights;

/// Which adapter answers for which rows. Sequences of several adapters share one batch: the base's products are done once
/// for all rows, each adapter's for its own.
#[derive(Clone, Debug, Default)]
pub struct Adapters<'a> {
    spans: Vec<(Range<usize>, &'a Lora)>,
}

impl<'a> Adapters<'a> {
    /// The base alone.
    pub fn none() -> Self {
        Self::default()
    }

    /// One adapter for all of `rows` rows, or none.
    pub fn all(adapter: Option<&'a Lora>, rows: usize) -> Self {
        Self {
            spans: adapter
                .map(|adapter| (0..rows, adapter))
                .into_iter()
                .collect(),
        }
    }

    /// Adapters by rows, in ascending order without overlap. Rows that are not named get the base alone.
    pub fn by_rows(spans: Vec<(Range<usize>, &'a Lora)>) -> Self {
        Self { spans }
    }

    /// Adds the adapters' part to `y = W·x`.
    pub(crate) fn add(&self, layer: usize, slot: Slot, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let rows = x.dim(0)?;
        let mut y = y;
        for (span, adapter) in &self.spans {
            let Some(weights) = adapter.weights(layer, slot).filter(|_| !span.is_empty()) else {
                continue;
            };
            let part = if span.len() == rows {
                x.clone()
            } else {
                x.narrow(0, span.start, span.len())?
            };
            let delta = delta(&middle(&part, weights)?, weights)?.to_dtype(y.dtype())?;
            y = if span.len() == rows {
                (y + delta)?
            } else {
                let mut pieces = Vec::with_capacity(3);
                if span.start > 0 {
                    pieces.push(y.narrow(0, 0, span.start)?);
                }
                pieces.push((y.narrow(0, span.start, span.len())? + delta)?);
                if span.end < rows {
                    pieces.push(y.narrow(0, span.end, rows - span.end)?);
                }
                Tensor::cat(&pieces, 0)?
            };
        }
        Ok(y)
    }
}

/// `scale · A·x` for each row, `[rows, r]`, f32. The scale goes here because this is the small matrix.
pub(crate) fn middle(x: &Tensor, weights: &LoraWeights) -> Result<Tensor> {
    x.to_dtype(DType::F32)?.matmul(&weights.a.t()?)? * weights.scale
}

/// `B · middle` for each row, `[rows, out]`, f32.
pub(crate) fn delta(middle: &Tensor, weights: &LoraWeights) -> Result<Tensor> {
    middle.matmul(&weights.b.t()?)
}
