//! `y = x·Wᵀ (+ b)` with a gradient for the weight only where one is wanted.
//!
//! candle's product computes and keeps the gradient of a frozen weight too: half the time of a backward pass and most of
//! its memory.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, CustomOp3, Layout, MetalStorage, Result, Shape, Tensor};
use rayon::prelude::*;

use super::activation::{gelu_tanh, gelu_tanh_backward, gelu_values};
use super::cpu;
use super::few_rows::{self, Matrix};

/// `x·Wᵀ + b`. `x` is `[rows, in]`, `weight` `[out, in]`, `bias` `[out]`; the result `[rows, out]`.
///
/// A gradient flows to `weight` exactly when it is a variable, to `x` and `bias` whenever they need one.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if let Some(bias) = bias
        && !weight.is_variable()
        && cpu::takes(&[x, weight, bias])
    {
        return x.contiguous()?.apply_op3(weight, bias, FrozenWithBias { activation: None });
    }
    let y = if weight.is_variable() { x.matmul(&weight.t()?)? } else { x.contiguous()?.apply_op2(weight, Frozen)? };
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// `gelu(x·Wᵀ + b)` in its tanh form, shapes and gradients as in [`linear`].
///
/// # Errors
/// Shapes that do not fit.
pub fn linear_gelu_tanh(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if !weight.is_variable() && cpu::takes(&[x, weight, bias]) {
        return x.contiguous()?.apply_op3(weight, bias, FrozenWithBias { activation: Some(gelu_values) });
    }
    gelu_tanh(&linear(x, weight, Some(bias))?)
}

/// The product with a weight that gets no gradient, on whatever device: each backend has its own matrix product.
struct Frozen;

fn product<S: BackendStorage>(x: &S, x_layout: &Layout, w: &S, w_layout: &Layout) -> Result<(S, Shape)> {
    let (rows, inputs) = x_layout.shape().dims2()?;
    let (outputs, columns) = w_layout.shape().dims2()?;
    if columns != inputs {
        candle_core::bail!("linear: x has {inputs} columns, the weight {columns}");
    }
    let y = x.matmul(w, (1, rows, outputs, inputs), x_layout, &w_layout.transpose(0, 1)?)?;
    Ok((y, (rows, outputs).into()))
}

/// As [`product`]: the few rows of a step of generation have a product of their own.
fn on_cpu(x: &CpuStorage, x_layout: &Layout, w: &CpuStorage, w_layout: &Layout) -> Result<(CpuStorage, Shape)> {
    let ((rows, inputs), (outputs, columns)) = (x_layout.shape().dims2()?, w_layout.shape().dims2()?);
    if let (CpuStorage::F32(x), CpuStorage::F32(w)) = (x, w)
        && let (Some(x_range), Some(w_range)) = (x_layout.contiguous_offsets(), w_layout.contiguous_offsets())
        && (1..=few_rows::MOST).contains(&rows)
        && inputs == columns
        && inputs > 0
    {
        let (x, w) = (&x[x_range.0..x_range.1], &w[w_range.0..w_range.1]);
        return Ok((
            CpuStorage::F32(few_rows::product(x, Matrix::Floats(w), rows, outputs, inputs)),
            (rows, outputs).into(),
        ));
    }
    product(x, x_layout, w, w_layout)
}

/// The same with a bias and an activation, f32 on the CPU: both where the product is, instead of in copies.
struct FrozenWithBias {
    activation: Option<fn(&mut [f32])>,
}

impl CustomOp3 for FrozenWithBias {
    fn name(&self) -> &'static str {
        "frozen-linear-with-bias"
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
        let bias = cpu::floats(b, b_layout)?;
        let (y, shape) = on_cpu(x, x_layout, w, w_layout)?;
        let CpuStorage::F32(mut y) = y else { candle_core::bail!("linear: a product of another type") };
        if bias.is_empty() || w_layout.dims()[0] != bias.len() {
            candle_core::bail!("linear: a bias of {} for {:?}", bias.len(), w_layout.dims());
        }
        let rows = (cpu::WORTH_A_THREAD / bias.len()).max(1);
        y.par_chunks_mut(rows * bias.len()).for_each(|y| {
            for row in y.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
            if let Some(activation) = self.activation {
                activation(y);
            }
        });
        Ok((CpuStorage::F32(y), shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = match self.activation {
            Some(_) => &gelu_tanh_backward(&linear(&x.detach(), w, Some(&b.detach()))?, dy)?,
            None => dy,
        };
        let db = if b.track_op() { Some(dy.sum(0)?) } else { None };
        Ok((Some(dy.contiguous()?.matmul(w)?), None, db))
    }
}

impl CustomOp2 for Frozen {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        on_cpu(x, x_layout, w, w_layout)
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        w: &CudaStorage,
        w_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        product(x, x_layout, w, w_layout)
    }

    fn metal_fwd(
        &self,
        x: &MetalStorage,
        x_layout: &Layout,
        w: &MetalStorage,
        w_layout: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        product(x, x_layout, w, w_layout)
    }

    fn bwd(&self, _x: &Tensor, w: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(dy.contiguous()?.matmul(w)?), None))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::model::ops::finite_difference::{check, distance, forms_agree, random};

    #[test]
    fn both_forms_agree_and_differentiate() {
        let x = random((5, 7), 1);
        let w = random((3, 7), 2);
        let b = random(3, 3);
        check(&[&x], |t| linear(&t[0], &w, Some(&b)));
        forms_agree(&[&x, &w, &b], |t| linear(&t[0], &t[1].detach(), Some(&t[2])));
        forms_agree(&[&x, &w], |t| linear(&t[0], &t[1].detach(), None));
        check(&[&x, &w, &b], |t| {
            let trainable = Var::from_tensor(&t[1])?;
            linear(&t[0], if t[1].is_variable() { &t[1] } else { trainable.as_tensor() }, Some(&t[2]))
        });
    }

    #[test]
    fn with_gelu_it_is_gelu_of_the_product() {
        let (x, w, b) = (random((5, 7), 1), random((3, 7), 2), random(3, 3));
        let plain = gelu_tanh(&linear(&x, &w, Some(&b)).unwrap()).unwrap();
        let fused = linear_gelu_tanh(&x, &w, &b).unwrap();
        assert!(distance(&plain, &fused) < 1e-6);
        check(&[&x, &b], |t| linear_gelu_tanh(&t[0], &w, &t[1]));
        forms_agree(&[&x, &w, &b], |t| linear_gelu_tanh(&t[0], &t[1].detach(), &t[2]));
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient() {
        let x = Var::from_tensor(&random((5, 7), 1)).unwrap();
        let w = random((3, 7), 2);
        let gradients = linear(&x, &w, None).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(gradients.get(&w).is_none());
        assert_eq!(gradients.get(&x).unwrap().dims(), [5, 7]);
        let empty = Tensor::zeros((0, 7), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(linear(&empty, &w, None).unwrap().dims(), [0, 3]);
    }
}
