//! A run's state on disk: `DIR/checkpoints/step-<n>/`.
//!
//! ```text
//! adapter.safetensors     the trainable tensors after step n
//! optimizer.safetensors   first.<name> and second.<name>, AdamW's moments
//! best.safetensors        the tensors of the best evaluation, where the run keeps them
//! state.json              step, guard, early stop, and the key of what the run is
//! manifest.json           BLAKE3 digest of each file above
//! ```
//!
//! A checkpoint is written under another name, flushed, and renamed, so one that has its name is whole, unless the disk
//! damaged it afterwards; the digests find that, and the one before it is taken. Data order and dropout are functions of the
//! seed and the step ([`super::seed`]), so the step is all that has to be kept of them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use fs_err as fs;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::early_stop::EarlyStop;
use super::files;
use super::guard::Guard;

/// Why a checkpoint cannot be used.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The file system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A file is not what was written.
    #[error("{file} is damaged: {why}")]
    Damaged {
        /// The file's name.
        file: String,
        /// What is wrong.
        why: String,
    },
}

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// Everything that is no tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Optimiser steps taken; the position in the data order, too.
    pub step: u64,
    /// Digest of configuration, data, base and starting adapter: which run this is.
    pub key: String,
    /// What the guard remembers.
    pub guard: Guard,
    /// What early stopping remembers.
    pub early_stop: EarlyStop,
    /// The run is over: patience was used up.
    pub stopped_early: bool,
}

/// A run between two steps.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Trainable tensors, f32.
    pub parameters: Tensors,
    /// AdamW's first moments.
    pub first: Tensors,
    /// AdamW's second moments.
    pub second: Tensors,
    /// Tensors of the best evaluation.
    pub best: Option<Tensors>,
    /// The rest.
    pub state: State,
}

/// What [`newest`] found.
#[derive(Debug, Default)]
pub struct Found {
    /// The newest checkpoint that is whole, and where it is.
    pub checkpoint: Option<(PathBuf, Checkpoint)>,
    /// Newer ones that are not, with the reason.
    pub damaged: Vec<(PathBuf, CheckpointError)>,
}

const MANIFEST: &str = "manifest.json";

impl Checkpoint {
    /// Writes this into `dir` (`DIR/checkpoints`) and removes all of later steps and all but the newest `keep`.
    ///
    /// # Errors
    /// The disk is full or not writable; older checkpoints are then still there.
    pub fn save(&self, dir: &Path, keep: usize) -> Result<PathBuf, CheckpointError> {
        let target = dir.join(format!("step-{:08}", self.state.step));
        let beside = files::beside(&target)?;
        if beside.exists() {
            fs::remove_dir_all(&beside)?;
        }
        fs::create_dir_all(&beside)?;
        let mut moments = Tensors::new();
        for (prefix, tensors) in [("first", &self.first), ("second", &self.second)] {
            moments.extend(tensors.iter().map(|(name, tensor)| (format!("{prefix}.{name}"), tensor.clone())));
        }
        let state = serde_json::to_vec_pretty(&self.state).map_err(io::Error::other)?;
        let mut contents = vec![
            ("adapter.safetensors", serialize(&self.parameters)?),
            ("optimizer.safetensors", serialize(&moments)?),
            ("state.json", state),
        ];
        if let Some(best) = &self.best {
            contents.push(("best.safetensors", serialize(best)?));
        }
        let digest = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
        let manifest = contents.iter().map(|(name, bytes)| (*name, digest(bytes))).collect::<BTreeMap<_, _>>();
        contents.push((MANIFEST, serde_json::to_vec_pretty(&manifest).map_err(io::Error::other)?));
        for (name, bytes) in &contents {
            // Atomic twice over, but this is the one function that flushes file and directory.
            files::write_atomic(&beside.join(name), |file| file.write_all(bytes))?;
        }
        if target.exists() {
            // A resumed run passes a step whose checkpoint was damaged.
            fs::remove_dir_all(&target)?;
        }
        fs::rename(&beside, &target)?;
        files::sync_parent(&target)?;
        // One of a later step was damaged, or the run would have gone on from there. It must not be kept in place of a
        // whole one. It goes only now, when the new one is there.
        let (later, kept): (Vec<_>, Vec<_>) = list(dir)?.into_iter().partition(|(step, _)| *step > self.state.step);
        for (_, old) in later.into_iter().chain(kept.into_iter().skip(keep.max(1))) {
            fs::remove_dir_all(old)?;
        }
        Ok(target)
    }

    /// Reads the checkpoint at `path` onto `device`.
    ///
    /// # Errors
    /// A file that is missing or whose digest differs.
    pub fn load(path: &Path, device: &Device) -> Result<Self, CheckpointError> {
        let damaged = |file: &str, why: String| CheckpointError::Damaged { file: file.to_owned(), why };
        let manifest = fs::read(path.join(MANIFEST)).map_err(|error| damaged(MANIFEST, error.to_string()))?;
        let manifest: BTreeMap<String, String> =
            serde_json::from_slice(&manifest).map_err(|error| damaged(MANIFEST, error.to_string()))?;
        let read = |name: &str| {
            let want = manifest.get(name).ok_or_else(|| damaged(MANIFEST, format!("it does not list {name}")))?;
            let bytes = fs::read(path.join(name)).map_err(|error| damaged(name, error.to_string()))?;
            let got = blake3::hash(&bytes).to_hex();
            if got.as_str() != want {
                return Err(damaged(name, format!("its digest is {got}, not {want}")));
            }
            Ok(bytes)
        };
        let tensors = |name: &str| -> Result<Tensors, CheckpointError> {
            let loaded = candle_core::safetensors::load_buffer(&read(name)?, device);
            Ok(loaded.map_err(|error| damaged(name, error.to_string()))?.into_iter().collect())
        };
        let state =
            serde_json::from_slice(&read("state.json")?).map_err(|error| damaged("state.json", error.to_string()))?;
        let (mut first, mut second) = (Tensors::new(), Tensors::new());
        for (name, tensor) in tensors("optimizer.safetensors")? {
            match name.split_once('.') {
                Some(("first", name)) => first.insert(name.to_owned(), tensor),
                Some(("second", name)) => second.insert(name.to_owned(), tensor),
                _ => return Err(damaged("optimizer.safetensors", format!("it holds {name}"))),
            };
        }
        let best = manifest.contains_key("best.safetensors").then(|| tensors("best.safetensors")).transpose()?;
        Ok(Self { parameters: tensors("adapter.safetensors")?, first, second, best, state })
    }
}

/// The newest checkpoint in `dir` that is whole.
///
/// # Errors
/// The directory cannot be listed. One that is not there holds nothing.
pub fn newest(dir: &Path, device: &Device) -> Result<Found, CheckpointError> {
    let mut found = Found::default();
    for (_, path) in list(dir)? {
        match Checkpoint::load(&path, device) {
            Ok(checkpoint) => {
                found.checkpoint = Some((path, checkpoint));
                break;
            }
            Err(error) => found.damaged.push((path, error)),
        }
    }
    Ok(found)
}

/// Checkpoints by step, newest first.
fn list(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let step = |name: &str| name.strip_prefix("step-").and_then(|digits| digits.parse().ok());
    let mut found = Vec::new();
    for entry in entries(dir)? {
        if let Some(step) = step(&entry.file_name().to_string_lossy()) {
            found.push((step, entry.path()));
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    Ok(found)
}

fn entries(dir: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn serialize(tensors: &Tensors) -> io::Result<Vec<u8>> {
    safetensors::serialize(tensors, None).map_err(|error| io::Error::other(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(value: f32) -> Tensors {
        Tensors::from([("layer.0.lora_A".to_owned(), Tensor::new(&[[value, -value]], &Device::Cpu).unwrap())])
    }

    fn checkpoint(step: u64) -> Checkpoint {
        let state = State {
            step,
            key: "k".to_owned(),
            guard: Guard::default(),
            early_stop: EarlyStop::default(),
            stopped_early: false,
        };
        let value = step as f32;
        Checkpoint {
            parameters: tensors(value),
            first: tensors(value + 0.1),
            second: tensors(value + 0.2),
            best: None,
            state,
        }
    }

    fn values(tensors: &Tensors) -> Vec<Vec<f32>> {
        tensors["layer.0.lora_A"].to_vec2().unwrap()
    }

    #[test]
    fn goes_round_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        for step in [3, 9, 20] {
            let saved = Checkpoint { best: (step == 20).then(|| tensors(7.0)), ..checkpoint(step) };
            saved.save(dir.path(), 2).unwrap();
        }
        assert_eq!(list(dir.path()).unwrap().iter().map(|one| one.0).collect::<Vec<_>>(), [20, 9]);
        let (_, loaded) = newest(dir.path(), &Device::Cpu).unwrap().checkpoint.unwrap();
        assert_eq!(loaded.state, checkpoint(20).state);
        assert_eq!(values(&loaded.parameters), [[20.0, -20.0]]);
        assert_eq!(values(&loaded.first), [[20.1, -20.1]]);
        assert_eq!(values(&loaded.second), [[20.2, -20.2]]);
        assert_eq!(values(&loaded.best.unwrap()), [[7.0, -7.0]]);
        assert!(newest(&dir.path().join("nothing"), &Device::Cpu).unwrap().checkpoint.is_none());
    }

    #[test]
    fn any_damage_to_any_file_falls_back_to_the_one_before() {
        for name in ["adapter.safetensors", "optimizer.safetensors", "best.safetensors", "state.json", MANIFEST] {
            for damage in ["cut", "flip", "gone"] {
                let dir = tempfile::tempdir().unwrap();
                checkpoint(1).save(dir.path(), 3).unwrap();
                let path =
                    Checkpoint { best: Some(tensors(1.0)), ..checkpoint(2) }.save(dir.path(), 3).unwrap().join(name);
                let mut bytes = fs::read(&path).unwrap();
                match damage {
                    "cut" => bytes.truncate(bytes.len() / 2),
                    "flip" => *bytes.iter_mut().rev().nth(9).unwrap() ^= 0x10,
                    _ => {}
                }
                if damage == "gone" {
                    fs::remove_file(&path).unwrap()
                } else {
                    fs::write(&path, &bytes).unwrap()
                }
                let found = newest(dir.path(), &Device::Cpu).unwrap();
                assert_eq!(found.checkpoint.unwrap().1.state.step, 1, "{name} {damage}");
                assert_eq!(found.damaged.len(), 1, "{name} {damage}");
                assert!(found.damaged[0].1.to_string().contains("damaged"), "{}", found.damaged[0].1);
                // The resumed run writes step 2 again.
                checkpoint(2).save(dir.path(), 3).unwrap();
                assert_eq!(newest(dir.path(), &Device::Cpu).unwrap().checkpoint.unwrap().1.state.step, 2);
            }
        }
    }

    #[test]
    fn damaged_ones_of_later_steps_do_not_push_out_the_one_just_saved() {
        let dir = tempfile::tempdir().unwrap();
        checkpoint(10).save(dir.path(), 3).unwrap();
        for step in [30, 40, 50] {
            let path = checkpoint(step).save(dir.path(), 9).unwrap();
            fs::write(path.join("adapter.safetensors"), "not what it was").unwrap();
        }
        assert_eq!(newest(dir.path(), &Device::Cpu).unwrap().checkpoint.unwrap().1.state.step, 10);
        checkpoint(20).save(dir.path(), 3).unwrap();
        assert_eq!(list(dir.path()).unwrap().iter().map(|one| one.0).collect::<Vec<_>>(), [20, 10]);
        let found = newest(dir.path(), &Device::Cpu).unwrap();
        assert_eq!((found.checkpoint.unwrap().1.state.step, found.damaged.len()), (20, 0));
    }

    #[test]
    fn what_a_killed_process_left_is_swept_and_never_read() {
        let dir = tempfile::tempdir().unwrap();
        checkpoint(1).save(dir.path(), 3).unwrap();
        fs::create_dir(dir.path().join(".step-00000002.tmp-17")).unwrap();
        fs::write(dir.path().join(".reference.tmp-17"), "half").unwrap();
        assert_eq!(newest(dir.path(), &Device::Cpu).unwrap().checkpoint.unwrap().1.state.step, 1);
        files::remove_unfinished(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
