//! An image on its way to the store.

use actix_web::web::Bytes;

use crate::images::{Format, ReadImage};

/// An image on its way to the store, without its pixels: decoded it is many times as large, and a record may wait for long.
pub(super) struct EncodedImage {
    /// As it was received.
    pub(super) bytes: Bytes,
    /// BLAKE3 of `bytes`.
    pub(super) digest: String,
    /// What `bytes` are.
    pub(super) format: Format,
    /// Upright, pixels.
    pub(super) width: u32,
    /// Upright, pixels.
    pub(super) height: u32,
}

impl From<&ReadImage> for EncodedImage {
    fn from(read: &ReadImage) -> Self {
        Self {
            bytes: read.bytes.clone(),
            digest: read.digest.clone(),
            format: read.format,
            width: read.image.width(),
            height: read.image.height(),
        }
    }
}
