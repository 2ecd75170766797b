//! Why an image was not taken.

use thiserror::Error;

use super::format::{ALLOWED, Format};
use crate::room::NoRoom;

/// Longest piece of a caller's own text that a message repeats, in characters.
const EXCERPT: usize = 64;

/// Why an image was not taken. The message says what was wrong and what is allowed; it never holds image data.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ImageError {
    /// The URL cannot be understood.
    #[error("the image URL is not valid: {reason}")]
    InvalidUrl {
        /// What is wrong with it.
        reason: String,
    },
    /// `http` or `https`, and they are switched off.
    #[error(
        "this server does not fetch {scheme} image URLs; send the image itself as a data URL (data:image/png;base64,…)"
    )]
    FetchingIsOff {
        /// `http` or `https`.
        scheme: &'static str,
    },
    /// The host is, or resolves to, an address that strangers must not reach through this server.
    #[error("the image host `{host}` is not allowed: images are fetched from public internet addresses only")]
    NotPublic {
        /// The host of the URL, or of the redirect.
        host: String,
    },
    /// More images than one request may hold.
    #[error("the request has {count} images; at most {limit} are allowed")]
    TooMany {
        /// How many there are.
        count: usize,
        /// `images.max_per_request`.
        limit: usize,
    },
    /// Encoded, it is too large.
    #[error("the image is larger than {limit} bytes, which is the limit for one image")]
    TooManyBytes {
        /// `images.max_bytes`.
        limit: usize,
    },
    /// It has too many pixels, or a side that is too long.
    #[error(
        "the image is {width} x {height} pixels; allowed are sides up to {max_side} pixels and {max_pixels} pixels in all"
    )]
    TooManyPixels {
        /// In pixels, as its header says.
        width: u32,
        /// In pixels, as its header says.
        height: u32,
        /// `images.max_side`.
        max_side: u32,
        /// `images.max_pixels`.
        max_pixels: u64,
    },
    /// Decoding would take more memory than an image of its size needs.
    #[error("the image cannot be decoded within the memory that a {width} x {height} image may take")]
    TooMuchMemory {
        /// In pixels, as its header says.
        width: u32,
        /// In pixels, as its header says.
        height: u32,
    },
    /// Each image is within its limits, all together are not.
    #[error("the images of this request together have more than {limit} {unit}, which is the limit")]
    RequestTooLarge {
        /// How much one request may hold.
        limit: u64,
        /// `bytes` or `pixels`.
        unit: &'static str,
    },
    /// A format that is not taken, recognised by its first bytes.
    #[error("the image is {found}, which is not supported; supported are {ALLOWED}")]
    UnsupportedFormat {
        /// What it is, with its article.
        found: &'static str,
    },
    /// The media type is not that of an image format that is taken.
    #[error(
        "the media type `{media_type}` is not supported; supported are image/jpeg, image/png, image/webp, image/gif, image/bmp"
    )]
    UnsupportedMediaType {
        /// As it was sent, shortened.
        media_type: String,
    },
    /// The media type says one format, the data are another.
    #[error(
        "the data URL says {}, but the data are {found}; send them as {}",
        declared.media_type(),
        found.media_type()
    )]
    MediaTypeMismatch {
        /// What the URL says.
        declared: Format,
        /// What the data are.
        found: Format,
    },
    /// It is of a format that is taken, but cannot be decoded.
    #[error("the {format} image cannot be decoded: {reason}")]
    Undecodable {
        /// Its format.
        format: Format,
        /// What the decoder stumbled on.
        reason: String,
    },
    /// It could not be fetched.
    #[error("the image could not be fetched from `{host}`: {reason}")]
    Fetch {
        /// The host of the URL, or of the redirect.
        host: String,
        /// What happened.
        reason: String,
    },
    /// The decoded images of requests under way take what they may.
    #[error(
        "the images of requests under way, of {whose}, take nearly {limit} bytes decoded, which is the limit; try again in a moment"
    )]
    NoRoom {
        /// `images.decoded_bytes` or `images.decoded_bytes_per_key`.
        limit: u64,
        /// `all keys` or `this key`.
        whose: &'static str,
    },
    /// The server is going down and decodes no more.
    #[error("the server is shutting down and takes no more images")]
    ShuttingDown,
}

impl From<NoRoom> for ImageError {
    fn from(NoRoom { limit, whose }: NoRoom) -> Self {
        Self::NoRoom { limit, whose }
    }
}

impl ImageError {
    /// OpenAI's `code` of the error: stable, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidUrl { .. } => "invalid_image_url",
            Self::FetchingIsOff { .. } | Self::NotPublic { .. } => "image_url_not_allowed",
            Self::TooMany { .. } => "too_many_images",
            Self::TooManyBytes { .. }
            | Self::TooManyPixels { .. }
            | Self::TooMuchMemory { .. }
            | Self::RequestTooLarge { .. } => "image_too_large",
            Self::UnsupportedFormat { .. } | Self::UnsupportedMediaType { .. } => "unsupported_image_format",
            Self::MediaTypeMismatch { .. } => "image_media_type_mismatch",
            Self::Undecodable { .. } => "invalid_image",
            Self::Fetch { .. } => "image_fetch_failed",
            Self::NoRoom { .. } => "rate_limit_exceeded",
            Self::ShuttingDown => "shutting_down",
        }
    }

    /// Whether the request was fine and the server is not (503 rather than 400; [`Self::NoRoom`] is neither: 429).
    #[must_use]
    pub fn is_server_fault(&self) -> bool {
        matches!(self, Self::ShuttingDown)
    }

    pub(super) fn url(reason: impl Into<String>) -> Self {
        Self::InvalidUrl { reason: reason.into() }
    }

    pub(super) fn fetch(host: &str, reason: impl Into<String>) -> Self {
        Self::Fetch { host: excerpt(host), reason: reason.into() }
    }

    pub(super) fn undecodable(format: Format, reason: impl AsRef<str>) -> Self {
        Self::Undecodable { format, reason: excerpt(reason.as_ref()) }
    }
}

/// The image of a request that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{error}")]
pub struct FailedImage {
    /// Its place among the images of the request, from 0.
    pub index: usize,
    /// Why.
    pub error: ImageError,
}

/// At most [`EXCERPT`] printable characters of a text that someone else wrote.
pub(super) fn excerpt(text: &str) -> String {
    let mut printable = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    let mut short: String = printable.by_ref().take(EXCERPT).collect();
    if printable.next().is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_repeat_little_of_what_was_sent() {
        let error = ImageError::undecodable(Format::Png, "x\n".repeat(1000));
        let message = error.to_string();
        assert!(message.chars().count() < 120, "{message}");
        assert!(!message.contains('\n'));
        assert!(message.ends_with('…'));
    }

    #[test]
    fn a_mismatch_names_both_formats() {
        let error = ImageError::MediaTypeMismatch { declared: Format::Png, found: Format::Jpeg };
        assert_eq!(error.to_string(), "the data URL says image/png, but the data are JPEG; send them as image/jpeg");
    }
}
