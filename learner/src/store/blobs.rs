//! Images and other files by content, and which of them nobody needs.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLockReadGuard};
use std::time::{Duration, Instant};

use fs_err as fs;

use super::rows::Record;
use super::{Store, StoreError, keys};
use crate::bpo::data::blobs::{BlobDir, Blobs};
use crate::bpo::files;

/// How long a blob without a row is kept for whoever brought it.
const CLAIM: Duration = Duration::from_secs(3600);

/// The directory of files on their way in.
const INCOMING: &str = "incoming";

/// Blobs that came without a row yet, and when.
pub(super) type Unclaimed = HashMap<String, Instant>;

/// Removes what uploads, blobs and adapters that a crash cut off have left: nothing else would find them, and they may hold what its
/// owner has deleted since.
///
/// # Errors
/// A file cannot be removed.
pub(super) fn remove_unfinished(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory.join(INCOMING)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    files::remove_unfinished(&directory.join("adapters"))?;
    for shelf in fs::read_dir(directory.join("blobs"))? {
        let shelf = shelf?;
        if shelf.file_type()?.is_dir() {
            files::remove_unfinished(&shelf.path())?;
        }
    }
    Ok(())
}

impl Store {
    /// Adds a record and the files of its images, in the order of [`Record::images`]. It is on disk within
    /// [`super::Options::flush_every`].
    ///
    /// # Errors
    /// The id is taken, an image is not what the record says, or the store failed.
    pub fn add_record(&self, record: &Record, images: &[impl AsRef<[u8]>]) -> Result<(), StoreError> {
        let images: Vec<&[u8]> = images.iter().map(AsRef::as_ref).collect();
        let _no_blob_goes = self.put_images(&images)?;
        self.commit(|rows| rows.insert(record)).map(drop)
    }

    /// Adds several records, each as [`Self::add_record`] does; their images are flushed together.
    ///
    /// # Errors
    /// The images cannot be written: no record is added then. Otherwise what became of each record.
    pub fn add_records(&self, records: &[(Record, Vec<Vec<u8>>)]) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let images: Vec<&[u8]> = records.iter().flat_map(|(_, images)| images).map(Vec::as_slice).collect();
        let _no_blob_goes = self.put_images(&images)?;
        Ok(records.iter().map(|(record, _)| self.commit(|rows| rows.insert(record)).map(drop)).collect())
    }

    /// Has images on disk. No blob is removed while the result is there.
    fn put_images(&self, images: &[&[u8]]) -> Result<RwLockReadGuard<'_, ()>, StoreError> {
        self.core.check_space()?;
        let no_blob_goes = self.blob_use.read().unwrap_or_else(PoisonError::into_inner);
        self.core.noticed(self.blobs.put_all(images).map_err(StoreError::from))?;
        Ok(no_blob_goes)
    }

    /// Where files wait on their way in, see [`Self::adopt`]: on the file system that keeps blobs. What is left there goes when
    /// the store opens.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn incoming(&self) -> io::Result<PathBuf> {
        let directory = self.core.directory.join(INCOMING);
        fs::create_dir_all(&directory)?;
        Ok(directory)
    }

    /// Takes a file of the data directory's file system in as a blob, without reading it into memory; gives its digest. As with
    /// [`Blobs::put`], its row may come within the hour.
    ///
    /// # Errors
    /// The file is not there, or the store is full or failed.
    pub fn adopt(&self, file: &Path) -> Result<String, StoreError> {
        self.core.check_space()?;
        let _no_blob_goes = self.blob_use.read().unwrap_or_else(PoisonError::into_inner);
        let adopted = self.blobs.adopt(file).map_err(StoreError::from);
        let digest = match adopted {
            // Whoever brought it took it away: no failure of the disk.
            Err(error) if !file.exists() => return Err(error),
            adopted => self.core.noticed(adopted)?,
        };
        self.unclaimed.lock().unwrap_or_else(PoisonError::into_inner).insert(digest.clone(), Instant::now());
        Ok(digest)
    }

    /// Where a blob is, if it is there. It is for reading.
    ///
    /// # Errors
    /// `InvalidInput` for what is no digest.
    pub fn blob_path(&self, digest: &str) -> io::Result<PathBuf> {
        self.blobs.path(digest)
    }

    /// Has a blob in another directory, too, where it stays when the store's own goes.
    ///
    /// # Errors
    /// `NotFound`, or any failure of the file system.
    pub fn link_blob(&self, digest: &str, to: &BlobDir) -> io::Result<()> {
        to.link(&self.blobs, digest)
    }

    /// Removes blobs that no row needs, and gives their number and bytes. One that [`Blobs::put`] brought within the last
    /// hour and no row needed since stays: its row may be on its way.
    ///
    /// # Errors
    /// The store failed.
    pub fn collect_garbage(&self) -> Result<(usize, u64), StoreError> {
        let alone = self.blob_use.write().unwrap_or_else(PoisonError::into_inner);
        // Rows that are not on the disk yet say nothing about what those on it need.
        self.core.check_whole()?;
        self.flush()?;
        let mut unclaimed = self.unclaimed.lock().unwrap_or_else(PoisonError::into_inner);
        unclaimed.retain(|_, since| since.elapsed() < CLAIM);
        let (mut count, mut bytes) = (0, 0);
        for (digest, size) in self.blobs.list()? {
            if !unclaimed.contains_key(&digest) && !self.is_needed(&digest)? {
                self.blobs.remove(&digest)?;
                count += 1;
                bytes += size;
            }
        }
        drop(alone);
        Ok((count, bytes))
    }

    /// Removes those of some blobs that no row needs any more.
    pub(super) fn remove_released(&self, digests: &[String]) -> Result<usize, StoreError> {
        if digests.is_empty() {
            return Ok(0);
        }
        let _nobody_writes = self.blob_use.write().unwrap_or_else(PoisonError::into_inner);
        // Others may have written since: a file goes after the rows that needed it are gone for good.
        self.flush()?;
        self.remove_unneeded(digests)
    }

    /// Removes those of some blobs that no row needs any more. Nobody may be writing, and everything written is on the disk.
    pub(super) fn remove_unneeded(&self, digests: &[String]) -> Result<usize, StoreError> {
        let unclaimed = self.unclaimed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = 0;
        for digest in digests {
            let claimed = unclaimed.get(digest).is_some_and(|since| since.elapsed() < CLAIM);
            if !claimed && !self.is_needed(digest)? {
                self.blobs.remove(digest)?;
                count += 1;
            }
        }
        Ok(count)
    }

    pub(super) fn is_needed(&self, digest: &str) -> Result<bool, StoreError> {
        self.read(|db| Ok(db.scan_prefix(keys::blob(digest)).keys().next().transpose()?.is_some()))
    }
}

/// What comes without a row: importers bring images before their pairs.
impl Blobs for Store {
    fn put(&self, bytes: &[u8]) -> io::Result<String> {
        self.core.check_space().map_err(io::Error::other)?;
        let _no_blob_goes = self.blob_use.read().unwrap_or_else(PoisonError::into_inner);
        let digest = self.blobs.put(bytes)?;
        self.unclaimed.lock().unwrap_or_else(PoisonError::into_inner).insert(digest.clone(), Instant::now());
        Ok(digest)
    }

    fn get(&self, digest: &str) -> io::Result<Vec<u8>> {
        self.blobs.get(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::super::rows::FileRow;
    use super::*;

    #[test]
    fn nothing_goes_that_rows_on_the_disk_may_need() {
        let dir = tempfile::tempdir().unwrap();
        let flush_every = Duration::from_secs(3600);
        let store = Store::open(dir.path(), Options { flush_every, min_free_bytes: 0, ..Options::default() }).unwrap();
        let file = FileRow {
            id: "file-1".into(),
            created_ms: 1,
            filename: "pairs.jsonl".into(),
            purpose: "fine-tune".into(),
            bytes: 4,
            digest: store.put(b"file").unwrap(),
            key: "root".into(),
        };
        store.insert(&file).unwrap();
        store.unclaimed.lock().unwrap().clear();
        store.write_behind(|rows| rows.remove::<FileRow>(&file.id)).unwrap();
        let failed = Err::<(), _>(StoreError::Io(io::Error::other("no disk")));
        assert!(store.core.noticed(failed).is_err());
        assert!(matches!(store.collect_garbage(), Err(StoreError::Degraded(_))));
        assert!(store.blob_path(&file.digest).unwrap().exists(), "after a restart its row is there again");
        *store.core.failure.lock().unwrap() = None;
        assert_eq!(store.collect_garbage().unwrap().0, 1);
        assert_eq!(store.flushed(), store.written(), "its row is gone for good before it is");
    }
}
