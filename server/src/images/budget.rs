//! What all images of one request may take together.

use std::sync::atomic::{AtomicU64, Ordering};

use super::error::ImageError;
use crate::config::ImagesConfig;

/// What is left for the images of one request. Without it, `max_per_request` images at the limit for one image would be
/// gigabytes of pixels.
pub(super) struct Budget {
    bytes: Account,
    pixels: Account,
}

impl Budget {
    pub(super) fn new(config: &ImagesConfig) -> Self {
        let max_bytes = u64::try_from(config.max_bytes).unwrap_or(u64::MAX);
        Self {
            bytes: Account::new("bytes", max_bytes.saturating_mul(ImagesConfig::LARGEST_PER_REQUEST)),
            pixels: Account::new("pixels", config.max_pixels.saturating_mul(ImagesConfig::LARGEST_PER_REQUEST)),
        }
    }

    /// Takes encoded bytes.
    pub(super) fn take_bytes(&self, bytes: usize) -> Result<(), ImageError> {
        self.bytes.take(u64::try_from(bytes).unwrap_or(u64::MAX))
    }

    /// Takes pixels.
    pub(super) fn take_pixels(&self, pixels: u64) -> Result<(), ImageError> {
        self.pixels.take(pixels)
    }
}

struct Account {
    unit: &'static str,
    limit: u64,
    left: AtomicU64,
}

impl Account {
    fn new(unit: &'static str, limit: u64) -> Self {
        Self { unit, limit, left: AtomicU64::new(limit) }
    }

    fn take(&self, amount: u64) -> Result<(), ImageError> {
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(amount))
            .map(|_| ())
            .map_err(|_| ImageError::RequestTooLarge { limit: self.limit, unit: self.unit })
    }
}
