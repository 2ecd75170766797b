//! `y = x·Wᵀ (+ b)` with a gradient for the weight only where one is wanted.
//!
//! candle's product computes and keeps the gradient of a frozen weight too: half the time of a backward pass and most of
//! its memory.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, Layout, MetalStorage, Result, Shape, Tensor,
};

/// `x·Wᵀ + b`. `x` is `[rows, in]`, `weight` `[out, in]`, `bias` `[out]`; the result `[rows, out]`.
///
/// A gradient flows to `weight` exactly when it is a variable, to `x` and `bias` whenever they need one.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = if weight.is_variable() {
        x.matmul(&weight.t()?)?
    } else {
        x.contiguous()?.apply_op2(weight, Frozen)?
    };
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// The product with a weight that gets no gradient, on whatever device: each backend has its own matrix product.
struct Frozen;

fn product<S: BackendStorage>(
    x: &S,
    x_layout: &Layout,
    w: &S,
    w_layout: &Layout,
) -> Result<(S, Shape)> {
    let (rows, inputs) = x_layout.shape().dims2()?;
    let (outputs, columns) = w_layout.shape().dims2()?;
    if columns != inputs {
        candle_core::bail!("linear: x has {inputs} columns, the weight {columns}");
    }
    let y = x.matmul(
        w,
        (1, rows, outputs, inputs),
        x_layout,
        &w_layout.transpose(0, 1)?,
    )?;
    Ok((y, (rows, outputs).into()))
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
        product(x, x_layout, w, w_layout)
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

    fn bwd(
        &self,
        _x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(dy.contiguous()?.matmul(w)?), None))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::model::ops::finite_difference::{check, random};

    #[test]
    fn both_forms_agree_and_differentiate() {
        let x = random((5, 7), 1);
        let w = random((3, 7), 2);
        let b = random(3, 3);
        check(&[&x], |t| linear(&t[0], &w, Some(&b)));
        check(&[&x, &w, &b], |t| {
            let trainable = Var::from_tensor(&t[1])?;
            linear(
                &t[0],
                if t[1].is_variable() {
                    &t[1]
                } else {
                    trainable.as_tensor()
                },
                Some(&t[2]),
            )
        });
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient() {
        let x = Var::from_tensor(&random((5, 7), 1)).unwrap();
        let w = random((3, 7), 2);
        let gradients = linear(&x, &w, None)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        assert!(gradients.get(&w).is_none());
        assert_eq!(gradients.get(&x).unwrap().dims(), [5, 7]);
        let empty = Tensor::zeros((0, 7), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(linear(&empty, &w, None).unwrap().dims(), [0, 3]);
    }
}
