//! `[model]`.

use std::path::PathBuf;

use reground_learner::model::{DeviceChoice, Dtype, Quantisation};
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// Which model answers, and on what.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// What callers put into `model`.
    pub name: String,
    /// `builtin` (the model inside the binary), a directory, or a hub id (`HuggingFaceTB/SmolVLM-256M-Instruct`).
    pub source: String,
    /// Hub revision (branch, tag or commit); empty: `main`.
    pub revision: String,
    /// Which engine serves it.
    pub engine: EngineKind,
    /// Where it runs.
    pub device: DeviceChoice,
    /// Number format of weights and activations.
    pub dtype: Dtype,
    /// Bits of the decoder's linear layers. The native engine holds them so on a CPU, with adapters in f32 beside; mistralrs
    /// takes no adapters then, because the merge would miss quantised layers.
    pub isq: Isq,
    /// Most tokens of prompt and answer together; 0: the model's own limit.
    pub max_len: usize,
    /// Sequences inside the engine at once; 0: 16 for the native engine, 1 for mistralrs.
    pub max_parallel: usize,
    /// Engines that mistralrs may load in the life of the process. Each leaves a sleeping thread behind, so that without a limit a
    /// server would end at that of its system. At the limit no further generation is loaded; a rollback still is, and so is what died.
    pub max_loads: usize,
    /// Keys and values of mistralrs in pages of `kv_cache_bytes`. CUDA only.
    pub paged_attention: bool,
    /// Let `max_parallel` go beyond what mistralrs is proven for on an accelerator: for the run that is to prove it.
    pub unproven_parallel: bool,
    /// Bytes that keys and values of all running answers may take. Whoever does not fit waits. mistralrs manages its own unless
    /// `paged_attention` is on.
    pub kv_cache_bytes: usize,
    /// Bytes of image features that are kept for the next question about the same image; 0: none. Native engine only.
    pub vision_cache_bytes: usize,
    /// Bytes of keys and values of read prompts that are kept, beside `kv_cache_bytes`, for the next prompt of the same
    /// generation that begins the same; 0: none. Native engine only.
    pub prefix_cache_bytes: usize,
    /// Only directories below this one can be loaded as adapters; empty: none can.
    pub adapter_root: PathBuf,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            name: "reground".into(),
            source: "builtin".into(),
            revision: String::new(),
            engine: EngineKind::Auto,
            device: DeviceChoice::Auto,
            dtype: Dtype::Auto,
            isq: Isq::Off,
            max_len: 0,
            max_parallel: 0,
            max_loads: 2000,
            paged_attention: false,
            unproven_parallel: false,
            kv_cache_bytes: 2 << 30,
            vision_cache_bytes: 256 << 20,
            prefix_cache_bytes: 256 << 20,
            adapter_root: PathBuf::new(),
        }
    }
}

impl ModelConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.name.is_empty() || self.name.contains('@') {
            return Err(ConfigError::value(
                "model.name",
                &self.name,
                "a name without `@`, which separates the generation",
            ));
        }
        if self.source.is_empty() {
            return Err(ConfigError::value("model.source", &self.source, "`builtin`, a directory or a hub id"));
        }
        if self.engine == EngineKind::Mistralrs && self.isq != Isq::Off && !self.adapter_root.as_os_str().is_empty() {
            return Err(ConfigError::value(
                "model.adapter_root",
                self.adapter_root.display(),
                "empty while mistralrs serves with a `model.isq` that is not `off`: a quantised layer would miss the adapter",
            ));
        }
        ConfigError::range("model.max_len", self.max_len, 0..=1 << 24)?;
        ConfigError::range("model.max_parallel", self.max_parallel, 0..=1024)?;
        ConfigError::range("model.max_loads", self.max_loads, 2..=1 << 20)?;
        ConfigError::range("model.kv_cache_bytes", self.kv_cache_bytes, 1 << 20..=1 << 42)?;
        ConfigError::range("model.vision_cache_bytes", self.vision_cache_bytes, 0..=1 << 42)?;
        ConfigError::range("model.prefix_cache_bytes", self.prefix_cache_bytes, 0..=1 << 42)?;
        Ok(())
    }
}

/// Which engine serves the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// Native where the learner knows the family, and, for an `isq` that is not off, on a CPU; mistralrs otherwise.
    #[default]
    Auto,
    /// Our own decode loop over the learner's model.
    Native,
    /// mistralrs.
    Mistralrs,
}

/// In-situ quantisation: the weights of the decoder's linear layers are rounded while they are loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Isq {
    /// Weights as they are.
    #[default]
    Off,
    /// 8 bits.
    Q8,
    /// 4 bits.
    Q4,
}

impl Isq {
    /// What the native engine makes of it; `None` for weights as they are.
    pub fn quantisation(self) -> Option<Quantisation> {
        match self {
            Self::Off => None,
            Self::Q8 => Some(Quantisation::Q8),
            Self::Q4 => Some(Quantisation::Q4),
        }
    }
}
