//! Generation: prompts first, whole or in pieces, then one token of every sequence at a time.

use std::sync::Arc;

use candle_core::Tensor;

use super::cache::{KeyValues, attend};
use super::{Decoder, Packed};
use crate::model::adapters::Adapters;
use crate::model::error::ModelError;
use crate::model::ops::attention::{Span, attention};

impl Decoder {
    /// Runs prompts (groups without answers) through the decoder and fills their caches. The result is the hidden state
    /// of each prompt's last token, `[prompts, hidden]`: what predicts the first new token.
    ///
    /// # Errors
    /// A prompt longer than the model's positions or its cache, another number of caches than prompts.
    pub fn prefill(
        &self,
        embeddings: &Tensor,
        packed: &Packed,
        adapters: &Adapters<'_>,
        caches: &mut [&mut KeyValues],
    ) -> Result<Tensor, ModelError> {
        if caches.len() != packed.spans.len() || caches.iter().any(|cache| !cache.is_empty()) {
            return Err(candle_core::Error::Msg(format!(
                "prefill: {} empty caches needed for as many prompts, {} given",
                packed.spans.len(),
                caches.len()
            ))
            .into());
        }
        let pass = self.pass(&packed.positions, packed.spans.clone(), adapters)?;
        let mut x = embeddings.clone();
        for (layer, block) in self.blocks.iter().enumerate() {
            let (q, k, v) = block.attend_to(layer, &x, &pass)?;
            for (span, cache) in packed.spans.iter().zip(caches.iter()) {
                let (start, length) = (span.queries.start, span.queries.len());
                cache.write(layer, &k.narrow(0, start, length)?, &v.narrow(0, start, length)?)?;
            }
            let attended = attention(&q, &k, &v, &pass.spans, pass.heads)?;
            x = block.finish(layer, &x, &attended, &pass)?;
        }
        let last: Vec<u32> = packed.spans.iter().map(|span| span.queries.end as u32 - 1).collect();
        for (span, cache) in packed.spans.iter().zip(caches.iter_mut()) {
            cache.advance(span.queries.len());
        }
        Ok(x.index_select(&Tensor::new(last.as_slice(), self.device())?, 0)?)
    }

    /// One new token of each sequence: its hidden state, `[sequences, hidden]`.
    ///
    /// # Errors
    /// A full cache, a token outside the vocabulary, a sequence longer than the model's positions.
    pub fn step(
        &self,
        ids: &[u32],
        adapters: &Adapters<'_>,
        caches: &mut [&mut KeyValues],
    ) -> Result<Tensor, ModelError> {
        let vocabulary = self.config.vocab_size;
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
            return Err(ModelError::TokenId { id: *id, vocabulary });
        }
        if let Some(cache) = caches.iter().find(|cache| cache.len() >= cache.capacity()) {
            return Err(ModelError::TooLong { length: cache.len() + 1, limit: cache.capacity() });
        }
        let positions: Vec<u32> = caches.iter().map(|cache| cache.len() as u32).collect();
        let pass = self.pass(&positions, Arc::new([]), adapters)?;
        let mut x = self.embedding.index_select(&Tensor::new(ids, self.device())?, 0)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let (q, k, v) = block.attend_to(layer, &x, &pass)?;
            for (row, cache) in caches.iter().enumerate() {
                cache.write(layer, &k.narrow(0, row, 1)?, &v.narrow(0, row, 1)?)?;
            }
            let attended = attend(&q, caches, layer, pass.heads)?;
            x = block.finish(layer, &x, &attended, &pass)?;
        }
        for cache in caches.iter_mut() {
            cache.advance(1);
        }
        Ok(x)
    }

    /// The next rows of prompts: `rows[i]` of them for `caches[i]`, whose rows follow each other in `embeddings`,
    /// `[rows, hidden]`. The result is the hidden states of all of them, `[rows, hidden]`.
    ///
    /// Pieces of a prompt in turn give what [`Decoder::prefill`] gives at once, except for rounding, so a long prompt need not
    /// hold up other sequences' tokens.
    ///
    /// # Errors
    /// A sequence without new rows, one that does not fit its cache or the model's positions.
    pub fn extend(
        &self,
        embeddings: &Tensor,
        rows: &[usize],
        adapters: &Adapters<'_>,
        caches: &mut [&mut KeyValues],
    ) -> Result<Tensor, ModelError> {
        let total = rows.iter().sum::<usize>();
        if rows.len() != caches.len() || rows.contains(&0) || embeddings.dim(0)? != total {
            return Err(candle_core::Error::Msg(format!(
                "extend: {rows:?} rows for {} caches, {:?} embeddings",
                caches.len(),
                embeddings.dims()
            ))
            .into());
        }
        let mut positions = Vec::with_capacity(total);
        for (rows, cache) in rows.iter().zip(caches.iter()) {
            let (length, limit) = (cache.len() + rows, cache.capacity());
            if length > limit {
                return Err(ModelError::TooLong { length, limit });
            }
            positions.extend((cache.len()..length).map(|position| position as u32));
        }
        let pass = self.pass(&positions, Arc::new([]), adapters)?;
        let mut x = embeddings.clone();
        for (layer, block) in self.blocks.iter().enumerate() {
            let (q, k, v) = block.attend_to(layer, &x, &pass)?;
            let mut attended = Vec::with_capacity(rows.len());
            let mut start = 0;
            for (&rows, cache) in rows.iter().zip(caches.iter()) {
                cache.write(layer, &k.narrow(0, start, rows)?, &v.narrow(0, start, rows)?)?;
                let keys = cache.len() + rows;
                let (k, v) = cache.read(layer, keys)?;
                let span = Span { queries: 0..rows, prefix: 0..0, own: 0..keys, causal: true, first: cache.len() };
                let spans: Arc<[Span]> = Arc::new([span]);
                attended.push(attention(&q.narrow(0, start, rows)?, &k, &v, &spans, pass.heads)?);
                start += rows;
            }
            x = block.finish(layer, &x, &Tensor::cat(&attended, 0)?, &pass)?;
        }
        for (&rows, cache) in rows.iter().zip(caches.iter_mut()) {
            cache.advance(rows);
        }
        Ok(x)
    }
}
