//! Decoding, format by format and trap by trap.

use super::super::fixtures;
use super::*;
use image::{GrayAlphaImage, GrayImage, ImageBuffer, ImageFormat, Luma, LumaA, Rgb, RgbImage, Rgba, RgbaImage};

fn decode(bytes: &[u8]) -> Result<RgbImage, ImageError> {
    let header = Header::read(bytes, &ImagesConfig::default())?;
    Ok(header.decode(bytes)?.into_rgb8())
}

fn only_pixel(bytes: &[u8]) -> [u8; 3] {
    let image = decode(bytes).unwrap();
    assert_eq!(image.dimensions(), (1, 1));
    image.get_pixel(0, 0).0
}

fn near(a: [u8; 3], b: [u8; 3]) -> bool {
    a.iter().zip(b).all(|(a, b)| a.abs_diff(b) <= 3)
}

#[test]
fn every_colour_type_becomes_rgb() {
    let grey16 = ImageBuffer::from_pixel(1, 1, Luma([0x8080_u16]));
    let rgb16 = ImageBuffer::from_pixel(1, 1, Rgb([0xffff_u16, 0x7f7f, 0]));
    let rgba16 = ImageBuffer::from_pixel(1, 1, Rgba([0_u16, 0, 0, 0x8080]));
    let cases: [(&str, DynamicImage, [u8; 3]); 8] = [
        ("grey", GrayImage::from_pixel(1, 1, Luma([77])).into(), [77; 3]),
        ("16-bit grey", grey16.into(), [128; 3]),
        ("half transparent grey", GrayAlphaImage::from_pixel(1, 1, LumaA([55, 128])).into(), [155; 3]),
        ("rgb", RgbImage::from_pixel(1, 1, Rgb([1, 2, 3])).into(), [1, 2, 3]),
        ("16-bit rgb", rgb16.into(), [255, 127, 0]),
        ("opaque", RgbaImage::from_pixel(1, 1, Rgba([9, 8, 7, 255])).into(), [9, 8, 7]),
        ("transparent", RgbaImage::from_pixel(1, 1, Rgba([9, 8, 7, 0])).into(), [255; 3]),
        ("16-bit half transparent", rgba16.into(), [127; 3]),
    ];
    for (name, image, pixel) in cases {
        let png = fixtures::encode(&image, ImageFormat::Png);
        assert_eq!(only_pixel(&png), pixel, "{name}");
    }
}

#[test]
fn palettes_and_single_bits_become_rgb() {
    // One pixel each, as the PNG specification writes them: filter byte, then the bits from the left.
    let palette = fixtures::chunk(*b"PLTE", &[1, 2, 3, 200, 100, 50]);
    let two_colours = fixtures::png(1, 1, 1, 3, &palette, &fixtures::stored_zlib(&[0, 0x80]));
    assert_eq!(only_pixel(&two_colours), [200, 100, 50]);
    let transparency = [palette, fixtures::chunk(*b"tRNS", &[255, 0])].concat();
    let hole = fixtures::png(1, 1, 1, 3, &transparency, &fixtures::stored_zlib(&[0, 0x80]));
    assert_eq!(only_pixel(&hole), [255; 3]);
    let one_bit = fixtures::png(1, 1, 1, 0, &[], &fixtures::stored_zlib(&[0, 0x80]));
    assert_eq!(only_pixel(&one_bit), [255; 3]);
}

#[test]
fn every_format_is_decoded() {
    let image = DynamicImage::from(RgbImage::from_pixel(33, 9, Rgb([200, 30, 60])));
    for (format, encoding) in [
        (Format::Jpeg, ImageFormat::Jpeg),
        (Format::Png, ImageFormat::Png),
        (Format::WebP, ImageFormat::WebP),
        (Format::Gif, ImageFormat::Gif),
        (Format::Bmp, ImageFormat::Bmp),
    ] {
        let bytes = fixtures::encode(&image, encoding);
        let header = Header::read(&bytes, &ImagesConfig::default()).unwrap();
        assert_eq!((header.format, header.width, header.height), (format, 33, 9));
        let pixel = decode(&bytes).unwrap().get_pixel(20, 4).0;
        assert!(near(pixel, [200, 30, 60]), "{format}: {pixel:?}");
    }
}

#[test]
fn jpegs_of_all_colour_models() {
    // Stored as Adobe does it: 255 is no ink. `[200, 100, 50]` under half black is `[100, 50, 25]`.
    let cases = [
        ("grey", [77].as_slice(), None, [77; 3]),
        ("YCbCr", &[128, 128, 128], None, [128; 3]),
        ("RGB", &[10, 20, 30], Some(0), [10, 20, 30]),
        ("CMYK", &[200, 100, 50, 128], Some(0), [100, 50, 25]),
        ("YCCK", &[155, 128, 128, 255], Some(2), [100; 3]),
    ];
    for (name, components, adobe, pixel) in cases {
        let image = decode(&fixtures::flat_jpeg(components, adobe)).unwrap();
        assert_eq!(image.dimensions(), (8, 8));
        let found = image.get_pixel(3, 3).0;
        assert!(near(found, pixel), "{name}: {found:?}");
    }
}

#[test]
fn animations_show_their_first_frame() {
    let gif = fixtures::animated_gif(3000, 4, 4);
    assert_eq!(decode(&gif).unwrap().get_pixel(1, 1).0, [255, 0, 0]);
    let webp = fixtures::animated_webp(&[[9, 8, 7, 255], [1, 1, 1, 255]], 6, 4);
    let image = decode(&webp).unwrap();
    assert_eq!(image.dimensions(), (6, 4));
    // Its decoder blends frames with a little less than full precision.
    assert!(near(image.get_pixel(5, 3).0, [9, 8, 7]));
}

#[test]
fn all_eight_orientations_are_turned_upright() {
    // Quarters as they are stored: red, green over blue, white. Where they belong follows from what EXIF says of
    // each value: on which visual side row 0 and column 0 lie.
    let [r, g, b, w] = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255; 3]];
    let stored = RgbImage::from_fn(64, 32, |x, y| Rgb([[r, g], [b, w]][usize::from(y >= 16)][usize::from(x >= 32)]));
    let jpeg = fixtures::encode(&stored.into(), ImageFormat::Jpeg);
    let upright = [
        [r, g, b, w],
        [g, r, w, b],
        [w, b, g, r],
        [b, w, r, g],
        [r, b, g, w],
        [b, r, w, g],
        [w, g, b, r],
        [g, w, r, b],
    ];
    for (orientation, expected) in (1..=8).zip(upright) {
        for big_endian in [true, false] {
            let image = decode(&fixtures::with_exif(&jpeg, orientation, big_endian)).unwrap();
            let (width, height) = image.dimensions();
            assert_eq!(width > height, orientation < 5, "{orientation}");
            let found = [(1, 1), (3, 1), (1, 3), (3, 3)].map(|(x, y)| image.get_pixel(width * x / 4, height * y / 4).0);
            for (found, expected) in found.into_iter().zip(expected) {
                assert!(near(found, expected), "{orientation}: {found:?}");
            }
        }
    }
    // Values that mean nothing, and metadata that break off.
    for orientation in [0, 9, 0xffff] {
        let image = decode(&fixtures::with_exif(&jpeg, orientation, true)).unwrap();
        assert_eq!(image.dimensions(), (64, 32), "{orientation}");
    }
}

#[test]
fn sizes_are_refused_by_the_header_alone() {
    let too_large = |bytes: &[u8]| {
        let error = Header::read(bytes, &ImagesConfig::default()).unwrap_err();
        assert!(matches!(error, ImageError::TooManyPixels { .. }), "{error}");
        error.to_string()
    };
    // No pixels follow any of these headers: what is read is the header.
    let message = too_large(&fixtures::png(60_000, 60_000, 8, 2, &[], &[]));
    assert!(message.contains("60000 x 60000") && message.contains("16384"), "{message}");
    too_large(&fixtures::png(20_000, 1, 8, 2, &[], &[]));
    too_large(&fixtures::png(1, 20_000, 8, 2, &[], &[]));
    too_large(&fixtures::png(10_000, 10_000, 8, 2, &[], &[]));
    too_large(&fixtures::png(u32::MAX >> 1, u32::MAX >> 1, 16, 6, &[], &[]));
    let mut gif = fixtures::animated_gif(1, 4, 4);
    gif[6..10].fill(0xff);
    too_large(&gif);
    too_large(&fixtures::jpeg_of_size(65_535, 65_535));
    too_large(&fixtures::bmp_header(60_000, 60_000));
    let image = RgbImage::new(20_000, 1).into();
    too_large(&fixtures::encode(&image, ImageFormat::Bmp));
}

#[test]
fn extreme_but_allowed_sizes_are_decoded() {
    for (width, height) in [(1, 1), (16_384, 1), (1, 16_384)] {
        let image = DynamicImage::from(RgbImage::new(width, height));
        for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::Jpeg] {
            let bytes = fixtures::encode(&image, format);
            assert_eq!(decode(&bytes).unwrap().dimensions(), (width, height));
        }
    }
}

#[test]
fn no_pixels_is_an_error() {
    for bytes in [
        fixtures::png(0, 1, 8, 2, &[], &fixtures::stored_zlib(&[])),
        b"GIF89a\0\0\0\0\0\0\0;".to_vec(),
        b"GIF89a\x01\0\x01\0\0\0\0;".to_vec(),
        fixtures::jpeg_of_size(0, 8),
    ] {
        let error = decode(&bytes).unwrap_err();
        assert_eq!(error.code(), "invalid_image", "{error}");
    }
}

#[test]
fn what_inflates_without_end_stops() {
    let zeros = fixtures::zlib_bomb();
    assert!(zeros.len() < 400_000);
    // As pixels of a small image: the surplus is never inflated into memory.
    let _ = decode(&fixtures::png(1, 1, 8, 2, &[], &zeros));
    // As a colour profile.
    let profile = [b"x\0\0".as_slice(), &zeros].concat();
    let profile = fixtures::chunk(*b"iCCP", &profile);
    let pixel = fixtures::stored_zlib(&[0, 5, 6, 7]);
    let _ = decode(&fixtures::png(1, 1, 8, 2, &profile, &pixel));
    // As a comment.
    let text = fixtures::chunk(*b"zTXt", &[b"x\0\0".as_slice(), &zeros].concat());
    assert_eq!(only_pixel(&fixtures::png(1, 1, 8, 2, &text, &pixel)), [5, 6, 7]);
}

#[test]
fn a_gif_frame_cannot_outgrow_its_screen_by_much() {
    // A screen of one pixel, a frame of 65535 x 65535.
    let gif = [
        b"GIF89a\x01\0\x01\0\x80\0\0".as_slice(),
        &[0, 0, 0, 255, 255, 255],
        b",\0\0\0\0\xff\xff\xff\xff\0",
        b"\x02\x02\x44\x01\0;",
    ];
    let error = decode(&gif.concat()).unwrap_err();
    assert_eq!(error.code(), "image_too_large", "{error}");
}

#[test]
fn no_part_of_an_image_is_an_image() {
    let image = RgbImage::from_fn(40, 30, |x, y| Rgb([(x * y) as u8, (x ^ y) as u8, (x * 7 + y) as u8]));
    let image = DynamicImage::from(image);
    for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp] {
        let bytes = fixtures::encode(&image, format);
        // Past the last pixel, formats have a few bytes that no decoder needs.
        let needed = bytes.len() - 24;
        for len in (0..needed).step_by(7).chain(needed - 1..needed) {
            let error = decode(&bytes[..len]).unwrap_err();
            let code = error.code();
            assert!(
                code == "invalid_image" || len < 19 && code == "unsupported_image_format",
                "{format:?}, {len} of {}: {error}",
                bytes.len()
            );
        }
    }
}
