//! What can go wrong while building.

use std::path::PathBuf;

use thiserror::Error;

use crate::model::ModelError;

/// A build that could not go on.
#[derive(Debug, Error)]
pub enum BuildError {
    /// A file could not be read or written; the message names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// The model refused its weights or inputs.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tokenizer failed.
    #[error("the pocket's tokenizer failed: {0}")]
    Tokenizer(#[source] tokenizers::Error),
    /// A checkpoint is damaged or from elsewhere.
    #[error("{}: {reason}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The loss is no longer a number; going on would write garbage.
    #[error("the loss of stage {stage} is {loss} at step {step}")]
    Diverged {
        /// The stage's name.
        stage: &'static str,
        /// The step, from 0.
        step: usize,
        /// The loss.
        loss: f32,
    },
}
