//! `[rollout]`.

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// How generations take the place of each other.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutConfig {
    /// What happens to an adapter that passed the gate.
    pub after_gate: AfterGate,
    /// Percent of the callers that a canary gets.
    pub canary_percent: u8,
    /// Percent of the queries that a shadow answers a second time.
    pub shadow_percent: u8,
    /// How the live generation is replaced.
    pub strategy: Strategy,
    /// What becomes of the generation that a rollback goes to.
    pub previous: Previous,
}

/// What happens to an adapter that passed the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AfterGate {
    /// It is kept until somebody activates it.
    Hold,
    /// It answers a share of the queries a second time, for the counters alone.
    Shadow,
    /// It gets a share of the callers.
    Canary,
    /// It is made live.
    Activate,
}

/// How the live generation is replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The new one is loaded beside the old one, and callers go over.
    #[default]
    BlueGreen,
    /// The old one is unloaded first, for devices that cannot hold two; callers wait meanwhile.
    Recreate,
}

/// What becomes of the generation that a rollback goes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Previous {
    /// It stays loaded: a rollback takes a moment.
    #[default]
    Warm,
    /// It is unloaded, and loaded again for a rollback.
    Cold,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            after_gate: AfterGate::Activate,
            canary_percent: 10,
            shadow_percent: 10,
            strategy: Strategy::BlueGreen,
            previous: Previous::Warm,
        }
    }
}

impl RolloutConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::range("rollout.canary_percent", self.canary_percent, 1..=99)?;
        ConfigError::range("rollout.shadow_percent", self.shadow_percent, 1..=100)?;
        let beside = match self.after_gate {
            AfterGate::Canary => "canary",
            AfterGate::Shadow => "shadow",
            AfterGate::Hold | AfterGate::Activate => return Ok(()),
        };
        if self.strategy == Strategy::Recreate {
            let allowed =
                "`hold` or `activate` while `rollout.strategy` is `recreate`, which loads one generation at a time";
            return Err(ConfigError::value("rollout.after_gate", beside, allowed));
        }
        Ok(())
    }

    /// Whether `previous` stays loaded.
    #[must_use]
    pub fn keeps_previous(&self) -> bool {
        self.previous == Previous::Warm && self.strategy == Strategy::BlueGreen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_holds_one_generation_has_no_place_for_a_trial() {
        for (after_gate, works) in [
            (AfterGate::Activate, true),
            (AfterGate::Hold, true),
            (AfterGate::Canary, false),
            (AfterGate::Shadow, false),
        ] {
            let config = RolloutConfig { after_gate, strategy: Strategy::Recreate, ..RolloutConfig::default() };
            assert_eq!(config.validate().is_ok(), works, "{after_gate:?}");
            assert!(!config.keeps_previous());
        }
    }
}
