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
        Self { spans: adapter.map(|adapter| (0..rows, adapter)).into_iter().collect() }
    }

    /// Adapters by rows, in ascending order without overlap. Rows that are not named get the base alone.
    pub fn by_rows(spans: Vec<(Range<usize>, &'a Lora)>) -> Self {
        Self { spans }
    }

    /// Adds the adapters' part to `y = W·x`.
    pub(crate) fn add(&self, layer: usize, slot: Slot, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let rows = x.dim(0)?;
        let adapted = self.spans.iter().filter(|(span, _)| !span.is_empty());
        let mut adapted = adapted.filter_map(|(span, adapter)| Some((span, adapter.weights(layer, slot)?))).peekable();
        match adapted.peek() {
            None => return Ok(y),
            Some((span, weights)) if span.len() == rows => {
                let delta = delta(&middle(x, weights)?, weights)?.to_dtype(y.dtype())?;
                return y + delta;
            }
            Some(_) => {}
        }
        // The pieces side by side, then one sum: with many adapters a copy of all rows for each would cost more than they do.
        let mut pieces = Vec::with_capacity(2 * self.spans.len() + 1);
        let zeros = |rows: usize| Tensor::zeros((rows, y.dim(1)?), y.dtype(), y.device());
        let mut end = 0;
        for (span, weights) in adapted {
            if span.start > end {
                pieces.push(zeros(span.start - end)?);
            }
            let part = x.narrow(0, span.start, span.len())?;
            pieces.push(delta(&middle(&part, weights)?, weights)?.to_dtype(y.dtype())?);
            end = span.end;
        }
        if end < rows {
            pieces.push(zeros(rows - end)?);
        }
        &y + Tensor::cat(&pieces, 0)?
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
