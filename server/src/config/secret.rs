//! Secrets: named in the configuration, read from elsewhere, never printed.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::ConfigError;

/// Where a secret is: `env:NAME` or `file:PATH`. The value itself is refused, so that no configuration holds one.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    reference: String,
}

impl Secret {
    /// Reads the value, without the white space around it.
    ///
    /// # Errors
    /// The variable is not set, the file cannot be read, or the value is empty.
    pub fn read(&self) -> Result<String, ConfigError> {
        let value = if let Some(name) = self.reference.strip_prefix("env:") {
            std::env::var(name).map_err(|_| ConfigError::secret(&self.reference, "the variable is not set"))?
        } else {
            let path = self.reference.strip_prefix("file:").unwrap_or(&self.reference);
            fs_err::read_to_string(path).map_err(|error| ConfigError::secret(&self.reference, error))?
        };
        let value = value.trim();
        if value.is_empty() {
            return Err(ConfigError::secret(&self.reference, "it is empty"));
        }
        Ok(value.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reference)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let reference = String::deserialize(deserializer)?;
        if reference.starts_with("env:") || reference.starts_with("file:") {
            Ok(Self { reference })
        } else {
            // The text may be the secret itself: the message must not repeat it.
            Err(de::Error::custom("a secret is written as `env:NAME` or `file:PATH`, never in the configuration itself"))
        }
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.reference)
    }
}
