//! The thread that flushes, notices failures and opens the store again after one.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fs_err as fs;

use super::sweep::{sweep, sync_new};
use super::{Core, FORMAT, FORMAT_KEY, Failure, Options, StoreError, compact};

/// How often a broken store is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// How long the last of a closed sled may take to let its file go.
pub(super) const LET_GO: Duration = Duration::from_secs(5);

/// Flushes until it is dropped, and once more then.
pub(super) struct Keeper {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(super) fn start(core: Arc<Core>) -> io::Result<Self> {
        let (stop, stopped) = channel();
        let every = core.options.flush_every;
        let work = move || {
            let mut tried = Instant::now();
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                // A failure is noted and told by `noticed`.
                let _ = core.flush();
                if tried.elapsed() >= RETRY {
                    core.recover();
                    tried = Instant::now();
                }
            }
            let _ = core.flush();
        };
        let thread = std::thread::Builder::new().name("store-keeper".to_owned()).spawn(work)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Core {
    /// Notes a failure of the disk, so that [`super::Store::health`] tells it.
    pub(super) fn noticed<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        let reopen = match &result {
            Err(StoreError::Full { .. }) => false,
            Err(StoreError::Io(_)) => true,
            _ => return result,
        };
        if let Err(error) = &result {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            if failure.is_none() {
                tracing::error!(error = %error, "The store cannot be written; serving goes on without it");
            }
            let reopen = reopen || failure.as_ref().is_some_and(|failure| failure.reopen);
            *failure = Some(Failure { why: error.to_string(), reopen });
        }
        result
    }

    /// Refuses to write when the disk is nearly full or broken.
    pub(super) fn check_space(&self) -> Result<(), StoreError> {
        self.check_whole()?;
        self.noticed(self.room(0))
    }

    /// Refuses while sled has to be opened again: what it reads then may not be what is on the disk.
    pub(super) fn check_whole(&self) -> Result<(), StoreError> {
        let broken = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match broken.filter(|failure| failure.reopen) {
            Some(broken) => Err(StoreError::Degraded(broken.why)),
            None => Ok(()),
        }
    }

    /// Whether so many bytes can be written and enough stays free.
    pub(super) fn room(&self, bytes: u64) -> Result<(), StoreError> {
        let wanted = self.min_free.load(Ordering::Relaxed).saturating_add(bytes);
        let free = fs2::available_space(&self.directory)?;
        if free < wanted { Err(StoreError::Full { free, wanted }) } else { Ok(()) }
    }

    /// Ends a failure whose cause is gone.
    fn recover(&self) {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(failure) = failure else { return };
        if self.room(0).and_then(|()| Ok(probe(&self.directory)?)).is_err() {
            return;
        }
        if failure.reopen && self.reopen().is_err() {
            return;
        }
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
        tracing::info!("The store can be written again");
    }

    fn reopen(&self) -> Result<(), StoreError> {
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        // The old one has the lock on the file.
        drop(db.take());
        *db = Some(open(&self.directory, &self.options, LET_GO)?);
        // What was not flushed when the disk failed is gone. Whoever waits for it hears that by the epoch.
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.flushed.store(self.written.load(Ordering::Acquire), Ordering::Release);
        Ok(())
    }
}

/// Opens sled in a data directory, and waits so long for whoever has it. A lock outlives its holder for a moment: sled's
/// threads end late, and a process that is just being started has a copy of it.
pub(super) fn open(directory: &Path, options: &Options, wait: Duration) -> Result<sled::Db, StoreError> {
    let begun = Instant::now();
    loop {
        match open_now(directory, options) {
            Err(StoreError::Locked(_)) if begun.elapsed() < wait => std::thread::sleep(RETRY / 10),
            opened => return opened,
        }
    }
}

/// How sled is opened.
pub(super) fn config(path: &Path, options: &Options) -> sled::Config {
    // The keeper flushes: sled's own thread ends for good after one failure.
    sled::Config::new().path(path).cache_capacity(options.cache_bytes).flush_every_ms(None)
}

/// Waits until nobody has a sled open, and has its lock until the file is dropped.
///
/// # Errors
/// `WouldBlock` after `wait`, or any failure of the file system.
pub(super) fn lock(store: &Path, wait: Duration) -> io::Result<std::fs::File> {
    let (begun, file) = (Instant::now(), std::fs::File::open(store.join("db"))?);
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if begun.elapsed() < wait => std::thread::sleep(RETRY / 10),
            Err(error) => return Err(error.into()),
        }
    }
}

fn open_now(directory: &Path, options: &Options) -> Result<sled::Db, StoreError> {
    compact::recover(directory).and_then(|()| sweep(directory)).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => StoreError::Locked(directory.to_owned()),
        _ => StoreError::Open { path: directory.to_owned(), source },
    })?;
    let db = config(&directory.join("store"), options).open().map_err(|error| match error {
        // sled gives the lock's error a text of its own, and no kind.
        sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => {
            StoreError::Locked(directory.to_owned())
        }
        sled::Error::Io(source) => StoreError::Open { path: directory.to_owned(), source },
        other => StoreError::Open { path: directory.to_owned(), source: io::Error::other(other.to_string()) },
    })?;
    match db.get(FORMAT_KEY)?.as_deref() {
        None => {
            db.insert(FORMAT_KEY, &[FORMAT])?;
            db.flush()?;
        }
        Some(&[found]) if found <= FORMAT => {}
        Some(found) => return Err(StoreError::Newer { found: found.first().copied().unwrap_or(0), known: FORMAT }),
    }
    sync_new(&directory.join("store"))?;
    Ok(db)
}

/// Whether files can be made in a directory.
pub(super) fn probe(directory: &Path) -> io::Result<()> {
    let path = crate::bpo::files::beside(&directory.join("probe"))?;
    fs::write(&path, b"probe")?;
    fs::remove_file(&path)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::Store;
    use super::super::rows::{EventKind, EventLevel, RunEvent};
    use super::*;

    #[test]
    fn what_was_lost_when_sled_was_opened_again_is_not_called_safe() {
        let dir = tempfile::tempdir().unwrap();
        let flush_every = Duration::from_secs(3600);
        let store = Store::open(dir.path(), Options { flush_every, min_free_bytes: 0, ..Options::default() }).unwrap();
        let event = |id: &str| RunEvent {
            id: id.to_owned(),
            run: "ftjob-1".into(),
            created_ms: 1,
            level: EventLevel::Info,
            kind: EventKind::Message,
            message: String::new(),
            data: Value::Null,
        };
        let committed = store.commit_shared(|rows| rows.insert(&event("ftevent-1"))).unwrap();
        store.core.reopen().unwrap();
        assert!(store.flush().is_ok(), "nothing waits");
        assert!(matches!(store.flush_of(committed.epoch), Err(StoreError::Degraded(_))));
        store.insert(&event("ftevent-2")).unwrap();
    }
}
