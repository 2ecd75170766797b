//! Images, good and bad ones, made in memory.

use std::io::Cursor;

use anyhow::{Context, Result};
use image::codecs::gif::GifEncoder;
use image::{DynamicImage, Frame, GrayImage, ImageBuffer, ImageFormat, Luma, Rgb, RgbImage, RgbaImage};

/// `data:MEDIA/TYPE;base64,…` of these bytes.
#[must_use]
pub fn data_url(media_type: &str, bytes: &[u8]) -> String {
    crate::golden::data_url(media_type, bytes)
}

/// A picture in which every pixel differs from its neighbours, so that no two seeds look alike.
#[must_use]
pub fn picture(width: u32, height: u32, seed: u32) -> DynamicImage {
    let pixel = |x: u32, y: u32| {
        let mixed = (x.wrapping_mul(31) ^ y.wrapping_mul(17)).wrapping_add(seed.wrapping_mul(97));
        let [a, b, c, _] = mixed.wrapping_mul(2_654_435_761).to_le_bytes();
        Rgb([a, b, c])
    };
    DynamicImage::ImageRgb8(RgbImage::from_fn(width, height, pixel))
}

/// A picture as a file.
///
/// # Errors
/// The format cannot hold it.
pub fn file(picture: &DynamicImage, format: ImageFormat) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format)?;
    Ok(bytes.into_inner())
}

/// A PNG of one pixel upwards.
///
/// # Errors
/// Never for sides above 0.
pub fn png(width: u32, height: u32, seed: u32) -> Result<Vec<u8>> {
    file(&picture(width, height, seed), ImageFormat::Png)
}

/// A PNG with 16 bits a channel.
///
/// # Errors
/// Never.
pub fn png_16_bit() -> Result<Vec<u8>> {
    let image = ImageBuffer::from_fn(24, 16, |x, y| Rgb([(x * 2000) as u16, (y * 3000) as u16, 40_000]));
    file(&DynamicImage::ImageRgb16(image), ImageFormat::Png)
}

/// A grey PNG with 16 bits a pixel.
///
/// # Errors
/// Never.
pub fn png_grey_16_bit() -> Result<Vec<u8>> {
    file(
        &DynamicImage::ImageLuma16(ImageBuffer::from_fn(24, 16, |x, y| Luma([(x * y * 100) as u16]))),
        ImageFormat::Png,
    )
}

/// A grey PNG.
///
/// # Errors
/// Never.
pub fn png_grey() -> Result<Vec<u8>> {
    file(&DynamicImage::ImageLuma8(GrayImage::from_fn(24, 16, |x, y| Luma([(x * y) as u8]))), ImageFormat::Png)
}

/// A PNG that one can see through.
///
/// # Errors
/// Never.
pub fn png_transparent() -> Result<Vec<u8>> {
    file(
        &DynamicImage::ImageRgba8(RgbaImage::from_fn(24, 16, |x, y| {
            image::Rgba([x as u8, y as u8, 9, (x * 10) as u8])
        })),
        ImageFormat::Png,
    )
}

/// An animated PNG: what marks it as one is a chunk that other readers skip.
///
/// # Errors
/// Never.
pub fn png_animated() -> Result<Vec<u8>> {
    let mut bytes = png(24, 16, 1)?;
    let chunk = png_chunk(*b"acTL", &[0, 0, 0, 1, 0, 0, 0, 0]);
    bytes.splice(33..33, chunk);
    Ok(bytes)
}

/// A small PNG whose header claims other sides, with the right checksum: a bomb if it is believed.
///
/// # Errors
/// Never.
pub fn png_claiming(width: u32, height: u32) -> Result<Vec<u8>> {
    let mut bytes = png(8, 8, 1)?;
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let checksum = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
    Ok(bytes)
}

/// Black pixels, 45 million of them: few bytes that unpack to many.
fn png_black() -> Result<Vec<u8>> {
    file(&DynamicImage::ImageLuma8(GrayImage::new(9000, 5000)), ImageFormat::Png)
}

/// A PNG whose header says 10x10 and whose compressed data hold 45 MB.
///
/// # Errors
/// Never.
pub fn png_overfull() -> Result<Vec<u8>> {
    let mut bytes = png_black()?;
    bytes[16..20].copy_from_slice(&10_u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&10_u32.to_be_bytes());
    let checksum = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
    Ok(bytes)
}

/// A small PNG with a compressed text chunk that unpacks to 45 MB.
///
/// # Errors
/// Never.
pub fn png_text_bomb() -> Result<Vec<u8>> {
    let black = png_black()?;
    let mut text = b"Comment\0\0".to_vec();
    let mut rest = &black[8..];
    while let [a, b, c, d, kind @ ..] = rest {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        if kind.starts_with(b"IDAT") {
            text.extend(&kind[4..4 + length]);
        }
        rest = &rest[length + 12..];
    }
    let mut bytes = png(24, 16, 1)?;
    bytes.splice(33..33, png_chunk(*b"zTXt", &text));
    Ok(bytes)
}

/// A BMP whose header claims other sides.
///
/// # Errors
/// Never.
pub fn bmp_claiming(width: i32, height: i32) -> Result<Vec<u8>> {
    let mut bytes = file(&picture(8, 8, 1), ImageFormat::Bmp)?;
    bytes[18..22].copy_from_slice(&width.to_le_bytes());
    bytes[22..26].copy_from_slice(&height.to_le_bytes());
    Ok(bytes)
}

/// A GIF whose screen claims other sides.
///
/// # Errors
/// Never.
pub fn gif_claiming(width: u16, height: u16) -> Result<Vec<u8>> {
    let mut bytes = gif(1)?;
    bytes[6..8].copy_from_slice(&width.to_le_bytes());
    bytes[8..10].copy_from_slice(&height.to_le_bytes());
    Ok(bytes)
}

/// A JPEG whose frame header claims other sides.
///
/// # Errors
/// It has no frame header.
pub fn jpeg_claiming(width: u16, height: u16) -> Result<Vec<u8>> {
    let mut bytes = jpeg()?;
    let frame = bytes.windows(2).position(|pair| pair == [0xff, 0xc0]).context("no frame header")?;
    bytes[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
    bytes[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
    Ok(bytes)
}

/// A WebP (lossless) whose header claims other sides.
///
/// # Errors
/// Never.
pub fn webp_claiming(width: u32, height: u32) -> Result<Vec<u8>> {
    let mut bytes = file(&picture(8, 8, 1), ImageFormat::WebP)?;
    // RIFF size WEBP VP8L size 0x2f, then 14 bits of width - 1 and 14 bits of height - 1.
    let alpha_and_version = bytes[24] & 0xf0;
    let packed = (width - 1) | ((height - 1) << 14);
    bytes[21..25].copy_from_slice(&packed.to_le_bytes());
    bytes[24] = (bytes[24] & 0x0f) | alpha_and_version;
    Ok(bytes)
}

/// A GIF with so many frames.
///
/// # Errors
/// Never.
pub fn gif(frames: u32) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new(&mut bytes);
    for seed in 0..frames {
        encoder.encode_frame(Frame::new(picture(16, 16, seed).to_rgba8()))?;
    }
    drop(encoder);
    Ok(bytes)
}

/// An animated WebP with two frames.
///
/// # Errors
/// Never.
pub fn webp_animated() -> Result<Vec<u8>> {
    let mut body = b"WEBP".to_vec();
    // Canvas: the animation flag, then 24 bits each of width - 1 and height - 1.
    body.extend(riff_chunk(*b"VP8X", &[0b10, 0, 0, 0, 15, 0, 0, 15, 0, 0]));
    body.extend(riff_chunk(*b"ANIM", &[0, 0, 0, 0, 0, 0]));
    for seed in 0..2 {
        let still = file(&picture(16, 16, seed), ImageFormat::WebP)?;
        let mut frame = vec![0, 0, 0, 0, 0, 0, 15, 0, 0, 15, 0, 0, 100, 0, 0, 0];
        frame.extend(&still[12..]);
        body.extend(riff_chunk(*b"ANMF", &frame));
    }
    Ok(riff_chunk(*b"RIFF", &body))
}

/// A JPEG.
///
/// # Errors
/// Never.
pub fn jpeg() -> Result<Vec<u8>> {
    file(&picture(24, 16, 1), ImageFormat::Jpeg)
}

/// A JPEG with four ink channels instead of three colours.
///
/// # Errors
/// Never.
pub fn jpeg_cmyk() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let ink: Vec<u8> = (0..24_u32 * 16 * 4).map(|at| (at * 7) as u8).collect();
    jpeg_encoder::Encoder::new(&mut bytes, 90).encode(&ink, 24, 16, jpeg_encoder::ColorType::Cmyk)?;
    Ok(bytes)
}

fn png_chunk(kind: [u8; 4], data: &[u8]) -> Vec<u8> {
    let mut chunk = (data.len() as u32).to_be_bytes().to_vec();
    chunk.extend(kind);
    chunk.extend(data);
    let checksum = crc32(&chunk[4..]);
    chunk.extend(checksum.to_be_bytes());
    chunk
}

fn riff_chunk(kind: [u8; 4], data: &[u8]) -> Vec<u8> {
    let mut chunk = kind.to_vec();
    chunk.extend((data.len() as u32).to_le_bytes());
    chunk.extend(data);
    if data.len() % 2 == 1 {
        chunk.push(0);
    }
    chunk
}

/// PNG's checksum, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| if sum & 1 == 1 { (sum >> 1) ^ 0xedb8_8320 } else { sum >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant_to_be_readable_is() -> Result<()> {
        for bytes in [
            png(1, 1, 0)?,
            png_16_bit()?,
            png_grey()?,
            png_transparent()?,
            png_animated()?,
            gif(3)?,
            webp_animated()?,
            jpeg_cmyk()?,
        ] {
            image::load_from_memory(&bytes)?;
        }
        Ok(())
    }

    #[test]
    fn claimed_sides_are_what_a_reader_sees() -> Result<()> {
        for bytes in [png_claiming(60_000, 50_000)?, bmp_claiming(60_000, 50_000)?, jpeg_claiming(60_000, 50_000)?] {
            let reader = image::ImageReader::new(Cursor::new(&bytes)).with_guessed_format()?;
            assert_eq!(reader.into_dimensions()?, (60_000, 50_000));
        }
        let reader = image::ImageReader::new(Cursor::new(webp_claiming(16_000, 15_000)?)).with_guessed_format()?;
        assert_eq!(reader.into_dimensions()?, (16_000, 15_000));
        Ok(())
    }
}
