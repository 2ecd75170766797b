//! Log-probabilities of preference data in a file.

use std::path::Path;
use std::sync::Arc;

use super::error::EvalError;
use super::preference::ScoredPair;
use crate::bootstrap::distort::Distortion;
use crate::bpo::config::RunConfig;
use crate::bpo::data::blobs::BlobDir;
use crate::bpo::data::{self, OnError, ReadOptions};
use crate::bpo::launch::ModelEncoder;
use crate::bpo::pair::PreferencePair;
use crate::bpo::prepare::{FeatureCache, Prepared};
use crate::bpo::reference::score_pairs;
use crate::model::LoraPolicy;

/// Which data.
pub(super) struct Data<'a> {
    pub(super) path: &'a Path,
    /// Directory that its image paths are relative to.
    pub(super) images: &'a Path,
    /// Pairs from its start; 0 takes all.
    pub(super) limit: usize,
}

/// Scores every pair under the policy, under its base (the reference), and its chosen answer with the distorted image.
/// Each comes with what it is about: its pictures, or its conversation if it has none. `progress` is called with the
/// pairs done.
///
/// # Errors
/// An entry that cannot be used, with its line: a set is measured as a whole or not at all. Data without rejected answers.
pub(super) fn score(
    policy: &LoraPolicy,
    data: Data<'_>,
    distortion: Distortion,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<(String, ScoredPair)>, EvalError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| EvalError::Pairs(error);
    let directory = tempfile::tempdir()?;
    let blobs = BlobDir::new(directory.path());
    let image_root = Some(if data.images.as_os_str().is_empty() { Path::new(".") } else { data.images }.to_owned());
    let options = ReadOptions { image_root, on_error: OnError::Fail, ..ReadOptions::default() };
    let mut pairs: Vec<PreferencePair> = Vec::new();
    data::read(data.path, &options, &blobs, &mut |pair| pairs.push(pair)).map_err(|error| failed(error.into()))?;
    // An annotation prefers nothing to anything.
    pairs.retain(|pair| pair.rejected.is_some());
    if data.limit > 0 {
        pairs.truncate(data.limit);
    }
    if pairs.is_empty() {
        let reason = "no entry has a rejected answer, so there is no preference to measure".to_owned();
        return Err(EvalError::File { path: data.path.to_owned(), reason });
    }
    let mut config = RunConfig::default();
    let longest = policy.model().decoder().config().max_positions;
    (config.data.max_prompt_tokens, config.data.max_answer_tokens) = (longest, longest);
    (config.data.on_error, config.data.distortion) = (OnError::Fail, distortion);
    config.loss.max_length_ratio = Some(0.0);
    let encoder = ModelEncoder::new(Arc::clone(policy.model()), Arc::clone(policy.workers()));
    // Each image is seen once; what a forward pass needs is kept for as long as it lasts.
    let cache = FeatureCache::new(0);
    let (prepared, dropped) =
        Prepared::new(&encoder, &blobs, &config, &pairs, &cache).map_err(|error| failed(error.into()))?;
    if !dropped.is_empty() {
        let reason = format!("pairs that the model cannot take: {dropped:?}");
        return Err(EvalError::File { path: data.path.to_owned(), reason });
    }
    let scored = score_pairs(policy, &prepared, config.train.micro_batch, config.train.micro_tokens, progress)
        .map_err(|error| failed(error.into()))?;
    // None was dropped, so they are in the same order.
    Ok(pairs.iter().map(|pair| pair.subjects().join("+")).zip(scored).collect())
}
