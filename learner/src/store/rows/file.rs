//! An uploaded file.

use serde::{Deserialize, Serialize};

use super::Row;

/// An uploaded file; its bytes are a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRow {
    /// `file-…`.
    pub id: String,
    /// When it came, milliseconds since 1970.
    pub created_ms: u64,
    /// The name that it came with; never a path.
    pub filename: String,
    /// OpenAI's `purpose`.
    pub purpose: String,
    /// Size, bytes.
    pub bytes: u64,
    /// BLAKE3 of its bytes.
    pub digest: String,
    /// Name of the API key.
    pub key: String,
}

impl Row for FileRow {
    const KIND: &'static str = "file";
    const PREFIX: &'static str = "file";

    fn id(&self) -> &str {
        &self.id
    }

    fn indexes(&self) -> Vec<(&'static str, String)> {
        vec![("purpose", self.purpose.clone())]
    }

    fn blobs(&self) -> Vec<&str> {
        vec![&self.digest]
    }
}
