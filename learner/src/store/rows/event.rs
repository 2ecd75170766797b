//! What happened in a run.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Row;

/// Something that happened in a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunEvent {
    /// `ftevent-…`.
    pub id: String,
    /// The run's id.
    pub run: String,
    /// When, milliseconds since 1970.
    pub created_ms: u64,
    /// How bad it is.
    pub level: EventLevel,
    /// What it is.
    pub kind: EventKind,
    /// A sentence for people.
    pub message: String,
    /// Its numbers, under the names of [`crate::bpo::metrics`]; null without any.
    #[serde(default)]
    pub data: Value,
}

/// How bad an event is; OpenAI's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventLevel {
    /// As it should be.
    Info,
    /// Odd, and dealt with.
    Warn,
    /// It did not work.
    Error,
}

/// What an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// Something to read.
    Message,
    /// Numbers of a step or an evaluation.
    Metrics,
    /// A checkpoint is safe on disk; the data says of which step.
    Checkpoint,
}

impl Row for RunEvent {
    const KIND: &'static str = "event";
    const PREFIX: &'static str = "ftevent";

    fn id(&self) -> &str {
        &self.id
    }

    fn indexes(&self) -> Vec<(&'static str, String)> {
        let mut indexes = vec![("run", self.run.clone())];
        if self.kind == EventKind::Checkpoint {
            indexes.push(("checkpoints", self.run.clone()));
        }
        indexes
    }
}
