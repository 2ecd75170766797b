//! Which formats are taken, and how they are told apart.

use std::fmt;

use super::error::{ImageError, excerpt};

/// The formats that are taken, for messages.
pub(super) const ALLOWED: &str = "JPEG, PNG, WebP, GIF (its first frame) and BMP";

/// A format that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Baseline and progressive; grey, colour, CMYK.
    Jpeg,
    /// All colour types and depths; of an animation, the default image.
    Png,
    /// Lossy and lossless; of an animation, the first frame.
    WebP,
    /// The first frame.
    Gif,
    /// Windows bitmaps.
    Bmp,
}

impl Format {
    /// Its usual name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
        }
    }

    /// Its registered media type.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
            Self::WebP => "image/webp",
            Self::Gif => "image/gif",
            Self::Bmp => "image/bmp",
        }
    }

    /// The format of a media type without parameters, by its registered or a common older name, in any case.
    pub(super) fn of_media_type(media_type: &str) -> Result<Self, ImageError> {
        match media_type.to_ascii_lowercase().as_str() {
            "image/jpeg" | "image/jpg" | "image/pjpeg" => Ok(Self::Jpeg),
            "image/png" | "image/x-png" | "image/apng" => Ok(Self::Png),
            "image/webp" => Ok(Self::WebP),
            "image/gif" => Ok(Self::Gif),
            "image/bmp" | "image/x-bmp" | "image/x-ms-bmp" => Ok(Self::Bmp),
            _ => Err(ImageError::UnsupportedMediaType { media_type: excerpt(media_type) }),
        }
    }

    /// The format of an encoded image, by its first bytes.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Result<Self, ImageError> {
        let starts = |magic: &[u8]| bytes.starts_with(magic);
        if starts(b"\xff\xd8\xff") {
            Ok(Self::Jpeg)
        } else if starts(b"\x89PNG\r\n\x1a\n") {
            Ok(Self::Png)
        } else if starts(b"RIFF") && at(bytes, 8, b"WEBP") {
            Ok(Self::WebP)
        } else if starts(b"GIF87a") || starts(b"GIF89a") {
            Ok(Self::Gif)
        } else if starts(b"BM") && has_bitmap_header(bytes) {
            Ok(Self::Bmp)
        } else {
            Err(ImageError::UnsupportedFormat { found: foreign(bytes) })
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn at(bytes: &[u8], offset: usize, magic: &[u8]) -> bool {
    bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic))
}

/// "BM" alone begins many a text; a bitmap also has one of the known header sizes.
fn has_bitmap_header(bytes: &[u8]) -> bool {
    bytes.get(14..18).is_some_and(|size| matches!(size, [12 | 16 | 40 | 52 | 56 | 64 | 108 | 124, 0, 0, 0]))
}

/// What data are that are none of the five.
fn foreign(bytes: &[u8]) -> &'static str {
    /// Offset, first bytes, name.
    const KNOWN: &[(usize, &[u8], &str)] = &[
        (4, b"ftypavi", "AVIF"),
        (4, b"ftypheic", "HEIC"),
        (4, b"ftypheix", "HEIC"),
        (4, b"ftyphei", "HEIF"),
        (4, b"ftyphev", "HEIF"),
        (4, b"ftypmif1", "HEIF"),
        (4, b"ftypmsf1", "HEIF"),
        (4, b"ftyp", "a video or audio file (MP4)"),
        (0, b"II*\0", "TIFF"),
        (0, b"MM\0*", "TIFF"),
        (0, b"II+\0", "TIFF"),
        (0, b"MM\0+", "TIFF"),
        (0, b"%PDF", "a PDF document"),
        (0, b"8BPS", "a Photoshop document"),
        (0, b"\xff\x0a", "JPEG XL"),
        (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
        (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
        (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
        (0, b"\0\0\x01\0", "ICO"),
        (0, b"qoif", "QOI"),
        (0, b"\x76\x2f\x31\x01", "OpenEXR"),
        (0, b"#?RADIANCE", "Radiance HDR"),
        (0, b"DDS ", "DDS"),
        (0, b"farbfeld", "farbfeld"),
        (0, b"\x8aMNG", "MNG"),
        (0, b"P1", "a Netpbm image"),
        (0, b"P2", "a Netpbm image"),
        (0, b"P3", "a Netpbm image"),
        (0, b"P4", "a Netpbm image"),
        (0, b"P5", "a Netpbm image"),
        (0, b"P6", "a Netpbm image"),
        (0, b"P7", "a Netpbm image"),
        (0, b"PK\x03\x04", "a ZIP archive"),
        (0, b"\x1f\x8b", "gzip-compressed data"),
        (0, b"\x1a\x45\xdf\xa3", "a video or audio file (Matroska)"),
        (8, b"AVI ", "a video or audio file (AVI)"),
    ];
    if bytes.is_empty() {
        return "empty";
    }
    KNOWN.iter().find(|(offset, magic, _)| at(bytes, *offset, magic)).map_or_else(|| text(bytes), |(_, _, name)| name)
}

/// What data are that look like text.
fn text(bytes: &[u8]) -> &'static str {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let start = bytes.trim_ascii_start();
    let start = &start[..start.len().min(1024)];
    let head = String::from_utf8_lossy(start).to_ascii_lowercase();
    let markup = head.starts_with("<?xml") || head.starts_with("<!");
    if head.starts_with("<svg") || markup && head.contains("<svg") {
        "SVG"
    } else if head.starts_with("<html") || head.starts_with("<!doctype html") {
        "an HTML page"
    } else if head.starts_with("data:") {
        "another data URL, not an image"
    } else if std::str::from_utf8(start).is_ok() {
        "text, not an image"
    } else {
        "of an unknown format"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_five_formats_are_told_by_their_first_bytes() {
        let bitmap = [b"BM".as_slice(), &[0; 12], &[40, 0, 0, 0]].concat();
        let cases: &[(&[u8], Format)] = &[
            (b"\xff\xd8\xff\xe0", Format::Jpeg),
            (b"\x89PNG\r\n\x1a\n", Format::Png),
            (b"RIFF\0\0\0\0WEBPVP8 ", Format::WebP),
            (b"GIF87a", Format::Gif),
            (b"GIF89a", Format::Gif),
            (&bitmap, Format::Bmp),
        ];
        for (bytes, format) in cases {
            assert_eq!(Format::of_bytes(bytes), Ok(*format), "{format}");
        }
    }

    #[test]
    fn what_is_not_taken_is_named() {
        let cases: &[(&[u8], &str)] = &[
            (b"", "empty"),
            (b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", "SVG"),
            (b"\xef\xbb\xbf\n <?xml version=\"1.0\"?>\n<SVG/>", "SVG"),
            (b"<!DOCTYPE svg PUBLIC \"x\"><svg/>", "SVG"),
            (b"<!doctype html><p>", "an HTML page"),
            (b"\0\0\0\x20ftypavif", "AVIF"),
            (b"\0\0\0\x20ftypavis", "AVIF"),
            (b"\0\0\0\x20ftypheic", "HEIC"),
            (b"\0\0\0\x20ftypmif1", "HEIF"),
            (b"\0\0\0\x20ftypisom", "a video or audio file (MP4)"),
            (b"II*\0\x08\0\0\0", "TIFF"),
            (b"MM\0*\0\0\0\x08", "TIFF"),
            (b"%PDF-1.7", "a PDF document"),
            (b"\0\0\x01\0\x01\0", "ICO"),
            (b"RIFF\0\0\0\0AVI LIST", "a video or audio file (AVI)"),
            (b"\x1f\x8b\x08", "gzip-compressed data"),
            (b"P6 1 1 255 abc", "a Netpbm image"),
            (b"data:image/png;base64,AAAA", "another data URL, not an image"),
            (b"BMW, a car", "text, not an image"),
            (b"RIFF\0\0\0\0", "text, not an image"),
            (b"\x89PN", "of an unknown format"),
            (b"\xff\xd8", "of an unknown format"),
            (&[0xfe; 100], "of an unknown format"),
        ];
        for (bytes, name) in cases {
            assert_eq!(
                Format::of_bytes(bytes),
                Err(ImageError::UnsupportedFormat { found: name }),
                "{}",
                String::from_utf8_lossy(bytes)
            );
        }
    }

    #[test]
    fn media_types_have_older_names() {
        for (name, format) in [
            ("image/jpg", Some(Format::Jpeg)),
            ("IMAGE/JPEG", Some(Format::Jpeg)),
            ("image/x-ms-bmp", Some(Format::Bmp)),
            ("image/svg+xml", None),
            ("image/*", None),
            ("text/plain", None),
            ("", None),
        ] {
            assert_eq!(Format::of_media_type(name).ok(), format, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_name_or_a_format(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Format::of_bytes(&bytes);
        }
    }
}
