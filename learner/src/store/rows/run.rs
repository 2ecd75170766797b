//! One fine-tuning run on a frozen set of pairs.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Row, word};

/// One fine-tuning run. Its files are in `runs/<id>/`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// `ftjob-…`.
    pub id: String,
    /// When it was asked for, milliseconds since 1970.
    pub created_ms: u64,
    /// When it began, milliseconds since 1970.
    #[serde(default)]
    pub started_ms: Option<u64>,
    /// When it ended, milliseconds since 1970.
    #[serde(default)]
    pub finished_ms: Option<u64>,
    /// Where it stands.
    pub state: RunState,
    /// Who or what asked: a key's name, `pairs`, `schedule`.
    pub trigger: String,
    /// The generation that it starts from.
    pub parent: String,
    /// BLAKE3 of the frozen set, once it is frozen.
    #[serde(default)]
    pub dataset_digest: Option<String>,
    /// Pairs in the frozen set.
    #[serde(default)]
    pub pairs: usize,
    /// The settings that were asked for (OpenAI's `method`, `hyperparameters`, `metadata`, files).
    #[serde(default)]
    pub request: Value,
    /// The adapter that came of it.
    #[serde(default)]
    pub adapter: Option<String>,
    /// Times that the child process was started again.
    #[serde(default)]
    pub restarts: u32,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<String>,
    /// Whether it failed because the gate refused its adapter.
    #[serde(default)]
    pub refused: bool,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Waits for its turn.
    Queued,
    /// A child process works on it.
    Running,
    /// Stopped, to go on later.
    Paused,
    /// An adapter came of it.
    Succeeded,
    /// It did not end well.
    Failed,
    /// Stopped for good.
    Cancelled,
}

impl RunState {
    /// Whether something may still come of it.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Queued | Self::Running | Self::Paused)
    }
}

impl Row for Run {
    const KIND: &'static str = "run";
    const PREFIX: &'static str = "ftjob";

    fn id(&self) -> &str {
        &self.id
    }

    fn indexes(&self) -> Vec<(&'static str, String)> {
        vec![("state", word(self.state)), ("parent", self.parent.clone())]
    }
}
