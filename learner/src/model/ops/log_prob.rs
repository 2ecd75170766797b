//! Log-probability (natural log) of one token under each row of logits: `z[t] − ln Σ exp(z)`.

use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor};

use super::cpu::{self, Floats};

/// `log softmax(logits)[target]` of each row, differentiable. `logits` is `[rows, vocabulary]`; the result `[rows]`, f32.
///
/// # Errors
/// Another number of targets than rows, a target outside the vocabulary.
pub fn log_prob(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    check(logits, targets)?;
    if cpu::takes(&[logits]) {
        return logits.contiguous()?.apply_op1(LogProb(targets.to_vec()));
    }
    let targets = Tensor::new(targets, logits.device())?.unsqueeze(1)?;
    let logits = logits.to_dtype(DType::F32)?;
    candle_nn::ops::log_softmax(&logits, D::Minus1)?.gather(&targets, 1)?.squeeze(1)
}

/// The log-probabilities and their gradient with respect to each row of logits, `onehot − softmax`, `[rows, vocabulary]`
/// in the type of the logits. One row's log-probability depends on that row alone, so this is the whole Jacobian, and a loss's gradient is a
/// scaling of its rows.
///
/// # Errors
/// As [`log_prob`].
pub fn with_gradient(logits: &Tensor, targets: &[u32]) -> Result<(Vec<f32>, Tensor)> {
    check(logits, targets)?;
    if cpu::takes(&[logits]) {
        let logits = logits.contiguous()?;
        let mut gradient = vec![0.0_f32; logits.elem_count()];
        let mut log_probs = vec![0.0_f32; targets.len()];
        {
            let values = Floats::of(&logits)?;
            let values: &[f32] = &values;
            rows_with_gradient(values, targets, &mut log_probs, &mut gradient);
        }
        return Ok((log_probs, cpu::tensor(gradient, logits.dims())?));
    }
    let (rows, width) = logits.dims2()?;
    let index = Tensor::new(targets, logits.device())?.unsqueeze(1)?;
    let all = candle_nn::ops::log_softmax(&logits.detach().to_dtype(DType::F32)?, D::Minus1)?;
    let log_probs = all.gather(&index, 1)?.squeeze(1)?.to_vec1()?;
    let ones = Tensor::ones((rows, 1), DType::F32, logits.device())?;
    let onehot = Tensor::zeros((rows, width), DType::F32, logits.device())?.scatter_add(&index, &ones, 1)?;
    Ok((log_probs, (onehot - all.exp()?)?.to_dtype(logits.dtype())?))
}

fn check(logits: &Tensor, targets: &[u32]) -> Result<()> {
    let (rows, width) = logits.dims2()?;
    if rows != targets.len() {
        candle_core::bail!("log_prob: {} targets for {rows} rows", targets.len());
    }
    match targets.iter().find(|target| **target as usize >= width) {
        Some(target) => candle_core::bail!("log_prob: token {target} of a vocabulary of {width}"),
        None => Ok(()),
    }
}

struct LogProb(Vec<u32>);

impl CustomOp1 for LogProb {
    fn name(&self) -> &'static str {
        "log-prob"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (count, _) = layout.shape().dims2()?;
        let logits = cpu::floats(logits, layout)?;
        let mut out = vec![0.0_f32; count];
        rows(logits, &self.0, &mut out);
        Ok((CpuStorage::F32(out), count.into()))
    }

    fn bwd(&self, logits: &Tensor, _out: &Tensor, dout: &Tensor) -> Result<Option<Tensor>> {
        let (_, gradient) = with_gradient(&logits.detach(), &self.0)?;
        Ok(Some(gradient.broadcast_mul(&dout.unsqueeze(1)?)?))
    }
}

/// Largest logit and Σ exp(z − largest).
#[inline(always)]
fn partition(z: &[f32]) -> (f32, f32) {
    let largest = cpu::largest(z);
    (largest, cpu::sum_exp(z, largest))
}

/// `ln Σ exp(z)` of one row of logits; not finite if one of them is NaN or none is finite.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let mut out = 0.0;
    log_sum_exp_of(logits, &mut out);
    out
}

cpu::kernel! {
    fn log_sum_exp_of(logits: &'a [f32], out: &'a mut f64) {
        // Pieces whose sum in f32 is exact enough, and their sum in f64: a vocabulary may have 250,000 tokens.
        const PIECE: usize = 1024;
        let largest = cpu::largest(logits);
        let mut sum = 0.0;
        // No closure: it would be compiled for the oldest machine.
        for piece in logits.chunks(PIECE) {
            sum += f64::from(cpu::sum_exp(piece, largest));
        }
        *out = f64::from(largest) + sum.ln();
    }
}

cpu::kernel! {
    fn rows(logits: &'a [f32], targets: &'a [u32], out: &'a mut [f32]) {
        let width = logits.len() / targets.len().max(1);
        for ((z, target), out) in logits.chunks_exact(width.max(1)).zip(targets).zip(out) {
            let (largest, sum) = partition(z);
            *out = z[*target as usize] - largest - sum.ln();
        }
    }
}

cpu::kernel! {
    fn rows_with_gradient(
        logits: &'a [f32],
        targets: &'a [u32],
        out: &'a mut [f32],
        gradient: &'a mut [f32],
    ) {
        let width = (logits.len() / targets.len().max(1)).max(1);
        let rows = logits.chunks_exact(width).zip(gradient.chunks_exact_mut(width));
        for (((z, g), target), out) in rows.zip(targets).zip(out) {
            let (largest, sum) = partition(z);
            let inverse = -1.0 / sum;
            for (g, z) in g.iter_mut().zip(z) {
                *g = cpu::exp(*z - largest) * inverse;
            }
            g[*target as usize] += 1.0;
            *out = z[*target as usize] - largest - sum.ln();
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::model::ops::finite_difference::{check as differentiate, distance, forms_agree, random};

    #[test]
    fn the_normaliser_of_many_logits() {
        let logits: Vec<f32> = (0..49_281).map(|i| ((i * 37) % 1009) as f32 / 60.0 - 8.0).collect();
        let exact = logits.iter().map(|z| f64::from(*z).exp()).sum::<f64>().ln();
        assert!((log_sum_exp(&logits) - exact).abs() < 1e-6);
        let few = [0.125_f32.ln(), f32::NEG_INFINITY, 0.875_f32.ln()];
        assert!(log_sum_exp(&few).abs() < 1e-6);
        for broken in [&[1.0, f32::NAN][..], &[f32::NEG_INFINITY; 40], &[f32::INFINITY, 0.0], &[]] {
            assert!(!log_sum_exp(broken).is_finite(), "{broken:?}");
        }
    }

    #[test]
    fn gradients_and_numbers_by_hand() {
        let logits = (random((3, 37), 1) * 4.0).unwrap();
        let targets = [0, 36, 7];
        differentiate(&[&logits], |t| log_prob(&t[0], &targets));
        forms_agree(&[&logits], |t| log_prob(&t[0], &targets));

        let expected = candle_nn::ops::log_softmax(&logits, D::Minus1).unwrap();
        let (log_probs, gradient) = with_gradient(&logits, &targets).unwrap();
        let all = expected.to_vec2::<f32>().unwrap();
        for (row, target) in targets.iter().enumerate() {
            assert!((log_probs[row] - all[row][*target as usize]).abs() < 1e-5);
        }
        let softmax = (gradient.neg().unwrap() - expected.exp().unwrap()).unwrap();
        let sums = softmax.sum(1).unwrap().to_vec1::<f32>().unwrap();
        assert!(sums.iter().all(|sum| (sum + 1.0).abs() < 1e-5), "only the target differs, by one: {sums:?}");

        let (composed, wide) = with_gradient(&logits.to_dtype(DType::F64).unwrap(), &targets).unwrap();
        assert!(log_probs.iter().zip(&composed).all(|(kernel, composed)| (kernel - composed).abs() < 1e-5));
        assert!(distance(&gradient, &wide.to_dtype(DType::F32).unwrap()) < 1e-5);

        let even = Tensor::zeros((1, 4), DType::F32, &Device::Cpu).unwrap();
        let value = log_prob(&even, &[2]).unwrap().to_vec1::<f32>().unwrap()[0];
        assert!((value - 0.25_f32.ln()).abs() < 1e-6);
        assert!(log_prob(&even, &[4]).is_err());
        assert!(distance(&even, &even) == 0.0);
    }
}
