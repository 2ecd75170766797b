//! `dataset.jsonl`: the frozen pairs of a run, one a line, under one BLAKE3 digest.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use fs_err as fs;

use super::data::{DataError, Fault, OnError, Skipped};
use super::files;
use super::pair::PreferencePair;

/// Longest line that is read, bytes. A pair holds text and digests, no images, so more is no pair.
pub const MAX_LINE_BYTES: usize = 4 << 20;

/// What was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frozen {
    /// The pairs, in the order of the file.
    pub pairs: Vec<PreferencePair>,
    /// BLAKE3 digest of the file's bytes.
    pub digest: String,
    /// Lines that could not be used.
    pub skipped: Vec<Skipped>,
}

/// Writes `pairs` to `path`, whole or not at all, and returns the digest of the file and the number of pairs.
///
/// # Errors
/// Anything the file system says.
pub fn freeze<'a>(path: &Path, pairs: impl IntoIterator<Item = &'a PreferencePair>) -> io::Result<(String, usize)> {
    let mut hasher = blake3::Hasher::new();
    let mut count = 0;
    files::write_atomic(path, |file| {
        for pair in pairs {
            let mut line = serde_json::to_vec(pair).map_err(io::Error::other)?;
            line.push(b'\n');
            hasher.write_all(&line)?;
            file.write_all(&line)?;
            count += 1;
        }
        Ok(())
    })?;
    Ok((hasher.finalize().to_hex().to_string(), count))
}

/// Reads `path`. `want` is the digest it was frozen with; empty is not checked.
///
/// # Errors
/// The file is missing, empty or not what was frozen; a bad line where `on_error` is [`OnError::Fail`].
pub fn read(path: &Path, want: &str, on_error: OnError) -> Result<Frozen, DataError> {
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let mut reader = BufReader::new(fs::File::open(path).map_err(io)?);
    let mut hasher = blake3::Hasher::new();
    let mut frozen = Frozen::default();
    let mut seen = std::collections::HashSet::new();
    let mut bytes = Vec::new();
    for line in 1u64.. {
        bytes.clear();
        let limit = MAX_LINE_BYTES as u64 + 1;
        if reader.by_ref().take(limit).read_until(b'\n', &mut bytes).map_err(io)? == 0 {
            break;
        }
        hasher.update(&bytes);
        let result = if bytes.strip_suffix(b"\n").unwrap_or(&bytes).len() > MAX_LINE_BYTES {
            let read = bytes.len() as u64 + skip_line(&mut reader, &mut hasher).map_err(io)?;
            Err(Fault::EntryTooLong { bytes: read, limit: MAX_LINE_BYTES })
        } else if bytes.trim_ascii().is_empty() {
            continue;
        } else {
            parse(&bytes, &mut seen)
        };
        match result {
            Ok(pair) => frozen.pairs.push(pair),
            Err(fault) if on_error == OnError::Fail => {
                return Err(DataError::Entry { path: path.to_owned(), line, fault: Box::new(fault) });
            }
            Err(fault) => frozen.skipped.push(Skipped { line, reason: fault.to_string() }),
        }
    }
    frozen.digest = hasher.finalize().to_hex().to_string();
    if !want.is_empty() && frozen.digest != want {
        return Err(DataError::Digest { path: path.to_owned(), got: frozen.digest, want: want.to_owned() });
    }
    if frozen.pairs.is_empty() {
        return Err(match frozen.skipped.len() {
            0 => DataError::Empty(path.to_owned()),
            faults => DataError::NothingUsable { path: path.to_owned(), faults },
        });
    }
    Ok(frozen)
}

fn parse(bytes: &[u8], seen: &mut std::collections::HashSet<String>) -> Result<PreferencePair, Fault> {
    let text = std::str::from_utf8(bytes).map_err(|error| Fault::NotUtf8(error.valid_up_to()))?;
    let pair: PreferencePair = serde_json::from_str(text.trim()).map_err(|error| Fault::Json(error.to_string()))?;
    pair.check()?;
    if !seen.insert(pair.id.clone()) {
        return Err(Fault::Json(format!("the id {} is there twice", pair.id)));
    }
    Ok(pair)
}

fn skip_line(reader: &mut impl BufRead, hasher: &mut blake3::Hasher) -> io::Result<u64> {
    let mut skipped = 0;
    loop {
        let chunk = reader.fill_buf()?;
        let (used, end) = match chunk.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (chunk.len(), chunk.is_empty()),
        };
        hasher.update(&chunk[..used]);
        reader.consume(used);
        skipped += used as u64;
        if end {
            return Ok(skipped);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpo::pair::{ImageRef, Message, NegativeKind, Part, Role, Source};

    fn pair(number: usize) -> PreferencePair {
        let image = ImageRef { digest: format!("{:064x}", number / 2), width: 4, height: 4 };
        let content = vec![Part::Image { index: 0 }, Part::Text { text: "What?\nReally?".to_owned() }];
        PreferencePair {
            id: format!("pair-{number}"),
            images: vec![image],
            conversation: vec![Message { role: Role::User, content }],
            chosen: "Yes.".to_owned(),
            rejected: Some("No.".to_owned()),
            distortion: None,
            source: Source::Annotation,
            negative: Some(NegativeKind::Injected),
        }
    }

    #[test]
    fn goes_round_under_its_digest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dataset.jsonl");
        let pairs = (0..5).map(pair).collect::<Vec<_>>();
        let (digest, count) = freeze(&path, &pairs).unwrap();
        assert_eq!(count, 5);
        assert_eq!(digest, blake3::hash(&fs::read(&path).unwrap()).to_hex().to_string());
        let frozen = read(&path, &digest, OnError::Fail).unwrap();
        assert_eq!((frozen.pairs, frozen.skipped.len()), (pairs, 0));
        let error = read(&path, &"0".repeat(64), OnError::Fail).unwrap_err().to_string();
        assert!(error.contains("frozen with 0000"), "{error}");
    }

    #[test]
    fn bad_lines_have_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dataset.jsonl");
        let good = serde_json::to_string(&pair(0)).unwrap();
        let spoil = |from: &str, to: &str| good.replace("pair-0", "pair-9").replace(from, to);
        let cases = [
            ("{".to_owned(), "EOF while parsing"),
            (good.clone(), "is there twice"),
            (spoil("\"chosen\":\"Yes.\"", "\"chosen\":\"\""), "the chosen answer is empty"),
            (spoil("\"No.\"", "\"yes\""), "the same but for case"),
            (spoil("\"index\":0", "\"index\":1"), "names image 1 of 1"),
            (spoil(&"0".repeat(64), "../../x"), "64 lower-case hexadecimal digits"),
            (spoil("\"source\":\"annotation\"", "\"source\":\"guess\""), "unknown variant `guess`"),
            (spoil("\"id\"", "\"key\""), "unknown field `key`"),
            (spoil("\"role\":\"user\"", "\"role\":\"assistant\""), "ends with a message of role assistant"),
            (format!("{{\"id\": \"{}\"}}", "x".repeat(MAX_LINE_BYTES)), "the limit is 4194304"),
        ];
        for (line, message) in cases {
            fs::write(&path, format!("{good}\n\n{line}\n{}\n", spoil("What", "Why"))).unwrap();
            let error = read(&path, "", OnError::Fail).unwrap_err().to_string();
            assert!(error.contains("dataset.jsonl:3: ") && error.contains(message), "{error}");
            let frozen = read(&path, "", OnError::Skip).unwrap();
            assert_eq!((frozen.pairs.len(), frozen.skipped.len(), frozen.skipped[0].line), (2, 1, 3), "{message}");
            assert_eq!(frozen.digest, blake3::hash(&fs::read(&path).unwrap()).to_hex().to_string());
        }
        fs::write(&path, "\n").unwrap();
        assert!(read(&path, "", OnError::Skip).unwrap_err().to_string().contains("is empty"));
    }

    #[test]
    fn a_line_at_the_limit_is_whole_and_so_is_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dataset.jsonl");
        let of = |bytes: usize| {
            let mut long = pair(0);
            let without = serde_json::to_vec(&long).unwrap().len();
            long.chosen.push_str(&"x".repeat(bytes - without));
            serde_json::to_string(&long).unwrap()
        };
        for (bytes, pairs) in [(MAX_LINE_BYTES - 1, 2), (MAX_LINE_BYTES, 2), (MAX_LINE_BYTES + 1, 1)] {
            let next = serde_json::to_string(&pair(1)).unwrap();
            fs::write(&path, format!("{}\n{next}\n", of(bytes))).unwrap();
            let frozen = read(&path, "", OnError::Skip).unwrap();
            assert_eq!((frozen.pairs.len(), frozen.skipped.len()), (pairs, 2 - pairs), "{bytes}");
            assert_eq!(frozen.digest, blake3::hash(&fs::read(&path).unwrap()).to_hex().to_string());
        }
    }
}
