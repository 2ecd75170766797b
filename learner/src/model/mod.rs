//! Multimodal language models that can be run, generated from and trained.
//!
//! Everything runs on *packed* batches ([`Packed`]): sequences of different lengths one after the other, and each image
//! and prompt once for all the answers to it.
//!
//! # Training every weight
//! Layers are built from named tensors ([`Weights`]), and those may be variables. Each operation gives a weight a gradient
//! exactly when it is one, so the same code trains a whole model, vision tower included:
//!
//! ```no_run
//! # use candle_core::{DType, Device, Tensor};
//! # use reground_learner::bpo::policy::Group;
//! # use reground_learner::model::{Adapters, Model, Packed, Source, Weights, ops};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (pixels, prompt, answer, directory): (Tensor, Vec<u32>, Vec<u32>, &std::path::Path) = todo!();
//! let source = Source::directory(directory); // or Source::memory(…): config, tokenizer, preprocessor
//! let variables = source.weights(DType::F32, &Device::Cpu)?.to_variables()?; // or fresh ones by the checkpoint's names
//! let model = Model::build(&source, &Weights::from_variables(&variables))?;
//!
//! let features = model.family().encode(&pixels)?; // [image tokens, hidden], with gradient; `patches` for the tower alone
//! let group = Group { prompt: prompt.into(), features: Some(features), answers: vec![answer.clone().into()] };
//! let packed = Packed::new([&group])?;
//! let hidden = model.hidden(&packed, &Adapters::none())?;
//! let rows: Vec<u32> = packed.answers[0][0].predicting().map(|row| row as u32).collect();
//! let logits = model.decoder().logits(&hidden.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?)?;
//! let loss = ops::log_prob::log_prob(&logits, &answer)?.mean_all()?.neg()?;
//! let gradients = loss.backward()?; // by variable
//! // … optimiser steps on `variables`, then:
//! Weights::from_variables(&variables).save(&directory.join("model.safetensors"), DType::BF16)?;
//! # Ok(()) }
//! ```
//!
//! # Layout
//! - [`Model`]: a whole model (`multimodal`); [`Source`]: its files, in a directory or in memory; [`Weights`]: its tensors.
//! - [`Quantisation`]: linear layers in 8 or 4 bits, for answering and scoring (`weight`).
//! - [`Family`]: what differs between families; [`idefics3`]: Idefics3 / SmolVLM. A new family is a folder beside it.
//! - [`Decoder`], [`Packed`]: the language model over packed batches (`decoder`).
//! - [`Lora`], [`Adapters`]: adapters on the decoder (`lora`, `adapters`, `dropout`).
//! - [`DeviceChoice`], [`Dtype`]: where all that runs, and in which number format (`device`, `dtype`).
//! - [`LoraPolicy`]: what the trainer trains (`policy`); [`Workers`]: its threads.
//! - [`Request`], [`Completion`], [`Sampling`]: generation (`generate`, `sampler`).
//! - [`Message`], [`ChatTemplate`], [`TextTokenizer`]: from a conversation to token ids.
//! - [`ops`]: differentiable operations.
//! - [`ModelError`]: why a model was refused.

mod adapters;
mod conversation;
mod decoder;
pub mod device;
mod dropout;
mod dtype;
mod error;
mod family;
mod generate;
pub mod idefics3;
mod lora;
mod multimodal;
pub mod ops;
mod policy;
mod sampler;
mod source;
mod template;
mod tokenizer;
mod weight;
mod weights;
mod workers;

pub use adapters::Adapters;
pub use conversation::{Message, Part};
pub use decoder::{AnswerRows, Decoder, DecoderConfig, KeyValues, Packed, RopeScaling};
pub use device::DeviceChoice;
pub use dtype::Dtype;
pub use error::ModelError;
pub use family::{Family, ImageInput};
pub use generate::{Completion, Finish, Request};
pub use lora::{ALL_LINEAR, Lora, Slot};
pub use multimodal::Model;
pub use policy::{LoraPolicy, PolicyOptions, Tape};
pub use sampler::{Sampler, Sampling};
pub use source::Source;
pub use template::ChatTemplate;
pub use tokenizer::TextTokenizer;
pub use weight::Quantisation;
pub use weights::Weights;
pub use workers::Workers;
