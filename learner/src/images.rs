//! From an encoded image to the pixels that every part of the system sees: serving, training and evaluation must not differ.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, ImageResult, Rgb, RgbImage};

/// Decodes an image of any format that the server takes, as [`upright`] says.
///
/// # Errors
/// It is no image, is damaged, or takes more memory than the decoder's default limit.
pub fn decode(bytes: &[u8]) -> ImageResult<RgbImage> {
    upright(ImageReader::new(Cursor::new(bytes)).with_guessed_format()?.into_decoder()?)
}

/// The pixels behind a decoder. What is transparent becomes white, as in the image processors of the models; 16 bits become
/// 8 by scaling; the orientation that a camera noted is applied. Colour profiles are not.
///
/// # Errors
/// The image is damaged or over the decoder's limits.
pub fn upright(mut decoder: impl ImageDecoder) -> ImageResult<RgbImage> {
    // An image with broken metadata is still an image.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::ImageRgb8(opaque(DynamicImage::from_decoder(decoder)?));
    image.apply_orientation(orientation);
    Ok(image.into_rgb8())
}

/// RGB over white.
fn opaque(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let image = image.into_rgba8();
    let (width, height) = image.dimensions();
    let mut opaque = RgbImage::new(width, height);
    for (to, from) in opaque.pixels_mut().zip(image.pixels()) {
        let [red, green, blue, alpha] = from.0;
        *to = Rgb([red, green, blue].map(|colour| over_white(colour, alpha)));
    }
    opaque
}

/// `colour · alpha + 255 · (1 - alpha)`, rounded, in 255ths.
fn over_white(colour: u8, alpha: u8) -> u8 {
    let (colour, alpha) = (u32::from(colour), u32::from(alpha));
    let sum = colour * alpha + 255 * (255 - alpha);
    u8::try_from((sum + 127) / 255).unwrap_or(u8::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use image::{ImageFormat, Rgba, RgbaImage};

    use super::*;

    fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    /// A picture that lies on its side, 48 × 32 as stored with red on the left; EXIF says to turn it right by a quarter, so
    /// that red is on top.
    pub(crate) fn photograph() -> Vec<u8> {
        let stored = RgbImage::from_fn(48, 32, |x, _| Rgb(if x < 16 { [255, 0, 0] } else { [0, 0, 255] }));
        let jpeg = encoded(&stored.into(), ImageFormat::Jpeg);
        // One entry of a little-endian directory at offset 8: tag 0x0112 (orientation), type SHORT, one value, 6.
        let exif = b"\xff\xe1\x00\x22Exif\0\0II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        [&jpeg[..2], exif, &jpeg[2..]].concat()
    }

    /// Black but for its alpha, which is zero.
    pub(crate) fn glass() -> Vec<u8> {
        encoded(&RgbaImage::from_pixel(3, 2, Rgba([0, 0, 0, 0])).into(), ImageFormat::Png)
    }

    #[test]
    fn photographs_are_turned_upright_and_glass_is_white() {
        let upright = decode(&photograph()).unwrap();
        assert_eq!(upright.dimensions(), (32, 48));
        let [top, bottom] = [upright.get_pixel(16, 4).0, upright.get_pixel(16, 40).0];
        assert!(top[0] > 200 && top[2] < 50 && bottom[2] > 200 && bottom[0] < 50, "{top:?} {bottom:?}");
        assert!(decode(&glass()).unwrap().pixels().all(|pixel| pixel.0 == [255; 3]));
        assert!(decode(b"no image").is_err());
    }

    #[test]
    fn white_shines_through() {
        for (colour, alpha, expected) in [(0, 0, 255), (0, 255, 0), (255, 9, 255), (0, 51, 204)] {
            assert_eq!(over_white(colour, alpha), expected);
        }
    }
}
