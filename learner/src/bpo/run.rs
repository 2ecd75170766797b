//! A run directory from start to end: read, split, prepare, train, write the adapter, report.
//!
//! ```text
//! DIR/run.toml          [`RunConfig`]                     DIR/metrics.jsonl, checkpoints/    [`super::trainer`]
//! DIR/dataset.jsonl     [`super::dataset`]                DIR/adapter/                       when it finished
//! DIR/lock              held while a process trains       DIR/result.json, report.html       however it ended
//! ```

use std::io;
use std::path::Path;

use fs_err as fs;
use serde::Serialize;

use super::config::RunConfig;
use super::data::blobs::BlobDir;
use super::dataset;
use super::error::TrainError;
use super::examples::{ExampleError, Examples};
use super::files;
use super::history;
use super::policy::Policy;
use super::prepare::{Dropped, Encoder, FeatureCache, Prepared};
use super::progress::{Event, Progress};
use super::report::{self, Summary};
use super::split::Split;
use super::trainer::{Control, Inputs, Outcome, announce, execute};

/// `DIR/result.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RunResult {
    /// `finished`, `paused` or `failed`.
    pub outcome: &'static str,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Optimiser steps taken.
    pub step: u64,
    /// Optimiser steps after which the adapter had the tensors it has; when finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter_step: Option<u64>,
    /// Patience ran out before the last step.
    pub stopped_early: bool,
    /// Examples trained on.
    pub examples: usize,
    /// Examples held out.
    pub held_out: usize,
    /// Pairs left out, by reason.
    pub dropped: Dropped,
    /// BLAKE3 digest of dataset.jsonl.
    pub dataset_digest: String,
    /// Digest of the base, as the caller gave it.
    pub base_digest: String,
}

/// What a run trains and with what. `policy` holds the starting adapter and `encoder` is the same model's frozen part.
pub struct Parts<'a, P, E> {
    /// The policy; holds the adapter to give when [`train`] returns [`Outcome::Finished`].
    pub policy: &'a mut P,
    /// Tokens and image features.
    pub encoder: &'a E,
    /// BLAKE3 digest of the base's files: a checkpoint made on another base is refused.
    pub base_digest: &'a str,
    /// What else the policy's numbers come from: device, number format, and the adapter that it starts from. A
    /// checkpoint made with another is refused.
    pub start: &'a str,
    /// Writes the policy's adapter into a directory that does not exist yet.
    pub write_adapter: &'a dyn Fn(&P, &Path) -> Result<(), ExampleError>,
}

/// Trains the run in `dir`, from its start or from its newest checkpoint; leaves `DIR/adapter`, `result.json` and
/// `report.html`.
///
/// # Errors
/// The reason why there is no adapter. It is also in `result.json` and was sent to `progress`.
pub fn train<P: Policy, E: Encoder>(
    dir: &Path,
    config: &RunConfig,
    parts: Parts<'_, P, E>,
    control: &Control,
    progress: &mut dyn Progress,
) -> Result<Outcome, TrainError> {
    let lock = match lock(dir) {
        Ok(lock) => lock,
        // Not this process's run: its files are left alone.
        Err(error) => {
            progress.event(&Event::Failed { reason: error.to_string() });
            return Err(error);
        }
    };
    let mut result = RunResult { base_digest: parts.base_digest.to_owned(), ..RunResult::default() };
    let outcome = run(dir, config, parts, control, progress, &mut result);
    match &outcome {
        Ok(Outcome::Finished { step, adapter_step, stopped_early }) => {
            (result.outcome, result.step, result.adapter_step) = ("finished", *step, Some(*adapter_step));
            result.stopped_early = *stopped_early;
        }
        Ok(Outcome::Paused { step }) => (result.outcome, result.step) = ("paused", *step),
        Err(error) => (result.outcome, result.reason) = ("failed", Some(error.to_string())),
    }
    let written = conclude(dir, config, &mut result);
    drop(lock);
    let outcome = outcome.and_then(|outcome| written.map(|()| outcome));
    announce(&outcome, progress);
    outcome
}

fn run<P: Policy, E: Encoder>(
    dir: &Path,
    config: &RunConfig,
    parts: Parts<'_, P, E>,
    control: &Control,
    progress: &mut dyn Progress,
    result: &mut RunResult,
) -> Result<Outcome, TrainError> {
    config.validate()?;
    let data = &config.data;
    let frozen = dataset::read(&dir.join(&data.dataset), &data.digest, data.on_error)?;
    result.dataset_digest.clone_from(&frozen.digest);
    for skipped in &frozen.skipped {
        let message = format!("{}:{}: {}", data.dataset.display(), skipped.line, skipped.reason);
        progress.event(&Event::Warning { message });
        *result.dropped.entry("line cannot be read".to_owned()).or_default() += 1;
    }
    let blobs = BlobDir::new(dir.join(&data.blobs));
    let cache = FeatureCache::new(data.feature_cache_mib << 20);
    let Split { train, mut held_out, dropped } = Split::new(frozen.pairs, data.held_out, data.held_out_seed);
    if config.evaluation.max_pairs > 0 {
        held_out.truncate(config.evaluation.max_pairs);
    }
    let (train, of_train) = Prepared::new(parts.encoder, &blobs, config, &train, &cache)?;
    let (held_out, of_held_out) = Prepared::new(parts.encoder, &blobs, config, &held_out, &cache)?;
    for (reason, count) in dropped.into_iter().chain(of_train).chain(of_held_out) {
        *result.dropped.entry(reason).or_default() += count;
    }
    for (reason, count) in &result.dropped {
        progress.event(&Event::Warning { message: format!("{count} pairs are left out: {reason}") });
    }
    (result.examples, result.held_out) = (train.len(), held_out.len());
    if train.is_empty() {
        return Err(TrainError::NoExamples(format!("left out: {:?}", result.dropped)));
    }
    if held_out.is_empty() && data.held_out > 0.0 {
        // The split goes by image: a few images may well all be on one side.
        let message =
            "no pair is held out: there are too few images for data.held_out, so nothing is evaluated".to_owned();
        progress.event(&Event::Warning { message });
    }
    let (base, dataset, pairs) = (parts.base_digest, &result.dataset_digest, digest_of_pairs([&train, &held_out]));
    let identity = format!("base {base} on {} dataset {dataset} pairs {pairs}", parts.start);
    let inputs = Inputs { train: &train, held_out: &held_out, identity: &identity };
    let outcome = execute(dir, parts.policy, config, inputs, control, progress)?;
    if let Outcome::Finished { .. } = outcome {
        let adapter = dir.join("adapter");
        if adapter.exists() {
            // This run finished before and was started again; it gives the same adapter.
            fs::remove_dir_all(&adapter).map_err(TrainError::io("cannot replace the adapter"))?;
        }
        (parts.write_adapter)(parts.policy, &adapter).map_err(TrainError::Adapter)?;
    }
    Ok(outcome)
}

/// BLAKE3 of the ids of the pairs that were prepared, in their order. The dataset's digest does not tell that one of
/// them cannot be prepared any more, and without it all the others come in another order.
fn digest_of_pairs<E: Encoder>(sets: [&Prepared<'_, E>; 2]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for set in sets {
        hasher.update(&(set.len() as u64).to_le_bytes());
        for id in (0..set.len()).map(|index| set.id(index)) {
            hasher.update(&(id.len() as u64).to_le_bytes()).update(id.as_bytes());
        }
    }
    hasher.finalize()
}

/// Holds `DIR/lock` until it is dropped or the process ends, however it ends.
fn lock(dir: &Path) -> Result<std::fs::File, TrainError> {
    let path = dir.join("lock");
    let file = fs::File::create(&path).map_err(TrainError::io("cannot open the run's directory"))?.into_parts().0;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(TrainError::Locked(dir.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => {
            Err(TrainError::Io { what: format!("cannot lock {}", path.display()), source })
        }
    }
}

/// For a run that failed before there was anything to run: `result.json`, if it can be written, and the event.
pub(super) fn announce_failure(dir: &Path, error: &TrainError, progress: &mut dyn Progress) {
    // A directory that another process trains in has a result of its own to write.
    if let Ok(_lock) = lock(dir) {
        let reason = Some(error.to_string());
        let mut result = RunResult { outcome: "failed", reason, ..RunResult::default() };
        if let Err(error) = conclude(dir, &RunConfig::default(), &mut result) {
            tracing::warn!(error = %error, "the result of a run that could not start is not written");
        }
    }
    progress.event(&Event::Failed { reason: error.to_string() });
}

fn conclude(dir: &Path, config: &RunConfig, result: &mut RunResult) -> Result<(), TrainError> {
    let lines = history::read(&dir.join("metrics.jsonl")).map_err(TrainError::io("cannot read metrics.jsonl"))?;
    if result.outcome == "failed" {
        let last = lines
            .iter()
            .rev()
            .find_map(|line| if let history::Line::Step(step) = line { Some(step.step) } else { None });
        result.step = last.unwrap_or(0);
    }
    let json = serde_json::to_vec_pretty(result).map_err(io::Error::other);
    json.and_then(|json| files::write_atomic(&dir.join("result.json"), |file| file.write_all(&json)))
        .map_err(TrainError::io("cannot write result.json"))?;
    let name =
        fs::canonicalize(dir).ok().and_then(|dir| dir.file_name().map(|name| name.to_string_lossy().into_owned()));
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let mut facts = vec![
        fact("examples", format!("{} to train on, {} held out", result.examples, result.held_out)),
        fact("base", result.base_digest.clone()),
        fact("dataset", result.dataset_digest.clone()),
    ];
    facts.extend(result.dropped.iter().map(|(reason, count)| fact("left out", format!("{count}: {reason}"))));
    let as_written = fs::read_to_string(dir.join("run.toml"));
    let summary = Summary {
        title: format!("Run {}", name.unwrap_or_default()),
        outcome: match (&result.reason, result.adapter_step) {
            (Some(reason), _) => format!("Failed after step {}: {reason}", result.step),
            (None, Some(adapter)) => {
                format!("Finished after step {}; the adapter is that of step {adapter}.", result.step)
            }
            (None, None) => format!("Paused after step {}.", result.step),
        },
        facts,
        config: as_written.unwrap_or_else(|_| toml::to_string(config).unwrap_or_default()),
    };
    report::write(&dir.join("report.html"), &summary, &lines).map_err(TrainError::io("cannot write report.html"))
}
