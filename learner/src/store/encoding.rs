//! Rows as bytes: where they are, their version, JSON.
//!
//! `J` version JSON, or `B` version digest: rows above [`INLINE`] bytes are blobs, because sled is at its best with small
//! values and leaks large ones when they are overwritten.

use std::borrow::Cow;

use serde_json::Value;

use super::StoreError;
use super::rows::Row;
use crate::bpo::data::blobs::{Blobs, is_digest};

/// Largest row inside sled, bytes.
pub(super) const INLINE: usize = 48 << 10;

/// A row on its way into sled.
pub(super) struct Encoded {
    pub(super) bytes: Vec<u8>,
    /// The blob that holds the row, when it is large.
    pub(super) spilled: Option<String>,
}

/// The text of a row.
pub(super) fn text<R: Row>(row: &R) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(row).map_err(|error| StoreError::Invalid {
        kind: R::KIND,
        id: row.id().to_owned(),
        why: error.to_string(),
    })
}

/// The text of a row, which has this version.
pub(super) fn encode(version: u8, text: &[u8], blobs: &dyn Blobs) -> Result<Encoded, StoreError> {
    let spilled = if text.len() > INLINE { Some(blobs.put(text)?) } else { None };
    let mut bytes = vec![if spilled.is_some() { b'B' } else { b'J' }, version];
    bytes.extend_from_slice(spilled.as_ref().map_or(text, |digest| digest.as_bytes()));
    Ok(Encoded { bytes, spilled })
}

/// The blob that holds the row, when it is large.
pub(super) fn spilled(bytes: &[u8]) -> Option<&str> {
    let (b'B', rest) = bytes.split_first()? else { return None };
    std::str::from_utf8(rest.get(1..)?).ok().filter(|digest| is_digest(digest))
}

/// Version and text of a row, wherever it is; the text is not looked at.
///
/// # Errors
/// What is wrong with it.
pub(super) fn json<'a>(bytes: &'a [u8], blobs: &dyn Blobs) -> Result<(u8, Cow<'a, [u8]>), String> {
    let &[place, version, ref inline @ ..] = bytes else { return Err("it is cut off".into()) };
    let json = match place {
        b'J' => Cow::Borrowed(inline),
        b'B' => {
            let digest = spilled(bytes).ok_or("it names no blob")?;
            Cow::Owned(blobs.get(digest).map_err(|error| error.to_string())?)
        }
        other => return Err(format!("it begins with byte {other}")),
    };
    Ok((version, json))
}

pub(super) fn decode<R: Row>(id: &str, bytes: &[u8], blobs: &dyn Blobs) -> Result<R, StoreError> {
    let damaged = |why: String| StoreError::Damaged { kind: R::KIND, id: id.to_owned(), why };
    let (version, text) = json(bytes, blobs).map_err(damaged)?;
    parse(id, version, &text)
}

/// The row whose text was written as this version.
pub(super) fn parse<R: Row>(id: &str, version: u8, text: &[u8]) -> Result<R, StoreError> {
    let damaged = |why: String| StoreError::Damaged { kind: R::KIND, id: id.to_owned(), why };
    if version == R::VERSION {
        return serde_json::from_slice(text).map_err(|error| damaged(error.to_string()));
    }
    if version > R::VERSION {
        return Err(StoreError::Newer { found: version, known: R::VERSION });
    }
    let old: Value = serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
    let now = R::migrate(version, old).map_err(damaged)?;
    serde_json::from_value(now).map_err(|error| damaged(error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use serde_json::json;

    use super::*;
    use crate::bpo::data::blobs::BlobDir;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Now {
        id: String,
        names: Vec<String>,
    }

    impl Row for Now {
        const KIND: &'static str = "test";
        const PREFIX: &'static str = "test";
        const VERSION: u8 = 2;

        fn id(&self) -> &str {
            &self.id
        }

        fn indexes(&self) -> Vec<(&'static str, String)> {
            Vec::new()
        }

        fn migrate(version: u8, mut row: Value) -> Result<Value, String> {
            if version != 1 {
                return Err(format!("version {version} is not known"));
            }
            row["names"] = json!([row["name"].take()]);
            Ok(row)
        }
    }

    #[test]
    fn an_older_row_is_read_as_todays_and_a_newer_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobDir::new(dir.path());
        let old = [b"J\x01".as_slice(), br#"{"id":"a","name":"x"}"#].concat();
        let now = Now { id: "a".into(), names: vec!["x".into()] };
        assert_eq!(decode::<Now>("a", &old, &blobs).unwrap(), now);
        assert_eq!(decode::<Now>("a", &encode(2, &text(&now).unwrap(), &blobs).unwrap().bytes, &blobs).unwrap(), now);
        assert!(matches!(decode::<Now>("a", b"J\x00{}", &blobs), Err(StoreError::Damaged { .. })));
        assert!(matches!(decode::<Now>("a", b"J\x03{}", &blobs), Err(StoreError::Newer { found: 3, known: 2 })));
        for broken in [&b""[..], b"J", b"B\x02nothing", b"J\x02{\"id\"", b"?\x02{}"] {
            assert!(matches!(decode::<Now>("a", broken, &blobs), Err(StoreError::Damaged { .. })));
        }
    }

    #[test]
    fn a_large_row_is_a_blob() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobDir::new(dir.path());
        let row = Now { id: "a".into(), names: vec!["x".repeat(INLINE)] };
        let encoded = encode(2, &text(&row).unwrap(), &blobs).unwrap();
        assert!(encoded.bytes.len() < 100);
        assert_eq!(spilled(&encoded.bytes), encoded.spilled.as_deref());
        assert_eq!(decode::<Now>("a", &encoded.bytes, &blobs).unwrap(), row);
    }
}
