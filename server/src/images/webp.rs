//! What the WebP decoder does not check: that chunks lie within the file, and frames within the canvas.
//!
//! It reserves what a chunk claims as its length, and decodes a frame before it compares its size to the canvas's; the
//! limits that the canvas passed must hold for both.

/// Bytes before the first frame's own chunk in an `ANMF` chunk: place, size, duration, flags.
const ANIMATION_FRAME_HEADER: usize = 16;

/// Walks over the chunks of a WebP file whose canvas is `width` x `height`.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn check(bytes: &[u8], width: u32, height: u32) -> Result<(), &'static str> {
    let size = le_u32(bytes, 4).ok_or(TOO_SHORT)?;
    let file = bytes.get(12..size.saturating_add(8)).ok_or(TOO_SHORT)?;
    for chunk in chunks(file) {
        let (kind, data) = chunk?;
        let frame = match kind {
            b"ANMF" => chunks(data.get(ANIMATION_FRAME_HEADER..).ok_or(TOO_SHORT)?)
                .filter_map(Result::ok)
                .find_map(|(kind, data)| frame_size(kind, data)),
            kind => frame_size(kind, data),
        };
        if frame.is_some_and(|(w, h)| w > width || h > height) {
            return Err("a frame is larger than the canvas");
        }
    }
    Ok(())
}

const TOO_SHORT: &str = "it ends too early";

type Chunk<'a> = (&'a [u8], &'a [u8]);

/// Kinds and contents. Fewer bytes than a chunk header at the end are ignored, as decoders do.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = Result<Chunk<'_>, &'static str>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let kind = rest.get(..4)?;
        let size = le_u32(rest, 4)?;
        let end = size.saturating_add(8);
        let Some(data) = rest.get(8..end) else {
            rest = &[];
            return Some(Err(TOO_SHORT));
        };
        // Chunks are padded to an even length.
        rest = rest.get(end + size % 2..).unwrap_or_default();
        Some(Ok((kind, data)))
    })
}

/// Width and height of a coded frame.
fn frame_size(kind: &[u8], data: &[u8]) -> Option<(u32, u32)> {
    match kind {
        // RFC 6386, 9.1: three bytes of tag, three of start code, then 14 bits each.
        b"VP8 " => Some((u32::from(le_u16(data, 6)? & 0x3fff), u32::from(le_u16(data, 8)? & 0x3fff))),
        // RFC 9649, 3.4: a signature byte, then 14 bits each, less one.
        b"VP8L" => {
            let bits = u32::from_le_bytes(data.get(1..5)?.try_into().ok()?);
            Some(((bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1))
        }
        _ => None,
    }
}

fn le_u16(bytes: &[u8], offset: usize) -> Option<u16> {
    let bytes = bytes.get(offset..offset + 2)?;
    Some(u16::from_le_bytes(bytes.try_into().ok()?))
}

fn le_u32(bytes: &[u8], offset: usize) -> Option<usize> {
    let bytes = bytes.get(offset..offset + 4)?;
    usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;
    use image::{DynamicImage, ImageFormat, RgbImage};
    use proptest::prelude::*;

    #[test]
    fn a_whole_file_passes_and_no_part_of_it() {
        let image = DynamicImage::from(RgbImage::new(7, 5));
        for webp in [
            fixtures::encode(&image, ImageFormat::WebP),
            fixtures::animated_webp(&[[1, 2, 3, 255], [4, 5, 6, 255]], 7, 5),
        ] {
            assert_eq!(check(&webp, 7, 5), Ok(()));
            for len in 0..webp.len() {
                assert_eq!(check(&webp[..len], 7, 5), Err(TOO_SHORT), "{len}");
            }
            assert!(check(&webp, 6, 5).is_err());
            assert!(check(&webp, 7, 4).is_err());
        }
    }

    #[test]
    fn a_chunk_cannot_claim_more_than_there_is() {
        let file = [b"RIFF\x14\0\0\0WEBPEXIF".as_slice(), &[0xff, 0xff, 0xff, 0xff], b"12345678"];
        assert_eq!(check(&file.concat(), 1, 1), Err(TOO_SHORT));
    }

    #[test]
    fn a_lossy_frame_has_its_size_in_its_header() {
        let frame = [0, 0, 0, 0x9d, 0x01, 0x2a, 0xff, 0x3f, 0x10, 0];
        assert_eq!(frame_size(b"VP8 ", &frame), Some((16_383, 16)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked(bytes in proptest::collection::vec(any::<u8>(), 0..100), size in 0u8..100) {
            let file = [b"RIFF".as_slice(), &[size, 0, 0, 0], b"WEBP", &bytes].concat();
            let _ = check(&file, 100, 100);
        }
    }
}
