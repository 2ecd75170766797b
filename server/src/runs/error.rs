//! Why something about runs or files was refused.

use std::io;

use reground_learner::store::StoreError;
use reground_learner::store::rows::RunState;
use thiserror::Error;

use crate::rollout::RolloutError;

/// Why something about runs or files was refused.
#[derive(Debug, Error)]
pub enum RunsError {
    /// `train.enabled` is off.
    #[error("this server does not train: `train.enabled` is off")]
    Disabled,
    /// No such run.
    #[error("there is no fine-tuning job `{0}`")]
    UnknownRun(String),
    /// No such file.
    #[error("there is no file `{0}`")]
    UnknownFile(String),
    /// No such generation to start from.
    #[error("there is no generation `{0}` to start from")]
    UnknownGeneration(String),
    /// The run's state does not allow it.
    #[error("job `{id}` is {state}; only one that is {allowed} can be {wanted}")]
    State {
        /// The run.
        id: String,
        /// Its state.
        state: &'static str,
        /// In which states it could be done.
        allowed: &'static str,
        /// What was asked for.
        wanted: &'static str,
    },
    /// The run's adapter is being put before callers.
    #[error("job `{id}` has passed its gate and its adapter is going live; it cannot be {wanted} any more")]
    Concluded {
        /// The run.
        id: String,
        /// What was asked for.
        wanted: &'static str,
    },
    /// The file is mixed into every run.
    #[error("file `{0}` is named in `train.anchors`")]
    Anchor(String),
    /// The file is needed.
    #[error("file `{file}` is the training file of job `{run}`, which has not begun")]
    FileInUse {
        /// The file.
        file: String,
        /// Who needs it.
        run: String,
    },
    /// A file that training cannot read; the text names the line.
    #[error("the file cannot be used: {0}")]
    BadFile(String),
    /// There is nothing to train on.
    #[error("{0}")]
    NoData(String),
    /// The generation to start from.
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file system, or a thread that is gone.
    #[error("a run's files cannot be read or written: {0}")]
    Io(#[from] io::Error),
}

/// OpenAI's word for a state.
pub(crate) fn word(state: RunState) -> &'static str {
    match state {
        RunState::Queued => "queued",
        RunState::Running => "running",
        RunState::Paused => "paused",
        RunState::Succeeded => "succeeded",
        RunState::Failed => "failed",
        RunState::Cancelled => "cancelled",
    }
}
