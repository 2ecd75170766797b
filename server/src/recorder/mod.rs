//! Writing down what was asked and answered, off the answers' path.
//!
//! # Layout
//! - [`Recorder`]: the bounded queue, the threads that write and that tidy, and which answers are still under way.
//! - [`Draft`]: a record while its answer comes.
//! - [`replay`]: what was recorded, as the engine is asked it again.
//! - [`Rules`]: what must not be written down. `image`: images as they wait; `metadata`: without what a camera wrote into them.

mod draft;
mod image;
mod metadata;
mod redact;
pub mod replay;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;
use std::convert::Infallible;
use std::iter;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use metrics::{counter, gauge};
use reground_learner::bpo::pair::ImageRef;
use reground_learner::store::rows::Record;
use reground_learner::store::{Health, Store, StoreError, id};

pub use self::draft::Draft;
use self::image::EncodedImage;
pub(crate) use self::metadata::without as without_metadata;
pub use self::redact::{Rules, is_redacted};
use crate::config::RecordConfig;

/// The counter of records: `stored`, `dropped` (the queue was full), `failed` (the store, or an image with metadata that cannot be taken out).
const RECORDS: &str = "reground_records_total";
/// 1 while the store cannot be written.
const DEGRADED: &str = "reground_store_degraded";
/// How often what is too old is looked for.
const TIDY: Duration = Duration::from_secs(600);
/// How long what was said of answers without a record stays when nothing else is written.
const FORGET: Duration = Duration::from_secs(60);
/// Records that are written at once when several wait.
const AT_ONCE: usize = 64;
/// How long a record waits for others that are written with it. With [`reground_learner::store::Options::flush_every`] it is on the disk
/// within 100 ms; one by one, each would wake this thread and those of the store.
const GATHER: Duration = Duration::from_millis(25);

/// Writes records. One for the whole server.
pub struct Recorder {
    store: Arc<Store>,
    config: RecordConfig,
    rules: Arc<Rules>,
    config_digest: String,
    /// `None` once it is closed.
    queue: Mutex<Option<SyncSender<Job>>>,
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// The thread that tidies, and what it ends without. `None` once it is closed.
    tidier: Mutex<Option<(Sender<Infallible>, JoinHandle<()>)>>,
}

#[derive(Default)]
struct Shared {
    /// Answers whose record is not in the store yet, and the name of the key that asked.
    open: Mutex<HashMap<String, Arc<str>>>,
    /// Bytes of images in the queue.
    waiting: AtomicUsize,
    /// Answers whose record will not come: the writer removes what was said of them.
    lost: Mutex<Vec<String>>,
}

/// A record on its way to the store.
struct Job {
    record: Record,
    images: Vec<EncodedImage>,
}

impl Recorder {
    /// Starts the thread that writes.
    ///
    /// # Errors
    /// A redaction rule is wrong, or there can be no thread.
    pub fn start(store: Arc<Store>, config: &RecordConfig, config_digest: String) -> anyhow::Result<Arc<Self>> {
        let rules = Rules::new(&config.redact, &config.redact_patterns).map_err(anyhow::Error::msg)?;
        let (rules, shared) = (Arc::new(rules), Arc::new(Shared::default()));
        let (queue, jobs) = sync_channel(config.queue);
        let writer = Writer { store: store.clone(), rules: rules.clone(), shared: shared.clone() };
        let writer = std::thread::Builder::new().name("recorder".to_owned()).spawn(move || writer.run(&jobs))?;
        let tidier = Tidier { store: store.clone(), config: config.clone(), shared: shared.clone() };
        let (stop, stopped) = channel();
        let tidier = std::thread::Builder::new().name("tidier".to_owned()).spawn(move || tidier.run(&stopped))?;
        metrics::describe_counter!(RECORDS, "Records by what became of them: stored, dropped, failed");
        metrics::describe_gauge!(DEGRADED, "1 while the store cannot be written");
        Ok(Arc::new(Self {
            store,
            config: config.clone(),
            rules,
            config_digest,
            queue: Mutex::new(Some(queue)),
            shared,
            writer: Mutex::new(Some(writer)),
            tidier: Mutex::new(Some((stop, tidier))),
        }))
    }

    /// What it writes to.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Its settings.
    #[must_use]
    pub fn config(&self) -> &RecordConfig {
        &self.config
    }

    /// What must not be written down.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Whether a conversation is among those that are recorded without being asked for.
    #[must_use]
    pub fn samples(&self, conversation: &str) -> bool {
        let digest = blake3::hash(conversation.as_bytes());
        let mut first = [0; 4];
        first.copy_from_slice(&digest.as_bytes()[..4]);
        f64::from(u32::from_le_bytes(first)) / f64::from(u32::MAX) <= self.config.share && self.config.share > 0.0
    }

    /// Who asked for an answer whose record is not in the store yet.
    #[must_use]
    pub fn under_way(&self, completion: &str) -> Option<Arc<str>> {
        self.shared.open.lock().unwrap_or_else(PoisonError::into_inner).get(completion).cloned()
    }

    /// Tells metrics how the store is.
    pub fn report(&self) {
        gauge!(DEGRADED).set(if self.store.health() == Health::Healthy { 0.0 } else { 1.0 });
    }

    /// Takes a record if there is room for it.
    fn submit(&self, record: Record, images: Vec<EncodedImage>) {
        let bytes = images.iter().map(|image| image.bytes.len()).sum();
        let id = record.id.clone();
        let room = self.shared.waiting.fetch_add(bytes, Ordering::AcqRel) + bytes <= self.config.queue_bytes;
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = room && queue.as_ref().is_some_and(|queue| queue.try_send(Job { record, images }).is_ok());
        drop(queue);
        if !taken {
            self.shared.waiting.fetch_sub(bytes, Ordering::AcqRel);
            self.shared.lose(&id);
            counter!(RECORDS, "outcome" => "dropped").increment(1);
        }
    }

    /// Writes what waits, and takes nothing more. Blocks.
    pub fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let tidier = self.tidier.lock().unwrap_or_else(PoisonError::into_inner).take();
        let tidier = tidier.map(|(stop, tidier)| {
            drop(stop);
            tidier
        });
        for thread in writer.into_iter().chain(tidier) {
            if thread.join().is_err() {
                tracing::error!("One of the recorder's threads panicked");
            }
        }
    }
}

impl Shared {
    fn close(&self, id: &str) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    fn lose(&self, id: &str) {
        self.close(id);
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
    }

    fn is_open(&self, id: &str) -> bool {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).contains_key(id)
    }
}

struct Writer {
    store: Arc<Store>,
    rules: Arc<Rules>,
    shared: Arc<Shared>,
}

impl Writer {
    fn run(&self, jobs: &Receiver<Job>) {
        let mut more_wait = false;
        loop {
            match jobs.recv_timeout(FORGET) {
                Ok(job) => {
                    if !more_wait {
                        std::thread::sleep(GATHER);
                    }
                    let jobs: Vec<_> = iter::once(job).chain(jobs.try_iter().take(AT_ONCE - 1)).collect();
                    more_wait = jobs.len() == AT_ONCE;
                    self.write(jobs);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.forget_lost();
        }
        self.forget_lost();
        if let Err(error) = self.store.flush() {
            tracing::error!(%error, "The last records could not be flushed");
        }
    }

    /// Writes what waits, all images of it with one wait for the disk.
    fn write(&self, jobs: Vec<Job>) {
        let bytes = jobs.iter().flat_map(|job| &job.images).map(|image| image.bytes.len()).sum();
        let records: Vec<_> = jobs.into_iter().filter_map(|job| self.prepare(job)).collect();
        match self.store.add_records(&records) {
            Ok(outcomes) => {
                for ((record, _), outcome) in records.iter().zip(outcomes) {
                    self.done(&record.id, outcome.as_ref());
                }
            }
            Err(error) => {
                for (record, _) in &records {
                    self.done(&record.id, Err(&error));
                }
            }
        }
        self.shared.waiting.fetch_sub(bytes, Ordering::AcqRel);
    }

    fn done(&self, record: &str, outcome: Result<&(), &StoreError>) {
        let outcome = match outcome {
            Ok(()) => {
                self.shared.close(record);
                "stored"
            }
            Err(error) => {
                // What the store itself suffers it logs once, not once a record.
                if !error.is_failure() {
                    tracing::error!(record.id = record, %error, "A record could not be stored");
                }
                self.shared.lose(record);
                "failed"
            }
        };
        counter!(RECORDS, "outcome" => outcome).increment(1);
    }

    /// What is written of a job: without metadata of images, redacted. `None` where they cannot be taken out: nothing is written then.
    fn prepare(&self, job: Job) -> Option<(Record, Vec<Vec<u8>>)> {
        let Job { mut record, images } = job;
        let mut files = Vec::with_capacity(images.len());
        for image in images {
            let Some(cleaned) = metadata::cleaned(&image.bytes, image.format) else {
                let why = "an image is so built that its metadata cannot be taken out".to_owned();
                self.done(&record.id, Err(&StoreError::Invalid { kind: "record", id: record.id.clone(), why }));
                return None;
            };
            let (digest, file) = match cleaned {
                Cow::Owned(cleaned) => (blake3::hash(&cleaned).to_hex().to_string(), cleaned),
                Cow::Borrowed(bytes) => (image.digest, bytes.to_vec()),
            };
            record.images.push(ImageRef { digest, width: image.width, height: image.height });
            files.push(file);
        }
        self.rules.record(&mut record);
        Some((record, files))
    }

    /// Removes what was said of answers whose record will not come.
    fn forget_lost(&self) {
        let lost = std::mem::take(&mut *self.shared.lost.lock().unwrap_or_else(PoisonError::into_inner));
        for id in lost {
            // What stays is found when the store is tidied, which tells a failure.
            let _ = self.store.drop_feedback(&id);
        }
    }
}

/// Removes what is kept no longer, on a thread of its own: nothing that is to be written waits for it.
struct Tidier {
    store: Arc<Store>,
    config: RecordConfig,
    shared: Arc<Shared>,
}

impl Tidier {
    /// Until the other end of `stopped` is gone.
    fn run(&self, stopped: &Receiver<Infallible>) {
        while stopped.recv_timeout(TIDY) == Err(RecvTimeoutError::Timeout) {
            self.tidy();
        }
    }

    fn tidy(&self) {
        const DAY: u64 = 24 * 3600 * 1000;
        let tidy = || {
            let records = self.store.retain(id::now_ms(), self.config.max_age_days * DAY, self.config.max_bytes);
            // Whatever became of the records: on a full disk it makes room.
            let (blobs, bytes) = self.store.collect_garbage()?;
            let feedback = self.store.drop_stray_feedback(|record| self.shared.is_open(record))?;
            Ok::<_, StoreError>((records?, feedback, blobs, bytes))
        };
        match tidy() {
            Ok((0, 0, 0, _)) => {}
            Ok((records, feedback, blobs, bytes)) => {
                tracing::info!(records, feedback, blobs, bytes, "Removed what is kept no longer");
            }
            Err(error) => tracing::warn!(%error, "What is kept no longer could not be removed"),
        }
    }
}
