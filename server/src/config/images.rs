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
    /// Bytes of memory that the images of all requests may take until the engine has read them, three for each pixel and the file; a
    /// request that does not fit gets 429.
    pub decoded_bytes: u64,
    /// Those of one key.
    pub decoded_bytes_per_key: u64,
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
            decoded_bytes: 1 << 30,
            decoded_bytes_per_key: 704 << 20,
            allow_http: false,
            fetch_timeout_s: 10,
            fetch_redirects: 3,
        }
    }
}

impl ImagesConfig {
    /// How many images of the largest allowed size one request may hold. More images fit when they are smaller.
    pub(crate) const LARGEST_PER_REQUEST: u64 = 4;
    /// Bytes of a decoded pixel: 8-bit RGB.
    pub(crate) const BYTES_PER_PIXEL: u64 = 3;

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::range("images.max_bytes", self.max_bytes, 1024..=1 << 30)?;
        ConfigError::range("images.max_side", self.max_side, 1..=65_535)?;
        ConfigError::range("images.max_pixels", self.max_pixels, 1..=1 << 30)?;
        ConfigError::range("images.max_per_request", self.max_per_request, 1..=1000)?;
        self.check_room()?;
        ConfigError::range("images.fetch_timeout_s", self.fetch_timeout_s, 1..=300)?;
        ConfigError::range("images.fetch_redirects", self.fetch_redirects, 0..=10)
    }

    /// One request at its limits must fit: it would get 429 for ever.
    fn check_room(&self) -> Result<(), ConfigError> {
        let largest = u64::try_from(self.max_per_request).unwrap_or(u64::MAX).min(Self::LARGEST_PER_REQUEST);
        let image = self.max_pixels.saturating_mul(Self::BYTES_PER_PIXEL).saturating_add(self.max_bytes as u64);
        let request = image.saturating_mul(largest);
        for (key, bytes) in
            [("images.decoded_bytes", self.decoded_bytes), ("images.decoded_bytes_per_key", self.decoded_bytes_per_key)]
        {
            if bytes < request {
                let allowed = format!(
                    "at least {request}, what the images of one request may take ({largest} of images.max_pixels = {} and images.max_bytes = {}), or images.max_pixels must be lower",
                    self.max_pixels, self.max_bytes
                );
                return Err(ConfigError::value(key, bytes, allowed));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_at_its_limits_has_room() {
        ImagesConfig::default().validate().unwrap();
        let more = ImagesConfig { max_pixels: 60_000_000, ..ImagesConfig::default() };
        let error = more.validate().unwrap_err().to_string();
        assert!(error.starts_with("images.decoded_bytes_per_key is `738197504`"), "{error}");
        assert!(error.contains("at least 803886080") && error.contains("images.max_pixels must be lower"), "{error}");
        ImagesConfig { max_per_request: 3, ..more }.validate().unwrap();
    }
}
