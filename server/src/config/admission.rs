//! `[admission]`.

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// How requests wait for the model.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdmissionConfig {
    /// Requests that may wait in front of each generation, or of all where they share one batch; the next one gets 429.
    pub queue: usize,
    /// Requests of one key that may wait there.
    pub queue_per_key: usize,
    /// Seconds from arrival to the last token; after that the request ends with 504, or a stream with an error event.
    pub deadline_s: u64,
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        Self { queue: 256, queue_per_key: 128, deadline_s: 300 }
    }
}

impl AdmissionConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::range("admission.queue", self.queue, 1..=100_000)?;
        ConfigError::range("admission.queue_per_key", self.queue_per_key, 1..=100_000)?;
        ConfigError::range("admission.deadline_s", self.deadline_s, 1..=86_400)
    }
}
