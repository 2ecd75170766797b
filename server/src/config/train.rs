//! `[train]`.

use reground_learner::model::DeviceChoice;
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// When an adapter is trained, on what, and with how much of the machine.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Train at all. Off: runs that wait or are half done go on waiting.
    pub enabled: bool,
    /// New pairs that start a run by themselves; 0: none do.
    pub min_pairs: usize,
    /// Hours after which a run starts by itself if there is a new pair; 0: none does.
    pub interval_hours: u64,
    /// Share of a run's pairs that earlier runs were trained on already.
    pub replay_share: f64,
    /// Uploaded files whose pairs are mixed into every run on collected pairs.
    pub anchors: Vec<String>,
    /// Most of a run's pairs that come from those files, as a share.
    pub anchor_share: f64,
    /// Passes over the pairs.
    pub epochs: f64,
    /// Optimiser steps after which a run ends at the latest; 0: no limit.
    pub max_steps: u64,
    /// Pairs per optimiser step.
    pub batch: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// β of the preference loss.
    pub beta: f64,
    /// Weight of the supervised term beside the preference loss.
    pub sft: f64,
    /// Rank of a new adapter. One that is continued keeps its own.
    pub rank: usize,
    /// α of a new adapter; its update is scaled by α / rank.
    pub alpha: f64,
    /// Share of the images whose pairs are held out for the gate.
    pub held_out: f64,
    /// Decides which those are. With another one, images that are held out were trained on by what is continued.
    pub held_out_seed: u64,
    /// Decides data order, dropout and a new adapter's values.
    pub seed: u64,
    /// Optimiser steps between checkpoints.
    pub checkpoint_every: u64,
    /// Threads of a training process; 0: half of the cores.
    pub threads: usize,
    /// Steps by which its priority is lower than the server's; 19: on Linux it runs only while nobody else wants the core.
    pub nice: u8,
    /// Share of the time that it gets at least while live queries are answered without a pause: it stands still otherwise as long
    /// as one is. 1: it never does. Linux only.
    pub min_share: f64,
    /// Where it runs.
    pub device: DeviceChoice,
    /// Times that a training process that died is started again, before its run fails.
    pub max_resumes: u32,
    /// Largest file that can be uploaded, bytes.
    pub max_file_bytes: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            min_pairs: 512,
            interval_hours: 0,
            replay_share: 0.3,
            anchors: Vec::new(),
            anchor_share: 0.2,
            epochs: 4.0,
            max_steps: 0,
            batch: 16,
            learning_rate: 3e-4,
            beta: 0.1,
            sft: 8.0,
            rank: 16,
            alpha: 32.0,
            held_out: 0.2,
            held_out_seed: 0,
            seed: 0,
            checkpoint_every: 20,
            threads: 0,
            nice: 19,
            min_share: 0.1,
            device: DeviceChoice::Auto,
            max_resumes: 5,
            max_file_bytes: 512 << 20,
        }
    }
}

impl TrainConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::range("train.replay_share", self.replay_share, 0.0..=0.95)?;
        ConfigError::range("train.anchor_share", self.anchor_share, 0.0..=0.95)?;
        ConfigError::range("train.epochs", self.epochs, 0.01..=1000.0)?;
        ConfigError::range("train.batch", self.batch, 1..=65_536)?;
        ConfigError::range("train.sft", self.sft, 0.0..=1000.0)?;
        ConfigError::range("train.learning_rate", self.learning_rate, 1e-9..=1.0)?;
        ConfigError::range("train.beta", self.beta, 1e-6..=100.0)?;
        ConfigError::range("train.rank", self.rank, 1..=1024)?;
        ConfigError::range("train.alpha", self.alpha, 1e-3..=65_536.0)?;
        ConfigError::range("train.held_out", self.held_out, 0.0..=0.9)?;
        ConfigError::range("train.nice", self.nice, 0..=19)?;
        ConfigError::range("train.min_share", self.min_share, 0.0..=1.0)?;
        ConfigError::range("train.max_file_bytes", self.max_file_bytes, 1024..=1 << 40)?;
        Ok(())
    }
}
