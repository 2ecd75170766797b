//! A LoRA, where it comes from, and what the gate said.

use serde::{Deserialize, Serialize};

use super::{Row, word};
use crate::gate::GateReport;

/// An adapter. Its files are in `adapters/<id>/`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterRow {
    /// `ad-…`; also the generation's id.
    pub id: String,
    /// When it was made or imported, milliseconds since 1970.
    pub created_ms: u64,
    /// The run that made it; `None` for an imported one.
    #[serde(default)]
    pub run: Option<String>,
    /// The generation that its training started from.
    pub parent: String,
    /// BLAKE3 of the base model.
    pub base_digest: String,
    /// BLAKE3 of the frozen set that it was trained on.
    #[serde(default)]
    pub dataset_digest: Option<String>,
    /// What may be done with it.
    pub state: AdapterState,
    /// What the gate said; `None` before.
    #[serde(default)]
    pub gate: Option<GateReport>,
}

/// What may be done with an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterState {
    /// The gate has not looked at it.
    New,
    /// The gate let it through.
    Passed,
    /// The gate refused it: it never reaches traffic.
    Refused,
    /// It reached traffic and was rolled back.
    RolledBack,
    /// Its files are gone.
    Removed,
}

impl Row for AdapterRow {
    const KIND: &'static str = "adapter";
    const PREFIX: &'static str = "ad";

    fn id(&self) -> &str {
        &self.id
    }

    fn indexes(&self) -> Vec<(&'static str, String)> {
        let mut indexes = vec![("state", word(self.state)), ("parent", self.parent.clone())];
        indexes.extend(self.run.clone().map(|run| ("run", run)));
        indexes
    }
}
