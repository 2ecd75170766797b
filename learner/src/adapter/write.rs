//! Writing an adapter directory.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::path::Path;

use candle_core::Tensor;

use super::config::{AdapterConfig, TargetModules};
use super::error::AdapterError;
use super::names::Naming;
use super::weights::{LoraWeights, PeftAdapter};
use super::{CONFIG_FILE, WEIGHTS_FILE};

impl PeftAdapter {
    /// Name of a module's `lora_A` (`half` 0) or `lora_B` (`half` 1) in PEFT's files, and of the trainable tensor.
    pub fn tensor_name(module: &str, half: usize) -> String {
        format!(
            "base_model.model.{module}.lora_{}.weight",
            if half == 0 { "A" } else { "B" }
        )
    }

    /// The matrices by [`PeftAdapter::tensor_name`].
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        let mut tensors = BTreeMap::new();
        for (module, weights) in &self.modules {
            tensors.insert(Self::tensor_name(module, 0), weights.a.clone());
            tensors.insert(Self::tensor_name(module, 1), weights.b.clone());
        }
        tensors
    }

    /// Writes the adapter as a new directory, in one step: beside it first, then renamed, so that a reader sees all of it
    /// or nothing.
    ///
    /// # Errors
    /// The directory exists (adapters never change); anything the file system says.
    pub fn write(&self, directory: &Path, naming: Naming) -> Result<(), AdapterError> {
        if directory.exists() {
            return Err(AdapterError::Exists {
                path: directory.to_owned(),
            });
        }
        let parent = match directory.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs_err::create_dir_all(parent)?;
        let beside = tempfile::Builder::new()
            .prefix(".adapter-")
            .tempdir_in(parent)?;
        let renamed = self.renamed(naming);
        let settings = serde_json::to_vec_pretty(&renamed.config.to_json()).map_err(|source| {
            AdapterError::Json {
                path: beside.path().join(CONFIG_FILE),
                source,
            }
        })?;
        let path = beside.path().join(WEIGHTS_FILE);
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let bytes =
            safetensors::tensor::serialize(renamed.tensors(), Some(metadata)).map_err(|error| {
                AdapterError::Safetensors {
                    path: path.clone(),
                    reason: error.to_string(),
                }
            })?;
        write_synced(&path, &bytes)?;
        write_synced(&beside.path().join(CONFIG_FILE), &settings)?;
        fs_err::File::open(beside.path())?.sync_all()?;
        // From here on the directory is no longer temporary: dropping the guard must not remove it.
        let beside = beside.keep();
        if let Err(error) = fs_err::rename(&beside, directory) {
            fs_err::remove_dir_all(&beside)?;
            return Err(error.into());
        }
        fs_err::File::open(parent)?.sync_all()?;
        Ok(())
    }

    fn renamed(&self, naming: Naming) -> Self {
        if naming == Naming::Checkpoint {
            return self.clone();
        }
        let modules: BTreeMap<String, LoraWeights> = self
            .modules
            .iter()
            .map(|(module, weights)| (naming.rename(module), weights.clone()))
            .collect();
        if modules.keys().eq(self.modules.keys()) {
            self.clone()
        } else {
            Self::new(self.config.clone(), modules)
        }
    }
}

impl AdapterConfig {
    /// Settings of a new adapter: one rank and one α for all modules, scale α/r.
    pub fn uniform(r: usize, lora_alpha: f64) -> Self {
        Self {
            r,
            lora_alpha,
            lora_dropout: 0.0,
            use_rslora: false,
            target_modules: TargetModules::List(Vec::new()),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            base_model: None,
        }
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = fs_err::File::create(path)?;
    std::io::Write::write_all(&mut file, bytes)?;
    file.sync_all()
}
