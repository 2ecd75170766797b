//! LoRA adapters in PEFT's file format: `adapter_config.json` beside `adapter_model.safetensors`.
//!
//! What is read here is what the math needs and nothing else: two matrices and a scale for each linear layer of the base.
//! Everything that PEFT can express and this cannot (DoRA, biases, saved modules, weights initialised by changing the
//! base, …) is refused by name, because an adapter that loads and means something else is worse than one that does not.
//!
//! # Layout
//! - [`PeftAdapter`], [`LoraWeights`]: an adapter in memory (`weights`), read (`read`) and written (`write`).
//! - [`AdapterConfig`], [`TargetModules`]: the settings file (`config`), with PEFT's pattern rules (`pattern`).
//! - [`TensorHeader`], [`checkpoint_shapes`]: shapes of a checkpoint from its safetensors headers alone (`header`).
//! - [`Naming`]: the module names of older checkpoints and of transformers 5 (`names`).
//! - [`AdapterError`]: every refusal, with the values in the message (`error`).

mod config;
mod error;
mod header;
mod names;
mod pattern;
mod read;
mod weights;
mod write;

pub use config::{AdapterConfig, TargetModules};
pub use error::AdapterError;
pub use header::{ModuleShapes, TensorHeader, checkpoint_files, checkpoint_shapes, module_shapes};
pub use names::Naming;
pub use weights::{LoraWeights, PeftAdapter, lora_scale};

/// File name of the tensors of an adapter.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// File name of the settings of an adapter.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Largest rank that is accepted. PEFT has no limit; beyond this a file is a mistake or an attack, not a low-rank update.
pub const MAX_RANK: usize = 1024;
