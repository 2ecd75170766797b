//! Bootstrapped Preference Optimization (BPO, arXiv 2403.08730) for multimodal language models, in candle.
//!
//! No HTTP and no mistralrs in here: the server depends on this crate, never the other way round.
//!
//! # Layout
//! - [`model`]: the differentiable models (Idefics3 / SmolVLM), their tokenizer, template, image preprocessing and LoRA.
//! - [`adapter`]: LoRA adapters in PEFT's file format.
//! - [`bootstrap`]: negatives: distorted images.
//! - [`bpo`]: the loss, the trainer, its data and its checkpoints.
//! - [`store`]: records, feedback, pairs, runs, adapters and the rollout state, on disk.
//! - [`pocket`]: the small model that ships with the project, its drawn world and its builder.
//! - [`images`]: from an encoded image to the pixels that serving, training and evaluation all see.
//! - [`generator`]: what background work asks of whatever serves the model.
//! - [`gate`]: the checks between a finished run and traffic.
//! - [`eval`]: CHAIR, POPE, preference accuracy, with confidence intervals.

pub mod adapter;
pub mod bootstrap;
pub mod bpo;
pub mod eval;
pub mod gate;
pub mod generator;
pub mod images;
pub mod model;
pub mod pocket;
pub mod store;
