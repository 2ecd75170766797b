//! All rows as JSON lines: `{"kind": "record", "row": {…}}`.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::verify::KINDS;
use super::{Store, StoreError, keys};
use crate::bpo::data::blobs::Blobs;

impl Store {
    /// Writes all rows as they are stored, one a line, kind by kind; gives their number. Blobs are files already.
    ///
    /// # Errors
    /// The store failed, a row is damaged, or `out` takes no more.
    pub fn export(&self, out: &mut dyn Write) -> Result<usize, StoreError> {
        let mut count = 0;
        self.read(|db| {
            for kind in KINDS {
                for row in db.scan_prefix(keys::rows(kind)) {
                    let (key, raw) = row?;
                    let damaged = |why: String| {
                        let id = keys::id(&key).to_owned();
                        StoreError::Damaged { kind, id, why }
                    };
                    let large;
                    let text = match super::encoding::spilled(&raw) {
                        Some(digest) => {
                            large = self.blobs.get(digest)?;
                            &large[..]
                        }
                        None => raw.get(2..).unwrap_or_default(),
                    };
                    let value: Value = serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
                    let line = json!({"kind": kind, "version": raw.get(1), "row": value});
                    serde_json::to_writer(&mut *out, &line).map_err(io::Error::from)?;
                    out.write_all(b"\n")?;
                    count += 1;
                }
            }
            Ok(count)
        })
    }
}
