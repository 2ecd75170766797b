//! The store: the truth for records, feedback, pairs, runs, adapters, the rollout and the audit.
//!
//! One [`Store`] over sled and a directory of blobs. Its functions block; async code calls them on a blocking thread.
//! What was acknowledged survives kill -9: a record within [`Options::flush_every`], or as soon as [`Store::flush`] is
//! back; everything else before the call returns.
//!
//! # Layout
//! - [`Store`]: opening, writing, flushing; [`Transaction`]: several rows at once; [`Query`]: reading.
//! - [`rows`]: the kinds of rows; [`id`]: their ids; `keys`, `encoding`: how they lie in sled.
//! - `keeper`: the thread that flushes, notices failures and opens the store again after one.
//! - `sweep`: what sled leaves undone when it is killed and when it flushes.
//! - `feedback`: what someone says of a record brings it before the bootstrapper again, and goes when the record never comes.
//! - [`Deleted`]: records and all that hangs on them; `blobs`: images, and which of them nobody needs; `usage`: what records take.
//! - `review`: what a person decides about a pair, with its audit.
//! - `rollout`: compare-and-swap of what answers, with its audit.
//! - [`Verified`]: looking everything over; [`Stats`]. [`Exported`], [`Imported`]: all of it in a form that other programs read,
//!   and back. [`Compacted`]: sled's files written anew.

mod blobs;
mod compact;
mod delete;
mod encoding;
mod error;
mod export;
mod feedback;
pub mod id;
mod keeper;
mod keys;
mod query;
mod review;
mod rollout;
pub mod rows;
mod sweep;
mod transaction;
mod usage;
mod verify;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

pub use self::compact::Compacted;
pub use self::delete::Deleted;
pub use self::error::StoreError;
pub use self::export::{Exported, Imported};
pub use self::feedback::FEEDBACK_LIMIT;
use self::keeper::Keeper;
pub use self::query::{Page, Query};
pub use self::review::Edit;
use self::rows::Row;
use self::transaction::Changes;
pub use self::transaction::Transaction;
pub use self::verify::{Stats, Verified};
use crate::bpo::data::blobs::BlobDir;
use crate::bpo::files;

/// The format of the whole store; rows have versions of their own.
const FORMAT: u8 = 1;
const FORMAT_KEY: &str = "m/format";

/// How long opening waits for a process that is just going.
const OPENING: Duration = Duration::from_secs(1);

/// How a store works.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a record may wait to be flushed. Default 50 ms.
    pub flush_every: Duration,
    /// Memory that sled keeps pages in, bytes. Default 64 MiB. sled trims each of the cache's 256 parts at every 64th access to it:
    /// until then some thousands of small rows, 30 MiB, come on top.
    pub cache_bytes: u64,
    /// Space that is left to others on the disk, bytes: with less nothing is written. Default 64 MiB.
    pub min_free_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { flush_every: Duration::from_millis(50), cache_bytes: 64 << 20, min_free_bytes: 64 << 20 }
    }
}

/// How the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Everything is written.
    Healthy,
    /// Nothing is written, for this reason. It goes on by itself when that is over.
    Degraded(String),
}

/// The data directory, open. Dropping it flushes what is written and lets the directory go.
pub struct Store {
    core: Arc<Core>,
    blobs: BlobDir,
    /// Held shared while blobs and the rows that need them are written, alone while blobs are removed.
    blob_use: RwLock<()>,
    /// Blobs that came without a row yet.
    unclaimed: Mutex<blobs::Unclaimed>,
    /// Kind and id of damaged rows that the log tells of already.
    told: Mutex<HashSet<(&'static str, String)>>,
    _keeper: Keeper,
}

/// What the flushing thread shares with the store.
struct Core {
    directory: PathBuf,
    options: Options,
    /// `None` only while it is opened again.
    db: RwLock<Option<sled::Db>>,
    /// One change at a time: between its reads and its writes nothing else is written.
    writing: Mutex<()>,
    /// How often sled was opened again. What was written before and not flushed is gone since.
    epoch: AtomicU64,
    written: AtomicU64,
    flushed: AtomicU64,
    /// Space that stays free, bytes; apart from the options so that it can change.
    min_free: AtomicU64,
    /// Why nothing can be written now; and whether sled must be opened again.
    failure: Mutex<Option<Failure>>,
}

/// A change that was made.
struct Committed<T> {
    done: T,
    /// Blobs that it may have left alone.
    released: Vec<String>,
    /// [`Core::epoch`] in which it was made.
    epoch: u64,
}

#[derive(Clone, Debug)]
struct Failure {
    why: String,
    /// sled refuses everything after one failure, until it is opened again.
    reopen: bool,
}

impl Store {
    /// Opens the data directory, and makes it if it is not there.
    ///
    /// # Errors
    /// Another process has it, it cannot be written, or a later version of the program wrote it.
    pub fn open(directory: impl Into<PathBuf>, options: Options) -> Result<Self, StoreError> {
        let directory = directory.into();
        let blobs = BlobDir::new(directory.join("blobs"));
        let made = files::make_directories(blobs.root()).and_then(|()| keeper::probe(&directory));
        made.map_err(|source| StoreError::Open { path: directory.clone(), source })?;
        let db = keeper::open(&directory, &options, OPENING)?;
        blobs::remove_unfinished(&directory).map_err(|source| StoreError::Open { path: directory.clone(), source })?;
        let core = Arc::new(Core {
            directory,
            min_free: AtomicU64::new(options.min_free_bytes),
            options,
            db: RwLock::new(Some(db)),
            writing: Mutex::new(()),
            epoch: AtomicU64::new(0),
            written: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            failure: Mutex::new(None),
        });
        let keeper = Keeper::start(core.clone())?;
        let (blob_use, unclaimed, told) = (RwLock::new(()), Mutex::default(), Mutex::default());
        Ok(Self { core, blobs, blob_use, unclaimed, told, _keeper: keeper })
    }

    /// The data directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.core.directory
    }

    /// Where the files of a run are.
    #[must_use]
    pub fn run_directory(&self, id: &str) -> PathBuf {
        self.core.directory.join("runs").join(id)
    }

    /// Where the files of an adapter are.
    #[must_use]
    pub fn adapter_directory(&self, id: &str) -> PathBuf {
        self.core.directory.join("adapters").join(id)
    }

    /// How the store is.
    #[must_use]
    pub fn health(&self) -> Health {
        let failure = self.core.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.as_ref().map_or(Health::Healthy, |failure| Health::Degraded(failure.why.clone()))
    }

    /// Refuses what would take of the space that stays free: for files that are written beside the store.
    ///
    /// # Errors
    /// [`StoreError::Full`], or the disk cannot be asked.
    pub fn check_room(&self, bytes: u64) -> Result<(), StoreError> {
        self.core.room(bytes)
    }

    /// Changes how much space stays free, bytes.
    pub fn keep_free(&self, bytes: u64) {
        self.core.min_free.store(bytes, Ordering::Relaxed);
    }

    /// Changes rows; they are on disk when this returns.
    ///
    /// # Errors
    /// What `change` refuses, or a failure of the store; nothing is changed then, unless the disk failed while flushing.
    pub fn write<T>(
        &self,
        change: impl FnOnce(&mut Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let Committed { done, released, epoch } = self.commit_shared(change)?;
        self.flush_of(epoch)?;
        if let Err(error) = self.remove_released(&released) {
            // The change is made; `collect_garbage` finds what it left.
            tracing::warn!(%error, "Blobs that no row needs any more are not removed yet");
        }
        Ok(done)
    }

    /// Changes rows; they are on disk soon, see [`Options::flush_every`], or when [`Self::flush`] is back. Blobs that they need no
    /// longer stay until [`Self::collect_garbage`].
    ///
    /// # Errors
    /// What `change` refuses, or a failure of the store; nothing is changed then.
    pub fn write_behind<T>(
        &self,
        change: impl FnOnce(&mut Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.commit_shared(change).map(|committed| committed.done)
    }

    /// Adds a row whose id is new; it is on disk when this returns.
    ///
    /// # Errors
    /// [`StoreError::Exists`], a reference to nothing, or a failure of the store.
    pub fn insert<R: Row>(&self, row: &R) -> Result<(), StoreError> {
        self.write(|rows| rows.insert(row))
    }

    /// Changes the row with an id; the change is on disk when this returns.
    ///
    /// # Errors
    /// [`StoreError::Missing`], or a failure of the store.
    pub fn update<R: Row>(&self, id: &str, change: impl FnOnce(&mut R)) -> Result<R, StoreError> {
        self.write(|rows| rows.update(id, change))
    }

    /// Waits until everything written so far is on disk.
    ///
    /// # Errors
    /// The disk failed; what was not flushed before may be lost.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.core.flush()
    }

    /// Number of changes that were made.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.core.written.load(Ordering::Acquire)
    }

    /// Number of changes, of those that [`Self::written`] counts, that are on disk.
    #[must_use]
    pub fn flushed(&self) -> u64 {
        self.core.flushed.load(Ordering::Acquire)
    }

    /// Waits until a change of this epoch is on disk.
    fn flush_of(&self, epoch: u64) -> Result<(), StoreError> {
        self.flush()?;
        if self.core.epoch.load(Ordering::Acquire) == epoch {
            return Ok(());
        }
        Err(StoreError::Degraded("it was opened again before the change was on the disk".to_owned()))
    }

    /// Makes one change while no blob is removed.
    fn commit_shared<T>(
        &self,
        change: impl FnOnce(&mut Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<Committed<T>, StoreError> {
        let _no_blob_goes = self.blob_use.read().unwrap_or_else(PoisonError::into_inner);
        self.commit(change)
    }

    /// Makes one change. Whoever calls it holds [`Self::blob_use`].
    fn commit<T>(
        &self,
        change: impl FnOnce(&mut Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<Committed<T>, StoreError> {
        self.core.check_space()?;
        self.apply(change)
    }

    /// As [`Self::commit`], for what only deletes: it may take the space that is kept free, which it is to enlarge.
    fn commit_deletion<T>(
        &self,
        change: impl FnOnce(&mut Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<Committed<T>, StoreError> {
        self.core.check_whole()?;
        self.apply(change)
    }

    fn apply<T>(
        &self,
        change: impl FnOnce(&mut Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<Committed<T>, StoreError> {
        let _one_at_a_time = self.core.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let attempt = self.core.with(|db| {
            let mut transaction = Transaction::new(db, &self.blobs);
            let done = change(&mut transaction)?;
            let Changes { batch, needed, released } = transaction.into_changes();
            db.apply_batch(batch)?;
            self.core.written.fetch_add(1, Ordering::AcqRel);
            Ok((Committed { done, released, epoch: self.core.epoch.load(Ordering::Acquire) }, needed))
        });
        let (committed, needed) = self.core.noticed(attempt)?;
        let mut unclaimed = self.unclaimed.lock().unwrap_or_else(PoisonError::into_inner);
        for digest in &needed {
            unclaimed.remove(digest);
        }
        Ok(committed)
    }

    fn read<T>(&self, read: impl FnOnce(&sled::Db) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.core.with(read)
    }
}

impl Core {
    fn with<T>(&self, work: impl FnOnce(&sled::Db) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let db: RwLockReadGuard<'_, Option<sled::Db>> = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let db = db.as_ref().ok_or_else(|| StoreError::Degraded("it is being opened again".to_owned()))?;
        work(db)
    }

    fn flush(&self) -> Result<(), StoreError> {
        let written = self.written.load(Ordering::Acquire);
        if self.flushed.load(Ordering::Acquire) >= written {
            return Ok(());
        }
        let flushed = self.with(|db| {
            db.flush()?;
            Ok(sweep::sync(&self.directory.join("store"))?)
        });
        self.noticed(flushed)?;
        self.flushed.fetch_max(written, Ordering::AcqRel);
        Ok(())
    }
}
