//! What sled 0.34.7 leaves undone when it is killed, and when it flushes.

use std::io;
use std::path::Path;

use fs_err as fs;

use super::compact;
use crate::bpo::files;

/// Removes what a killed sled stumbles over when it opens again: it takes a half-written `snap.….generating` for its newest
/// snapshot and refuses it, and refuses a `conf` that ends early, which it writes without flushing. Both are made anew: a
/// snapshot out of the log, `conf` out of settings that are always the same here. What a killed compaction left goes, too. Call it
/// before sled opens the `store` of a data directory.
///
/// # Errors
/// `WouldBlock` if a sled has the store open, whose files must stay; the directory cannot be read, or a file in it not
/// removed.
pub(super) fn sweep(directory: &Path) -> io::Result<()> {
    let store = directory.join("store");
    let entries = match fs::read_dir(&store) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    // sled's own lock, let go before sled takes it.
    let _alone = match std::fs::File::open(store.join("db")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        file => {
            let file = file?;
            file.try_lock()?;
            Some(file)
        }
    };
    compact::clean(directory)?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let half_snapshot = name.starts_with("snap.") && name.ends_with(".generating");
        if half_snapshot || (name == "conf" && !is_whole(&fs::read(entry.path())?)) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether a `conf` has its three lines and the four bytes of its checksum.
fn is_whole(conf: &[u8]) -> bool {
    let text = conf.len().checked_sub(4).and_then(|end| std::str::from_utf8(&conf[..end]).ok());
    text.is_some_and(|text| {
        text.ends_with('\n')
            && ["segment_size: ", "use_compression: ", "version: "].iter().all(|key| text.contains(key))
    })
}

/// What sled waits for before it takes a write for safe, in the place of the system's call of this name, which leaves out the
/// file's length and the disk's own cache: enough for a killed process, not for a power cut. sled writes over the old place of a
/// page once the new one is safe, so flushing afterwards, in [`sync`], does not make up for it. The linker finds this one first,
/// in every program that has the store in it.
///
/// # Safety
/// As every call of the system with an open file.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "it takes the name of a call of the system")]
// SAFETY: whoever calls this name gets what the name promises, and more.
#[unsafe(no_mangle)]
unsafe extern "C" fn sync_file_range(file: i32, _offset: i64, _length: i64, _flags: u32) -> i32 {
    // SAFETY: the caller has it open.
    let file = unsafe { std::os::fd::BorrowedFd::borrow_raw(file) };
    let flushed = file.try_clone_to_owned().and_then(|file| std::fs::File::from(file).sync_data());
    // The system keeps the number of the error where the caller looks for it.
    if flushed.is_ok() { 0 } else { -1 }
}

/// Flushes sled's file itself, and the names of the files that it puts large pages into, which the file refers to.
///
/// # Errors
/// The disk failed.
pub(super) fn sync(store: &Path) -> io::Result<()> {
    sync_names(&store.join("blobs"))?;
    fs::File::open(store.join("db"))?.sync_all()
}

/// Flushes what sled made when it was opened, up to the data directory.
///
/// # Errors
/// The disk failed.
pub(super) fn sync_new(store: &Path) -> io::Result<()> {
    sync(store)?;
    sync_names(store)?;
    files::sync_parent(store)
}

/// Flushes the entries of a directory.
fn sync_names(directory: &Path) -> io::Result<()> {
    files::sync_parent(&directory.join("any"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::rows::Audit;
    use crate::store::{Options, Store, StoreError};

    /// What a kill at any moment can leave of both files keeps nothing from being read.
    #[test]
    fn a_killed_sled_opens_again() {
        let dir = tempfile::tempdir().unwrap();
        let kept = {
            let store = Store::open(dir.path(), Options::default()).unwrap();
            store.change_rollout(None, "test", "activate", |_| Ok(())).unwrap();
            store.audit(1).unwrap()[0].id.clone()
        };
        let store = dir.path().join("store");
        let conf = fs::read(store.join("conf")).unwrap();
        for length in 0..=conf.len() {
            fs::write(store.join("conf"), &conf[..length]).unwrap();
            for half in [&b""[..], b"x", &[7; 200]] {
                fs::write(store.join("snap.00000000FFFFFFFF.generating"), half).unwrap();
                let opened = Store::open(dir.path(), Options::default()).unwrap();
                assert!(opened.get::<Audit>(&kept).unwrap().is_some(), "conf of {length} bytes");
                if length % 16 != 0 {
                    break;
                }
            }
            assert_eq!(fs::read(store.join("conf")).unwrap(), conf);
        }
    }

    #[test]
    fn an_open_sled_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let _open = Store::open(dir.path(), Options::default()).unwrap();
        let half = dir.path().join("store/snap.00000000FFFFFFFF.generating");
        fs::write(&half, b"under way").unwrap();
        assert!(matches!(Store::open(dir.path(), Options::default()), Err(StoreError::Locked(_))));
        assert!(half.exists());
    }
}
