//! Log-probabilities of chosen tokens, in chunks: the logits of every row would be the largest matrix of all.

use candle_core::{DType, Result, Tensor};

use super::Decoder;
use crate::model::ops::{linear, log_prob, rms_norm};

/// Logits computed at a time: 4 Mi values, 16 MB in f32.
const CHUNK: usize = 4 << 20;

impl Decoder {
    /// `log π(target)` of each row of hidden states (before the final normalisation). `[rows, hidden]` → `[rows]`.
    ///
    /// # Errors
    /// Another number of targets than rows, a target outside the vocabulary.
    pub fn log_probs(&self, hidden: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
        let mut log_probs = Vec::with_capacity(targets.len());
        self.chunks(hidden, targets, |normed, targets| {
            let logits = linear(normed, &self.head.detach(), None)?.to_dtype(DType::F32)?;
            log_probs.extend(log_prob::log_prob(&logits, targets)?.to_vec1::<f32>()?);
            Ok(())
        })?;
        Ok(log_probs)
    }

    /// The same, and each row's gradient of its own log-probability with respect to its hidden state, `[rows, hidden]`.
    ///
    /// The gradient of any weighted sum of log-probabilities is these rows times their weights, so the output layer is
    /// not needed again once the weights are known.
    pub(crate) fn log_probs_with_gradient(
        &self,
        hidden: &Tensor,
        targets: &[u32],
    ) -> Result<(Vec<f32>, Tensor)> {
        let mut log_probs = Vec::with_capacity(targets.len());
        let mut gradients = Vec::new();
        self.chunks(hidden, targets, |normed, targets| {
            let logits = linear(normed, &self.head, None)?;
            let (values, gradient) = log_prob::with_gradient(&logits, targets)?;
            log_probs.extend(values);
            gradients.push(gradient.matmul(&self.head)?);
            Ok(())
        })?;
        if gradients.is_empty() {
            return Ok((log_probs, hidden.zeros_like()?));
        }
        let gradient = Tensor::cat(&gradients, 0)?;
        Ok((
            log_probs,
            rms_norm::backward(hidden, &self.norm, self.config.rms_norm_eps, &gradient)?,
        ))
    }

    fn chunks(
        &self,
        hidden: &Tensor,
        targets: &[u32],
        mut work: impl FnMut(&Tensor, &[u32]) -> Result<()>,
    ) -> Result<()> {
        let rows = hidden.dim(0)?;
        if rows != targets.len() {
            candle_core::bail!("{} targets for {rows} rows", targets.len());
        }
        let normed = rms_norm::forward(hidden, &self.norm, self.config.rms_norm_eps)?;
        let size = (CHUNK / self.config.vocab_size).max(1);
        for (index, targets) in targets.chunks(size).enumerate() {
            work(&normed.narrow(0, index * size, targets.len())?, targets)?;
        }
        Ok(())
    }
}
