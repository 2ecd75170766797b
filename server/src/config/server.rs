//! `[server]`.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use url::Url;

use super::ConfigError;

/// Where and how the HTTP server listens.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Address to listen on. Anything but a loopback address needs a key in `[auth]`.
    pub bind: IpAddr,
    /// TCP port; 0 takes a free one and prints it.
    pub port: u16,
    /// Largest request body in bytes.
    pub body_limit: usize,
    /// Bytes that the JSON bodies of all requests may take together while they are received and parsed.
    pub bodies_limit: u64,
    /// The same for the requests of one key.
    pub bodies_limit_per_key: u64,
    /// Origins that browsers may call from (`https://app.example`), or `*`. Empty: no CORS headers.
    pub cors_origins: Vec<String>,
    /// Seconds between the comments that keep an idle stream open.
    pub keep_alive_s: u64,
    /// Seconds that open streams get to finish after SIGTERM.
    pub shutdown_deadline_s: u64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 8080,
            body_limit: 64 << 20,
            bodies_limit: 1 << 30,
            bodies_limit_per_key: 704 << 20,
            cors_origins: Vec::new(),
            keep_alive_s: 10,
            shutdown_deadline_s: 30,
        }
    }
}

impl ServerConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::range("server.body_limit", self.body_limit, 1024..=1 << 30)?;
        // A body that never fits would get 429 for ever.
        let least = self.body_limit as u64;
        ConfigError::range("server.bodies_limit", self.bodies_limit, least..=1 << 40)?;
        ConfigError::range("server.bodies_limit_per_key", self.bodies_limit_per_key, least..=1 << 40)?;
        if let Some(origin) = self.cors_origins.iter().find(|origin| *origin != "*" && !is_origin(origin)) {
            let allowed = "a list of `*` or origins as browsers send them, such as `https://app.example`";
            return Err(ConfigError::value("server.cors_origins", origin, allowed));
        }
        ConfigError::range("server.keep_alive_s", self.keep_alive_s, 1..=3600)?;
        ConfigError::range("server.shutdown_deadline_s", self.shutdown_deadline_s, 0..=3600)
    }
}

/// Scheme, host and port as a browser writes them: no path, no slash at the end, no default port.
fn is_origin(text: &str) -> bool {
    Url::parse(text)
        .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.origin().ascii_serialization() == text)
}
