//! Images for tests, good and hostile, made byte by byte where encoders would refuse.

use std::io::Cursor;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use image::codecs::gif::GifEncoder;
use image::{DynamicImage, Frame, GrayImage, ImageFormat, Rgba, RgbaImage};

/// `data:…;base64,…`.
pub(super) fn data_url(media_type: &str, bytes: &[u8]) -> String {
    format!("data:{media_type};base64,{}", BASE64_STANDARD.encode(bytes))
}

/// As the `image` crate writes it.
pub(super) fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A chunk of a PNG.
pub(super) fn chunk(kind: [u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [&kind, data].concat();
    let crc = !body.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    });
    let length = (data.len() as u32).to_be_bytes();
    [&length, body.as_slice(), &crc.to_be_bytes()].concat()
}

/// A PNG of a header (colour type as in the specification: 0 grey, 2 RGB, 3 palette, 6 RGBA), further chunks, and data.
pub(super) fn png(width: u32, height: u32, depth: u8, colour: u8, chunks: &[u8], zlib: &[u8]) -> Vec<u8> {
    let [width, height] = [width, height].map(u32::to_be_bytes);
    let header = [&width, &height, [depth, colour, 0, 0].as_slice(), &[0]].concat();
    [b"\x89PNG\r\n\x1a\n".as_slice(), &chunk(*b"IHDR", &header), chunks, &chunk(*b"IDAT", zlib), &chunk(*b"IEND", &[])]
        .concat()
}

/// A zlib stream that holds its few bytes as they are.
pub(super) fn stored_zlib(data: &[u8]) -> Vec<u8> {
    let length = data.len() as u16;
    let (low, high) = data.iter().fold((1_u32, 0_u32), |(low, high), byte| {
        let low = (low + u32::from(*byte)) % 65_521;
        (low, (high + low) % 65_521)
    });
    [
        [0x78, 0x01, 1].as_slice(),
        &length.to_le_bytes(),
        &(!length).to_le_bytes(),
        data,
        &(high << 16 | low).to_be_bytes(),
    ]
    .concat()
}

/// Little zlib data that inflate to 48 MB of zeros.
pub(super) fn zlib_bomb() -> Vec<u8> {
    let png = encode(&GrayImage::new(16_000, 3000).into(), ImageFormat::Png);
    let mut rest = &png[8..];
    let mut zlib = Vec::new();
    while rest.len() >= 12 {
        let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
        if &rest[4..8] == b"IDAT" {
            zlib.extend_from_slice(&rest[8..8 + length]);
        }
        rest = &rest[12 + length..];
    }
    zlib
}

/// A baseline JPEG of 8 x 8 pixels of one colour, one value for each component, with an Adobe segment that says what the
/// components are (0: RGB or CMYK, 1: YCbCr, 2: YCCK).
pub(super) fn flat_jpeg(components: &[u8], adobe: Option<u8>) -> Vec<u8> {
    jpeg(components, adobe, 8, 8)
}

/// A grey JPEG whose header claims a size that its data do not have.
pub(super) fn jpeg_of_size(width: u16, height: u16) -> Vec<u8> {
    jpeg(&[128], None, width, height)
}

fn jpeg(components: &[u8], adobe: Option<u8>, width: u16, height: u16) -> Vec<u8> {
    let segment = |marker: u8, data: &[u8]| {
        let length = (data.len() as u16 + 2).to_be_bytes();
        [[0xff, marker].as_slice(), &length, data].concat()
    };
    let count = components.len() as u8;
    let mut file = vec![0xff, 0xd8];
    if let Some(transform) = adobe {
        let data = [b"Adobe".as_slice(), &[0, 100, 0, 0, 0, 0, transform]].concat();
        file.extend(segment(0xee, &data));
    }
    // All coefficients are multiples of 8, so that a DC difference of 1 is one step of brightness.
    file.extend(segment(0xdb, &[[0].as_slice(), &[8; 64]].concat()));
    let [height, width] = [height, width].map(u16::to_be_bytes);
    let mut frame = [[8].as_slice(), &height, &width, &[count]].concat();
    frame.extend((1..=count).flat_map(|id| [id, 0x11, 0]));
    file.extend(segment(0xc0, &frame));
    // DC: nine categories, each a code of four bits. AC: the end of the block, one bit.
    let mut dc = vec![0x00];
    dc.extend([0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    dc.extend(0..9);
    file.extend(segment(0xc4, &dc));
    let ac = [0x10, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    file.extend(segment(0xc4, &ac));
    let mut scan = vec![count];
    scan.extend((1..=count).flat_map(|id| [id, 0]));
    scan.extend([0, 63, 0]);
    file.extend(segment(0xda, &scan));
    let mut bits = String::new();
    for value in components {
        let level = i32::from(*value) - 128;
        let category = (32 - level.unsigned_abs().leading_zeros()) as usize;
        bits += &format!("{category:04b}");
        if category > 0 {
            // Negative numbers are written less one, without their sign.
            let code = if level > 0 { level } else { level - 1 + (1 << category) };
            bits += &format!("{code:0category$b}");
        }
        bits.push('0');
    }
    while !bits.len().is_multiple_of(8) {
        bits.push('1');
    }
    for byte in bits.as_bytes().chunks(8) {
        let byte = byte.iter().fold(0, |byte, bit| byte << 1 | (bit - b'0'));
        file.push(byte);
        if byte == 0xff {
            file.push(0);
        }
    }
    file.extend([0xff, 0xd9]);
    file
}

/// The JPEG with an EXIF segment that holds an orientation and nothing else.
pub(super) fn with_exif(jpeg: &[u8], orientation: u16, big_endian: bool) -> Vec<u8> {
    let u16s = |values: &[u16]| -> Vec<u8> {
        let bytes = |value: &u16| match big_endian {
            true => value.to_be_bytes(),
            false => value.to_le_bytes(),
        };
        values.iter().flat_map(bytes).collect()
    };
    // One entry at offset 8: tag 0x0112, type SHORT, one value; no further directory. A 32-bit number is two 16-bit ones.
    let u32s = |value: u16| match big_endian {
        true => u16s(&[0, value]),
        false => u16s(&[value, 0]),
    };
    let tiff = [
        if big_endian { b"MM".as_slice() } else { b"II" },
        &u16s(&[42]),
        &u32s(8),
        &u16s(&[1, 0x0112, 3]),
        &u32s(1),
        &u16s(&[orientation, 0]),
        &u32s(0),
    ]
    .concat();
    let data = [b"Exif\0\0".as_slice(), &tiff].concat();
    let length = (data.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xff, 0xe1], &length, &data, &jpeg[2..]].concat()
}

/// The first frame is red, the others are blue.
pub(super) fn animated_gif(frames: usize, width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new(&mut bytes);
    for frame in 0..frames {
        let colour = if frame == 0 { [255, 0, 0, 255] } else { [0, 0, 255, 255] };
        let image = RgbaImage::from_pixel(width, height, Rgba(colour));
        encoder.encode_frame(Frame::new(image)).unwrap();
    }
    drop(encoder);
    bytes
}

/// One lossless frame of each colour.
pub(super) fn animated_webp(frames: &[[u8; 4]], width: u32, height: u32) -> Vec<u8> {
    let riff = |kind: &[u8; 4], data: &[u8]| {
        let mut chunk = [kind, (data.len() as u32).to_le_bytes().as_slice(), data].concat();
        chunk.resize(chunk.len() + data.len() % 2, 0);
        chunk
    };
    let three = |value: u32| value.to_le_bytes()[..3].to_vec();
    let size = [three(width - 1), three(height - 1)].concat();
    let mut body = b"WEBP".to_vec();
    body.extend(riff(b"VP8X", &[&[0b10, 0, 0, 0], size.as_slice()].concat()));
    body.extend(riff(b"ANIM", &[0; 6]));
    for colour in frames {
        let image = RgbaImage::from_pixel(width, height, Rgba(*colour)).into();
        let coded = encode(&image, ImageFormat::WebP);
        // Place, size, duration and flags, then the frame's own chunk.
        let header = [vec![0; 6], size.clone(), vec![100, 0, 0, 0]].concat();
        let vp8l = coded.windows(4).position(|kind| kind == b"VP8L").unwrap();
        body.extend(riff(b"ANMF", &[header, coded[vp8l..].to_vec()].concat()));
    }
    riff(b"RIFF", &body)
}

/// The headers of a BMP of 24 bits a pixel, and no pixels.
pub(super) fn bmp_header(width: i32, height: i32) -> Vec<u8> {
    let mut bytes = b"BM".to_vec();
    bytes.extend([0_u32, 0, 54, 40].iter().flat_map(|n| n.to_le_bytes()));
    bytes.extend([width, height].iter().flat_map(|n| n.to_le_bytes()));
    bytes.extend([1_u16, 24].iter().flat_map(|n| n.to_le_bytes()));
    bytes.resize(54, 0);
    bytes
}
