//! The golden Idefics3 checkpoint: agreement with PyTorch + transformers + PEFT at the tolerances of the method page.
//!
//! # Layout
//! - `fixture`: the golden files.
//! - `forward`: pixel values, prompts, logits, log-probabilities, greedy answers.
//! - `training`: the DPO loss, every LoRA gradient, the 20-step curve.
//! - `whole_model`: training every weight, saving, loading from memory.

mod fixture;
mod forward;
