//! Why a run ends without an adapter.

use std::path::PathBuf;

use thiserror::Error;

use super::adamw::OptimizerError;
use super::config::ConfigError;
use super::data::DataError;
use super::examples::ExampleError;
use super::guard::GuardError;
use crate::gate::GateError;

/// Why a run ends without an adapter. What was saved before stays and can be resumed.
#[derive(Debug, Error)]
pub enum TrainError {
    /// `run.toml`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `dataset.jsonl`.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The run went wrong, and a guard ended it.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The optimiser could not take a step.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// The model failed.
    #[error("the model failed: {0}")]
    Model(#[from] candle_core::Error),
    /// An example could not be prepared.
    #[error("{what}: {source}")]
    Example {
        /// Which one.
        what: String,
        /// What went wrong.
        source: ExampleError,
    },
    /// Nothing to train on.
    #[error("no pair is left to train on: {0}")]
    NoExamples(String),
    /// The base or the starting adapter is missing, damaged, or the one does not fit the other.
    #[error("cannot load {what}: {source}")]
    Base {
        /// The base as `run.toml` names it, or `the starting adapter`.
        what: String,
        /// What went wrong.
        source: ExampleError,
    },
    /// The model has no trainable tensor.
    #[error("the model has no trainable tensor: no layer matched the adapter's targets")]
    NoParameters,
    /// A policy that answers in another shape than it was asked.
    #[error("the model returned log-probabilities for {got} answers, it was asked for {want}")]
    WrongCount {
        /// Numbers returned.
        got: usize,
        /// Numbers wanted.
        want: usize,
    },
    /// Checkpoints of another configuration, dataset, device, base or starting adapter; or some of the pairs that it
    /// was trained on cannot be prepared any more.
    #[error(
        "{path} belongs to another run: its configuration, data, device, base or adapter differs; train in a new directory"
    )]
    OtherRun {
        /// The checkpoint.
        path: PathBuf,
    },
    /// Another process trains this run.
    #[error("{0} is being trained by another process")]
    Locked(PathBuf),
    /// The file system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The adapter is there, and the gate has no verdict on it.
    #[error("there is no verdict on the adapter: {0}")]
    Gate(Box<GateError>),
    /// The adapter could not be written.
    #[error("the adapter could not be written: {0}")]
    Adapter(ExampleError),
}

impl TrainError {
    /// For `map_err`: what was tried when the file system refused.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
