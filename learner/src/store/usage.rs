//! What records take on the disk, and what is freed when one goes.

use std::collections::{HashMap, HashSet};
use std::io;

use fs_err as fs;

use super::rows::{FileRow, Record, Row};
use super::{Store, StoreError, keys};

/// What records take on the disk, bytes: their rows, and the blobs that they need and no uploaded file is. Deleting a record
/// frees nothing of a file, which therefore must not count.
pub(super) struct Usage {
    bytes: u64,
    rows: HashMap<String, u64>,
    /// Digests by record.
    needs: HashMap<String, Vec<String>>,
    blobs: HashMap<String, Blob>,
}

struct Blob {
    bytes: u64,
    /// Records that need it.
    records: usize,
}

impl Usage {
    /// Looks once at every record's row, and at the size of every blob that records need.
    pub(super) fn read(store: &Store) -> Result<Self, StoreError> {
        let mut usage = Self { bytes: 0, rows: HashMap::new(), needs: HashMap::new(), blobs: HashMap::new() };
        store.read(|db| {
            for row in db.scan_prefix(keys::rows(Record::KIND)) {
                let (key, value) = row?;
                usage.rows.insert(keys::id(&key).to_owned(), (key.len() + value.len()) as u64);
            }
            let mut files = HashSet::new();
            for key in db.scan_prefix(keys::NEEDS).keys() {
                let key = key?;
                match keys::needed(&key) {
                    Some((digest, FileRow::KIND, _)) => drop(files.insert(digest.to_owned())),
                    Some((digest, Record::KIND, id)) => {
                        usage.needs.entry(id.to_owned()).or_default().push(digest.to_owned());
                        usage.blobs.entry(digest.to_owned()).or_insert(Blob { bytes: 0, records: 0 }).records += 1;
                    }
                    _ => {}
                }
            }
            usage.blobs.retain(|digest, _| !files.contains(digest));
            Ok(())
        })?;
        for (digest, blob) in &mut usage.blobs {
            blob.bytes = match fs::metadata(store.blobs.path(digest)?) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                metadata => metadata?.len(),
            };
        }
        let blobs: u64 = usage.blobs.values().map(|blob| blob.bytes).sum();
        usage.bytes = blobs + usage.rows.values().sum::<u64>();
        Ok(usage)
    }

    /// All of it.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A record is gone: its row, and the blobs that no other record needs.
    pub(super) fn forget(&mut self, record: &str) {
        self.bytes -= self.rows.remove(record).unwrap_or(0);
        for digest in self.needs.remove(record).unwrap_or_default() {
            if let Some(blob) = self.blobs.get_mut(&digest) {
                blob.records -= 1;
                if blob.records == 0 {
                    self.bytes -= blob.bytes;
                }
            }
        }
    }
}
