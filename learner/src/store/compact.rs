//! Writing sled's files anew: they only grow while it runs.
//!
//! The new files are built in `store.new`, flushed, and put in the place of `store`, which is `store.old` for a moment. What a
//! crash leaves of it [`recover`] sets right when the store opens: without a `store`, `store.old` is the whole one.

use std::io;
use std::path::Path;

use fs_err as fs;
use serde::Serialize;

use super::keeper::{self, LET_GO};
use super::{Store, StoreError};
use crate::bpo::files;

/// The files that are being built.
const NEW: &str = "store.new";
/// The files that are being replaced.
const OLD: &str = "store.old";
/// Entries that are written at once.
const AT_ONCE: usize = 1024;

/// What compacting freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Compacted {
    /// Bytes of sled's files before.
    pub bytes_before: u64,
    /// Bytes of sled's files after.
    pub bytes_after: u64,
    /// Blobs that no row needed and that are gone.
    pub blobs: usize,
    /// Their bytes.
    pub blob_bytes: u64,
}

impl Store {
    /// Writes sled's files anew without what was overwritten or deleted, and removes blobs that no row needs. Closes the store.
    /// A crash at any moment leaves the old files or the new ones.
    ///
    /// # Errors
    /// There is no space for the second copy, or the file system failed; the old files stay in place then.
    pub fn compact(self) -> Result<Compacted, StoreError> {
        let (directory, options) = (self.core.directory.clone(), self.core.options.clone());
        let (old, new, place) = (directory.join(OLD), directory.join(NEW), directory.join("store"));
        let (blobs, blob_bytes) = self.collect_garbage()?;
        self.flush()?;
        remove(&new)?;
        self.read(|from| {
            let to = keeper::config(&new, &options).open()?;
            let mut entries = from.iter().peekable();
            while entries.peek().is_some() {
                let mut batch = sled::Batch::default();
                for entry in entries.by_ref().take(AT_ONCE) {
                    let (key, value) = entry?;
                    batch.insert(key, value);
                }
                to.apply_batch(batch)?;
            }
            to.flush()?;
            if to.checksum()? != from.checksum()? {
                return Err(io::Error::other("the new files do not hold what the old ones do").into());
            }
            Ok(())
        })?;
        // Both sleds write until their last thread is gone.
        drop(self);
        let new_lock = keeper::lock(&new, LET_GO)?;
        let _nobody_opens = keeper::lock(&place, LET_GO)?;
        sync(&new)?;
        drop(new_lock);
        let (bytes_before, bytes_after) = (size(&place)?, size(&new)?);
        fs::rename(&place, &old)?;
        fs::rename(&new, &place)?;
        files::sync_parent(&place)?;
        remove(&old)?;
        Ok(Compacted { bytes_before, bytes_after, blobs, blob_bytes })
    }
}

/// Brings back the old files if a compaction ended between its two renames. Call it before sled opens.
///
/// # Errors
/// `WouldBlock` if that compaction is still under way, or any failure of the file system.
pub(super) fn recover(directory: &Path) -> io::Result<()> {
    let (place, old) = (directory.join("store"), directory.join(OLD));
    if place.exists() || !old.exists() {
        return Ok(());
    }
    std::fs::File::open(old.join("db"))?.try_lock()?;
    fs::rename(&old, &place)?;
    files::sync_parent(&place)
}

/// Removes what a compaction left. Whoever calls it has the store's lock.
///
/// # Errors
/// Any failure of the file system.
pub(super) fn clean(directory: &Path) -> io::Result<()> {
    remove(&directory.join(NEW))?;
    remove(&directory.join(OLD))
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Flushes every file of a directory, and the directory.
fn sync(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() { sync(&path)? } else { fs::File::open(&path)?.sync_all()? }
    }
    fs::File::open(directory)?.sync_all()
}

/// Bytes of all files below a directory.
fn size(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}
