//! `[images]`.

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// What images are taken. Everything is checked from the header, before a pixel is decoded.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImagesConfig {
    /// Largest encoded image in bytes.
    pub max_bytes: usize,
    /// Longest side in pixels.
    pub max_side: u32,
    /// Most pixels, width times height.
    pub max_pixels: u64,
    /// Most images in one request.
    pub max_per_request: usize,
    /// Fetch `http` and `https` URLs. Off: data URLs only.
    pub allow_http: bool,
    /// Seconds for one fetch, redirects included.
    pub fetch_timeout_s: u64,
    /// Redirects that one fetch may follow; each target is checked again.
    pub fetch_redirects: usize,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        Self {
            max_bytes: 20 * 1024 * 1024,
            max_side: 16_384,
            max_pixels: 50_000_000,
            max_per_request: 16,
            allow_http: false,
            fetch_timeout_s: 10,
            fetch_redirects: 3,
        }
    }
}

impl ImagesConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::range("images.max_bytes", self.max_bytes, 1024..=1 << 30)?;
        ConfigError::range("images.max_side", self.max_side, 1..=65_535)?;
        ConfigError::range("images.max_pixels", self.max_pixels, 1..=1 << 30)?;
        ConfigError::range("images.max_per_request", self.max_per_request, 1..=1000)?;
        ConfigError::range("images.fetch_timeout_s", self.fetch_timeout_s, 1..=300)?;
        ConfigError::range("images.fetch_redirects", self.fetch_redirects, 0..=10)
    }
}
