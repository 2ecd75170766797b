//! What can go wrong in an evaluation.

use std::path::PathBuf;

use thiserror::Error;

/// An evaluation that could not be done.
#[derive(Debug, Error)]
pub enum EvalError {
    /// A file could not be read or written; the message names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A line of a JSONL or list file is not what it should be.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A JSON file as a whole is not what it should be.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An image could not be decoded.
    #[error("{}: not a readable image: {reason}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        reason: String,
    },
    /// The model or its adapter is missing, damaged, or the one does not fit the other.
    #[error("cannot load {what}: {source}")]
    Load {
        /// The directory.
        what: String,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Preference data could not be read or scored; the message names the file or the pair.
    #[error(transparent)]
    Pairs(Box<dyn std::error::Error + Send + Sync>),
    /// The answerer failed.
    #[error("the model could not answer: {0}")]
    Answer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answerer returned another number of answers than it was asked questions.
    #[error("{asked} questions were asked and {answered} answers came back")]
    AnswerCount {
        /// Questions asked.
        asked: usize,
        /// Answers returned.
        answered: usize,
    },
    /// Two measures to be compared are not of the same items.
    #[error("a paired comparison needs the same items on both sides: {candidate} and {baseline} were given")]
    Unpaired {
        /// Items of the candidate.
        candidate: usize,
        /// Items of the baseline.
        baseline: usize,
    },
    /// There is nothing to evaluate.
    #[error("{0} has no items")]
    Empty(String),
}
