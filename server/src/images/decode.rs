//! From encoded bytes to upright RGB, in two steps: the header, which says what the pixels will cost, and the pixels.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{DynamicImage, ImageDecoder, ImageResult, Limits};
use reground_learner::images::upright;

use super::error::ImageError;
use super::format::Format;
use super::{jpeg, webp};
use crate::config::ImagesConfig;

/// Bytes of memory that decoding takes for each pixel, at most: the decoder's own (8 for the coefficients of a progressive
/// CMYK JPEG, 8 for 16-bit RGBA), the copy without alpha, and the one turned upright.
const MEMORY_PER_PIXEL: u64 = 16;

/// Memory beside the pixels: tables, colour profiles.
const MEMORY_FIXED: u64 = 4 << 20;

/// What the header of an image says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The format, by its first bytes.
    pub(super) format: Format,
    /// In pixels, before it is turned upright.
    pub(super) width: u32,
    /// In pixels, before it is turned upright.
    pub(super) height: u32,
    /// Length of the encoded image.
    bytes: usize,
}

impl Header {
    /// Reads the header of an image and refuses what is too large.
    pub(super) fn read(bytes: &[u8], config: &ImagesConfig) -> Result<Self, ImageError> {
        let format = Format::of_bytes(bytes)?;
        match format {
            // The decoder sizes its row buffers by the width that the header claims, so it must not see it first.
            Format::Png => {
                let size = png_size(bytes).ok_or_else(|| ImageError::undecodable(format, "it ends too early"))?;
                check_size(format, size, config)?;
            }
            Format::Jpeg => {
                jpeg::check(bytes).map_err(|reason| ImageError::undecodable(format, reason))?;
            }
            Format::WebP | Format::Gif | Format::Bmp => {}
        }
        let most = memory(config.max_pixels, bytes.len());
        let size =
            open(bytes, format, most).map(|decoder| decoder.dimensions()).map_err(|error| refused(format, &error))?;
        check_size(format, size, config)?;
        let (width, height) = size;
        if format == Format::WebP {
            webp::check(bytes, width, height).map_err(|reason| ImageError::undecodable(format, reason))?;
        }
        Ok(Self { format, width, height, bytes: bytes.len() })
    }

    /// Width times height.
    pub(super) fn pixels(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// Bytes of the pixels that [`Header::decode`] gives.
    pub(super) fn decoded(&self) -> u64 {
        self.pixels().saturating_mul(ImagesConfig::BYTES_PER_PIXEL)
    }

    /// Bytes of memory that [`Header::decode`] takes, at most.
    pub(super) fn memory(&self) -> u64 {
        memory(self.pixels(), self.bytes)
    }

    /// Decodes the image that this is the header of, as [`upright`] says.
    pub(super) fn decode(&self, bytes: &[u8]) -> Result<DynamicImage, ImageError> {
        let failed = |error| match error {
            image::ImageError::Limits(_) => ImageError::TooMuchMemory { width: self.width, height: self.height },
            error => refused(self.format, &error),
        };
        let decoder = open(bytes, self.format, self.memory()).map_err(failed)?;
        Ok(DynamicImage::ImageRgb8(upright(decoder).map_err(failed)?))
    }
}

/// Most memory that decoding an image within the limits takes.
pub(super) fn largest_memory(config: &ImagesConfig) -> u64 {
    memory(config.max_pixels, config.max_bytes)
}

fn memory(pixels: u64, encoded: usize) -> u64 {
    // Two copies of the encoded image: some decoders make one of their own.
    let encoded = u64::try_from(encoded).unwrap_or(u64::MAX).saturating_mul(2);
    pixels.saturating_mul(MEMORY_PER_PIXEL).saturating_add(encoded).saturating_add(MEMORY_FIXED)
}

/// Only the five decoders, by name: what other features of the `image` crate are compiled in changes nothing.
fn open<'a>(bytes: &'a [u8], format: Format, memory: u64) -> ImageResult<Box<dyn ImageDecoder + 'a>> {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(memory);
    let reader = Cursor::new(bytes);
    let mut decoder: Box<dyn ImageDecoder + 'a> = match format {
        Format::Jpeg => Box::new(JpegDecoder::new(reader)?),
        Format::Png => Box::new(PngDecoder::with_limits(reader, limits.clone())?),
        Format::WebP => Box::new(WebPDecoder::new(reader)?),
        Format::Gif => Box::new(GifDecoder::new(reader)?),
        Format::Bmp => Box::new(BmpDecoder::new(reader)?),
    };
    decoder.set_limits(limits)?;
    Ok(decoder)
}

/// Width and height of a PNG, from their fixed place in the first chunk.
fn png_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let side = |at: usize| {
        let bytes = bytes.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    };
    Some((side(16)?, side(20)?))
}

fn check_size(format: Format, (width, height): (u32, u32), config: &ImagesConfig) -> Result<(), ImageError> {
    if width == 0 || height == 0 {
        return Err(ImageError::undecodable(format, "it has no pixels"));
    }
    let pixels = u64::from(width) * u64::from(height);
    if width.max(height) > config.max_side || pixels > config.max_pixels {
        return Err(ImageError::TooManyPixels {
            width,
            height,
            max_side: config.max_side,
            max_pixels: config.max_pixels,
        });
    }
    Ok(())
}

fn refused(format: Format, error: &image::ImageError) -> ImageError {
    match error {
        image::ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            ImageError::undecodable(format, "it ends too early")
        }
        error => ImageError::undecodable(format, error.to_string()),
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
