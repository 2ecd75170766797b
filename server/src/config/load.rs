//! The layers of the configuration, and its errors.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use thiserror::Error;

use super::Config;

/// What is wrong with the configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file that was named is not there.
    #[error("configuration file {0} does not exist")]
    Missing(PathBuf),
    /// A layer does not parse, or has a key that no section knows.
    #[error("{0}")]
    Parse(String),
    /// A value is out of range.
    #[error("{key} = {value}: must be {allowed}")]
    Value {
        /// The dotted key.
        key: &'static str,
        /// What it was set to.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// A secret cannot be read.
    #[error("secret {reference}: {reason}")]
    Secret {
        /// Where it was to be read from.
        reference: String,
        /// Why not.
        reason: String,
    },
}

impl ConfigError {
    pub(crate) fn value(key: &'static str, value: impl Display, allowed: impl Display) -> Self {
        Self::Value { key, value: value.to_string(), allowed: allowed.to_string() }
    }

    pub(crate) fn secret(reference: &str, reason: impl Display) -> Self {
        Self::Secret { reference: reference.to_owned(), reason: reason.to_string() }
    }

    pub(crate) fn range<T: PartialOrd + Display + Copy>(
        key: &'static str,
        value: T,
        allowed: RangeInclusive<T>,
    ) -> Result<(), Self> {
        if allowed.contains(&value) {
            return Ok(());
        }
        Err(Self::value(key, value, format_args!("from {} to {}", allowed.start(), allowed.end())))
    }
}

/// Puts the layers on top of each other.
pub struct Loader {
    figment: Figment,
}

impl Loader {
    /// The defaults, and on them `file` if one is named. Without one, `config.toml` in the working directory is read if
    /// it is there.
    ///
    /// # Errors
    /// The named file does not exist.
    pub fn new(file: Option<&Path>) -> Result<Self, ConfigError> {
        let path = match file {
            Some(path) if !path.is_file() => return Err(ConfigError::Missing(path.to_owned())),
            Some(path) => path,
            None => Path::new("config.toml"),
        };
        let figment = Figment::from(Serialized::defaults(Config::default()))
            .merge(Toml::file_exact(path))
            .merge(Env::prefixed("REGROUND__").split("__"));
        Ok(Self { figment })
    }

    /// Sets one dotted key above every other layer, as a flag does; `None` leaves it.
    #[must_use]
    pub fn flag(mut self, key: &str, value: Option<impl serde::Serialize>) -> Self {
        if let Some(value) = value {
            self.figment = self.figment.merge(Serialized::global(key, value));
        }
        self
    }

    /// The validated result.
    ///
    /// # Errors
    /// A layer does not parse, has an unknown key, or holds a value out of range.
    pub fn load(self) -> Result<Config, ConfigError> {
        let config: Config = self.figment.extract().map_err(|error| ConfigError::Parse(error.to_string()))?;
        config.validate()?;
        Ok(config)
    }
}
