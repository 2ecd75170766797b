//! Shapes of the tensors in a safetensors file, from its header alone.
//!
//! A base of many gigabytes is checked against an adapter without reading it, and a damaged or hostile file is told apart
//! before anything is allocated for it.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::AdapterError;

/// Largest header that is accepted, bytes. SmolVLM-256M's has 60 kB; the format's own limit is 100 MB.
const MAX_HEADER: u64 = 32 << 20;

/// `(rows, columns)` = (out features, in features) of each linear layer, by module path (`….weight` without its end).
pub type ModuleShapes = BTreeMap<String, (usize, usize)>;

/// What a safetensors header says of one tensor.
#[derive(Clone, Debug, Deserialize)]
pub struct TensorHeader {
    /// Element type, as in the file: `F32`, `BF16`, …
    pub dtype: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// First byte and the byte after the last, from the end of the header.
    pub data_offsets: (u64, u64),
}

/// Reads the header of one file.
///
/// # Errors
/// A header that is oversize, cut off or not JSON; a file that is shorter or longer than its header says.
pub(super) fn read_header(path: &Path) -> Result<BTreeMap<String, TensorHeader>, AdapterError> {
    let mut file = fs_err::File::open(path)?;
    let actual = file.metadata()?.len();
    let mut prefix = [0; 8];
    if actual < 8 {
        return Err(AdapterError::Length {
            path: path.to_owned(),
            expected: 8,
            actual,
        });
    }
    file.read_exact(&mut prefix)?;
    let length = u64::from_le_bytes(prefix);
    if length > MAX_HEADER {
        return Err(AdapterError::HeaderTooLarge {
            path: path.to_owned(),
            length,
            limit: MAX_HEADER,
        });
    }
    if actual < 8 + length {
        return Err(AdapterError::Length {
            path: path.to_owned(),
            expected: 8 + length,
            actual,
        });
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header)?;
    let json = |source| AdapterError::Json {
        path: path.to_owned(),
        source,
    };
    let mut entries: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&header).map_err(json)?;
    entries.remove("__metadata__");
    let mut tensors = BTreeMap::new();
    let mut end = 0;
    for (name, entry) in entries {
        let tensor: TensorHeader = serde_json::from_value(entry).map_err(json)?;
        end = end.max(tensor.data_offsets.1);
        tensors.insert(name, tensor);
    }
    let expected = end.saturating_add(8 + length);
    if actual != expected {
        return Err(AdapterError::Length {
            path: path.to_owned(),
            expected,
            actual,
        });
    }
    Ok(tensors)
}

/// The safetensors files of a checkpoint: those that `model.safetensors.index.json` lists, else every one there.
///
/// # Errors
/// A directory without any; an index that is no JSON or that points outside the directory.
pub fn checkpoint_files(directory: &Path) -> Result<Vec<PathBuf>, AdapterError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index = directory.join("model.safetensors.index.json");
    let mut files: Vec<PathBuf> = if index.is_file() {
        let parsed: Index = serde_json::from_slice(&fs_err::read(&index)?).map_err(|source| {
            AdapterError::Json {
                path: index.clone(),
                source,
            }
        })?;
        let mut names: Vec<String> = parsed.weight_map.into_values().collect();
        names.sort();
        names.dedup();
        for name in &names {
            if Path::new(name)
                .file_name()
                .is_none_or(|last| last != name.as_str())
            {
                return Err(AdapterError::Safetensors {
                    path: index,
                    reason: format!("file name {name:?} leaves the directory"),
                });
            }
        }
        names.into_iter().map(|name| directory.join(name)).collect()
    } else {
        let mut files = Vec::new();
        for entry in fs_err::read_dir(directory)? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "safetensors")
            {
                files.push(path);
            }
        }
        files
    };
    files.sort();
    if files.is_empty() {
        return Err(AdapterError::NoCheckpoint {
            path: directory.to_owned(),
        });
    }
    Ok(files)
}

/// Shapes of every linear layer of a checkpoint directory; only headers are read.
///
/// # Errors
/// As [`checkpoint_files`], and any damaged header.
pub fn checkpoint_shapes(directory: &Path) -> Result<ModuleShapes, AdapterError> {
    let mut shapes = ModuleShapes::new();
    for file in checkpoint_files(directory)? {
        let header = read_header(&file)?;
        shapes.extend(module_shapes(
            header
                .iter()
                .map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice())),
        ));
    }
    Ok(shapes)
}

/// The linear layers among named tensors: two-dimensional weights.
pub fn module_shapes<'a>(tensors: impl Iterator<Item = (&'a str, &'a [usize])>) -> ModuleShapes {
    tensors
        .filter_map(
            |(name, shape)| match (name.strip_suffix(".weight"), shape) {
                (Some(module), &[rows, columns]) => Some((module.to_owned(), (rows, columns))),
                _ => None,
            },
        )
        .collect()
}
