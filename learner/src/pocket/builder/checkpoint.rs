//! Where a build stands, in one file.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use super::error::BuildError;
use super::optimiser::{AdamW, Moments};
use super::recipe::{Recipe, Stage};

/// Where a build stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standing {
    /// The recipe that the build follows.
    pub recipe: Recipe,
    /// The stage it is in.
    pub stage: Stage,
    /// The stage's next step.
    pub step: usize,
    /// Seconds of work so far, over all sittings.
    pub seconds: f64,
}

/// Writes the variables, the optimiser and the standing: beside the file, then renamed over it, so that a kill at any
/// moment leaves a whole checkpoint.
///
/// # Errors
/// A failed tensor operation, or what the file system says.
pub fn save(
    path: &Path,
    standing: &Standing,
    variables: &BTreeMap<String, Var>,
    optimiser: &AdamW,
) -> Result<(), BuildError> {
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    for (name, variable) in variables {
        tensors.insert(format!("value.{name}"), variable.as_tensor().clone());
    }
    for (name, moments) in &optimiser.moments {
        for (kind, values) in [("first", &moments.first), ("second", &moments.second)] {
            tensors.insert(format!("{kind}.{name}"), Tensor::new(values.as_slice(), &Device::Cpu)?);
        }
    }
    let metadata = HashMap::from([
        ("standing".to_owned(), serde_json::to_string(standing).map_err(std::io::Error::from)?),
        ("optimiser_step".to_owned(), optimiser.step.to_string()),
    ]);
    let bytes =
        safetensors::tensor::serialize(&tensors, Some(metadata)).map_err(|error| damaged(path, error.to_string()))?;
    write_whole(path, &bytes)?;
    Ok(())
}

/// Writes a file that is either there whole or not at all.
///
/// # Errors
/// What the file system says.
pub fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    fs_err::File::open(directory)?.sync_all()
}

/// Reads a checkpoint into existing variables (all of them must be in it) and a new optimiser.
///
/// # Errors
/// An unreadable or damaged file, or variables of other names or shapes.
pub fn load(path: &Path, variables: &BTreeMap<String, Var>) -> Result<(Standing, AdamW), BuildError> {
    let (standing, bytes, step) = open(path)?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| damaged(path, error.to_string()))?;
    let values = |name: String| -> Result<Vec<f32>, BuildError> {
        let view = tensors.tensor(&name).map_err(|error| damaged(path, error.to_string()))?;
        Ok(view.data().chunks_exact(4).map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect())
    };
    let mut optimiser = AdamW::new(standing.recipe.weight_decay);
    optimiser.step = step;
    for (name, variable) in variables {
        let saved = values(format!("value.{name}"))?;
        if saved.len() != variable.elem_count() {
            let reason = format!("{name} has {} values instead of {}", saved.len(), variable.elem_count());
            return Err(damaged(path, reason));
        }
        variable.set(&Tensor::from_vec(saved, variable.shape(), &Device::Cpu)?)?;
        if tensors.names().iter().any(|known| **known == format!("first.{name}")) {
            let moments =
                Moments { first: values(format!("first.{name}"))?, second: values(format!("second.{name}"))? };
            optimiser.moments.insert(name.clone(), moments);
        }
    }
    Ok((standing, optimiser))
}

/// Where the build in `path` stands.
///
/// # Errors
/// An unreadable or damaged file.
pub fn standing(path: &Path) -> Result<Standing, BuildError> {
    Ok(open(path)?.0)
}

fn open(path: &Path) -> Result<(Standing, Vec<u8>, usize), BuildError> {
    let bytes = fs_err::read(path)?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| damaged(path, error.to_string()))?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let entry = |name: &str| metadata.get(name).ok_or_else(|| damaged(path, format!("has no {name}")));
    let standing = serde_json::from_str(entry("standing")?).map_err(|error| damaged(path, error.to_string()))?;
    let step = entry("optimiser_step")?.parse().map_err(|_| damaged(path, "optimiser_step is no number".to_owned()))?;
    Ok((standing, bytes, step))
}

fn damaged(path: &Path, reason: String) -> BuildError {
    BuildError::Checkpoint { path: path.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(values: &[f32]) -> BTreeMap<String, Var> {
        BTreeMap::from([("x".to_owned(), Var::new(values, &Device::Cpu).unwrap())])
    }

    #[test]
    fn a_checkpoint_comes_back_and_training_goes_on_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("checkpoint.safetensors");
        let standing = Standing { recipe: Recipe::default(), stage: Stage::Speech, step: 5, seconds: 1.5 };
        let gradients = BTreeMap::from([("x".to_owned(), vec![0.3, -2.0, 0.1])]);
        let original = variables(&[1.0, 2.0, 3.0]);
        let mut optimiser = AdamW::new(standing.recipe.weight_decay);
        optimiser.step(&original, &gradients, 0.1).unwrap();
        save(&path, &standing, &original, &optimiser).unwrap();

        let copy = variables(&[0.0; 3]);
        let (loaded, mut resumed) = load(&path, &copy).unwrap();
        assert_eq!(loaded, standing);
        for (variables, optimiser) in [(&original, &mut optimiser), (&copy, &mut resumed)] {
            optimiser.step(variables, &gradients, 0.1).unwrap();
        }
        let values = |variables: &BTreeMap<String, Var>| variables["x"].to_vec1::<f32>().unwrap();
        assert_eq!(values(&original), values(&copy));
    }

    #[test]
    fn a_damaged_or_foreign_checkpoint_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("checkpoint.safetensors");
        std::fs::write(&path, b"garbage").unwrap();
        let error = load(&path, &variables(&[0.0])).unwrap_err().to_string();
        assert!(error.contains("checkpoint.safetensors"), "{error}");
        let standing = Standing { recipe: Recipe::default(), stage: Stage::Sight, step: 0, seconds: 0.0 };
        save(&path, &standing, &variables(&[1.0, 2.0]), &AdamW::new(0.0)).unwrap();
        let error = load(&path, &variables(&[0.0])).unwrap_err().to_string();
        assert!(error.contains("x has 2 values instead of 1"), "{error}");
    }
}
