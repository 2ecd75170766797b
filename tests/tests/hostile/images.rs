//! Image parts: bombs, tricks with data URLs, formats that are not taken, and odd ones that are.

use anyhow::Result;
use image::ImageFormat;
use reground_tests::pictures::{self, data_url};
use serde_json::{Value, json};

use super::case::Case;

const AT: &str = "messages[0].content[0].image_url.url";

pub(super) fn cases() -> Result<Vec<Case>> {
    let mut cases = taken()?;
    cases.extend(too_large()?);
    cases.extend(broken()?);
    cases.extend(other_formats()?);
    cases.extend(data_urls()?);
    cases.extend(other_urls());
    Ok(cases)
}

fn urls(name: &str, urls: &[String]) -> Case {
    let mut parts: Vec<Value> =
        urls.iter().map(|url| json!({"type": "image_url", "image_url": {"url": url}})).collect();
    parts.push(json!({"type": "text", "text": "what is it?"}));
    Case::with(format!("image: {name}"), "messages", json!([{"role": "user", "content": parts}]))
}

fn url(name: &str, url: impl Into<String>) -> Case {
    urls(name, &[url.into()])
}

fn file(name: &str, media_type: &str, bytes: &[u8]) -> Case {
    url(name, data_url(media_type, bytes))
}

fn taken() -> Result<Vec<Case>> {
    let png = pictures::png(24, 16, 1)?;
    let url_of_png = data_url("image/png", &png);
    let unpadded = url_of_png.trim_end_matches('=').to_owned();
    let broken_lines = url_of_png.as_bytes().chunks(60).map(String::from_utf8_lossy).collect::<Vec<_>>().join("\r\n");
    let mut and_more = png.clone();
    and_more.extend(b"something after the end");
    Ok(vec![
        file("one pixel", "image/png", &pictures::png(1, 1, 1)?),
        file("2000x1", "image/png", &pictures::png(2000, 1, 1)?),
        file("1x2000", "image/png", &pictures::png(1, 2000, 1)?),
        file("16 bit", "image/png", &pictures::png_16_bit()?),
        file("grey, 16 bit", "image/png", &pictures::png_grey_16_bit()?),
        file("grey", "image/png", &pictures::png_grey()?),
        file("transparent", "image/png", &pictures::png_transparent()?),
        file("animated PNG", "image/png", &pictures::png_animated()?),
        file("animated GIF", "image/gif", &pictures::gif(3)?),
        file("animated WebP", "image/webp", &pictures::webp_animated()?),
        file("JPEG", "image/jpeg", &pictures::jpeg()?),
        file("JPEG by its other name", "image/jpg", &pictures::jpeg()?),
        file("CMYK JPEG", "image/jpeg", &pictures::jpeg_cmyk()?),
        file("BMP", "image/bmp", &pictures::file(&pictures::picture(24, 16, 1), ImageFormat::Bmp)?),
        file("WebP", "image/webp", &pictures::file(&pictures::picture(24, 16, 1), ImageFormat::WebP)?),
        file("something after the end", "image/png", &and_more),
        file("media type in capitals", "IMAGE/PNG", &png),
        file("media type with a parameter", "image/png;charset=utf-8", &png),
        url("scheme in capitals", url_of_png.replacen("data:", "DATA:", 1)),
        url("base64 without padding", unpadded),
        url("base64 with line breaks", broken_lines),
        urls("four, as many as are allowed", &vec![url_of_png; 4]),
    ])
}

fn too_large() -> Result<Vec<Case>> {
    let refused = |name: &str, media_type: &str, bytes: &[u8], says: &[&str]| {
        file(name, media_type, bytes).wrong("image_too_large", AT, says)
    };
    let png = data_url("image/png", &pictures::png(8, 8, 1)?);
    Ok(vec![
        refused("20000x1", "image/png", &pictures::png(20_000, 1, 1)?, &["20000", "16384"]),
        refused("1x20000", "image/png", &pictures::png(1, 20_000, 1)?, &["20000", "16384"]),
        refused(
            "PNG that claims 60000x60000",
            "image/png",
            &pictures::png_claiming(60_000, 60_000)?,
            &["60000", "16384"],
        ),
        refused(
            "PNG that claims 2147483647x2147483647",
            "image/png",
            &pictures::png_claiming(0x7fff_ffff, 0x7fff_ffff)?,
            &["16384"],
        ),
        refused(
            "PNG that claims 16000x16000",
            "image/png",
            &pictures::png_claiming(16_000, 16_000)?,
            &["16000", "50000000"],
        ),
        refused(
            "BMP that claims 16000x16000",
            "image/bmp",
            &pictures::bmp_claiming(16_000, 16_000)?,
            &["16000", "50000000"],
        ),
        refused(
            "JPEG that claims 65500x65500",
            "image/jpeg",
            &pictures::jpeg_claiming(65_500, 65_500)?,
            &["65500", "16384"],
        ),
        refused(
            "GIF that claims 65535x65535",
            "image/gif",
            &pictures::gif_claiming(65_535, 65_535)?,
            &["65535", "16384"],
        ),
        refused(
            "WebP that claims 16000x16000",
            "image/webp",
            &pictures::webp_claiming(16_000, 16_000)?,
            &["16000", "50000000"],
        ),
        refused("more bytes than allowed", "image/png", &pictures::png(800, 800, 1)?, &["1048576"]),
        urls("five, one too many", &vec![png; 5]).wrong(
            "too_many_images",
            "messages[0].content[4].image_url.url",
            &["5", "4"],
        ),
        // The pixels fit, the compressed data hold 45 MB more than the header says: what is left over is not unpacked.
        file("PNG with more data than pixels", "image/png", &pictures::png_overfull()?),
        // Text beside the picture that unpacks to 45 MB: it is of no use and must not be unpacked.
        file("PNG with a bomb in its text", "image/png", &pictures::png_text_bomb()?),
    ])
}

fn broken() -> Result<Vec<Case>> {
    let half = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    let refused = |name: &str, media_type: &str, bytes: &[u8], says: &str| {
        file(name, media_type, bytes).wrong("invalid_image", AT, &[says])
    };
    let picture = pictures::picture(64, 64, 1);
    let mut flipped = pictures::png(24, 16, 1)?;
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    Ok(vec![
        refused("half a PNG", "image/png", &half(pictures::png(64, 64, 1)?), "PNG"),
        refused("half a JPEG", "image/jpeg", &half(pictures::file(&picture, ImageFormat::Jpeg)?), "JPEG"),
        refused("half a GIF", "image/gif", &half(pictures::gif(1)?), "GIF"),
        refused("half a BMP", "image/bmp", &half(pictures::file(&picture, ImageFormat::Bmp)?), "BMP"),
        refused("half a WebP", "image/webp", &half(pictures::file(&picture, ImageFormat::WebP)?), "WebP"),
        refused("eight bytes of a PNG", "image/png", b"\x89PNG\r\n\x1a\n", "PNG"),
        refused("three bytes of a JPEG", "image/jpeg", b"\xff\xd8\xff", "JPEG"),
        refused("six bytes of a GIF", "image/gif", b"GIF89a", "GIF"),
        refused("PNG without height", "image/png", &pictures::png_claiming(8, 0)?, "PNG"),
        refused("PNG with one byte changed", "image/png", &flipped, "PNG"),
        refused("PNG that claims more than it has", "image/png", &pictures::png_claiming(4000, 4000)?, "PNG"),
    ])
}

fn other_formats() -> Result<Vec<Case>> {
    let unknown: [(&str, &[u8], &str); 12] = [
        ("SVG", b"<svg xmlns=\"http://www.w3.org/2000/svg\"><script>1</script></svg>", "SVG"),
        (
            "SVG with a bomb of entities",
            b"<?xml version=\"1.0\"?><!DOCTYPE l [<!ENTITY a \"aaaa\">]><svg>&a;</svg>",
            "SVG",
        ),
        ("HTML", b"<!doctype html><p>", "HTML"),
        ("text", b"just text, no picture", "text"),
        ("PDF", b"%PDF-1.7\n", "PDF"),
        ("ZIP", b"PK\x03\x04aaaaaaaa", "ZIP"),
        ("TIFF", b"II*\0\x08\0\0\0", "TIFF"),
        ("AVIF", b"\0\0\0\x20ftypavif\0\0\0\0", "AVIF"),
        ("HEIC", b"\0\0\0\x20ftypheic\0\0\0\0", "HEIC"),
        ("ICO", b"\0\0\x01\0\x01\0\x10\x10", "ICO"),
        ("a data URL in a data URL", b"data:image/png;base64,iVBORw0KGgo=", "data URL"),
        ("random bytes", b"\xfe\xdc\xba\x98\x76\x54", "unknown"),
    ];
    let mut cases: Vec<Case> = unknown
        .iter()
        .map(|(name, bytes, says)| {
            file(&format!("{name} that says it is a PNG"), "image/png", bytes).wrong(
                "unsupported_image_format",
                AT,
                &[says, "JPEG"],
            )
        })
        .collect();
    let png = pictures::png(24, 16, 1)?;
    for media_type in
        ["image/svg+xml", "image/tiff", "image/avif", "text/html", "application/octet-stream", "image/*", "video/mp4"]
    {
        cases.push(file(&format!("PNG as {media_type}"), media_type, &png).wrong(
            "unsupported_image_format",
            AT,
            &[media_type, "image/png"],
        ));
    }
    cases.push(file("PNG that says it is a JPEG", "image/jpeg", &png).wrong(
        "image_media_type_mismatch",
        AT,
        &["image/png"],
    ));
    cases.push(file("GIF that says it is a PNG", "image/png", &pictures::gif(1)?).wrong(
        "image_media_type_mismatch",
        AT,
        &["image/gif"],
    ));
    Ok(cases)
}

fn data_urls() -> Result<Vec<Case>> {
    let refused =
        |name: &str, text: String| url(name, text).wrong("invalid_image_url", AT, &["data:image/png;base64,"]);
    let good = data_url("image/png", &pictures::png(24, 16, 1)?);
    let payload = good.rsplit(',').next().unwrap_or_default();
    let cut = payload.trim_end_matches('=').len() / 4 * 4 + 1;
    Ok(vec![
        refused("no comma", "data:image/png;base64".into()),
        refused("no data", "data:image/png;base64,".into()),
        refused("white space for data", "data:image/png;base64,  \n ".into()),
        refused("no media type", format!("data:;base64,{payload}")),
        refused("not base64", "data:image/png,rawbytes".into()),
        refused("base64 in capitals after the comma", format!("data:image/png,base64;{payload}")),
        refused("a character that is not base64", format!("data:image/png;base64,!{payload}")),
        refused("percent-encoded", format!("data:image/png;base64,%69{payload}")),
        refused("URL-safe base64", format!("data:image/png;base64,-_-_{payload}")),
        refused("padding at the front", format!("data:image/png;base64,==={payload}")),
        refused("one character too few", format!("data:image/png;base64,{}", &format!("{payload}AAAA")[..cut])),
        refused("a data URL after the comma", format!("data:image/png;base64,{good}")),
        refused("a header of 10 KB", format!("data:image/png;{};base64,{payload}", "x".repeat(10_000))),
    ])
}

fn other_urls() -> Vec<Case> {
    let off = |text: &str| {
        url(&format!("{text} while fetching is off"), text).wrong("image_url_not_allowed", AT, &["data URL"])
    };
    let invalid = |name: &str, text: String| url(name, text).wrong("invalid_image_url", AT, &["URL"]);
    vec![
        off("http://127.0.0.1:1/a.png"),
        off("https://localhost/a.png"),
        off("HTTP://127.0.0.1/a.png"),
        invalid("a file URL", "file:///etc/passwd".into()),
        invalid("FTP", "ftp://127.0.0.1/a.png".into()),
        invalid("gopher", "gopher://127.0.0.1:70/a".into()),
        invalid("javascript", "javascript:alert(1)".into()),
        invalid("a blob", "blob:null/1".into()),
        invalid("a path", "/etc/passwd".into()),
        invalid("a path upwards", "../../etc/passwd".into()),
        invalid("no scheme", "//127.0.0.1/a.png".into()),
        invalid("bare base64", "iVBORw0KGgo=".into()),
        invalid("white space", "   ".into()),
        invalid("100 KB of letters", "a".repeat(100_000)),
        url("nothing", "").wrong("invalid_value", AT, &["empty"]),
    ]
}
