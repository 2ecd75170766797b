//! Which generation answers.

use serde::{Deserialize, Serialize};

use super::Row;

/// Which generation answers. There is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutState {
    /// What answers.
    pub live: String,
    /// What a rollback brings back.
    #[serde(default)]
    pub previous: Option<String>,
    /// What answers a share of the conversations.
    #[serde(default)]
    pub canary: Option<Canary>,
    /// Nothing changes by itself while this is set.
    #[serde(default)]
    pub pinned: bool,
    /// When it last changed, milliseconds since 1970.
    pub changed_ms: u64,
    /// Counts the changes.
    pub revision: u64,
}

/// A share of traffic on trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// The generation.
    pub adapter: String,
    /// Share of the callers, 1 to 99 percent.
    pub percent: u8,
}

impl RolloutState {
    /// Under which id the one row is kept.
    pub const ID: &'static str = "rollout";
}

impl Default for RolloutState {
    /// The base alone.
    fn default() -> Self {
        Self { live: "base".to_owned(), previous: None, canary: None, pinned: false, changed_ms: 0, revision: 0 }
    }
}

impl Row for RolloutState {
    const KIND: &'static str = "rollout";
    const PREFIX: &'static str = "rollout";

    fn id(&self) -> &str {
        Self::ID
    }

    fn indexes(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}
