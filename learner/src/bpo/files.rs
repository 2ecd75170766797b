//! Files that are either whole or not there: written beside, flushed, renamed, and the directory flushed after them.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use fs_err as fs;

/// Writes `path` so that a crash at any moment leaves the old content or the new one, never a part.
///
/// # Errors
/// Any failure of the file system; the temporary file is then left behind, for [`remove_unfinished`].
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

/// Writes several files, each as [`write_atomic`] does, and flushes them together: a disk takes many flushes at once in hardly more
/// time than one.
///
/// # Errors
/// Any failure of the file system; some of the files may be there then, whole.
pub fn write_all_atomic(contents: &[(PathBuf, &[u8])]) -> io::Result<()> {
    let prepare = |(path, bytes): &(PathBuf, &[u8])| {
        let beside = beside(path)?;
        let mut file = fs::File::create(&beside)?;
        file.write_all(bytes)?;
        Ok((file, beside))
    };
    let prepared: Vec<_> = contents.iter().map(prepare).collect::<io::Result<_>>()?;
    at_once(&prepared, |(file, _)| file.sync_all())?;
    for ((_, beside), (path, _)) in prepared.iter().zip(contents) {
        fs::rename(beside, path)?;
    }
    // One of each directory.
    let parents: BTreeMap<_, _> = contents.iter().map(|(path, _)| (path.parent(), path)).collect();
    at_once(&parents.into_values().collect::<Vec<_>>(), |path| sync_parent(path))
}

/// Does something with every item, in a few threads if there are several.
fn at_once<T: Sync>(items: &[T], work: impl Fn(&T) -> io::Result<()> + Sync) -> io::Result<()> {
    const THREADS: usize = 16;
    if let [item] = items {
        return work(item);
    }
    let next = AtomicUsize::new(0);
    let take = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(item)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS.min(items.len())).map(|_| scope.spawn(take)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("a panic"))))
    })
}

/// Makes a directory and those above it that are missing, so that they survive a power cut.
///
/// # Errors
/// Any failure of the file system.
pub fn make_directories(path: &Path) -> io::Result<()> {
    let missing: Vec<_> =
        path.ancestors().take_while(|above| !above.as_os_str().is_empty() && !above.exists()).collect();
    fs::create_dir_all(path)?;
    missing.into_iter().rev().try_for_each(sync_parent)
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

/// Removes what [`write_atomic`] and others that write beside left in a directory when they were interrupted. Nobody may be writing there.
///
/// # Errors
/// Any failure of the file system; a directory that is not there has none.
pub fn remove_unfinished(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !(name.starts_with('.') && name.contains(".tmp-")) {
            continue;
        }
        if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_made_once() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            make_directories(&dir.path().join("a/b/c")).unwrap();
        }
        fs::write(dir.path().join("a/b/c/file"), b"").unwrap();
        assert!(make_directories(&dir.path().join("a/b/c/file/d")).is_err());
    }

    #[test]
    fn several_files_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = |n: usize| dir.path().join(format!("{n}"));
        let contents: Vec<_> = (0..40).map(|n| (path(n), n.to_string())).collect();
        let given: Vec<_> = contents.iter().map(|(path, text)| (path.clone(), text.as_bytes())).collect();
        write_all_atomic(&given).unwrap();
        write_all_atomic(&given[..1]).unwrap();
        write_all_atomic(&[]).unwrap();
        assert!(contents.iter().all(|(path, text)| fs::read_to_string(path).unwrap() == *text));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 40, "nothing else is left");
        assert!(write_all_atomic(&[(path(1), b"new"), (dir.path().join("none/1"), b"")]).is_err());
        assert_eq!(fs::read_to_string(path(1)).unwrap(), "1");
    }

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
