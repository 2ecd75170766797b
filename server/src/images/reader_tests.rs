//! Images as requests bring them, good and hostile, through the whole reader.

use std::io;
use std::net::IpAddr;

use futures::FutureExt;
use futures::future::BoxFuture;
use image::{GrayImage, ImageFormat, Rgb, RgbImage};
use proptest::prelude::*;

use super::super::fixtures::{self, data_url};
use super::super::network::{Hop, Reply, TransportError};
use super::*;

/// A network on which every name is public and every page is one picture.
struct Gallery(Bytes);

impl Resolver for Gallery {
    fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        async { Ok(vec![IpAddr::from([8, 8, 8, 8])]) }.boxed()
    }
}

impl Transport for Gallery {
    fn get<'a>(&'a self, _: &'a Hop) -> BoxFuture<'a, Result<Reply, TransportError>> {
        let body = stream::iter([Ok(self.0.clone())]).boxed();
        async { Ok(Reply { status: 200, location: None, content_type: None, length: None, body }) }.boxed()
    }
}

fn gallery(config: &ImagesConfig, picture: Vec<u8>) -> ImageReader {
    let gallery = Arc::new(Gallery(picture.into()));
    ImageReader::with_network(config, gallery.clone(), gallery)
}

async fn read_all(reader: &ImageReader, urls: &[String]) -> Result<Vec<ReadImage>, FailedImage> {
    reader.read_all(&"ann".into(), urls).await
}

fn picture(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
    let image = RgbImage::from_fn(width, height, |x, y| Rgb([(x * 3) as u8, (y * 5) as u8, (x ^ y) as u8]));
    fixtures::encode(&image.into(), format)
}

#[tokio::test]
async fn an_image_comes_with_what_was_received() {
    let reader = ImageReader::new(&ImagesConfig::default());
    let png = picture(5, 3, ImageFormat::Png);
    let read = reader.read(&data_url("image/png", &png)).await.unwrap();
    assert_eq!(read.bytes, png);
    assert_eq!(read.digest, blake3::hash(&png).to_hex().as_str());
    assert_eq!(read.format, Format::Png);
    assert_eq!((read.image.width(), read.image.height()), (5, 3));
    assert!(read.image.as_rgb8().is_some());
    let shown = format!("{read:?}");
    assert!(shown.len() < 250 && shown.contains("width: 5"), "{shown}");
}

#[tokio::test]
async fn hostile_images_are_refused_by_name() {
    let reader = ImageReader::new(&ImagesConfig {
        max_bytes: 500_000,
        max_side: 4096,
        max_pixels: 1_000_000,
        ..ImagesConfig::default()
    });
    let png = picture(4, 4, ImageFormat::Png);
    let jpeg = picture(4, 4, ImageFormat::Jpeg);
    let svg = b"<svg xmlns='http://www.w3.org/2000/svg'/>";
    let inner = data_url("image/png", &png);
    let long = GrayImage::new(4097, 1).into();
    let square = GrayImage::new(1001, 1000).into();
    let cases: Vec<(&str, String, &str, &str)> = vec![
        ("empty", String::new(), "invalid_image_url", "no scheme"),
        ("space", " ".into(), "invalid_image_url", "no scheme"),
        ("bare base64", inner[22..].into(), "invalid_image_url", "no scheme"),
        ("path", "/etc/passwd".into(), "invalid_image_url", "no scheme"),
        ("file", "file:///etc/passwd".into(), "invalid_image_url", "`file`"),
        ("blob", "blob:https://a/b".into(), "invalid_image_url", "`blob`"),
        ("http", "http://127.0.0.1/".into(), "image_url_not_allowed", "http "),
        ("HTTPS", "HTTPS://a/".into(), "image_url_not_allowed", "https "),
        ("no data", "data:image/png;base64,".into(), "invalid_image_url", "no data"),
        ("bad base64", "data:image/png;base64,€".into(), "invalid_image_url", "base64"),
        ("nested", format!("data:image/png;base64,{inner}"), "invalid_image_url", "another"),
        ("nested and encoded", data_url("image/png", inner.as_bytes()), "unsupported_image_format", "another data URL"),
        ("wrong type", data_url("image/png", &jpeg), "image_media_type_mismatch", "the data are JPEG"),
        ("svg", data_url("image/svg+xml", svg), "unsupported_image_format", "svg"),
        ("disguised svg", data_url("image/png", svg), "unsupported_image_format", "SVG"),
        ("tiff", data_url("image/png", b"II*\0\x08\0\0\0"), "unsupported_image_format", "JPEG, PNG, WebP, GIF"),
        ("pdf", data_url("application/pdf", b"%PDF"), "unsupported_image_format", "pdf"),
        ("text", data_url("image/gif", b"hello"), "unsupported_image_format", "text"),
        ("half", data_url("image/png", &png[..40]), "invalid_image", "PNG"),
        ("half", data_url("image/jpeg", &jpeg[..400]), "invalid_image", "too early"),
        (
            "bomb",
            data_url("image/png", &fixtures::png(60_000, 60_000, 8, 2, &[], &[])),
            "image_too_large",
            "60000 x 60000",
        ),
        ("long", data_url("image/png", &fixtures::encode(&long, ImageFormat::Png)), "image_too_large", "4096"),
        ("large", data_url("image/png", &fixtures::encode(&square, ImageFormat::Png)), "image_too_large", "1000000"),
        ("heavy", data_url("image/png", &[0; 500_001]), "image_too_large", "500000 bytes"),
        ("heavier", data_url("image/png", &[0; 600_000]), "image_too_large", "500000 bytes"),
    ];
    for (name, url, code, wanted) in cases {
        let error = reader.read(&url).await.unwrap_err();
        let message = error.to_string();
        assert_eq!(error.code(), code, "{name}: {message}");
        assert!(message.contains(wanted), "{name}: {message}");
        assert!(!error.is_server_fault());
        assert!(message.len() < 300, "{name}: {message}");
    }
    // And the next good one is taken.
    assert!(reader.read(&data_url("image/jpeg", &jpeg)).await.is_ok());
}

#[tokio::test]
async fn http_is_fetched_only_when_allowed() {
    let mut config = ImagesConfig::default();
    let webp = picture(6, 7, ImageFormat::WebP);
    let off = gallery(&config, webp.clone());
    let error = off.read("https://gallery.example/1").await.unwrap_err();
    assert_eq!(error, ImageError::FetchingIsOff { scheme: "https" });
    config.allow_http = true;
    let on = gallery(&config, webp);
    let read = on.read("https://gallery.example/1").await.unwrap();
    assert_eq!(read.format, Format::WebP);
    let error = on.read("ftp://gallery.example/1").await.unwrap_err();
    assert!(error.to_string().contains("http and https"), "{error}");
    let page = gallery(&config, b"<!doctype html>".to_vec());
    let error = page.read("https://gallery.example/").await.unwrap_err();
    assert!(error.to_string().contains("an HTML page"), "{error}");
}

#[tokio::test]
async fn a_request_has_limits_of_its_own() {
    let config = ImagesConfig { max_bytes: 4096, max_pixels: 100, max_per_request: 6, ..ImagesConfig::default() };
    let reader = ImageReader::new(&config);
    let full = data_url("image/png", &picture(10, 10, ImageFormat::Png));
    let read = read_all(&reader, &vec![full.clone(); 4]).await.unwrap();
    assert_eq!(read.len(), 4);
    let failed = read_all(&reader, &vec![full.clone(); 5]).await.unwrap_err();
    assert_eq!(failed.error, ImageError::RequestTooLarge { limit: 400, unit: "pixels" });
    let failed = read_all(&reader, &vec![full.clone(); 7]).await.unwrap_err();
    assert_eq!(failed.error, ImageError::TooMany { count: 7, limit: 6 });
    assert_eq!(failed.index, 6);
    // Comments make it heavy, not large.
    let comment = fixtures::chunk(*b"tEXt", &[b"x\0".as_slice(), &[b'y'; 3500]].concat());
    let pixel = fixtures::stored_zlib(&[0, 5, 6, 7]);
    let heavy = data_url("image/png", &fixtures::png(1, 1, 8, 2, &comment, &pixel));
    assert!(read_all(&reader, &vec![heavy.clone(); 4]).await.is_ok());
    let failed = read_all(&reader, &vec![heavy; 5]).await.unwrap_err();
    assert!(failed.to_string().contains("16384 bytes"), "{failed}");
    // The one that failed is named, and the others do not matter.
    let failed = read_all(&reader, &[full.clone(), "x".into(), full]).await;
    assert_eq!(failed.unwrap_err().index, 1);
    assert!(read_all(&reader, &[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn pixels_that_wait_are_counted_until_they_go() {
    let file = picture(10, 10, ImageFormat::Png);
    // Pixels and file of four images a key, and of eight in all.
    let limit = 4 * (300 + file.len() as u64);
    let limits = ImagesConfig {
        max_pixels: 100,
        decoded_bytes: 2 * limit,
        decoded_bytes_per_key: limit,
        ..ImagesConfig::default()
    };
    let reader = ImageReader::new(&limits);
    let full = data_url("image/png", &file);
    let mut waiting = read_all(&reader, &vec![full.clone(); 4]).await.unwrap();
    let refused = ImageError::NoRoom { limit, whose: "this key" };
    assert_eq!(read_all(&reader, std::slice::from_ref(&full)).await.unwrap_err().error, refused);
    assert_eq!(refused.code(), "rate_limit_exceeded");
    // A request that fits in part takes no part.
    let copy = waiting[0].image.clone();
    waiting.truncate(2);
    assert_eq!(read_all(&reader, &vec![full.clone(); 3]).await.unwrap_err().error, refused);
    let more = read_all(&reader, &vec![full.clone(); 2]).await.unwrap();
    // The other key's are its own, and a copy counts with what it is a copy of.
    assert!(reader.read_all(&"bob".into(), &vec![full.clone(); 4]).await.is_ok());
    drop((waiting, more));
    assert_eq!(read_all(&reader, &vec![full.clone(); 4]).await.unwrap_err().error, refused);
    drop(copy);
    // A record keeps the file.
    let file = read_all(&reader, std::slice::from_ref(&full)).await.unwrap().remove(0).bytes;
    assert_eq!(read_all(&reader, &vec![full.clone(); 4]).await.unwrap_err().error, refused);
    drop(file);
    // What cannot be decoded gives back what it took.
    let half = data_url("image/png", &picture(10, 10, ImageFormat::Png)[..60]);
    assert_eq!(read_all(&reader, &[full.clone(), half]).await.unwrap_err().index, 1);
    assert!(read_all(&reader, &vec![full; 4]).await.is_ok());
}

#[tokio::test]
async fn images_keep_their_order() {
    let reader = ImageReader::new(&ImagesConfig::default());
    let urls: Vec<_> =
        (1..=16).map(|side| data_url("image/gif", &picture(side, 200 / side, ImageFormat::Gif))).collect();
    let read = read_all(&reader, &urls).await.unwrap();
    let widths: Vec<_> = read.iter().map(|read| read.image.width()).collect();
    assert_eq!(widths, (1..=16).collect::<Vec<_>>());
}

fn read(url: &str) -> Result<ReadImage, ImageError> {
    let reader = ImageReader::new(&ImagesConfig { max_pixels: 1_000_000, ..ImagesConfig::default() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(reader.read(url))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_text_is_an_image_or_an_error(url in "\\PC{0,80}") {
        let error = read(&url).unwrap_err();
        prop_assert!(!error.is_server_fault());
    }

    /// Whatever becomes of an image on the way, the reader says so and stays in bounds.
    #[test]
    fn damaged_images_are_images_or_errors(
        format in prop_oneof![
            Just((ImageFormat::Png, "image/png")),
            Just((ImageFormat::Jpeg, "image/jpeg")),
            Just((ImageFormat::WebP, "image/webp")),
            Just((ImageFormat::Gif, "image/gif")),
            Just((ImageFormat::Bmp, "image/bmp")),
        ],
        size in (1u32..40, 1u32..40),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = picture(size.0, size.1, format.0);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        match read(&data_url(format.1, &bytes)) {
            Ok(image) => {
                let pixels = u64::from(image.image.width()) * u64::from(image.image.height());
                prop_assert!(pixels <= 1_000_000);
            }
            Err(error) => prop_assert!(!error.is_server_fault(), "{}", error),
        }
    }
}
