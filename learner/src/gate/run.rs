//! The gate of a run directory: `DIR/adapter` against what the run started from.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

use super::held_out::{self, Measured, Origin};
use super::report::GateReport;
use super::unchanged::{self, Answers};
use super::{GateConfig, sets};
use crate::adapter::PeftAdapter;
use crate::bpo::config::{ConfigError, RunConfig};
use crate::bpo::data::DataError;
use crate::bpo::data::blobs::BlobDir;
use crate::bpo::examples::{ExampleError, Examples};
use crate::bpo::launch::{ModelEncoder, POCKET};
use crate::bpo::pair::PreferencePair;
use crate::bpo::prepare::{FeatureCache, Prepared};
use crate::bpo::split::Split;
use crate::bpo::{TrainError, dataset, files};
use crate::eval::{EvalError, ModelAnswerer};
use crate::model::{Lora, LoraPolicy, ModelError, PolicyOptions};

/// The file with the gate's settings. Without it there is no gate.
pub const CONFIG: &str = "gate.toml";
/// The file with the verdict.
pub const REPORT: &str = "gate.json";

/// Why there is no verdict. No verdict is no permission: the adapter gets no traffic.
#[derive(Debug, Error)]
pub enum GateError {
    /// `gate.toml`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The dataset cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A pair cannot be prepared.
    #[error(transparent)]
    Pairs(#[from] TrainError),
    /// An adapter cannot be loaded, or the model fails.
    #[error("the gate's model failed: {0}")]
    Model(#[from] ModelError),
    /// Held-out pairs cannot be scored or answered.
    #[error("the gate's held-out pairs failed: {0}")]
    HeldOut(#[source] ExampleError),
    /// An evaluation set fails.
    #[error(transparent)]
    Evaluation(#[from] EvalError),
    /// The verdict cannot be written.
    #[error("cannot write gate.json: {0}")]
    Io(#[from] io::Error),
}

/// A run's base, loaded.
pub struct Base<'a> {
    /// The model without an adapter, and its threads.
    pub encoder: &'a ModelEncoder,
    /// BLAKE3 digest of its files.
    pub digest: &'a str,
}

/// Measures start and candidate, judges, and writes `DIR/gate.json`.
///
/// # Errors
/// See [`GateError`]; there is no `gate.json` then, not even one of an earlier try.
pub fn gate(dir: &Path, run: &RunConfig, config: &GateConfig, base: &Base<'_>) -> Result<GateReport, GateError> {
    let path = dir.join(REPORT);
    match fs_err::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    config.validate()?;
    let frozen = dataset::read(&dir.join(&run.data.dataset), &run.data.digest, run.data.on_error)?;
    let mut pairs = Split::new(frozen.pairs, run.data.held_out, run.data.held_out_seed).held_out;
    if config.max_pairs > 0 {
        pairs.truncate(config.max_pairs);
    }
    let blobs = BlobDir::new(dir.join(&run.data.blobs));
    let cache = FeatureCache::new(run.data.feature_cache_mib << 20);
    let (scored, _) = Prepared::new(base.encoder, &blobs, run, &pairs, &cache)?;
    let (asked, _) = Prepared::new(base.encoder, &blobs, run, &held_out::prompts(&pairs, config.max_answers), &cache)?;
    let by_id: HashMap<&str, &PreferencePair> = pairs.iter().map(|pair| (pair.id.as_str(), pair)).collect();
    let origins = |prepared: &Prepared<'_, ModelEncoder>| {
        Origin::of((0..prepared.len()).filter_map(|index| by_id.get(prepared.id(index)).copied()))
    };
    let (scored_of, asked_of) = (origins(&scored), origins(&asked));
    let pocket_images = if run.model.base == POCKET { config.pocket_images } else { 0 };
    let config = &GateConfig { pocket_images, ..config.clone() };
    let subject =
        Subject { dir, config, base, scored: &scored, scored_of: &scored_of, asked: &asked, asked_of: &asked_of };

    let start = (!run.model.adapter.as_os_str().is_empty()).then(|| dir.join(&run.model.adapter));
    let (start, start_said) = subject.measure(start.as_deref())?;
    let (candidate, candidate_said) = subject.measure(Some(&dir.join("adapter")))?;
    let compared = start_said.iter().zip(&candidate_said).map(|(a, b)| unchanged::compare(a, b, config));
    let judged = start.into_iter().zip(candidate).map(|((rule, start), (_, candidate))| (rule, start, candidate));
    let checks = judged.chain(compared).map(|(rule, start, candidate)| rule.check(&start, &candidate, config));
    let checks = checks.collect::<Result<Vec<_>, _>>()?;

    let report = GateReport::new(base.digest.to_owned(), frozen.digest, scored.len(), checks);
    let json = serde_json::to_vec_pretty(&report).map_err(io::Error::other)?;
    files::write_atomic(&path, |file| file.write_all(&json))?;
    Ok(report)
}

/// What both policies are measured on.
struct Subject<'a> {
    dir: &'a Path,
    config: &'a GateConfig,
    base: &'a Base<'a>,
    scored: &'a dyn Examples,
    scored_of: &'a [Origin],
    asked: &'a dyn Examples,
    asked_of: &'a [Origin],
}

impl Subject<'_> {
    /// The base with the adapter in `directory`, or alone: its measures, and its answers to the `unchanged` sets.
    fn measure(&self, directory: Option<&Path>) -> Result<(Measured, Vec<Answers>), GateError> {
        let (model, workers) = (self.base.encoder.model(), self.base.encoder.workers());
        let read = directory.map(PeftAdapter::read).transpose().map_err(ModelError::from)?;
        let lora = read.map(|adapter| Lora::load(model.decoder(), &adapter)).transpose()?;
        let mut measured = self.likelihood(lora.as_ref()).map_err(GateError::HeldOut)?;
        let own = held_out::answers(model, lora.as_ref(), workers, self.asked, self.asked_of, self.config);
        measured.extend(own.map_err(GateError::HeldOut)?);
        let mut answerer = ModelAnswerer::new(model, lora.as_ref(), workers, self.config.max_answer_tokens);
        let (of_sets, answers) = sets::ask(self.dir, &mut answerer, self.config)?;
        measured.extend(of_sets);
        Ok((measured, answers))
    }

    fn likelihood(&self, lora: Option<&Lora>) -> Result<Measured, ExampleError> {
        let model = Arc::clone(self.base.encoder.model());
        // A policy has an adapter; without one to measure, that of the candidate stands there and is switched off.
        let stand_in = match lora {
            Some(lora) => lora.clone(),
            None => Lora::load(model.decoder(), &PeftAdapter::read(&self.dir.join("adapter"))?)?,
        };
        let workers = Arc::clone(self.base.encoder.workers());
        let policy = LoraPolicy::sharing(model, stand_in, workers, PolicyOptions::default());
        held_out::likelihood(&policy, lora.is_some(), self.scored, self.scored_of, self.config)
    }
}
