//! Keys and values of sequences that are being generated.

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

use super::config::DecoderConfig;
use crate::model::ops::attention::{Heads, one_step};
use crate::model::ops::cpu::{self, Floats};

/// Keys and values of one sequence, all layers: `[capacity, key heads · head dimension]` each, filled up to a length.
///
/// Each sequence has memory of its own, so sequences join and leave a batch without moving anyone else's.
pub struct KeyValues {
    layers: Vec<(Tensor, Tensor)>,
    length: usize,
    capacity: usize,
}

impl KeyValues {
    /// Bytes that one token takes.
    pub fn bytes_per_token(config: &DecoderConfig, dtype: DType) -> usize {
        2 * config.layers * config.key_value_heads * config.head_dim * dtype.size_in_bytes()
    }

    /// Room for `capacity` tokens. On the CPU the system gives the memory when it is first written.
    ///
    /// # Errors
    /// A failed allocation.
    pub fn new(config: &DecoderConfig, capacity: usize, dtype: DType, device: &Device) -> Result<Self> {
        let shape = (capacity, config.key_value_heads * config.head_dim);
        let layers = (0..config.layers)
            .map(|_| Ok((Tensor::zeros(shape, dtype, device)?, Tensor::zeros(shape, dtype, device)?)))
            .collect::<Result<_>>()?;
        Ok(Self { layers, length: 0, capacity })
    }

    /// Tokens that are in.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether no token is in.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Tokens that there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// A copy of its first `tokens` tokens with room for `capacity`, for another continuation of them.
    ///
    /// # Errors
    /// More tokens than there are, less room than tokens; a failed copy.
    pub fn fork(&self, tokens: usize, capacity: usize) -> Result<Self> {
        if tokens > self.length || capacity < tokens {
            candle_core::bail!("{tokens} tokens of a cache of {} do not fit {capacity}", self.length);
        }
        let copy = |from: &Tensor| -> Result<Tensor> {
            let to = Tensor::zeros((capacity, from.dim(1)?), from.dtype(), from.device())?;
            if tokens > 0 {
                to.slice_set(&from.narrow(0, 0, tokens)?.contiguous()?, 0, 0)?;
            }
            Ok(to)
        };
        let layers = self.layers.iter().map(|(k, v)| Ok((copy(k)?, copy(v)?))).collect::<Result<_>>()?;
        Ok(Self { layers, length: tokens, capacity })
    }

    /// Writes a layer's keys and values of the next tokens. The length grows with [`KeyValues::advance`] only, once every
    /// layer has written.
    pub(crate) fn write(&self, layer: usize, k: &Tensor, v: &Tensor) -> Result<()> {
        let (keys, values) = &self.layers[layer];
        keys.slice_set(&k.contiguous()?, 0, self.length)?;
        values.slice_set(&v.contiguous()?, 0, self.length)
    }

    /// A layer's keys and values of the first `tokens` tokens, those included that were written but not yet counted.
    pub(crate) fn read(&self, layer: usize, tokens: usize) -> Result<(Tensor, Tensor)> {
        let (keys, values) = &self.layers[layer];
        Ok((keys.narrow(0, 0, tokens)?, values.narrow(0, 0, tokens)?))
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.length += tokens;
    }
}

/// What one sequence's query sees in a layer.
#[derive(Clone, Copy)]
struct Kept<'a> {
    k: &'a [f32],
    v: &'a [f32],
    keys: usize,
}

/// Products of a query with keys, times their width, below which threads cost more than they save.
const ALONE: usize = 1 << 17;

/// Attention of one new token of each sequence over that sequence's cache, its own key included.
/// `q` is `[sequences, query heads · width]`.
pub(crate) fn attend(q: &Tensor, caches: &[&mut KeyValues], layer: usize, heads: Heads) -> Result<Tensor> {
    if !cpu::takes(&[q]) {
        return composed(q, caches, layer, heads);
    }
    let q = q.contiguous()?;
    let (sequences, width) = q.dims2()?;
    let mut out = vec![0.0_f32; sequences * width];
    {
        let q = Floats::of(&q)?;
        let q: &[f32] = &q;
        let mut kept = Vec::with_capacity(sequences);
        for cache in caches {
            let (k, v) = &cache.layers[layer];
            kept.push((Floats::of(k)?, Floats::of(v)?, cache.length + 1));
        }
        let kept: Vec<Kept<'_>> = kept.iter().map(|(k, v, keys)| Kept { k, v, keys: *keys }).collect();
        // The query heads of a key head are neighbours.
        let group = width / heads.key;
        let attend = |(at, (q, out)): (usize, (&[f32], &mut [f32]))| {
            let Kept { k, v, keys } = kept[at / heads.key];
            one_step::attend(q, k, v, keys, heads, at % heads.key, out);
        };
        let keys: usize = kept.iter().map(|kept| kept.keys).sum();
        if keys * width < ALONE {
            q.chunks_exact(group).zip(out.chunks_exact_mut(group)).enumerate().for_each(attend);
        } else {
            q.par_chunks_exact(group).zip(out.par_chunks_exact_mut(group)).enumerate().for_each(attend);
        }
    }
    cpu::tensor(out, &[sequences, width])
}

fn composed(q: &Tensor, caches: &[&mut KeyValues], layer: usize, heads: Heads) -> Result<Tensor> {
    let mut outs = Vec::with_capacity(caches.len());
    let (d, group) = (heads.width, heads.query / heads.key);
    for (row, cache) in caches.iter().enumerate() {
        let (k, v) = &cache.layers[layer];
        let keys = cache.length + 1;
        let by_head = |x: &Tensor| -> Result<Tensor> {
            x.narrow(0, 0, keys)?.reshape((keys, heads.key, d))?.transpose(0, 1)?.contiguous()
        };
        // Query heads of one key head are the rows of one product.
        let q = q.narrow(0, row, 1)?.reshape((heads.key, group, d))?;
        let scores = (q.matmul(&by_head(k)?.t()?)?.to_dtype(DType::F32)? * (1.0 / (d as f64).sqrt()))?;
        let p = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(q.dtype())?;
        outs.push(p.matmul(&by_head(v)?)?.reshape((1, heads.query * d))?);
    }
    Tensor::cat(&outs, 0)
}
