//! Image files without what a camera or a program wrote into them: place, time, device, author, remarks.
//!
//! Pixels stay bit for bit. The one thing kept of EXIF is the orientation: without it the stored image would be another
//! one than the model saw. What lies behind the image goes, too: cameras put a second picture there, with EXIF of its own, or a film.
//! GIF and BMP have no place for EXIF and stay as they are.

use std::borrow::Cow;

use crate::images::Format;

/// EXIF with nothing but an orientation, 1 to 8, as TIFF: header, one directory with one entry (tag 0x112, one SHORT).
fn exif(orientation: u8) -> Vec<u8> {
    let mut tiff = b"II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    tiff.extend_from_slice(&[orientation, 0, 0, 0, 0, 0, 0, 0]);
    tiff
}

/// The orientation in EXIF, when it is not the usual one.
fn orientation(tiff: &[u8]) -> Option<u8> {
    image::metadata::Orientation::from_exif_chunk(tiff).map(|found| found.to_exif()).filter(|found| *found != 1)
}

/// An image file without its metadata; `None` where there was none, or where the file is not built as it should be.
pub(crate) fn without(bytes: &[u8], format: Format) -> Option<Vec<u8>> {
    match cleaned(bytes, format)? {
        Cow::Owned(cleaned) => Some(cleaned),
        Cow::Borrowed(_) => None,
    }
}

/// An image file without its metadata, borrowed where there was none; `None` where the file is so built that nobody knows what is in it.
pub(super) fn cleaned(bytes: &[u8], format: Format) -> Option<Cow<'_, [u8]>> {
    let cleaned = match format {
        Format::Jpeg => jpeg(bytes)?,
        Format::Png => png(bytes)?,
        Format::WebP => webp(bytes)?,
        Format::Gif | Format::Bmp => return Some(Cow::Borrowed(bytes)),
    };
    Some(if cleaned == bytes { Cow::Borrowed(bytes) } else { Cow::Owned(cleaned) })
}

/// Segments up to the end of the image: APP0 (JFIF), APP2 (colour profile) and APP14 (colour transform) change how pixels are read
/// and stay; the other APPs and comments go.
fn jpeg(bytes: &[u8]) -> Option<Vec<u8>> {
    const EXIF: &[u8] = b"Exif\0\0";
    let mut out = bytes.get(..2)?.to_vec();
    let mut at = 2;
    // Of the last Exif segment before the pixels, which is the one that decoders go by.
    let (mut turned, mut has_pixels) = (None, false);
    loop {
        // What is no marker is passed over, as decoders do.
        at += coded(bytes.get(at..)?);
        let marker = *bytes.get(at + 1)?;
        match marker {
            // Any number of fill bytes may precede a marker.
            0xff => {
                at += 1;
                continue;
            }
            0xd9 => {
                out.extend_from_slice(&[0xff, marker]);
                return Some(out);
            }
            _ => {}
        }
        let length = u16::from_be_bytes(bytes.get(at + 2..at + 4)?.try_into().ok()?);
        let mut end = at + 2 + usize::from(length);
        if marker == 0xda {
            if let Some(turned) = turned.take() {
                let body = [EXIF, &exif(turned)].concat();
                out.extend_from_slice(&[0xff, 0xe1]);
                out.extend_from_slice(&u16::try_from(body.len() + 2).ok()?.to_be_bytes());
                out.extend_from_slice(&body);
            }
            has_pixels = true;
            end += coded(bytes.get(end..)?);
        }
        let segment = bytes.get(at..end)?;
        match marker {
            0xe1 => {
                let tiff = segment.get(4..).and_then(|body| body.strip_prefix(EXIF));
                if let Some(tiff) = tiff.filter(|_| !has_pixels) {
                    turned = orientation(tiff);
                }
            }
            0xe3..=0xed | 0xef | 0xfe => {}
            _ => out.extend_from_slice(segment),
        }
        at = end;
    }
}

/// Bytes up to the next marker. Among the coded pixels of a scan, 0xff is followed by 0 or a restart marker.
fn coded(bytes: &[u8]) -> usize {
    let is_marker = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0x00 | 0xd0..=0xd7);
    bytes.windows(2).position(is_marker).unwrap_or(bytes.len())
}

/// Chunks: eXIf and the texts go, and the time of the last change. Decoders are done with the chunk of the pixels: behind it the file
/// can break off, and what is whole stays.
fn png(bytes: &[u8]) -> Option<Vec<u8>> {
    const IEND: &[u8] = b"\0\0\0\0IEND\xae\x42\x60\x82";
    let mut out = bytes.get(..8)?.to_vec();
    let (mut at, mut has_pixels) = (8, false);
    while let Some(chunk) = png_chunk(bytes, at) {
        match &chunk[4..8] {
            b"eXIf" => {
                if let Some(turned) = orientation(&chunk[8..chunk.len() - 4]) {
                    let body = [b"eXIf".as_slice(), &exif(turned)].concat();
                    out.extend_from_slice(&u32::try_from(body.len() - 4).ok()?.to_be_bytes());
                    out.extend_from_slice(&body);
                    out.extend_from_slice(&crc(&body).to_be_bytes());
                }
            }
            b"tEXt" | b"zTXt" | b"iTXt" | b"tIME" => {}
            b"IEND" => break,
            name => {
                has_pixels |= name == b"IDAT";
                out.extend_from_slice(chunk);
            }
        }
        at += chunk.len();
    }
    let breaks_off_in_pixels = bytes.get(at + 4..at + 8).is_some_and(|name| name == b"IDAT");
    if !has_pixels || breaks_off_in_pixels {
        return None;
    }
    out.extend_from_slice(IEND);
    Some(out)
}

/// The chunk that begins there, if the file has all of it: length, name, data, check value.
fn png_chunk(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let length = u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?);
    bytes.get(at..at.checked_add(12)?.checked_add(usize::try_from(length).ok()?)?)
}

/// CRC-32 as in PNG (ISO 3309), bit by bit: it is run over some thirty bytes.
fn crc(bytes: &[u8]) -> u32 {
    let step =
        |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)));
    !bytes.iter().fold(!0, step)
}

/// RIFF chunks: EXIF and XMP go, with their flags in VP8X, and what is no whole chunk.
fn webp(bytes: &[u8]) -> Option<Vec<u8>> {
    let size = usize::try_from(u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?)).ok()?;
    let bytes = bytes.get(..size.checked_add(8)?).unwrap_or(bytes);
    let mut out = bytes.get(..12)?.to_vec();
    let (mut at, mut flags, mut turned, mut has_pixels) = (12, None, None, false);
    while let Some(end) = riff_end(bytes, at) {
        // Chunks begin at even places; the last one's padding is sometimes left out.
        let padded = (end + (end - at) % 2).min(bytes.len());
        let chunk = &bytes[at..padded];
        match &chunk[..4] {
            b"EXIF" => {
                let body = &bytes[at + 8..end];
                turned = orientation(body.strip_prefix(b"Exif\0\0").unwrap_or(body));
            }
            b"XMP " => {}
            name => {
                if name == b"VP8X" {
                    flags = Some(out.len() + 8);
                }
                has_pixels |= matches!(name, b"VP8 " | b"VP8L" | b"ANMF");
                out.extend_from_slice(chunk);
            }
        }
        at = padded;
    }
    if !has_pixels {
        return None;
    }
    if let Some(flags) = flags.and_then(|flags| out.get_mut(flags)) {
        *flags &= !0b0000_1100;
        *flags |= if turned.is_some() { 0b0000_1000 } else { 0 };
    }
    if let Some(turned) = turned {
        if out.len() % 2 == 1 {
            out.push(0);
        }
        let tiff = exif(turned);
        out.extend_from_slice(b"EXIF");
        out.extend_from_slice(&u32::try_from(tiff.len()).ok()?.to_le_bytes());
        out.extend_from_slice(&tiff);
    }
    let riff = u32::try_from(out.len() - 8).ok()?;
    out[4..8].copy_from_slice(&riff.to_le_bytes());
    Some(out)
}

/// Where the chunk that begins there ends, without padding, if the file has all of it.
fn riff_end(bytes: &[u8], at: usize) -> Option<usize> {
    let length = u32::from_le_bytes(bytes.get(at + 4..at + 8)?.try_into().ok()?);
    let end = at.checked_add(8)?.checked_add(usize::try_from(length).ok()?)?;
    (end <= bytes.len()).then_some(end)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};

    use super::*;

    fn encoded(format: ImageFormat) -> Vec<u8> {
        let pixels = RgbImage::from_fn(8, 6, |x, y| image::Rgb([x as u8 * 30, y as u8 * 40, 90]));
        let mut out = Cursor::new(Vec::new());
        DynamicImage::ImageRgb8(pixels).write_to(&mut out, format).unwrap();
        out.into_inner()
    }

    /// EXIF with an orientation and a camera's name in a second directory entry.
    fn telling(turned: u8) -> Vec<u8> {
        let mut tiff = b"II\x2a\0\x08\0\0\0\x02\0\x0f\x01\x02\0\x04\0\0\0SPY\0\x12\x01\x03\0\x01\0\0\0".to_vec();
        tiff.extend_from_slice(&[turned, 0, 0, 0, 0, 0, 0, 0]);
        tiff
    }

    fn seen(bytes: &[u8]) -> (DynamicImage, u8) {
        let mut decoder = ImageReader::new(Cursor::new(bytes)).with_guessed_format().unwrap().into_decoder().unwrap();
        let turned = decoder.orientation().unwrap().to_exif();
        (DynamicImage::from_decoder(decoder).unwrap(), turned)
    }

    fn with_secret(format: Format, turned: u8) -> Vec<u8> {
        let tiff = telling(turned);
        match format {
            Format::Jpeg => {
                let plain = encoded(ImageFormat::Jpeg);
                let body = [b"Exif\0\0".as_slice(), &tiff].concat();
                let length = u16::try_from(body.len() + 2).unwrap().to_be_bytes();
                let comment = b"\xff\xfe\0\x05SPY";
                [&plain[..2], &[0xff, 0xe1], &length, &body, comment, &plain[2..]].concat()
            }
            Format::Png => {
                let plain = encoded(ImageFormat::Png);
                let chunk = |name: &[u8], body: &[u8]| {
                    let named = [name, body].concat();
                    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
                    [&length[..], &named, &crc(&named).to_be_bytes()].concat()
                };
                // Behind IHDR, which has 13 bytes.
                [&plain[..33], &chunk(b"eXIf", &tiff), &chunk(b"tEXt", b"Author\0SPY"), &plain[33..]].concat()
            }
            _ => {
                let plain = encoded(ImageFormat::WebP);
                let header = [b"VP8X\x0a\0\0\0\x0c\0\0\0".as_slice(), &[7, 0, 0, 5, 0, 0]].concat();
                let length = u32::try_from(tiff.len()).unwrap().to_le_bytes();
                let xmp = b"XMP \x04\0\0\0SPY ";
                let mut file = [&plain[..12], &header, &plain[12..], b"EXIF".as_slice(), &length, &tiff, xmp].concat();
                let riff = u32::try_from(file.len() - 8).unwrap().to_le_bytes();
                file[4..8].copy_from_slice(&riff);
                file
            }
        }
    }

    #[test]
    fn secrets_go_pixels_and_orientation_stay() {
        for format in [Format::Jpeg, Format::Png, Format::WebP] {
            for turned in [1, 6] {
                let telling = with_secret(format, turned);
                assert_eq!(seen(&telling).1, turned, "{format:?}: the test's own file");
                let clean = without(&telling, format).unwrap();
                assert!(!clean.windows(3).any(|three| three == b"SPY"), "{format:?}");
                assert_eq!(seen(&clean), seen(&telling), "{format:?}");
                assert_eq!(without(&clean, format), None, "{format:?}: nothing is left to take out");
            }
        }
    }

    #[test]
    fn of_two_exif_segments_the_one_counts_that_decoders_go_by() {
        for (first, second) in [(6, 1), (1, 6), (6, 3)] {
            let [first, second] = [first, second].map(|turned| with_secret(Format::Jpeg, turned));
            let comment = first.windows(2).position(|pair| pair == b"\xff\xfe").unwrap();
            let both = [&first[..comment], &second[2..comment], &first[comment..]].concat();
            let clean = without(&both, Format::Jpeg).unwrap();
            assert_eq!(seen(&clean), seen(&both));
            assert_eq!(Some(clean), without(&second, Format::Jpeg));
        }
    }

    #[test]
    fn what_lies_behind_the_image_goes() {
        for format in [Format::Jpeg, Format::Png, Format::WebP] {
            let telling = with_secret(format, 6);
            let second = with_secret(Format::Jpeg, 1);
            for behind in [b"SPY".as_slice(), b"\0", &second] {
                let file = [&telling[..], behind].concat();
                let clean = without(&file, format).unwrap();
                assert!(!clean.windows(3).any(|three| three == b"SPY"), "{format:?}");
                assert_eq!(seen(&clean), seen(&telling), "{format:?}");
                assert_eq!(Some(clean), without(&telling, format), "{format:?}");
            }
        }
    }

    /// Decoders read such files as if nothing were wrong.
    #[test]
    fn what_breaks_off_behind_the_pixels_hides_nothing() {
        let whole = with_secret(Format::Png, 6);
        // Within a text in the place of IEND, which has twelve bytes.
        let cut = [&whole[..whole.len() - 12], b"\0\0\0\x64tEXtAuthor\0SPY".as_slice()].concat();
        let clean = without(&cut, Format::Png).unwrap();
        assert_eq!(seen(&clean), seen(&cut));
        assert_eq!(Some(clean), without(&whole, Format::Png));

        let whole = with_secret(Format::WebP, 6);
        for stray in 1..=7 {
            let mut file = [&whole[..], &b"SPYSPYS"[..stray]].concat();
            let riff = u32::try_from(file.len() - 8).unwrap().to_le_bytes();
            file[4..8].copy_from_slice(&riff);
            let clean = without(&file, Format::WebP).unwrap();
            assert_eq!(seen(&clean), seen(&file), "{stray}");
            assert_eq!(Some(clean), without(&whole, Format::WebP), "{stray}");
        }
    }

    #[test]
    fn what_has_no_whole_pixels_is_of_no_use() {
        let png = with_secret(Format::Png, 6);
        let pixels = png.windows(4).position(|name| name == b"IDAT").unwrap();
        let webp = with_secret(Format::WebP, 6);
        let frame = webp.windows(4).position(|name| name == b"VP8L").unwrap();
        let jpeg = with_secret(Format::Jpeg, 6);
        for (file, format) in [
            (&png[..40], Format::Png),
            (&png[..pixels + 6], Format::Png),
            (&webp[..frame], Format::WebP),
            (&webp[..frame + 10], Format::WebP),
            (&jpeg[..40], Format::Jpeg),
        ] {
            assert_eq!(cleaned(file, format), None, "{format:?}, {} bytes", file.len());
        }
        let plain = encoded(ImageFormat::Png);
        assert!(matches!(cleaned(&plain, Format::Png), Some(Cow::Borrowed(_))));
    }

    #[test]
    fn fill_bytes_before_a_marker_are_no_marker() {
        let telling = with_secret(Format::Jpeg, 6);
        // The second marker is that of EXIF, the third that of the comment.
        let comment = telling.windows(2).position(|pair| pair == b"\xff\xfe").unwrap();
        let fill = [0xff; 3];
        let filled = [&telling[..2], &fill, &telling[2..comment], &fill, &telling[comment..]].concat();
        assert_eq!(without(&filled, Format::Jpeg), without(&telling, Format::Jpeg));
    }

    #[test]
    fn what_stands_between_scans_goes_and_coded_pixels_stay() {
        let scan = b"\xff\xda\0\x04\x01\0coded\xff\0\xff\xd3\xff\0on".as_slice();
        let secret = b"\xff\xff\xfe\0\x05SPY".as_slice();
        let file = |between: &[u8]| [b"\xff\xd8".as_slice(), scan, between, scan, b"\xff\xd9"].concat();
        assert_eq!(without(&file(secret), Format::Jpeg), Some(file(b"")));
        assert_eq!(without(&file(b""), Format::Jpeg), None);
    }

    #[test]
    fn files_cut_anywhere_are_survived() {
        for format in [Format::Jpeg, Format::Png, Format::WebP] {
            let whole = with_secret(format, 6);
            for end in 0..whole.len() {
                let _ = without(&whole[..end], format);
            }
        }
    }
}
