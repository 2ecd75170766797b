//! `[rollout]`.

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// What happens to an adapter that passed the gate.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutConfig {
    /// What happens to it.
    pub after_gate: AfterGate,
    /// Percent of the callers that a canary gets.
    pub canary_percent: u8,
}

/// What happens to an adapter that passed the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AfterGate {
    /// It is kept until somebody activates it.
    Hold,
    /// It gets a share of the callers.
    Canary,
    /// It is made live.
    Activate,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self { after_gate: AfterGate::Activate, canary_percent: 10 }
    }
}

impl RolloutConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::range("rollout.canary_percent", self.canary_percent, 1..=99)
    }
}
