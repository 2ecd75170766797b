//! `[auth]`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{ConfigError, Secret};

/// Who may call the server.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthConfig {
    /// API keys. None: every caller is an admin, and the server listens on loopback only.
    // Left out when empty: beside `keys = []`, TOML refuses the `[[auth.keys]]` that one would add.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<KeyConfig>,
}

/// One API key.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KeyConfig {
    /// What logs, metrics and fairness call the key's holder.
    pub name: String,
    /// The key itself, as `env:NAME` or `file:PATH`.
    pub key: Secret,
    /// What it opens.
    #[serde(default)]
    pub role: Role,
    /// Whether corrections and positive ratings that come with it are learned from without review. Those of an admin always are.
    #[serde(default)]
    pub trusted: bool,
    /// Whether what is asked with it is recorded as `[record]` says. Off: nothing is, whatever the request says. Default: on.
    #[serde(default = "recorded")]
    pub record: bool,
}

fn recorded() -> bool {
    true
}

/// What a key opens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Chat, models, own feedback.
    #[default]
    Client,
    /// Everything.
    Admin,
}

impl AuthConfig {
    /// Whether what is asked with the key of this name may be recorded.
    #[must_use]
    pub fn records(&self, name: &str) -> bool {
        self.keys.iter().all(|key| key.name != name || key.record)
    }

    pub(super) fn validate(&self, bind: IpAddr) -> Result<(), ConfigError> {
        if self.keys.is_empty() && !bind.is_loopback() {
            return Err(ConfigError::value(
                "server.bind",
                bind,
                "a loopback address (127.0.0.1, ::1) as long as [auth] has no key",
            ));
        }
        for (position, key) in self.keys.iter().enumerate() {
            if key.name.is_empty() || self.keys[..position].iter().any(|other| other.name == key.name) {
                return Err(ConfigError::value(
                    "auth.keys",
                    format_args!("name = {:?}", key.name),
                    "a list of keys with different names, none of them empty",
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_is_recorded_unless_it_says_otherwise() {
        let key = |name: &str| json!({"name": name, "key": "env:KEY"});
        let mut silent = key("silent");
        silent["record"] = json!(false);
        let config: AuthConfig = serde_json::from_value(json!({"keys": [key("a"), silent]})).unwrap();
        assert!(config.records("a") && !config.records("silent"));
        assert!(AuthConfig::default().records("local"));
    }
}
