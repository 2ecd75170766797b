//! `DIR/run.toml`: everything that decides what a run does. Two runs with the same file, dataset and base are the same run.

mod sections;

use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::adamw::{AdamWConfig, OptimizerError};
use super::early_stop::EarlyStopConfig;
use super::guard::GuardConfig;
use super::loss::LossError;
use super::schedule::{Schedule, ScheduleError};
use crate::bootstrap::distort::DistortError;
use crate::model::Dtype;

pub use self::sections::{
    CheckpointSection, DataSection, EvaluationSection, LoraSection, LossSection, ModelSection, Preset, Reference,
    TrainSection,
};

/// Why a run's configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file is missing or unreadable.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong type; the text says where.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and column.
        message: String,
    },
    /// A number outside what it may be.
    #[error("{key} is {value}, it must be {allowed}")]
    OutOfRange {
        /// `section.key`.
        key: &'static str,
        /// What it was set to.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// Section `[loss]`.
    #[error(transparent)]
    Loss(#[from] LossError),
    /// Section `[optimizer]`.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// Section `[schedule]`.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// `data.distortion`.
    #[error("data.distortion: {0}")]
    Distortion(#[from] DistortError),
}

/// `run.toml`. Every section and every key may be left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Decides data order, adapter initialisation, dropout, and the distortions of pairs that name none. Default 0.
    pub seed: u64,
    /// What is trained.
    pub model: ModelSection,
    /// The adapter's shape.
    pub lora: LoraSection,
    /// The loss.
    pub loss: LossSection,
    /// AdamW and clipping.
    pub optimizer: AdamWConfig,
    /// Learning rate over time.
    pub schedule: Schedule,
    /// Length and batches.
    pub train: TrainSection,
    /// Dataset, images, held-out split.
    pub data: DataSection,
    /// Evaluation on the held-out split.
    pub evaluation: EvaluationSection,
    /// Stopping when the held-out split no longer improves.
    pub early_stop: EarlyStopConfig,
    /// Ending a run that goes wrong.
    pub guard: GuardConfig,
    /// Saving and resuming.
    pub checkpoint: CheckpointSection,
}

impl RunConfig {
    /// Reads and validates `path`.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
        let config: Self = toml::from_str(&text).map_err(|error| {
            let message = error.to_string().trim().to_owned();
            ConfigError::Parse { path: path.to_owned(), message }
        })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks every key.
    ///
    /// # Errors
    /// The first key that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.loss.resolve().validate()?;
        self.optimizer.validate()?;
        self.schedule.validate()?;
        self.data.distortion.validate()?;
        self.guard.validate()?;
        self.early_stop.validate()?;
        let ratio = self.loss.length_ratio();
        let number = |key, value: f64, ok, allowed| (key, value.to_string(), ok, allowed);
        let count = |key, value: usize, ok, allowed| (key, value.to_string(), ok, allowed);
        let checks = [
            (
                "model.dtype",
                self.model.dtype.to_string(),
                self.model.dtype != Dtype::F16,
                "auto, f32 or bf16: small gradients are zero in f16",
            ),
            number(
                "loss.max_length_ratio",
                ratio,
                ratio == 0.0 || (1.0..1e9).contains(&ratio),
                "0 (off) or at least 1",
            ),
            count("lora.rank", self.lora.rank, (1..=1024).contains(&self.lora.rank), "between 1 and 1024"),
            number(
                "lora.alpha",
                self.lora.alpha,
                self.lora.alpha.is_finite() && self.lora.alpha > 0.0,
                "a number above 0",
            ),
            number(
                "lora.dropout",
                self.lora.dropout,
                (0.0..1.0).contains(&self.lora.dropout),
                "at least 0 and below 1",
            ),
            count("lora.targets", self.lora.targets.len(), !self.lora.targets.is_empty(), "at least one layer name"),
            number(
                "train.epochs",
                self.train.epochs,
                self.train.epochs > 0.0 && self.train.epochs <= 1e6,
                "above 0 and at most 1000000",
            ),
            count("train.batch", self.train.batch, self.train.batch >= 1, "at least 1"),
            count("train.micro_batch", self.train.micro_batch, self.train.micro_batch >= 1, "at least 1"),
            count("train.bucket_batches", self.train.bucket_batches, self.train.bucket_batches >= 1, "at least 1"),
            number(
                "data.held_out",
                self.data.held_out,
                (0.0..1.0).contains(&self.data.held_out),
                "at least 0 and below 1",
            ),
            count(
                "data.max_prompt_tokens",
                self.data.max_prompt_tokens,
                self.data.max_prompt_tokens >= 1,
                "at least 1",
            ),
            count(
                "data.max_answer_tokens",
                self.data.max_answer_tokens,
                self.data.max_answer_tokens >= 1,
                "at least 1",
            ),
            count(
                "data.distortion_edge",
                self.data.distortion_edge as usize,
                self.data.distortion_edge >= 1,
                "at least 1",
            ),
            count(
                "data.feature_cache_mib",
                self.data.feature_cache_mib,
                self.data.feature_cache_mib <= 1 << 24,
                "at most 16777216",
            ),
            count("checkpoint.keep", self.checkpoint.keep, self.checkpoint.keep >= 2, "at least 2"),
        ];
        for (key, value, ok, allowed) in checks {
            if !ok {
                return Err(ConfigError::OutOfRange { key, value, allowed });
            }
        }
        Ok(())
    }

    /// BLAKE3 of everything that decides the numbers of a run; a checkpoint of another configuration does not resume.
    /// Where files lie, how often to save and evaluate, and how many threads there are decide no number.
    ///
    /// # Errors
    /// Never for a configuration that was read from a file.
    pub fn digest(&self) -> Result<String, ConfigError> {
        let mut same = self.clone();
        same.checkpoint = CheckpointSection::default();
        // Base, dataset and starting adapter are in a run's key by their content; where they lie may change.
        same.model.base = String::new();
        same.model.adapter = PathBuf::new();
        same.data.digest = String::new();
        same.data.blobs = PathBuf::new();
        same.data.dataset = PathBuf::new();
        same.data.feature_cache_mib = 0;
        same.train.threads = 0;
        let text = toml::to_string(&same)
            .map_err(|error| ConfigError::Parse { path: PathBuf::from("run.toml"), message: error.to_string() })?;
        Ok(blake3::hash(text.as_bytes()).to_hex().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpo::loss::Loss;

    fn parse(text: &str) -> Result<RunConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.toml");
        fs::write(&path, text).unwrap();
        RunConfig::load(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn empty_is_the_default_and_toml_goes_round() {
        assert_eq!(parse("").unwrap(), RunConfig::default());
        let text = toml::to_string(&RunConfig::default()).unwrap();
        assert_eq!(parse(&text).unwrap(), RunConfig::default());
    }

    #[test]
    fn the_handbook_shows_every_key_with_its_default() {
        let handbook = include_str!("../../../../docs/training.md");
        let block = handbook.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        assert_eq!(parse(block).unwrap(), RunConfig::default());
        let keys = |value: &toml::Value| {
            let table = value.as_table().unwrap();
            table
                .iter()
                .flat_map(|(section, inner)| match inner.as_table() {
                    Some(inner) => inner.keys().map(|key| format!("{section}.{key}")).collect(),
                    None => vec![section.clone()],
                })
                .collect::<std::collections::BTreeSet<_>>()
        };
        let (shown, known) = (toml::from_str(block).unwrap(), toml::Value::try_from(RunConfig::default()).unwrap());
        let missing = keys(&known).difference(&keys(&shown)).cloned().collect::<Vec<_>>();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn presets_with_differences() {
        let config = parse("[loss]\npreset = \"paper\"\nconditional = 0.5").unwrap();
        assert_eq!(config.loss.resolve(), Loss { conditional: 0.5, ..Loss::paper() });
        assert_eq!(config.loss.length_ratio(), 0.0);
        assert_eq!(RunConfig::default().loss.resolve(), Loss::anchored());
        assert_eq!(RunConfig::default().loss.length_ratio(), 2.0);
        assert_eq!(parse("[loss]\npreset = \"sft\"").unwrap().loss.resolve(), Loss::sft_only());
    }

    #[test]
    fn wrong_keys_and_values_are_named() {
        let cases = [
            ("sed = 1", "unknown field `sed`"),
            ("[loss]\npreset = \"best\"", "unknown variant `best`"),
            ("[train]\nbatch = 0", "train.batch is 0"),
            ("[train]\nbatch = -1", "-1"),
            ("[train]\nepochs = 0", "train.epochs is 0"),
            ("[train]\nepochs = nan", "train.epochs is NaN"),
            ("[lora]\nrank = 0", "lora.rank is 0"),
            ("[lora]\ntargets = []", "lora.targets"),
            ("[data]\nheld_out = 1.0", "data.held_out is 1"),
            ("[data.distortion]\nkind = \"noise\"\nstrength = 1000", "strength 1000"),
            ("[checkpoint]\nkeep = 1", "checkpoint.keep is 1"),
            ("[optimizer]\nlearning_rate = -1e-3", "optimizer.learning_rate"),
            ("[schedule]\ndecay = \"step\"", "unknown variant `step`"),
            ("[guard]\nwindow = 0", "guard.window is 0"),
            ("[early_stop]\npatience = 2\nmin_delta = -1.0", "early_stop.min_delta"),
            ("[loss]\nmax_length_ratio = 0.5", "loss.max_length_ratio is 0.5"),
            ("seed = ", "TOML parse error"),
        ];
        for (text, message) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
        assert!(RunConfig::load(Path::new("/nowhere/run.toml")).unwrap_err().to_string().contains("cannot read"));
    }

    #[test]
    fn digest_ignores_where_and_how_often() {
        let a = RunConfig::default();
        let mut b = a.clone();
        b.checkpoint.every = 1;
        b.data.blobs = PathBuf::from("elsewhere");
        b.model.base = "moved".to_owned();
        b.data.digest = "0".repeat(64);
        assert_eq!(a.digest().unwrap(), b.digest().unwrap());
        b.seed = 1;
        assert_ne!(a.digest().unwrap(), b.digest().unwrap());
        b.seed = a.seed;
        b.model.dtype = Dtype::F32;
        assert_ne!(a.digest().unwrap(), b.digest().unwrap());
    }
}
