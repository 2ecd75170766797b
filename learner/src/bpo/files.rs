//! Files that are either whole or not there: written beside, flushed, renamed, and the directory flushed after them.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use fs_err as fs;

/// Writes `path` so that a crash at any moment leaves the old content or the new one, never a part.
///
/// # Errors
/// Any failure of the file system; the temporary file is then left behind under a name that starts with a dot.
pub fn write_atomic(path: &Path, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let beside = beside(path)?;
    let mut file = io::BufWriter::new(fs::File::create(&beside)?);
    content(&mut file)?;
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&beside, path)?;
    sync_parent(path)
}

/// Makes a rename or creation inside `path`'s directory survive a power cut.
///
/// # Errors
/// Any failure of the file system.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Windows cannot open a directory as a file, and flushes directory entries by itself.
    if cfg!(unix) { fs::File::open(parent)?.sync_all() } else { Ok(()) }
}

/// The hidden name under which `path` is prepared; no other call gets the same.
///
/// # Errors
/// `path` has no file name.
pub fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{} has no file name", path.display())))?;
    // Two threads may write one path at the same time.
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    Ok(path.with_file_name(format!(".{}.tmp-{}-{count}", name.to_string_lossy(), std::process::id())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        write_atomic(&path, |file| file.write_all(b"first")).unwrap();
        let failed = write_atomic(&path, |file| {
            file.write_all(b"sec")?;
            Err(io::Error::other("disk full"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "disk full");
        assert_eq!(fs::read_to_string(&path).unwrap(), "first");
        write_atomic(&path, |file| file.write_all(b"second")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "second");
    }
}
