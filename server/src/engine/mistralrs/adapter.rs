//! A PEFT directory as the merge wants it, and the proof that every tensor was used.
//!
//! mistralrs adds `alpha / r · B·A` to each layer whose path matches a regex, with one rank and one alpha for all. So the
//! scale of each layer (rsLoRA, alpha patterns) is multiplied into its B, ranks are padded with zeros to the largest, and
//! the regex lists exactly the layers of the adapter. The tensors are handed over by a backend that notes which were read:
//! a layer that the loader builds some other way would silently miss its update, and here it is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::Init;
use candle_nn::var_builder::SimpleBackend;
use mistralrs_quant::{LoraAdapter, LoraConfig, ShardedSafeTensors};
use reground_learner::adapter::{ModuleShapes, PeftAdapter};

use super::EngineError;

/// An adapter of one rank and scale 1, by tensor name (`model.text_model.layers.0.self_attn.q_proj.lora_A.weight`).
#[derive(Debug)]
pub(super) struct PreparedAdapter {
    rank: usize,
    modules: Vec<String>,
    tensors: BTreeMap<String, Tensor>,
}

impl PreparedAdapter {
    /// Reads an adapter and finds its place in the base.
    pub(super) fn read(directory: &Path, layers: &ModuleShapes) -> Result<Self, EngineError> {
        let adapter = PeftAdapter::read(directory)
            .and_then(|adapter| adapter.resolved(layers))
            .map_err(|error| EngineError::Load(format!("the adapter cannot be used: {error}")))?;
        Self::from_peft(&adapter).map_err(|error| EngineError::Load(format!("the adapter cannot be used: {error}")))
    }

    fn from_peft(adapter: &PeftAdapter) -> candle_core::Result<Self> {
        let rank = adapter.modules.values().map(|weights| weights.r).max().unwrap_or(1);
        let mut tensors = BTreeMap::new();
        for (module, weights) in &adapter.modules {
            let missing = rank - weights.r;
            tensors.insert(format!("{module}.lora_A.weight"), weights.a.pad_with_zeros(0, 0, missing)?);
            tensors.insert(
                format!("{module}.lora_B.weight"),
                (&weights.b * weights.scale)?.pad_with_zeros(1, 0, missing)?,
            );
        }
        Ok(Self { rank, modules: adapter.modules.keys().cloned().collect(), tensors })
    }

    /// What mistralrs merges, and the note of what it read.
    pub(super) fn applied(self: &Arc<Self>, dtype: DType, device: &Device) -> (LoraAdapter, ReadNote) {
        let note = ReadNote { adapter: self.clone(), read: Arc::default() };
        let backend = NotingBackend { adapter: self.clone(), read: note.read.clone() };
        let config = LoraConfig {
            rank: self.rank,
            alpha: self.rank as f64,
            target_modules: self.modules.iter().map(|module| format!("^{}$", regex::escape(module))).collect(),
        };
        (LoraAdapter { config, weights: ShardedSafeTensors::wrap(Box::new(backend), dtype, device.clone()) }, note)
    }
}

/// Which tensors were read.
pub(super) struct ReadNote {
    adapter: Arc<PreparedAdapter>,
    read: Arc<Mutex<BTreeSet<String>>>,
}

impl ReadNote {
    /// Fails if a tensor was not merged.
    pub(super) fn check(&self) -> Result<(), EngineError> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let unread: Vec<&str> =
            self.adapter.tensors.keys().filter(|name| !read.contains(*name)).map(String::as_str).collect();
        let Some(first) = unread.first() else { return Ok(()) };
        Err(EngineError::Load(format!(
            "the adapter cannot be used: mistralrs cannot adapt the layer of {} of its {} tensors, the first is {first}",
            unread.len(),
            self.adapter.tensors.len(),
        )))
    }
}

struct NotingBackend {
    adapter: Arc<PreparedAdapter>,
    read: Arc<Mutex<BTreeSet<String>>>,
}

impl SimpleBackend for NotingBackend {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if *tensor.shape() != shape {
            candle_core::bail!("{name} has shape {:?} in the adapter, {shape:?} in the model", tensor.shape());
        }
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let Some(tensor) = self.adapter.tensors.get(name) else {
            candle_core::bail!("the adapter has no tensor {name}");
        };
        self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        tensor.to_device(device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.adapter.tensors.contains_key(name)
    }
}
