//! Where a model's files come from: a directory, or memory.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::Metadata;

use super::error::ModelError;
use super::weight::Quantisation;
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
        Self::Memory(files.into_iter().map(|(name, bytes)| (name.into(), Cow::Borrowed(bytes))).collect())
    }

    /// A file's content; `None` if there is no such file.
    ///
    /// # Errors
    /// The file is there but cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Cow<'_, [u8]>>, ModelError> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(name);
                if path.is_file() { Ok(Some(Cow::Owned(fs_err::read(path)?))) } else { Ok(None) }
            }
            Self::Memory(files) => Ok(files.get(name).map(|bytes| Cow::Borrowed(bytes.as_ref()))),
        }
    }

    /// A file that must be there.
    ///
    /// # Errors
    /// It is not, or cannot be read.
    pub fn require(&self, name: &str) -> Result<Cow<'_, [u8]>, ModelError> {
        self.read(name)?.ok_or_else(|| ModelError::MissingFile { file: name.to_owned() })
    }

    /// A JSON file; `None` if there is no such file.
    ///
    /// # Errors
    /// It cannot be read or parsed.
    pub fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ModelError> {
        self.read(name)?.map(|bytes| serde_json::from_slice(&bytes).map_err(ModelError::json(name))).transpose()
    }

    /// Every tensor of every safetensors file, as `dtype` on `device`.
    ///
    /// # Errors
    /// No file, or a damaged one.
    pub fn weights(&self, dtype: DType, device: &Device) -> Result<Weights, ModelError> {
        let mut tensors = BTreeMap::new();
        self.each(dtype, device, &mut |name, tensor| {
            tensors.insert(name, tensor);
            Ok(())
        })?;
        Ok(Weights::new(tensors))
    }

    /// As [`Source::weights`] in f32 on the CPU, the tensors that `few` names in fewer bits. A tensor is rounded before the
    /// next is read, so that there are never two of them whole.
    ///
    /// # Errors
    /// As [`Source::weights`]; a tensor that cannot be held in so few bits.
    pub(super) fn quantised_weights(
        &self,
        quantisation: Quantisation,
        few: impl Fn(&str) -> bool,
    ) -> Result<Weights, ModelError> {
        let (mut tensors, mut quantised) = (BTreeMap::new(), BTreeMap::new());
        self.each(DType::F32, &Device::Cpu, &mut |name, tensor| {
            if few(&name) {
                let blocks = quantisation.quantise(&name, &tensor)?;
                quantised.insert(name, Arc::new(blocks));
            } else {
                tensors.insert(name, tensor);
            }
            Ok(())
        })?;
        Ok(Weights::with_quantised(tensors, quantised))
    }

    /// Gives every tensor of every safetensors file to `keep`, one after the other.
    fn each(&self, dtype: DType, device: &Device, keep: &mut Keep<'_>) -> Result<(), ModelError> {
        match self {
            Self::Directory(directory) => {
                for path in checkpoint_files(directory)? {
                    let file = fs_err::File::open(&path)?;
                    let length = file.metadata()?.len();
                    let reader = BufReader::with_capacity(1 << 20, file);
                    load(&path.display().to_string(), reader, length, dtype, device, keep)?;
                }
            }
            Self::Memory(files) => {
                for (name, bytes) in files {
                    if Path::new(name).extension().is_some_and(|extension| extension == "safetensors") {
                        load(name, bytes.as_ref(), bytes.len() as u64, dtype, device, keep)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// What takes a tensor by its name.
type Keep<'a> = dyn FnMut(String, Tensor) -> Result<(), ModelError> + 'a;

/// The format's own limit, bytes; without one a damaged length would be allocated.
const MAX_HEADER: u64 = 100 << 20;

/// Reads a safetensors file of `length` bytes tensor by tensor, so that there is never a second copy of the whole model.
fn load(
    file: &str,
    mut bytes: impl Read,
    length: u64,
    dtype: DType,
    device: &Device,
    keep: &mut Keep<'_>,
) -> Result<(), ModelError> {
    let damaged = |reason: String| ModelError::Safetensors { file: file.to_owned(), reason };
    let mut prefix = [0; 8];
    bytes.read_exact(&mut prefix).map_err(|error| damaged(error.to_string()))?;
    let header = u64::from_le_bytes(prefix);
    if header > MAX_HEADER {
        return Err(damaged(format!("a header of {header} bytes; at most {MAX_HEADER} are accepted")));
    }
    let mut buffer = vec![0; header as usize];
    bytes.read_exact(&mut buffer).map_err(|error| damaged(error.to_string()))?;
    let metadata: Metadata = serde_json::from_slice(&buffer).map_err(|error| damaged(error.to_string()))?;
    let expected = 8 + header + metadata.data_len() as u64;
    if length != expected {
        return Err(damaged(format!("it has {length} bytes, its header says {expected}")));
    }
    // Offsets are without gaps: that is what reading the header checked.
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        let stored = DType::try_from(info.dtype).map_err(|error| damaged(format!("{name}: {error}")))?;
        buffer.resize(info.data_offsets.1 - info.data_offsets.0, 0);
        bytes.read_exact(&mut buffer).map_err(|error| damaged(format!("{name}: {error}")))?;
        let tensor = Tensor::from_raw_buffer(&buffer, stored, &info.shape, device)?;
        // Integer buffers (position ids in old checkpoints) stay what they are.
        let tensor = if stored.is_float() { tensor.to_dtype(dtype)? } else { tensor };
        keep(name, tensor)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], length: usize) -> Result<BTreeMap<String, Tensor>, ModelError> {
        let mut tensors = BTreeMap::new();
        load("m.safetensors", bytes, length as u64, DType::F32, &Device::Cpu, &mut |name, tensor| {
            tensors.insert(name, tensor);
            Ok(())
        })?;
        Ok(tensors)
    }

    #[test]
    fn tensors_come_back_as_they_were_saved() {
        let saved = BTreeMap::from([
            ("b".to_owned(), Tensor::new(&[[1.5_f32, -2.0], [0.0, 3.0]], &Device::Cpu).unwrap()),
            ("a".to_owned(), Tensor::new(&[0.25_f32, 8.0, -1.0], &Device::Cpu).unwrap()),
        ]);
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let bytes = Weights::new(saved.clone()).serialize(dtype).unwrap();
            let read = read(&bytes, bytes.len()).unwrap();
            assert_eq!(read.keys().collect::<Vec<_>>(), saved.keys().collect::<Vec<_>>());
            for (name, tensor) in &saved {
                let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!((read[name].dims(), values(&read[name])), (tensor.dims(), values(tensor)));
            }
        }
    }

    #[test]
    fn damaged_files_are_refused_with_a_reason() {
        let tensor = Tensor::new(&[1_f32, 2.0], &Device::Cpu).unwrap();
        let good = Weights::new(BTreeMap::from([("a".to_owned(), tensor)])).serialize(DType::F32).unwrap();
        let cut = &good[..good.len() - 1];
        let longer = [good.as_slice(), b"?"].concat();
        let mut huge = good.clone();
        huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        let no_json = [&4_u64.to_le_bytes()[..], b"what"].concat();
        for (bytes, reason) in [
            (cut, "its header says"),
            (&longer, "its header says"),
            (&huge, "a header of 18446744073709551615 bytes"),
            (&no_json, "expected value"),
            (&good[..5], "fill"),
        ] {
            let error = read(bytes, bytes.len()).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("m.safetensors"), "{error}");
        }
        // A file that got shorter while it was read.
        let error = read(cut, good.len()).unwrap_err().to_string();
        assert!(error.contains("a: "), "{error}");
    }
}
