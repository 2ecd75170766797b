//! Every setting of the server, one struct a section.
//!
//! Later layers win: defaults in code → `config.toml` → environment (`REGROUND__SECTION__KEY`) → flags. The `config.toml`
//! at the top of the repository lists every key with its default; a test holds the two equal.
//!
//! # Layout
//! - [`load`]: the layers, and the errors that name the key and the place.
//! - [`secret`]: values that are read from `env:NAME` or `file:PATH`, never written in the file.
//! - one file a section.

mod admission;
mod auth;
mod images;
mod load;
mod log;
mod model;
mod secret;
mod server;

use serde::{Deserialize, Serialize};

pub use admission::AdmissionConfig;
pub use auth::{AuthConfig, KeyConfig, Role};
pub use images::ImagesConfig;
pub use load::{ConfigError, Loader};
pub use log::{LogConfig, LogFormat};
pub use model::{Device, Dtype, EngineKind, Isq, ModelConfig};
pub use secret::Secret;
pub use server::ServerConfig;

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
    /// What is logged.
    pub log: LogConfig,
}

impl Config {
    /// Checks what types cannot say; the error names the key, the value and what is allowed.
    ///
    /// # Errors
    /// The first setting that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.server.validate()?;
        self.auth.validate(self.server.bind)?;
        self.model.validate()?;
        self.admission.validate()?;
        self.images.validate()
    }
}
