//! Images by content: each file once, under the BLAKE3 digest of its bytes.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::bpo::files;

/// Where the bytes of images are.
pub trait Blobs {
    /// Keeps `bytes` and returns their digest: 64 lower-case hexadecimal digits.
    ///
    /// # Errors
    /// The store is full or not writable.
    fn put(&self, bytes: &[u8]) -> io::Result<String>;

    /// The bytes of `digest`.
    ///
    /// # Errors
    /// `NotFound`, or `InvalidData` when what is stored no longer has that digest.
    fn get(&self, digest: &str) -> io::Result<Vec<u8>>;
}

/// Whether `text` is what a digest looks like; anything else never becomes a path.
pub fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// A directory: `<root>/<first two digits>/<digest>`.
#[derive(Clone, Debug)]
pub struct BlobDir {
    root: PathBuf,
}

impl BlobDir {
    /// The store under `root`, which is made when the first blob arrives.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether there is a blob with that digest; its content is not looked at.
    pub fn contains(&self, digest: &str) -> bool {
        self.path(digest).is_ok_and(|path| path.exists())
    }

    /// Where a blob is, if it is there.
    ///
    /// # Errors
    /// `InvalidInput` for what is no digest.
    pub fn path(&self, digest: &str) -> io::Result<PathBuf> {
        if !is_digest(digest) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{digest:?} is no BLAKE3 digest")));
        }
        Ok(self.root.join(&digest[..2]).join(digest))
    }

    /// Takes a file in under its digest, without reading it into memory. The file is gone afterwards. It must be on the same
    /// file system, and nobody may write to it any more.
    ///
    /// # Errors
    /// Any failure of the file system.
    pub fn adopt(&self, file: &Path) -> io::Result<String> {
        let mut hasher = blake3::Hasher::new();
        let opened = fs::File::open(file)?;
        hasher.update_reader(&opened)?;
        opened.sync_all()?;
        let digest = hasher.finalize().to_hex().to_string();
        let path = self.path(&digest)?;
        self.shelf(&path)?;
        fs::rename(file, &path)?;
        files::sync_parent(&path)?;
        Ok(digest)
    }

    /// Has a blob of another directory here, too, under a second name for the same bytes where the file system knows such. It
    /// survives a power cut after [`Self::sync`].
    ///
    /// # Errors
    /// `NotFound`, or any failure of the file system.
    pub fn link(&self, from: &Self, digest: &str) -> io::Result<()> {
        let path = self.path(digest)?;
        if path.exists() {
            return Ok(());
        }
        self.shelf(&path)?;
        match fs::hard_link(from.path(digest)?, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
            Err(_) => self.put(&from.get(digest)?).map(drop),
            Ok(()) => Ok(()),
        }
    }

    /// Makes what was linked here survive a power cut: once for many links.
    ///
    /// # Errors
    /// Any failure of the file system.
    pub fn sync(&self) -> io::Result<()> {
        if !self.root.exists() {
            return Ok(());
        }
        for shelf in fs::read_dir(&self.root)? {
            files::sync_parent(&shelf?.path().join("any"))?;
        }
        Ok(())
    }

    /// Keeps several blobs, which are flushed together; as [`Blobs::put`] otherwise.
    ///
    /// # Errors
    /// As [`Blobs::put`]; some of them may be there then.
    pub fn put_all(&self, contents: &[&[u8]]) -> io::Result<()> {
        let mut new = BTreeMap::new();
        for bytes in contents {
            let path = self.path(blake3::hash(bytes).to_hex().as_str())?;
            if !path.exists() {
                self.shelf(&path)?;
                new.insert(path, *bytes);
            }
        }
        files::write_all_atomic(&new.into_iter().collect::<Vec<_>>())
    }

    fn shelf(&self, path: &Path) -> io::Result<()> {
        path.parent().map_or(Ok(()), files::make_directories)
    }

    /// Removes a blob, if it is there.
    ///
    /// # Errors
    /// `InvalidInput` for what is no digest, or any failure of the file system.
    pub fn remove(&self, digest: &str) -> io::Result<()> {
        match fs::remove_file(self.path(digest)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Digest and size in bytes of every blob, in no order.
    ///
    /// # Errors
    /// Any failure of the file system.
    pub fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        if !self.root.exists() {
            return Ok(found);
        }
        for shelf in fs::read_dir(&self.root)? {
            let shelf = shelf?;
            if !shelf.file_type()?.is_dir() {
                continue;
            }
            for blob in fs::read_dir(shelf.path())? {
                let blob = blob?;
                // Half-written blobs have names that are no digests.
                if let Some(digest) = blob.file_name().to_str().filter(|name| is_digest(name)) {
                    found.push((digest.to_owned(), blob.metadata()?.len()));
                }
            }
        }
        Ok(found)
    }
}

impl Blobs for BlobDir {
    fn put(&self, bytes: &[u8]) -> io::Result<String> {
        let digest = blake3::hash(bytes).to_hex().to_string();
        let path = self.path(&digest)?;
        // A blob is renamed into place, so one that is there is whole.
        if !path.exists() {
            self.shelf(&path)?;
            files::write_atomic(&path, |file| file.write_all(bytes))?;
        }
        Ok(digest)
    }

    fn get(&self, digest: &str) -> io::Result<Vec<u8>> {
        let path = self.path(digest)?;
        let bytes = fs::read(&path)?;
        if blake3::hash(&bytes).to_hex().as_str() != digest {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged", path.display())));
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_adopted_and_linked() {
        let dir = tempfile::tempdir().unwrap();
        let (blobs, other) = (BlobDir::new(dir.path().join("a")), BlobDir::new(dir.path().join("b")));
        for _ in 0..2 {
            let file = dir.path().join("file");
            fs::write(&file, b"bytes").unwrap();
            let digest = blobs.adopt(&file).unwrap();
            assert_eq!((blobs.get(&digest).unwrap(), file.exists()), (b"bytes".to_vec(), false));
            other.sync().unwrap();
            other.link(&blobs, &digest).unwrap();
            other.sync().unwrap();
            blobs.remove(&digest).unwrap();
            assert_eq!(other.get(&digest).unwrap(), b"bytes", "a link outlives the first name");
            assert_eq!(other.link(&blobs, &"0".repeat(64)).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
    }

    #[test]
    fn once_by_content_and_damage_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobDir::new(dir.path());
        let digest = blobs.put(b"pixels").unwrap();
        assert_eq!(blobs.put(b"pixels").unwrap(), digest);
        assert_eq!(blobs.get(&digest).unwrap(), b"pixels");
        fs::write(blobs.path(&digest).unwrap(), b"pixelz").unwrap();
        assert_eq!(blobs.get(&digest).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(blobs.get(&"0".repeat(64)).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(blobs.get("../../etc/passwd").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
