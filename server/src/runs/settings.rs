//! A run's `run.toml` and `gate.toml`.

use std::io;
use std::path::{Path, PathBuf};

use reground_learner::bpo::config::{CheckpointSection, LoraSection, LossSection, ModelSection, Preset, RunConfig};
use reground_learner::bpo::files::write_atomic;
use reground_learner::gate::{EvaluationSet, GateConfig};
use serde::Serialize;

use super::{Method, RunRequest};
use crate::config::TrainConfig;

/// Where a run's images are, relative to its directory: its own, so that deleting a record does not end it.
pub(super) const BLOBS: &str = "blobs";

/// What a run is to do. `base` is a checkpoint's directory or the name of the model inside the binary, `adapter` the one that
/// is continued, `digest` that of the frozen pairs, `distortion_edge` in pixels.
pub(super) fn run_config(
    train: &TrainConfig,
    request: &RunRequest,
    base: &str,
    adapter: Option<&Path>,
    digest: &str,
    distortion_edge: u32,
) -> RunConfig {
    let mut config = RunConfig {
        seed: request.seed.unwrap_or(train.seed),
        model: ModelSection {
            base: base.to_owned(),
            adapter: adapter.map(Path::to_owned).unwrap_or_default(),
            ..ModelSection::default()
        },
        lora: LoraSection { rank: train.rank, alpha: train.alpha, ..LoraSection::default() },
        loss: LossSection {
            preset: match request.method {
                Method::Dpo => Preset::Anchored,
                Method::Supervised => Preset::Sft,
            },
            beta: Some(request.beta.unwrap_or(train.beta)),
            sft: (request.method == Method::Dpo).then_some(train.sft),
            ..LossSection::default()
        },
        checkpoint: CheckpointSection { every: train.checkpoint_every, ..CheckpointSection::default() },
        ..RunConfig::default()
    };
    config.optimizer.learning_rate = train.learning_rate * request.learning_rate_multiplier.unwrap_or(1.0);
    config.train.epochs = request.epochs.unwrap_or(train.epochs);
    config.train.batch = request.batch.unwrap_or(train.batch);
    config.train.max_steps = train.max_steps;
    config.train.threads = threads(train);
    config.data.digest = digest.to_owned();
    config.data.blobs = PathBuf::from(BLOBS);
    config.data.held_out = train.held_out;
    config.data.held_out_seed = train.held_out_seed;
    config.data.distortion_edge = distortion_edge;
    config
}

/// Threads of a training process.
pub(super) fn threads(train: &TrainConfig) -> usize {
    match train.threads {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2)),
        some => some,
    }
}

/// The gate's settings, with sets that are found from anywhere.
///
/// # Errors
/// The working directory is gone.
pub(super) fn gate_config(gate: &GateConfig) -> io::Result<GateConfig> {
    let absolute = |set: &EvaluationSet| {
        let no_images = set.images.as_os_str().is_empty();
        Ok(EvaluationSet {
            file: std::path::absolute(&set.file)?,
            images: if no_images { PathBuf::new() } else { std::path::absolute(&set.images)? },
            synonyms: set.synonyms.as_deref().map(std::path::absolute).transpose()?,
            ..set.clone()
        })
    };
    Ok(GateConfig { sets: gate.sets.iter().map(absolute).collect::<io::Result<_>>()?, ..gate.clone() })
}

/// Writes settings, whole or not at all.
///
/// # Errors
/// Any failure of the file system.
pub(super) fn write(path: &Path, settings: &impl Serialize) -> io::Result<()> {
    let text = toml::to_string(settings).map_err(io::Error::other)?;
    write_atomic(path, |file| file.write_all(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_goes_before_what_is_configured() {
        let train = TrainConfig::default();
        let config = run_config(&train, &RunRequest::default(), "pocket", None, "d", 336);
        assert_eq!((config.train.batch, config.optimizer.learning_rate), (train.batch, train.learning_rate));
        assert_eq!(config.loss.resolve().sft, train.sft);
        assert_eq!(config.data.distortion_edge, 336);
        assert!(config.validate().is_ok());
        let request = RunRequest {
            batch: Some(3),
            learning_rate_multiplier: Some(0.5),
            method: Method::Supervised,
            ..RunRequest::default()
        };
        let config = run_config(&train, &request, "pocket", Some(Path::new("../../adapters/ad-1")), "d", 336);
        assert_eq!((config.train.batch, config.optimizer.learning_rate), (3, train.learning_rate / 2.0));
        assert_eq!((config.loss.resolve().bpo, config.loss.resolve().sft), (0.0, 1.0));
        assert_eq!(config.model.adapter, Path::new("../../adapters/ad-1"));
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("run.toml");
        write(&path, &config).unwrap();
        assert_eq!(RunConfig::load(&path).unwrap(), config);
    }

    #[test]
    fn another_seed_does_not_move_the_held_out_images() {
        let train = TrainConfig { seed: 5, ..TrainConfig::default() };
        for (seed, expected) in [(Some(7), 7), (None, 5)] {
            let request = RunRequest { seed, ..RunRequest::default() };
            let config = run_config(&train, &request, "pocket", None, "", 512);
            assert_eq!((config.seed, config.data.held_out_seed), (expected, 0));
        }
    }
}
