//! Layer normalisation: `y = w · (x − mean) / √(variance + ε) + b`, over the last dimension.

use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor};

use super::cpu::{self, Floats};

/// Normalised rows, differentiable in `x`, and in `weight` and `bias` where they are variables.
/// `x` is `[…, width]`, `weight` and `bias` `[width]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f64) -> Result<Tensor> {
    if cpu::takes(&[x, weight, bias]) {
        x.contiguous()?.apply_op3(weight, bias, LayerNorm(epsilon))
    } else {
        composed(x, weight, bias, epsilon)
    }
}

fn composed(x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f64) -> Result<Tensor> {
    normalised(&x.to_dtype(DType::F32)?, epsilon)?.to_dtype(x.dtype())?.broadcast_mul(weight)?.broadcast_add(bias)
}

fn normalised(x: &Tensor, epsilon: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?.sqrt()?;
    centred.broadcast_div(&deviation)
}

struct LayerNorm(f64);

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let values = cpu::floats(x, x_layout)?;
        let (weight, bias) = (cpu::floats(w, w_layout)?, cpu::floats(b, b_layout)?);
        let width = weight.len();
        if x_layout.dims().last() != Some(&width) || bias.len() != width {
            candle_core::bail!("layer_norm: rows of {:?}, weight of {width}", x_layout.dims());
        }
        let mut y = vec![0.0_f32; values.len()];
        forward_rows(values, weight, bias, self.0, &mut y);
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let width = w.elem_count();
        let mut dx = vec![0.0_f32; x.elem_count()];
        let mut dw = vec![0.0_f32; width];
        let mut db = vec![0.0_f32; width];
        {
            let (x, w, dy) = (Floats::of(x)?, Floats::of(w)?, Floats::of(&dy)?);
            let (x, w, dy): (&[f32], &[f32], &[f32]) = (&x, &w, &dy);
            backward_rows(x, w, self.0, dy, &mut dx, &mut dw, &mut db);
        }
        let wanted = |tensor: &Tensor, values: Vec<f32>| -> Result<Option<Tensor>> {
            if tensor.is_variable() { Ok(Some(cpu::tensor(values, &[width])?)) } else { Ok(None) }
        };
        Ok((Some(cpu::tensor(dx, x.dims())?), wanted(w, dw)?, wanted(b, db)?))
    }
}

cpu::kernel! {
    fn forward_rows(x: &'a [f32], weight: &'a [f32], bias: &'a [f32], epsilon: f64, y: &'a mut [f32]) {
        let width = weight.len();
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let s = normalise(x, y, epsilon);
            for ((y, w), b) in y.iter_mut().zip(weight).zip(bias) {
                *y = (*y * s).mul_add(*w, *b);
            }
        }
    }
}

// With n the normalised row and g = w·dy: dx = s·(g − mean(g) − n·mean(g·n)), dw = Σ dy·n, db = Σ dy.
cpu::kernel! {
    fn backward_rows(
    x: &'a [f32],
    weight: &'a [f32],
    epsilon: f64,
    dy: &'a [f32],
    dx: &'a mut [f32],
    dw: &'a mut [f32],
    db: &'a mut [f32],
) {
        let width = weight.len();
        let mut n = vec![0.0_f32; width];
        for ((x, dy), dx) in x
            .chunks_exact(width)
            .zip(dy.chunks_exact(width))
            .zip(dx.chunks_exact_mut(width))
        {
            let s = normalise(x, &mut n, epsilon);
            for n in n.iter_mut() {
                *n *= s;
            }
            for ((dx, dy), w) in dx.iter_mut().zip(dy).zip(weight) {
                *dx = dy * w;
            }
            for (((dw, db), dy), n) in dw.iter_mut().zip(db.iter_mut()).zip(dy).zip(&n) {
                *dw += dy * n;
                *db += dy;
            }
            let mean = sum(dx) / width as f32;
            let product = cpu::dot(dx, &n) / width as f32;
            for (dx, n) in dx.iter_mut().zip(&n) {
                *dx = (*dx - mean - n * product) * s;
            }
        }
    }
}

/// Centres a row into `y` and returns 1/√(variance + ε).
#[inline(always)]
fn normalise(x: &[f32], y: &mut [f32], epsilon: f64) -> f32 {
    let mean = sum(x) / x.len() as f32;
    for (y, x) in y.iter_mut().zip(x) {
        *y = x - mean;
    }
    1.0 / (cpu::dot(y, y) / x.len() as f32 + epsilon as f32).sqrt()
}

#[inline(always)]
fn sum(x: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 16];
    let blocks = x.chunks_exact(16);
    let rest: f32 = blocks.remainder().iter().sum();
    for block in blocks {
        for lane in 0..16 {
            sums[lane] += block[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ops::finite_difference::{check, forms_agree, random};

    #[test]
    fn gradients_and_both_forms() {
        let (x, w, b) = (random((3, 20), 1), random(20, 2), random(20, 3));
        check(&[&x, &w, &b], |t| layer_norm(&t[0], &t[1], &t[2], 1e-6));
        forms_agree(&[&x, &w, &b], |t| layer_norm(&t[0], &t[1], &t[2], 1e-6));
    }
}
