//! `[gate]`: the learner's own settings, see [`GateConfig`].

use reground_learner::bpo::config::ConfigError as Refused;
use reground_learner::gate::GateConfig;

use super::ConfigError;
use super::error::Origin;

pub(super) fn validate(gate: &GateConfig) -> Result<(), ConfigError> {
    gate.validate().map_err(|refused| match refused {
        Refused::OutOfRange { key, value, allowed } => ConfigError::Value {
            key: format!("gate.{key}"),
            value: format!("`{value}`"),
            origin: Origin::Code,
            allowed: allowed.to_owned(),
        },
        other => ConfigError::value("gate", "", other),
    })
}
