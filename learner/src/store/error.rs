//! Why the store refused, or could not.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::FEEDBACK_LIMIT;

/// Why the store refused, or could not.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Another process, or another `Store` of this one, has the directory open.
    #[error("{0} is in use by another process; one process at a time may open a data directory")]
    Locked(PathBuf),
    /// The directory cannot be made or written.
    #[error("cannot open the data directory {path}: {source}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Written by a later version of the program.
    #[error("the store has format {found}; this program reads up to {known}")]
    Newer {
        /// The format of what is there.
        found: u8,
        /// The latest that this program knows.
        known: u8,
    },
    /// Less than `min_free_bytes` would be left; nothing was written. It goes on by itself once there is space.
    #[error("the disk has {free} bytes left, {wanted} are kept free; nothing was written")]
    Full {
        /// Bytes left.
        free: u64,
        /// Bytes that stay free.
        wanted: u64,
    },
    /// The file system failed; nothing was written, or nothing that was promised.
    #[error("the store failed: {0}")]
    Io(#[from] io::Error),
    /// An earlier failure is not over; the store tries to open itself again.
    #[error("the store is out of order: {0}")]
    Degraded(String),
    /// A row that cannot be read.
    #[error("{kind} `{id}` is damaged: {why}")]
    Damaged {
        /// Kind of row.
        kind: &'static str,
        /// Its id.
        id: String,
        /// What is wrong.
        why: String,
    },
    /// A row of an export that cannot be taken in; rows before it may be.
    #[error("line {line} of rows.jsonl cannot be taken in: {why}")]
    Import {
        /// Its line, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// No such row.
    #[error("there is no {kind} `{id}`")]
    Missing {
        /// Kind of row.
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// The id is taken.
    #[error("there is a {kind} `{id}` already")]
    Exists {
        /// Kind of row.
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// An id that is none: 1 to 128 letters, digits, `-`, `_` or `.`.
    #[error("`{0}` is no id")]
    BadId(String),
    /// A row that contradicts itself or what is stored.
    #[error("{kind} `{id}` cannot be stored: {why}")]
    Invalid {
        /// Kind of row.
        kind: &'static str,
        /// Its id.
        id: String,
        /// What is wrong.
        why: String,
    },
    /// A key has said as much of a record as is kept of it.
    #[error("`{key}` has said {FEEDBACK_LIMIT} things of `{record}` already, which is the most that is kept")]
    FeedbackLimit {
        /// The record's id.
        record: String,
        /// Name of the API key.
        key: String,
    },
    /// The change was asked for on the ground of a state that is no more; nothing was changed.
    #[error("`{expected}` was expected to be live, `{live}` is; nothing was changed")]
    Stale {
        /// What the caller thought was live.
        expected: String,
        /// What is.
        live: String,
    },
}

impl StoreError {
    /// Whether the store is to blame, and not the caller.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Io(_) | Self::Degraded(_) | Self::Damaged { .. })
    }
}

impl From<sled::Error> for StoreError {
    fn from(error: sled::Error) -> Self {
        Self::Io(match error {
            sled::Error::Io(error) => error,
            other => io::Error::other(other.to_string()),
        })
    }
}
