//! Secrets: named in the configuration, read from elsewhere, never printed.

use std::fmt;

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ConfigError;

/// Where a secret is: `env:NAME` or `file:PATH` (from the working directory, if relative). The value itself is refused, so that no configuration holds one.
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

fn is_reference(text: &str) -> bool {
    ["env:", "file:"].iter().any(|scheme| text.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()))
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reference)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Reference)
    }
}

/// Takes a reference. What stands in its place may be the secret itself, so no message may repeat it, as serde's own would.
struct Reference;

impl Visitor<'_> for Reference {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret as `env:NAME` or `file:PATH`, which is never written in the configuration itself")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Secret, E> {
        if is_reference(text) {
            return Ok(Secret { reference: text.to_owned() });
        }
        Err(E::invalid_value(Unexpected::Other("other text"), &self))
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Secret, E> {
        Err(E::invalid_type(Unexpected::Other("a boolean"), &self))
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Secret, E> {
        Err(E::invalid_type(Unexpected::Other("a number"), &self))
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Secret, E> {
        Err(E::invalid_type(Unexpected::Other("a number"), &self))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Secret, E> {
        Err(E::invalid_type(Unexpected::Other("a number"), &self))
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.reference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(reference: &str) -> Result<Secret, toml::de::Error> {
        #[derive(Deserialize)]
        struct Holder {
            key: Secret,
        }
        toml::from_str::<Holder>(&format!("key = {reference}")).map(|holder| holder.key)
    }

    #[test]
    fn a_value_is_refused_and_not_repeated() {
        for value in ["\"sk-12345\"", "12345", "0.12345", "[\"12345\"]", "{ v = \"12345\" }", "\"env:\"", "\"file:\""] {
            let error = secret(value).unwrap_err().message().to_owned();
            assert!(error.contains("`env:NAME` or `file:PATH`") && !error.contains("12345"), "{error}");
        }
    }

    #[test]
    fn a_file_is_read_without_the_space_around() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let reference = format!("'file:{}'", path.display());
        let secret = secret(&reference).unwrap();
        let missing = secret.read().unwrap_err().to_string();
        assert!(missing.contains("key"), "{missing}");
        std::fs::write(&path, " sk-12345\n").unwrap();
        assert_eq!(secret.read().unwrap(), "sk-12345");
        assert!(!format!("{secret:?}{}", toml::Value::try_from(&secret).unwrap()).contains("12345"));
        std::fs::write(&path, " \n").unwrap();
        assert!(secret.read().unwrap_err().to_string().ends_with("it is empty"));
    }

    #[test]
    fn a_variable_is_read_by_name() {
        // Cargo sets this one for tests; setting one's own would race with other tests.
        assert_eq!(secret("'env:CARGO_PKG_NAME'").unwrap().read().unwrap(), "reground");
        let error = secret("'env:REGROUND_NO_SUCH_VARIABLE'").unwrap().read().unwrap_err().to_string();
        assert_eq!(error, "secret env:REGROUND_NO_SUCH_VARIABLE: the variable is not set");
    }
}
