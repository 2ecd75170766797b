//! Adapters at work: which rows of a batch get which.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use super::lora::{Lora, Slot};
use super::ops::cpu::{self, Floats};
use super::ops::few_rows::{self, LowRank, add_low_rank};
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

    /// Each owner's adapter for its rows, in ascending order without overlap; neighbours with the same adapter become one
    /// span, so that its products are done once.
    pub fn by_owner(owners: impl IntoIterator<Item = (Range<usize>, Option<&'a Lora>)>) -> Self {
        let mut spans: Vec<(Range<usize>, &Lora)> = Vec::new();
        for (rows, adapter) in owners {
            let Some(adapter) = adapter else { continue };
            match spans.last_mut() {
                Some((span, same)) if span.end == rows.start && std::ptr::eq(*same, adapter) => span.end = rows.end,
                _ => spans.push((rows, adapter)),
            }
        }
        Self { spans }
    }

    /// Adds the adapters' part to `y = W·x`.
    pub(crate) fn add(&self, layer: usize, slot: Slot, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let rows = x.dim(0)?;
        if let Some(y) = self.add_to_few(layer, slot, x, &y)? {
            return Ok(y);
        }
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

impl Adapters<'_> {
    /// As [`Adapters::add`] for a step of generation, f32 on the CPU; `None` for anything else. Its matrices are so small that
    /// tensors around them would cost more than they do.
    fn add_to_few(&self, layer: usize, slot: Slot, x: &Tensor, y: &Tensor) -> Result<Option<Tensor>> {
        let (rows, inputs) = x.dims2()?;
        let adapted: Vec<_> = self
            .spans
            .iter()
            .filter_map(|(span, adapter)| Some((span, adapter.weights(layer, slot)?)))
            .filter(|(span, _)| !span.is_empty())
            .collect();
        let plain = |tensor: &Tensor| cpu::takes(&[tensor]) && tensor.is_contiguous() && !tensor.track_op();
        let takes = (1..=few_rows::MOST).contains(&rows)
            && plain(x)
            && plain(y)
            && adapted.iter().all(|(_, weights)| plain(&weights.a) && plain(&weights.b) && weights.r > 0);
        if adapted.is_empty() || !takes {
            return Ok(None);
        }
        let outputs = y.dim(1)?;
        let mut sum = Floats::of(y)?.to_vec();
        {
            let x = Floats::of(x)?;
            let mut matrices = Vec::with_capacity(adapted.len());
            for (_, weights) in &adapted {
                matrices.push((Floats::of(&weights.a)?, Floats::of(&weights.b)?));
            }
            let mut parts = Vec::with_capacity(adapted.len());
            let (mut rest, mut end) = (sum.as_mut_slice(), 0);
            for ((span, weights), (a, b)) in adapted.iter().zip(&matrices) {
                let (_, here) = std::mem::take(&mut rest).split_at_mut((span.start - end) * outputs);
                let (y, after) = here.split_at_mut(span.len() * outputs);
                (rest, end) = (after, span.end);
                let x = &x[span.start * inputs..span.end * inputs];
                parts.push(LowRank { x, a, b, scale: weights.scale as f32, rank: weights.r, y });
            }
            add_low_rank(parts);
        }
        Ok(Some(cpu::tensor(sum, &[rows, outputs])?))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ops::finite_difference::{distance, random};
    use crate::model::ops::linear;

    fn adapter(inputs: usize, outputs: usize, seed: u64) -> Lora {
        let r = 64;
        let (a, b) = (random((r, inputs), seed), random((outputs, r), seed + 1));
        Lora::of_one(Slot::Up, LoraWeights { a, b, scale: 0.25, r, alpha: 16.0 })
    }

    /// In the wide layer adapters are worth a second thread.
    #[test]
    fn rows_of_a_step_get_their_adapter_as_each_does_alone() {
        for (inputs, outputs) in [(24, 40), (700, 900)] {
            let (x, weight) = (random((6, inputs), 1), random((outputs, inputs), 2));
            let (first, second) = (adapter(inputs, outputs, 3), adapter(inputs, outputs, 5));
            let owners = [None, Some(&first), None, Some(&second), Some(&second), None];
            let each = owners.iter().enumerate().map(|(row, owner)| (row..row + 1, *owner));
            let y = |x: &Tensor| linear(x, &weight, None).unwrap();
            let together = Adapters::by_owner(each).add(0, Slot::Up, &x, y(&x)).unwrap();
            for (row, owner) in owners.into_iter().enumerate() {
                let (x, ours) = (x.narrow(0, row, 1).unwrap(), together.narrow(0, row, 1).unwrap());
                let alone = Adapters::all(owner, 1).add(0, Slot::Up, &x, y(&x)).unwrap();
                assert_eq!(
                    ours.to_vec2::<f32>().unwrap(),
                    alone.to_vec2::<f32>().unwrap(),
                    "{inputs} inputs, row {row}"
                );
                let mut expected = x.matmul(&weight.t().unwrap()).unwrap();
                if let Some(weights) = owner.and_then(|owner| owner.weights(0, Slot::Up)) {
                    expected = (expected + delta(&middle(&x, weights).unwrap(), weights).unwrap()).unwrap();
                }
                assert!(distance(&ours, &expected) < 1e-3, "{inputs} inputs, row {row}");
            }
        }
    }
}
