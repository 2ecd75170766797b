//! The decoder's gated activation, and the vision tower's.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::{self, Floats};

/// SwiGLU: `silu(gate) · up` with `silu(g) = g·σ(g)`, elementwise, differentiable in both.
///
/// # Errors
/// Shapes that differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if cpu::takes(&[gate, up]) { gate.contiguous()?.apply_op2(&up.contiguous()?, SwiGlu) } else { gate.silu()? * up }
}

/// `(dL/dgate, dL/dup)` of [`swiglu`]: `dup = dy·silu(g)`, `dgate = dy·up·σ(g)·(1 + g·(1 − σ(g)))`.
///
/// # Errors
/// Shapes that differ.
pub fn swiglu_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    if !cpu::takes(&[gate, up, dy]) {
        let dtype = gate.dtype();
        let (gate, up, dy) = (gate.to_dtype(DType::F32)?, up.to_dtype(DType::F32)?, dy.to_dtype(DType::F32)?);
        let sigmoid = (gate.neg()?.exp()? + 1.0)?.recip()?;
        let silu = (&gate * &sigmoid)?;
        let slope = ((&sigmoid + &silu)? - (&silu * &sigmoid)?)?;
        let dgate = ((&dy * up)? * slope)?;
        return Ok((dgate.to_dtype(dtype)?, (dy * silu)?.to_dtype(dtype)?));
    }
    let (gate, up, dy) = (gate.contiguous()?, up.contiguous()?, dy.contiguous()?);
    let mut dgate = vec![0.0_f32; gate.elem_count()];
    let mut dup = vec![0.0_f32; gate.elem_count()];
    {
        let (gate, up, dy) = (Floats::of(&gate)?, Floats::of(&up)?, Floats::of(&dy)?);
        let (gate, up, dy): (&[f32], &[f32], &[f32]) = (&gate, &up, &dy);
        swiglu_gradients(gate, up, dy, &mut dgate, &mut dup);
    }
    Ok((cpu::tensor(dgate, gate.dims())?, cpu::tensor(dup, gate.dims())?))
}

struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if gate_layout.dims() != up_layout.dims() {
            candle_core::bail!("swiglu: {:?} and {:?}", gate_layout.dims(), up_layout.dims());
        }
        let (gate, up) = (cpu::floats(gate, gate_layout)?, cpu::floats(up, up_layout)?);
        let mut y = vec![0.0_f32; gate.len()];
        swiglu_values(gate, up, &mut y);
        Ok((CpuStorage::F32(y), gate_layout.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dgate, dup) = swiglu_backward(gate, up, dy)?;
        Ok((Some(dgate), Some(dup)))
    }
}

/// `tanh`-GELU: `½x(1 + tanh(√(2/π)(x + 0.044715x³)))`, elementwise, differentiable.
///
/// # Errors
/// A failed operation.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    if cpu::takes(&[x]) { x.contiguous()?.apply_op1(GeluTanh) } else { x.gelu() }
}

/// `dL/dx` of [`gelu_tanh`], f32 on the CPU.
pub(super) fn gelu_tanh_backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let dy = dy.contiguous()?;
    let mut dx = vec![0.0_f32; x.elem_count()];
    {
        let (x, dy) = (Floats::of(x)?, Floats::of(&dy)?);
        let (x, dy): (&[f32], &[f32]) = (&x, &dy);
        gelu_gradient(x, dy, &mut dx);
    }
    cpu::tensor(dx, x.dims())
}

struct GeluTanh;

/// √(2/π).
const ROOT: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// ½(1 + tanh(u)) = σ(2u), u as in [`gelu_tanh`].
#[inline(always)]
fn gate(x: f32) -> f32 {
    let u = ROOT * (x + CUBIC * x * x * x);
    1.0 / (1.0 + cpu::exp(-2.0 * u))
}

impl CustomOp1 for GeluTanh {
    fn name(&self) -> &'static str {
        "gelu-tanh"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = cpu::floats(x, layout)?;
        let mut y = x.to_vec();
        y.par_chunks_mut(cpu::WORTH_A_THREAD).for_each(gelu_values);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        gelu_tanh_backward(x, dy).map(Some)
    }
}

cpu::kernel! {
    fn swiglu_values(gate: &'a [f32], up: &'a [f32], y: &'a mut [f32]) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            *y = g / (1.0 + cpu::exp(-g)) * u;
        }
    }
}

cpu::kernel! {
    fn swiglu_gradients(
        gate: &'a [f32],
        up: &'a [f32],
        dy: &'a [f32],
        dgate: &'a mut [f32],
        dup: &'a mut [f32],
    ) {
        let outs = dgate.iter_mut().zip(dup);
        for ((((dgate, dup), g), u), dy) in outs.zip(gate).zip(up).zip(dy) {
            let sigmoid = 1.0 / (1.0 + cpu::exp(-g));
            let silu = g * sigmoid;
            *dup = dy * silu;
            *dgate = dy * u * (sigmoid + silu * (1.0 - sigmoid));
        }
    }
}

cpu::kernel! {
    /// In place.
    pub(super) fn gelu_values(x: &'a mut [f32]) {
        for x in x {
            *x *= gate(*x);
        }
    }
}

cpu::kernel! {
    fn gelu_gradient(x: &'a [f32], dy: &'a [f32], dx: &'a mut [f32]) {
        for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
            let s = gate(*x);
            let slope = 2.0 * ROOT * (1.0 + 3.0 * CUBIC * x * x);
            *dx = dy * (s + x * s * (1.0 - s) * slope);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::model::ops::finite_difference::{check, distance, forms_agree, random};

    #[test]
    fn gradients_and_both_forms() {
        let gate = (random((3, 17), 1) * 3.0).unwrap();
        let up = random((3, 17), 2);
        check(&[&gate, &up], |t| swiglu(&t[0], &t[1]));
        forms_agree(&[&gate, &up], |t| swiglu(&t[0], &t[1]));

        let dy = random((3, 17), 3);
        let (g, u) = (Var::from_tensor(&gate).unwrap(), Var::from_tensor(&up).unwrap());
        let loss = ((g.silu().unwrap() * u.as_tensor()).unwrap() * &dy).unwrap().sum_all().unwrap();
        let expected = loss.backward().unwrap();
        let (dgate, dup) = swiglu_backward(&gate, &up, &dy).unwrap();
        assert!(distance(&dgate, expected.get(&g).unwrap()) < 1e-5);
        assert!(distance(&dup, expected.get(&u).unwrap()) < 1e-5);
        let wide = [&gate, &up, &dy].map(|tensor| tensor.to_dtype(DType::F64).unwrap());
        let (wide_dgate, wide_dup) = swiglu_backward(&wide[0], &wide[1], &wide[2]).unwrap();
        assert!(distance(&dgate, &wide_dgate.to_dtype(DType::F32).unwrap()) < 1e-5);
        assert!(distance(&dup, &wide_dup.to_dtype(DType::F32).unwrap()) < 1e-5);

        let x = (random((3, 17), 4) * 3.0).unwrap();
        check(&[&x], |t| gelu_tanh(&t[0]));
        forms_agree(&[&x], |t| gelu_tanh(&t[0]));
    }
}
