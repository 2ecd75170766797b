//! What a run finds when it starts: who it is, where it stopped, and its reference.

use std::path::Path;

use candle_core::Device;

use super::checkpoint::{self, Checkpoint, Tensors};
use super::config::RunConfig;
use super::error::TrainError;
use super::loss::Loss;
use super::policy::Policy;
use super::progress::{Event, Progress};
use super::reference::{Reference, Scoring};
use super::trainer::{Control, Inputs};

/// The newest whole checkpoint, if it belongs to this run.
pub(super) fn newest(
    dir: &Path,
    device: &Device,
    key: &str,
    progress: &mut dyn Progress,
) -> Result<Option<Checkpoint>, TrainError> {
    let found = checkpoint::newest(dir, device).map_err(|error| TrainError::Io {
        what: "cannot list checkpoints".to_owned(),
        source: std::io::Error::other(error),
    })?;
    for (path, error) in &found.damaged {
        let message = format!("checkpoint {} is not used: {error}", path.display());
        tracing::warn!(checkpoint.path = %path.display(), error = %error, "a damaged checkpoint is not used");
        progress.event(&Event::Warning { message });
    }
    match found.checkpoint {
        Some((path, checkpoint)) if checkpoint.state.key != key => Err(TrainError::OtherRun { path }),
        found => Ok(found.map(|(_, checkpoint)| checkpoint)),
    }
}

/// Reference rows of both sets; `None` when a pause was asked for.
#[expect(clippy::too_many_arguments, reason = "everything that a run's start knows goes into its reference")]
pub(super) fn references<P: Policy>(
    dir: &Path,
    key: &str,
    policy: &P,
    config: &RunConfig,
    loss: &Loss,
    inputs: Inputs<'_>,
    control: &Control,
    progress: &mut dyn Progress,
) -> Result<Option<(Reference, Reference)>, TrainError> {
    let scoring = Scoring {
        which: config.train.reference,
        rejected: loss.needs_rejected(),
        distorted: loss.needs_distorted(),
        micro_batch: config.train.micro_batch,
        micro_tokens: config.train.micro_tokens,
    };
    let mut keep_going = |done: usize, total: usize| {
        progress.event(&Event::Reference { done, total });
        !control.pausing() || done == total
    };
    let path = dir.join("reference.safetensors");
    let Some(train) = Reference::load_or_score(&path, key, policy, inputs.train, scoring, &mut keep_going)? else {
        return Ok(None);
    };
    let distorted = loss.needs_distorted() || config.evaluation.conditional;
    let scoring = Scoring { rejected: true, distorted, ..scoring };
    let path = dir.join("reference-held-out.safetensors");
    let held_out = Reference::load_or_score(&path, key, policy, inputs.held_out, scoring, &mut keep_going)?;
    Ok(held_out.map(|held_out| (train, held_out)))
}

/// Digest of everything that decides the run's numbers.
pub(super) fn key(config: &RunConfig, identity: &str, start: &Tensors) -> Result<String, TrainError> {
    let bytes = safetensors::serialize(start, None).map_err(|error| TrainError::Io {
        what: "cannot read the starting adapter".to_owned(),
        source: std::io::Error::other(error.to_string()),
    })?;
    let mut hasher = blake3::Hasher::new();
    for part in [config.digest()?.as_bytes(), identity.as_bytes(), &bytes] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    Ok(hasher.finalize().to_hex().to_string())
}
