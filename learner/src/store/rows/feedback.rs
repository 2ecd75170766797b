//! What someone said of a record.

use serde::{Deserialize, Serialize};

use super::Row;

/// What someone said of a record. There can be several of one record; the latest of a key counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Feedback {
    /// `fb-…`.
    pub id: String,
    /// When, milliseconds since 1970.
    pub created_ms: u64,
    /// The record's id. The record may come later, while its answer is still under way.
    pub record: String,
    /// Name of the API key.
    pub key: String,
    /// Whether a correction or a positive rating may be used without review.
    pub trusted: bool,
    /// -1 (wrong) to 1 (right).
    #[serde(default)]
    pub rating: Option<f64>,
    /// What the answer should have been.
    #[serde(default)]
    pub correction: Option<String>,
    /// A remark for people.
    #[serde(default)]
    pub comment: Option<String>,
}

impl Row for Feedback {
    const KIND: &'static str = "feedback";
    const PREFIX: &'static str = "fb";

    fn id(&self) -> &str {
        &self.id
    }

    fn indexes(&self) -> Vec<(&'static str, String)> {
        vec![("record", self.record.clone()), ("key", self.key.clone())]
    }
}
