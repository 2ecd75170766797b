//! Differentiable operations with gradients of their own.
//!
//! candle's fused kernels cut the gradient silently, and its composed ones cost an allocation and a pass over memory per
//! step. Each file here has one operation: a forward and a backward function for the hand-written LoRA gradient
//! ([`super::decoder`]), and one function that joins both into candle's own differentiation for training every weight.
//! On the CPU in f32 they run as one loop; anywhere else they are composed of candle operations with the same result.
//!
//! # Layout
//! - `cpu`: slices of tensors, runtime choice of vector instructions, an exponential that vectorises.
//! - [`linear()`]: products with weights that may be frozen; `few_rows`: those of a step of generation, and of adapters in it.
//! - [`quantised_linear`]: products with weights in 8 or 4 bits (`quantised`).
//! - [`rms_norm`], [`layer_norm`]: normalisations.
//! - [`rope`]: rotary positions.
//! - [`attention`]: softmax attention over packed sequences.
//! - [`activation`]: SwiGLU, and GELU in its tanh form.
//! - [`log_prob`]: log-probability of a token under logits.

pub mod activation;
pub mod attention;
pub(crate) mod cpu;
pub(crate) mod few_rows;
pub mod layer_norm;
mod linear;
pub mod log_prob;
mod quantised;
pub mod rms_norm;
pub mod rope;

pub use linear::{linear, linear_gelu_tanh};
pub use quantised::quantised_linear;

#[cfg(test)]
pub(in crate::model) mod finite_difference;
