//! RMS normalisation: `y = w · x / √(mean(x²) + ε)`, over the last dimension.

use candle_core::{CpuStorage, CustomOp2, D, DType, Layout, Result, Shape, Tensor};

use super::cpu::{self, Floats};

/// The normalised rows. `x` is `[rows, width]`, `weight` `[width]`. No gradient flows through this form.
///
/// # Errors
/// Shapes that do not fit.
pub fn forward(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    if cpu::takes(&[x, weight]) {
        x.contiguous()?.apply_op2_no_bwd(&weight.contiguous()?, &RmsNorm(epsilon))
    } else {
        composed(&x.detach(), &weight.detach(), epsilon)
    }
}

/// `dL/dx` from `dL/dy`: with `s = 1/√(mean(x²) + ε)` and `g = w·dy`, `dx = s·(g − x·s²·mean(g·x))`.
///
/// # Errors
/// Shapes that do not fit.
pub fn backward(x: &Tensor, weight: &Tensor, epsilon: f64, dy: &Tensor) -> Result<Tensor> {
    if cpu::takes(&[x, weight, dy]) {
        let (x, weight, dy) = (x.contiguous()?, weight.contiguous()?, dy.contiguous()?);
        let width = weight.elem_count();
        let mut dx = vec![0.0_f32; x.elem_count()];
        {
            let (x, weight, dy) = (Floats::of(&x)?, Floats::of(&weight)?, Floats::of(&dy)?);
            let (x, weight, dy): (&[f32], &[f32], &[f32]) = (&x, &weight, &dy);
            backward_rows(x, weight, epsilon, dy, &mut dx, width);
        }
        return cpu::tensor(dx, x.dims());
    }
    let dtype = x.dtype();
    let (x, dy) = (x.to_dtype(DType::F32)?, dy.to_dtype(DType::F32)?);
    let s = ((x.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?.sqrt()?.recip())?;
    let g = dy.broadcast_mul(&weight.to_dtype(DType::F32)?)?;
    let mean = (&g * &x)?.mean_keepdim(D::Minus1)?;
    let correction = x.broadcast_mul(&(mean * s.sqr()?)?)?;
    (g - correction)?.broadcast_mul(&s)?.to_dtype(dtype)
}

/// The differentiable form: a gradient for `x`, and for `weight` if it is a variable.
///
/// # Errors
/// Shapes that do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    if cpu::takes(&[x, weight]) {
        x.contiguous()?.apply_op2(weight, RmsNorm(epsilon))
    } else {
        composed(x, weight, epsilon)
    }
}

/// In f32 whatever the input, as transformers does it.
fn composed(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let s = (wide.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?.sqrt()?;
    wide.broadcast_div(&s)?.to_dtype(x.dtype())?.broadcast_mul(weight)
}

struct RmsNorm(f64);

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (values, weight) = (cpu::floats(x, x_layout)?, cpu::floats(w, w_layout)?);
        let width = weight.len();
        if x_layout.dims().last() != Some(&width) {
            candle_core::bail!("rms_norm: rows of {:?}, weight of {width}", x_layout.dims());
        }
        let mut y = vec![0.0_f32; values.len()];
        forward_rows(values, weight, self.0, &mut y, width);
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = backward(x, w, self.0, dy)?;
        let dw = if w.is_variable() {
            let s = (x.sqr()?.mean_keepdim(D::Minus1)? + self.0)?.sqrt()?;
            let normalised = x.broadcast_div(&s)?;
            let width = w.elem_count();
            Some((dy * normalised)?.reshape(((), width))?.sum(0)?)
        } else {
            None
        };
        Ok((Some(dx), dw))
    }
}

cpu::kernel! {
    fn forward_rows(x: &'a [f32], weight: &'a [f32], epsilon: f64, y: &'a mut [f32], width: usize) {
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let s = scale(x, epsilon);
            for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                *y = x * s * w;
            }
        }
    }
}

cpu::kernel! {
    fn backward_rows(
    x: &'a [f32],
    weight: &'a [f32],
    epsilon: f64,
    dy: &'a [f32],
    dx: &'a mut [f32],
    width: usize,
) {
        for ((x, dy), dx) in x
            .chunks_exact(width)
            .zip(dy.chunks_exact(width))
            .zip(dx.chunks_exact_mut(width))
        {
            let s = scale(x, epsilon);
            for ((dx, dy), w) in dx.iter_mut().zip(dy).zip(weight) {
                *dx = dy * w;
            }
            let c = cpu::dot(dx, x) / width as f32 * s * s;
            for (dx, x) in dx.iter_mut().zip(x) {
                *dx = (*dx - x * c) * s;
            }
        }
    }
}

#[inline(always)]
fn scale(x: &[f32], epsilon: f64) -> f32 {
    1.0 / (cpu::dot(x, x) / x.len() as f32 + epsilon as f32).sqrt()
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::model::ops::finite_difference::{check, distance, forms_agree, random};

    #[test]
    fn gradients_and_both_forms() {
        let x = random((4, 24), 1);
        let w = random(24, 2);
        check(&[&x, &w], |t| rms_norm(&t[0], &t[1], 1e-5));
        forms_agree(&[&x, &w], |t| rms_norm(&t[0], &t[1], 1e-5));
        assert!(distance(&forward(&x, &w, 1e-5).unwrap(), &composed(&x, &w, 1e-5).unwrap()) < 1e-6);

        let dy = random((4, 24), 3);
        let variable = Var::from_tensor(&x).unwrap();
        let loss = (composed(&variable, &w, 1e-5).unwrap() * &dy).unwrap().sum_all().unwrap();
        let expected = loss.backward().unwrap().remove(&variable).unwrap();
        let fused = backward(&x, &w, 1e-5, &dy).unwrap();
        assert!(distance(&fused, &expected) < 1e-5);
        let wide = [&x, &w, &dy].map(|tensor| tensor.to_dtype(DType::F64).unwrap());
        let [forward_wide, backward_wide] =
            [forward(&wide[0], &wide[1], 1e-5).unwrap(), backward(&wide[0], &wide[1], 1e-5, &wide[2]).unwrap()]
                .map(|tensor| tensor.to_dtype(DType::F32).unwrap());
        assert!(distance(&forward(&x, &w, 1e-5).unwrap(), &forward_wide) < 1e-5);
        assert!(distance(&fused, &backward_wide) < 1e-5);
    }
}
