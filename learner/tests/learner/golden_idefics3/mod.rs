//! The golden Idefics3 checkpoint: agreement with PyTorch + transformers + PEFT at the tolerances of the method page.
//!
//! # Layout
//! - `fixture`: the golden files.
//! - `forward`: pixel values, prompts, logits, log-probabilities.
//! - `generation`: greedy answers, teacher forcing, batches.
//! - `splitting`: split images.
//! - `training`: the DPO loss, every LoRA gradient, the 20-step curve.
//! - `whole_model`: training every weight, saving, loading from memory.

mod fixture;
mod forward;
mod generation;
mod splitting;
mod training;
mod whole_model;
