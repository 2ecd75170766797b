//! Reading an adapter directory.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Map, Value};

use super::config::AdapterConfig;
use super::error::AdapterError;
use super::header::{TensorHeader, read_header};
use super::weights::PeftAdapter;
use super::{CONFIG_FILE, WEIGHTS_FILE};

/// What PEFT puts before the module path.
const PREFIX: &str = "base_model.model.";

impl PeftAdapter {
    /// Reads `adapter_config.json` and `adapter_model.safetensors` from a directory. Matrices become f32 on the CPU.
    ///
    /// # Errors
    /// Anything that would make the adapter mean something else here than in PEFT: see [`AdapterError`].
    pub fn read(directory: &Path) -> Result<Self, AdapterError> {
        let path = directory.join(CONFIG_FILE);
        let settings: Map<String, Value> = serde_json::from_slice(&fs_err::read(&path)?)
            .map_err(|source| AdapterError::Json { path: path.clone(), source })?;
        let config = AdapterConfig::parse(&settings)?;

        let path = directory.join(WEIGHTS_FILE);
        // The header first: names, types and sizes are refused before the file is read into memory.
        let header = read_header(&path)?;
        let halves = halves(&header)?;
        if halves.is_empty() {
            return Err(AdapterError::Empty { path });
        }
        let names = || halves.keys().map(String::as_str);
        if let Some(named) = config.target_modules.named(names())
            && let Some(module) = names().find(|module| !named.contains(module))
        {
            return Err(AdapterError::NotTargeted { module: module.to_owned() });
        }
        let ranks = config.ranks_and_alphas(names())?;
        for (module, (r, _)) in &ranks {
            let [a, b] = halves[*module].each_ref().map(|name| header[name].shape.as_slice());
            Self::check_shapes(module, a, b, *r)?;
        }
        check_length(&header, &path)?;
        let bytes = fs_err::read(&path)?;
        let mut tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
            .map_err(|error| AdapterError::Safetensors { path: path.clone(), reason: error.to_string() })?;
        let mut modules = BTreeMap::new();
        for (module, (r, alpha)) in ranks {
            let [a, b] = &halves[module];
            let (a, b) = (take(&mut tensors, a, &path)?, take(&mut tensors, b, &path)?);
            let weights = Self::check_module(module, a, b, (r, alpha, config.scale(r, alpha)))?;
            modules.insert(module.to_owned(), weights);
        }
        Ok(Self { config, modules })
    }
}

fn take(
    tensors: &mut std::collections::HashMap<String, Tensor>,
    name: &str,
    path: &Path,
) -> Result<Tensor, AdapterError> {
    tensors.remove(name).ok_or_else(|| AdapterError::Safetensors {
        path: path.to_owned(),
        reason: format!("tensor {name} vanished between two reads"),
    })
}

/// Checks that tensors of these shapes, which are sound, fill the file.
fn check_length(header: &BTreeMap<String, TensorHeader>, path: &Path) -> Result<(), AdapterError> {
    let size = |tensor: &TensorHeader| {
        let width = if tensor.dtype == "F32" { 4 } else { 2 };
        tensor.shape.iter().map(|side| *side as u64).product::<u64>() * width
    };
    let sizes: u64 = header.values().map(size).sum();
    let end = header.values().map(|tensor| tensor.data_offsets.1).max().unwrap_or(0);
    if end == sizes {
        return Ok(());
    }
    let reason = format!("its tensors have {sizes} bytes by their shapes and {end} by their places");
    Err(AdapterError::Safetensors { path: path.to_owned(), reason })
}

/// Names of the two matrices of each module.
fn halves(header: &BTreeMap<String, TensorHeader>) -> Result<BTreeMap<String, [String; 2]>, AdapterError> {
    let mut found: BTreeMap<String, [Option<String>; 2]> = BTreeMap::new();
    for (name, tensor) in header {
        let (module, half) = split(name).ok_or_else(|| AdapterError::UnexpectedTensor { name: name.clone() })?;
        if !matches!(tensor.dtype.as_str(), "F32" | "F16" | "BF16") {
            return Err(AdapterError::DType {
                module: module.to_owned(),
                tensor: if half == 0 { "lora_A" } else { "lora_B" },
                dtype: tensor.dtype.clone(),
            });
        }
        found.entry(module.to_owned()).or_default()[half] = Some(name.clone());
    }
    found
        .into_iter()
        .map(|(module, halves)| match halves {
            [Some(a), Some(b)] => Ok((module, [a, b])),
            [None, _] => Err(AdapterError::MissingHalf { module, missing: "lora_A" }),
            [_, None] => Err(AdapterError::MissingHalf { module, missing: "lora_B" }),
        })
        .collect()
}

/// Module path and half (0 = A, 1 = B) of a tensor name.
fn split(name: &str) -> Option<(&str, usize)> {
    let name = name.strip_prefix(PREFIX)?;
    for (half, end) in [".lora_A.weight", ".lora_B.weight"].iter().enumerate() {
        if let Some(module) = name.strip_suffix(end) {
            return (!module.is_empty()).then_some((module, half));
        }
    }
    None
}
