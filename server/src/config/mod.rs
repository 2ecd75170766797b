//! Every setting of the server, one struct a section.
//!
//! Later layers win: defaults in code → `config.toml` → environment (`REGROUND__SECTION__KEY`) → flags. The `config.toml`
//! at the top of the repository lists every key with its default; a test holds the two equal.
//!
//! # Layout
//! - [`load`]: the layers; [`file`](mod@file): the one that is a file.
//! - [`error`]: what is wrong, by key, value and place.
//! - [`secret`]: values that are read from `env:NAME` or `file:PATH`, never written in the file.
//! - one file a section.

mod admission;
mod auth;
mod bootstrap;
mod data;
mod error;
mod file;
mod gate;
mod images;
mod load;
mod log;
mod model;
mod rollout;
mod secret;
mod server;
#[cfg(test)]
mod tests;
mod train;
mod watch;

use reground_learner::gate::GateConfig;
use serde::{Deserialize, Serialize};

pub use admission::AdmissionConfig;
pub use auth::{AuthConfig, KeyConfig, Role};
pub use bootstrap::{BootstrapConfig, ChosenSource, Injector, WhenUnloaded};
pub use data::{DataConfig, RecordConfig};
pub use error::{ConfigError, Origin};
pub use images::ImagesConfig;
pub use load::Loader;
pub use log::{LogConfig, LogFormat};
pub use model::{EngineKind, Isq, ModelConfig};
pub use reground_learner::model::{DeviceChoice, Dtype};
pub use rollout::{AfterGate, Previous, RolloutConfig, Strategy};
pub use secret::Secret;
pub use server::ServerConfig;
pub use train::TrainConfig;
pub use watch::WatchConfig;

/// All settings.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where and how the HTTP server listens.
    pub server: ServerConfig,
    /// Who may call it.
    pub auth: AuthConfig,
    /// Which model answers, and on what.
    pub model: ModelConfig,
    /// How requests wait for the model.
    pub admission: AdmissionConfig,
    /// What images are taken.
    pub images: ImagesConfig,
    /// Where what must survive is kept.
    pub data: DataConfig,
    /// What is written down of queries and their answers.
    pub record: RecordConfig,
    /// How pairs are made of it.
    pub bootstrap: BootstrapConfig,
    /// When an adapter is trained, on what, and with how much of the machine.
    pub train: TrainConfig,
    /// What an adapter must show before it gets traffic.
    pub gate: GateConfig,
    /// How generations take the place of each other.
    pub rollout: RolloutConfig,
    /// When one that got traffic is taken back by itself.
    pub watch: WatchConfig,
    /// What is logged.
    pub log: LogConfig,
}

impl Config {
    /// The settings as a configuration file that gives the same again. Secrets stay what they are there: references.
    ///
    /// # Errors
    /// A path is no UTF-8, which TOML cannot hold.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }

    /// Checks what types cannot say; the error names the key, the value and what is allowed.
    ///
    /// # Errors
    /// The first setting that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.server.validate()?;
        self.auth.validate(self.server.bind)?;
        self.model.validate()?;
        self.admission.validate()?;
        self.images.validate()?;
        self.data.validate()?;
        self.record.validate()?;
        self.bootstrap.validate()?;
        self.train.validate()?;
        gate::validate(&self.gate)?;
        self.rollout.validate()?;
        self.watch.validate()?;
        self.log.validate()
    }
}
