//! The directory that a checkpoint is unpacked or prepared in.
//!
//! It goes with its owner. A process that is killed leaves it behind, but no lock on it: the next process that prepares one removes it.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use fs_err as fs;
use tempfile::TempDir;
use tracing::{info, warn};

const PREFIX: &str = "reground-checkpoint-";
/// Younger ones may have an owner that has not locked them yet.
const YOUNG: Duration = Duration::from_secs(60);
/// Nobody else reads or writes what is in it.
const MODE: u32 = 0o700;

/// A directory of its own, locked while it lives.
#[derive(Debug)]
pub(super) struct Prepared {
    directory: TempDir,
    _lock: File,
}

impl Prepared {
    /// An empty one among the system's temporary files, which loses those there that nobody has any more.
    ///
    /// # Errors
    /// It cannot be made.
    pub(super) fn new() -> io::Result<Self> {
        Self::below(&std::env::temp_dir())
    }

    fn below(place: &Path) -> io::Result<Self> {
        let permissions = Permissions::from_mode(MODE);
        let directory = tempfile::Builder::new().prefix(PREFIX).permissions(permissions).tempdir_in(place)?;
        let lock = File::open(directory.path())?;
        lock.try_lock()?;
        let owner = lock.metadata()?.uid();
        for entry in fs::read_dir(place)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                remove_if_left(&entry.path(), owner);
            }
        }
        Ok(Self { directory, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Removes a directory of this user's that nobody has locked. What others put there under such a name, a link above all, stays.
fn remove_if_left(directory: &Path, owner: u32) {
    let Ok(found) = directory.symlink_metadata() else { return };
    let is_ours = found.is_dir() && found.uid() == owner && found.mode() & 0o077 == 0;
    let is_old = found.modified().is_ok_and(|made| made.elapsed().is_ok_and(|age| age >= YOUNG));
    if !is_ours || !is_old {
        return;
    }
    // Held while it is removed, so that two processes do not do it at once.
    let Ok(lock) = File::open(directory) else { return };
    if lock.try_lock().is_err() {
        return;
    }
    match fs::remove_dir_all(directory) {
        Ok(()) => info!(directory = %directory.display(), "Removed what a process that is gone had unpacked."),
        Err(error) => warn!(%error, "What a process that is gone had unpacked cannot be removed."),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::DirBuilder;
    use std::time::SystemTime;

    use super::*;

    fn make(path: &Path, mode: u32) {
        use std::os::unix::fs::DirBuilderExt;
        DirBuilder::new().mode(mode).create(path).unwrap();
        fs::write(path.join("config.json"), "{}").unwrap();
    }

    fn age(path: &Path) {
        File::open(path).unwrap().set_modified(SystemTime::now() - 2 * YOUNG).unwrap();
    }

    #[test]
    fn what_nobody_has_any_more_goes_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        let living = Prepared::below(place.path()).unwrap();
        let left = at("reground-checkpoint-left");
        let stay =
            ["reground-checkpoint-young", "reground-checkpoint-open", "reground-model-other", "elsewhere"].map(at);
        make(&left, 0o700);
        for (path, mode) in stay.iter().zip([0o700, 0o755, 0o700, 0o700]) {
            make(path, mode);
        }
        let link = at("reground-checkpoint-link");
        fs::os::unix::fs::symlink(&stay[3], &link).unwrap();
        for path in [&left, &stay[1], &stay[2], &stay[3], &living.path().to_owned()] {
            age(path);
        }

        let next = Prepared::below(place.path()).unwrap();
        assert!(!left.exists(), "the one of a process that is gone stays");
        for path in stay.iter().map(|path| path.join("config.json")).chain([link, living.path().to_owned()]) {
            assert!(path.exists(), "{} is gone", path.display());
        }
        let gone = next.path().to_owned();
        assert_eq!(gone.metadata().unwrap().mode() & 0o777, MODE);
        drop(next);
        assert!(!gone.exists(), "it outlives its owner");
    }
}
