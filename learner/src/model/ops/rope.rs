//! Rotary positions in the half-split form: the pair (xᵢ, xᵢ₊ₕ), h = head dimension / 2, is turned by position·frequencyᵢ.
//!
//! A rotation's gradient is the rotation back.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};

use super::cpu::{self, Floats};

/// Cosines and sines of each row's angles, `[rows, head dimension / 2]`, f32.
#[derive(Clone, Debug)]
pub struct Angles {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
}

/// Turns each head of each row, differentiably. `x` is `[rows, heads · head dimension]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn rope(x: &Tensor, angles: &Angles) -> Result<Tensor> {
    turn(x, angles, false)
}

/// `dL/dx` from `dL/dy`.
///
/// # Errors
/// Shapes that do not fit.
pub fn backward(dy: &Tensor, angles: &Angles) -> Result<Tensor> {
    turn(dy, angles, true)
}

fn turn(x: &Tensor, angles: &Angles, back: bool) -> Result<Tensor> {
    if cpu::takes(&[x, &angles.cos, &angles.sin]) {
        x.contiguous()?.apply_op1(Rope { angles: angles.clone(), back })
    } else {
        composed(x, angles, back)
    }
}

fn composed(x: &Tensor, angles: &Angles, back: bool) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let half = angles.cos.dim(1)?;
    let heads = x.reshape((rows, width / (2 * half), 2 * half))?;
    let (a, b) = (heads.narrow(D::Minus1, 0, half)?, heads.narrow(D::Minus1, half, half)?);
    let cos = angles.cos.to_dtype(x.dtype())?.unsqueeze(1)?;
    let sin = angles.sin.to_dtype(x.dtype())?.unsqueeze(1)?;
    let sin = if back { sin.neg()? } else { sin };
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], D::Minus1)?.reshape((rows, width))
}

struct Rope {
    angles: Angles,
    back: bool,
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let (angle_rows, half) = self.angles.cos.dims2()?;
        if angle_rows != rows || half == 0 || width % (2 * half) != 0 {
            candle_core::bail!("rope: {rows} rows of {width}, angles of {:?}", self.angles.cos.dims());
        }
        let x = cpu::floats(x, layout)?;
        let (cos, sin) = (Floats::of(&self.angles.cos)?, Floats::of(&self.angles.sin)?);
        let (cos, sin): (&[f32], &[f32]) = (&cos, &sin);
        let sign = if self.back { -1.0 } else { 1.0 };
        let mut y = vec![0.0_f32; x.len()];
        turn_rows(x, cos, sin, sign, &mut y, width, half);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(turn(dy, &self.angles, !self.back)?))
    }
}

cpu::kernel! {
    fn turn_rows(
    x: &'a [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    sign: f32,
    y: &'a mut [f32],
    width: usize,
    half: usize,
) {
        let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
        for ((x, y), (cos, sin)) in x
            .chunks_exact(width)
            .zip(y.chunks_exact_mut(width))
            .zip(angles)
        {
            for (x, y) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(2 * half)) {
                let (a, b) = x.split_at(half);
                let (first, second) = y.split_at_mut(half);
                for i in 0..half {
                    let s = sin[i] * sign;
                    first[i] = a[i] * cos[i] - b[i] * s;
                    second[i] = b[i] * cos[i] + a[i] * s;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ops::finite_difference::{check, distance, forms_agree, random};

    #[test]
    fn gradients_and_both_forms() {
        let angle = (random((5, 4), 1) * 3.0).unwrap();
        let angles = Angles { cos: angle.cos().unwrap(), sin: angle.sin().unwrap() };
        let x = random((5, 24), 2);
        check(&[&x], |t| rope(&t[0], &angles));
        forms_agree(&[&x], |t| rope(&t[0], &angles));
        let turned = rope(&x, &angles).unwrap();
        assert!(distance(&turned, &composed(&x, &angles, false).unwrap()) < 1e-6);
        assert!(distance(&backward(&turned, &angles).unwrap(), &x) < 1e-6);
        assert!(distance(&composed(&turned, &angles, true).unwrap(), &x) < 1e-6);
    }
}
