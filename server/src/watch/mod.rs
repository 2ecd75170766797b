//! What got traffic is watched, and taken back by itself where it is worse than what it replaced.
//!
//! For `watch.window_s` from the change, signals of the new generation are compared with those of the other one: how many answers
//! fail, how long the first token and the following ones take, how answers are rated, and how much they rest on their pictures. An
//! activation is compared with the last answers of what it replaced, a canary with what the live generation does meanwhile. A signal
//! counts once there are enough measurements, and breaches its threshold only where the difference exceeds it beyond chance
//! ([`crate::rollout::Sample::rise_above`]).
//!
//! # Layout
//! - [`Watcher`]: looks, and takes back. `signal`: what is compared, and the verdict.
//! - `ratings`: what people say of both. `grounding`: the probe that asks the model itself.

mod grounding;
mod ratings;
mod signal;
#[cfg(test)]
mod tests;
mod watcher;

use std::sync::Arc;

use reground_learner::generator::Generator;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::signal::{Figures, Signal, Verdict};
pub use self::watcher::{Report, State, Watcher};
use crate::images::ImageReader;

/// The task that watches. Dropping it ends the task at its next step.
pub struct WatchTask {
    stop: DropGuard,
    task: Option<JoinHandle<()>>,
}

impl WatchTask {
    /// Starts the task, unless the configuration has it switched off. `generator` scores answers in moments that no live query needs.
    #[must_use]
    pub fn start(watcher: Arc<Watcher>, generator: Arc<dyn Generator>, images: Arc<ImageReader>) -> Self {
        let stop = CancellationToken::new();
        let task = watcher.config().enabled.then(|| {
            watcher::describe();
            let stopped = stop.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = watcher.watch() => {}
                    () = watcher.probe(&*generator, &images) => {}
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
            tracing::error!("The watch panicked; nothing was taken back by itself since");
        }
    }
}
