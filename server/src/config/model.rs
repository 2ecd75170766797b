//! `[model]`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

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
    pub device: Device,
    /// Number format of weights and activations.
    pub dtype: Dtype,
    /// In-situ quantisation while loading. Not together with adapters: the merge would miss quantised layers.
    pub isq: Isq,
    /// Most tokens of prompt and answer together; 0: the model's own limit.
    pub max_len: usize,
    /// Sequences inside the engine at once; 0: 16 for the native engine, 1 for mistralrs.
    pub max_parallel: usize,
    /// Bytes that keys and values of all running answers may take. Whoever does not fit waits. mistralrs manages its own.
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
            device: Device::Auto,
            dtype: Dtype::Auto,
            isq: Isq::Off,
            max_len: 0,
            max_parallel: 0,
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
        if self.isq != Isq::Off && !self.adapter_root.as_os_str().is_empty() {
            return Err(ConfigError::value(
                "model.adapter_root",
                self.adapter_root.display(),
                "empty while `model.isq` is not `off`: a quantised layer would miss the adapter",
            ));
        }
        ConfigError::range("model.max_len", self.max_len, 0..=1 << 24)?;
        ConfigError::range("model.max_parallel", self.max_parallel, 0..=1024)?;
        ConfigError::range("model.kv_cache_bytes", self.kv_cache_bytes, 1 << 20..=1 << 42)?;
        ConfigError::range("model.vision_cache_bytes", self.vision_cache_bytes, 0..=1 << 42)?;
        ConfigError::range("model.prefix_cache_bytes", self.prefix_cache_bytes, 0..=1 << 42)?;
        if self.isq != Isq::Off && self.engine == EngineKind::Native {
            return Err(ConfigError::value(
                "model.engine",
                "native",
                "`auto` or `mistralrs` while `model.isq` is not `off`",
            ));
        }
        Ok(())
    }
}

/// Which engine serves the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// Native where the learner knows the family and `isq` is off, mistralrs otherwise.
    #[default]
    Auto,
    /// Our own decode loop over the learner's model.
    Native,
    /// mistralrs.
    Mistralrs,
}

/// Where the model runs: `auto`, `cpu`, `cuda:N` or `metal`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first accelerator this build knows, else the CPU.
    #[default]
    Auto,
    /// All cores.
    Cpu,
    /// The CUDA device with this number.
    Cuda(usize),
    /// Apple's GPU.
    Metal,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "metal" => Ok(Self::Metal),
            "cuda" => Ok(Self::Cuda(0)),
            other => other
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| "there are `auto`, `cpu`, `cuda:N` (N counts from 0) and `metal`".into()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Number format of weights and activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// f32 on a CPU (bf16 fails there and f16 is slower), bf16 on an accelerator.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits, 5 of exponent.
    F16,
    /// 16 bits, 8 of exponent.
    Bf16,
}

/// In-situ quantisation.
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
