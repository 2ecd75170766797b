//! The `recreate` strategy: one generation at a time is loaded.
//!
//! Callers wait at the gate, the live generation's answers end, it goes, and the new one is loaded and probed. If that fails the old
//! one is loaded again. The gate opens when something is live; a caller has failed only if its own deadline passed meanwhile.

use std::time::Duration;

use tracing::{error, info};

use super::change::Step;
use super::error::RolloutError;
use super::generations::{Closed, LoadError};
use super::rollout::Rollout;
use super::route::Route;
use crate::config::Strategy;
use crate::engine::GenerationId;

/// Pause between attempts to load what answered before.
const RETRY: Duration = Duration::from_secs(1);

impl Rollout {
    /// Whether one generation at a time is loaded.
    pub(super) fn recreates(&self) -> bool {
        self.strategy == Strategy::Recreate
    }

    /// Loads `step`'s live generation in the place of the one of `before`. The caller holds the lock of changes.
    pub(super) async fn replace(&self, before: &Route, step: Step) -> Result<Route, RolloutError> {
        let id = step.after.live.clone();
        // What can be found out while the old one answers is.
        let directory = self.directory(&id).await?;
        self.reference().await?;
        let closed = self.generations.close().await?;
        info!(generation = %id, instead_of = %before.live, "Callers wait while the generation is replaced.");
        closed.drain(&before.live).await;
        let loaded = async {
            self.generations.bring_up(&id, directory).await?;
            self.probe(&id).await?;
            self.make(before, step).await
        };
        match loaded.await {
            Ok(route) => Ok(route),
            Err(why) => {
                error!(generation = %id, error = %why, again = %before.live, "A generation does not load; the old one is loaded again.");
                self.bring_back(&closed, &id, &before.live).await;
                Err(why)
            }
        }
    }

    /// Loads again what answered before, however long that takes: there is nothing else to answer.
    async fn bring_back(&self, closed: &Closed<'_>, failed: &GenerationId, old: &GenerationId) {
        closed.drain(failed).await;
        loop {
            match self.ensure_loaded(old).await {
                Ok(()) | Err(RolloutError::Load(LoadError::Exists(_))) => return,
                Err(error) => {
                    error!(generation = %old, %error, "What answered before does not load; nothing answers until it does.");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}
