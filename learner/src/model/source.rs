//! Where a model's files come from: a directory, or memory.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;

use super::error::ModelError;
use super::weights::Weights;
use crate::adapter::checkpoint_files;

/// The files of a checkpoint by name (`config.json`, `tokenizer.json`, `model.safetensors`, …).
#[derive(Clone, Debug)]
pub enum Source {
    /// A directory in the hub's layout.
    Directory(PathBuf),
    /// Files in memory, such as those of the model inside the binary.
    Memory(BTreeMap<String, Cow<'static, [u8]>>),
}

impl Source {
    /// A checkpoint directory.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self::Directory(path.into())
    }

    /// Files in memory by name.
    pub fn memory<N: Into<String>>(files: impl IntoIterator<Item = (N, &'static [u8])>) -> Self {
        Self::Memory(
            files
                .into_iter()
                .map(|(name, bytes)| (name.into(), Cow::Borrowed(bytes)))
                .collect(),
        )
    }

    /// A file's content; `None` if there is no such file.
    ///
    /// # Errors
    /// The file is there but cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Cow<'_, [u8]>>, ModelError> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(name);
                if path.is_file() {
                    Ok(Some(Cow::Owned(fs_err::read(path)?)))
                } else {
                    Ok(None)
                }
            }
            Self::Memory(files) => Ok(files.get(name).map(|bytes| Cow::Borrowed(bytes.as_ref()))),
        }
    }

    /// A file that must be there.
    ///
    /// # Errors
    /// It is not, or cannot be read.
    pub fn require(&self, name: &str) -> Result<Cow<'_, [u8]>, ModelError> {
        self.read(name)?.ok_or_else(|| ModelError::MissingFile {
            file: name.to_owned(),
        })
    }

    /// A JSON file; `None` if there is no such file.
    ///
    /// # Errors
    /// It cannot be read or parsed.
    pub fn json<T: serde::de::DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<T>, ModelError> {
        self.read(name)?
            .map(|bytes| serde_json::from_slice(&bytes).map_err(ModelError::json(name)))
            .transpose()
    }

    /// Every tensor of every safetensors file, as `dtype` on `device`.
    ///
    /// # Errors
    /// No file, or a damaged one.
    pub fn weights(&self, dtype: DType, device: &Device) -> Result<Weights, ModelError> {
        let mut tensors = BTreeMap::new();
        match self {
            Self::Directory(directory) => {
                for path in checkpoint_files(directory)? {
                    // One file at a time: the hub shards large models so that each fits into memory beside the tensors.
                    load(
                        &path.display().to_string(),
                        &fs_err::read(&path)?,
                        dtype,
                        device,
                        &mut tensors,
                    )?;
                }
            }
            Self::Memory(files) => {
                for (name, bytes) in files {
                    if Path::new(name)
                        .extension()
                        .is_some_and(|extension| extension == "safetensors")
                    {
                        load(name, bytes, dtype, device, &mut tensors)?;
                    }
                }
            }
        }
        Ok(Weights::new(tensors))
    }
}

fn load(
    file: &str,
    bytes: &[u8],
    dtype: DType,
    device: &Device,
    tensors: &mut BTreeMap<String, Tensor>,
) -> Result<(), ModelError> {
    let damaged = |reason: String| ModelError::Safetensors {
        file: file.to_owned(),
        reason,
    };
    let parsed = SafeTensors::deserialize(bytes).map_err(|error| damaged(error.to_string()))?;
    for (name, view) in parsed.iter() {
        let stored =
            DType::try_from(view.dtype()).map_err(|error| damaged(format!("{name}: {error}")))?;
        let tensor = Tensor::from_raw_buffer(view.data(), stored, view.shape(), device)?;
        // Integer buffers (position ids in old checkpoints) stay what they are.
        let tensor = if stored.is_float() {
            tensor.to_dtype(dtype)?
        } else {
            tensor
        };
        tensors.insert(name.to_owned(), tensor);
    }
    Ok(())
}
