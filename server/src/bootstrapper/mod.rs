//! Records become pairs: in the background, in moments that no live query needs.
//!
//! A record waits until the bootstrapper has looked at it, and waits again when somebody says something of it. All that comes of
//! a look (pairs, what became of older ones, the record's new state) is one transaction, and every draw has a seed that follows
//! from the record: work that a crash interrupts is done again from the start, and gives the same.
//!
//! # Layout
//! - [`Bootstrapper`]: the task, from its start to its end.
//! - `worker`: which record is next, and when to wait; `failed`: those that have failed.
//! - `choose`: the chosen answer of a record, or why it has none.
//! - `negatives`: rejected answers for it; `kept`: the pairs that pass the filters.
//! - `case`: a record with all that hangs on it, read from the store and written back.
//! - [`Models`]: who answers; `endpoint`: a text model behind an OpenAI-compatible endpoint; `text_model`: one in this process.
//! - `normalisation`: how the served model normalises pixels.
//! - `counters`: what Prometheus is told.

mod case;
mod choose;
mod counters;
mod endpoint;
mod failed;
mod kept;
mod models;
mod negatives;
mod normalisation;
#[cfg(test)]
mod tests;
#[cfg_attr(not(feature = "mistralrs"), path = "no_text_model.rs")]
mod text_model;
mod worker;

use std::sync::Arc;

use reground_learner::store::Store;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::models::Models;
use self::worker::Worker;
use crate::config::BootstrapConfig;
use crate::images::ImageReader;

/// The task that makes pairs. Dropping it ends the task at its next step; nothing half done stays.
pub struct Bootstrapper {
    stop: DropGuard,
    task: Option<JoinHandle<()>>,
}

impl Bootstrapper {
    /// Starts the task, unless the configuration has it switched off.
    #[must_use]
    pub fn start(store: Arc<Store>, models: Models, images: Arc<ImageReader>, config: &BootstrapConfig) -> Self {
        let stop = CancellationToken::new();
        counters::describe();
        let task = config.enabled.then(|| {
            let worker = Worker::new(store, models, images, config.clone());
            let stopped = stop.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = worker.run() => {}
                    () = stopped.cancelled() => {}
                }
            })
        });
        Self { stop: stop.drop_guard(), task }
    }

    /// Ends the task and waits until it has.
    pub async fn stop(self) {
        drop(self.stop);
        if let Some(task) = self.task
            && task.await.is_err()
        {
            tracing::error!("The bootstrapper panicked; no pairs were made since");
        }
    }
}
