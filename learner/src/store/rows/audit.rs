//! Who changed what.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Row;

/// One change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    /// `audit-…`.
    pub id: String,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// Name of the API key, or what part of the server.
    pub who: String,
    /// What was done, as `rollout.activate`.
    pub action: String,
    /// Before.
    pub before: Value,
    /// After.
    pub after: Value,
}

impl Row for Audit {
    const KIND: &'static str = "audit";
    const PREFIX: &'static str = "audit";

    fn id(&self) -> &str {
        &self.id
    }

    fn indexes(&self) -> Vec<(&'static str, String)> {
        vec![("action", self.action.clone()), ("who", self.who.clone())]
    }
}
