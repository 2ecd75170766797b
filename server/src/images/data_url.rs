//! `data:image/png;base64,…` (RFC 2397, with the base64 rules of the WHATWG's Fetch standard where they are laxer).

use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{DecodeError, Engine};

use super::error::ImageError;
use super::format::Format;

/// Characters that are decoded before other tasks of the thread get their turn: well under a millisecond. A multiple of 4.
const CHUNK: usize = 256 * 1024;

/// Longest text before the comma. A media type with its parameters is far shorter.
const MAX_HEADER: usize = 256;

/// Padding may stand at the end, or be left out.
const LAST: GeneralPurpose = engine(DecodePaddingMode::Indifferent);
/// It may stand nowhere else.
const NOT_LAST: GeneralPurpose = engine(DecodePaddingMode::RequireNone);

const fn engine(padding: DecodePaddingMode) -> GeneralPurpose {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(padding).with_decode_allow_trailing_bits(true);
    GeneralPurpose::new(&STANDARD, config)
}

/// A data URL whose header was read and whose payload was not.
#[derive(Debug)]
pub(super) struct DataUrl<'a> {
    /// What its media type says.
    pub(super) format: Format,
    payload: &'a [u8],
    len: usize,
}

impl<'a> DataUrl<'a> {
    /// Whether a URL is a data URL.
    pub(super) fn is(url: &str) -> bool {
        is_data(url.as_bytes())
    }

    /// Reads the header and, from its length, whether the payload is small enough.
    pub(super) fn parse(url: &'a str, max_bytes: usize) -> Result<Self, ImageError> {
        let (header, payload) = url
            .split_once(',')
            .ok_or_else(|| invalid("it has no comma, which stands between its header and its data"))?;
        if header.len() > MAX_HEADER {
            return Err(invalid("its header is longer than 256 bytes"));
        }
        let mut parts = header.split(';').map(str::trim);
        let media_type =
            parts.next().and_then(|first| first.split_once(':')).map_or("", |(_, media_type)| media_type.trim());
        if media_type.is_empty() {
            return Err(invalid("it names no media type"));
        }
        // The media type before the encoding: who sends an SVG as text learns that SVG is not taken.
        let format = Format::of_media_type(media_type)?;
        if !parts.next_back().is_some_and(|last| last.eq_ignore_ascii_case("base64")) {
            return Err(invalid("its data must be base64 (`;base64` before the comma)"));
        }
        let payload = payload.trim_ascii().as_bytes();
        if payload.is_empty() {
            return Err(invalid("it has no data"));
        }
        if is_data(payload) {
            return Err(invalid("its data are another data URL"));
        }
        // White space is only looked for when it decides: line breaks may make a payload look too long.
        let max_chars = max_bytes.saturating_mul(4).div_ceil(3).saturating_add(3);
        if payload.len() > max_chars
            && payload.iter().filter(|byte| !byte.is_ascii_whitespace()).nth(max_chars).is_some()
        {
            return Err(ImageError::TooManyBytes { limit: max_bytes });
        }
        let len = payload.len().min(max_chars) / 4 * 3 + 3;
        Ok(Self { format, payload, len })
    }

    /// Bytes that the payload decodes to, at most.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Decodes the payload, leaving the thread to others in between.
    pub(super) async fn decode(self) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::with_capacity(self.len);
        let mut chunk = Vec::with_capacity(CHUNK.min(self.payload.len()));
        let mut rest = self.payload;
        loop {
            chunk.clear();
            rest = fill(&mut chunk, rest);
            let engine = if rest.is_empty() { &LAST } else { &NOT_LAST };
            engine.decode_vec(&chunk, &mut bytes).map_err(|error| invalid(describe(&error)))?;
            if rest.is_empty() {
                return Ok(bytes);
            }
            tokio::task::yield_now().await;
        }
    }
}

fn is_data(text: &[u8]) -> bool {
    text.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"data:"))
}

/// Moves up to [`CHUNK`] characters over, without white space, and returns what is left.
fn fill<'a>(chunk: &mut Vec<u8>, text: &'a [u8]) -> &'a [u8] {
    let mut used = 0;
    for byte in text {
        if chunk.len() == CHUNK {
            break;
        }
        if !byte.is_ascii_whitespace() {
            chunk.push(*byte);
        }
        used += 1;
    }
    text[used..].trim_ascii_start()
}

/// What is wrong with base64, without repeating it.
fn describe(error: &DecodeError) -> &'static str {
    match error {
        DecodeError::InvalidByte(_, b'%') => "its base64 must not be percent-encoded",
        DecodeError::InvalidByte(_, b'-' | b'_') => {
            "its base64 must use the standard alphabet (`+` and `/`), not the URL-safe one"
        }
        DecodeError::InvalidByte(_, b'=') | DecodeError::InvalidPadding => "its base64 has padding where none belongs",
        DecodeError::InvalidByte(..) | DecodeError::InvalidLastSymbol(..) => {
            "its data hold a character that is not base64"
        }
        DecodeError::InvalidLength(_) => "its base64 ends in the middle",
    }
}

fn invalid(reason: &str) -> ImageError {
    ImageError::url(format!("{reason}; expected is data:image/png;base64,… or another image type"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::prelude::BASE64_STANDARD;
    use proptest::prelude::*;

    fn read(url: &str, max_bytes: usize) -> Result<(Format, Vec<u8>), ImageError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let parsed = DataUrl::parse(url, max_bytes)?;
        let format = parsed.format;
        Ok((format, runtime.block_on(parsed.decode())?))
    }

    #[test]
    fn what_is_understood() {
        for url in [
            "data:image/png;base64,AQIDBA==",
            "data:image/png;base64,AQIDBA",
            "data:image/png;base64,AQIDBB==",
            "DATA:Image/PNG;BASE64,AQIDBA==",
            "data:image/png;charset=utf-8;base64,AQIDBA==",
            "data: image/png ; base64 , AQIDBA==",
            "data:image/png;base64,AQI\r\n DBA\t==\n",
        ] {
            assert_eq!(read(url, 100).unwrap(), (Format::Png, vec![1, 2, 3, 4]), "{url}");
        }
    }

    #[test]
    fn what_is_refused_and_how() {
        let cases = [
            ("data:", "no comma"),
            ("data:image/png;base64", "no comma"),
            ("data:,AAAA", "no media type"),
            ("data:;base64,AAAA", "no media type"),
            ("data:image/png,AAAA", "must be base64"),
            ("data:image/png;base64;x=y,AAAA", "must be base64"),
            ("data:image/png;base32,AAAA", "must be base64"),
            ("data:image/png;base64,", "has no data"),
            ("data:image/png;base64,\n \t", "has no data"),
            ("data:image/png;base64,data:image/png;base64,AAAA", "another data URL"),
            ("data:image/png;base64,DATA:image/png;base64,AAAA", "another data URL"),
            ("data:image/png;base64,AA%3D%3D", "percent-encoded"),
            ("data:image/png;base64,AA-_", "standard alphabet"),
            ("data:image/png;base64,AA==AAAA", "padding where none belongs"),
            ("data:image/png;base64,AAAA!", "not base64"),
            ("data:image/png;base64,AA\u{e9}A", "not base64"),
            ("data:image/png;base64,AAAAA", "ends in the middle"),
            ("data:image/png;base64,AAA=A", "padding"),
            ("data:image/svg+xml,<svg/>", "image/svg+xml"),
            ("data:text/plain;base64,AAAA", "text/plain"),
            ("data:application/octet-stream;base64,AAAA", "application/octet-stream"),
        ];
        for (url, wanted) in cases {
            let message = read(url, 100).unwrap_err().to_string();
            assert!(message.contains(wanted), "{url}: {message}");
        }
        let long = format!("data:image/png;{};base64,AAAA", "x".repeat(300));
        assert!(read(&long, 100).unwrap_err().to_string().contains("256"));
    }

    #[test]
    fn length_is_checked_before_decoding() {
        let limit = Err(ImageError::TooManyBytes { limit: 30 });
        // 33 bytes and more are known to be too many from the length alone; nothing here is valid base64.
        let url = format!("data:image/png;base64,{}", "!".repeat(44));
        assert_eq!(read(&url, 30), limit);
        // Line breaks do not count.
        let payload = BASE64_STANDARD.encode([7; 30]);
        let breaks = "\r\n ".repeat(40);
        let (start, end) = payload.split_at(4);
        let url = format!("data:image/png;base64,{start}{breaks}{end}");
        assert_eq!(read(&url, 30).unwrap().1, [7; 30]);
    }

    #[test]
    fn chunks_fit_together() {
        for len in [CHUNK / 4 * 3 - 1, CHUNK / 4 * 3, CHUNK / 4 * 3 + 1, CHUNK * 2] {
            let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let mut payload = BASE64_STANDARD.encode(&bytes);
            payload.insert_str(100, "\r\n");
            payload.push('\n');
            let url = format!("data:image/gif;base64,{payload}");
            assert!(read(&url, len).unwrap().1 == bytes, "{len}");
        }
        // Two complete texts in a row are not one, wherever the border lies.
        let padded = BASE64_STANDARD.encode(vec![1; CHUNK / 4 * 3 - 1]);
        let url = format!("data:image/gif;base64,{padded}AAAA");
        assert!(read(&url, CHUNK).unwrap_err().to_string().contains("padding where"));
    }

    proptest! {
        #[test]
        fn what_was_encoded_comes_back(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            let url = format!("data:image/png;base64,{}", BASE64_STANDARD.encode(&bytes));
            prop_assert_eq!(read(&url, 200).unwrap().1, bytes);
        }

        #[test]
        fn no_text_makes_it_panic(text in "(data:)?(image/(png|gif))?(;base64)?,?\\PC{0,60}") {
            if let Ok((_, bytes)) = read(&text, 30) {
                prop_assert!(bytes.len() <= 33);
            }
        }
    }
}
