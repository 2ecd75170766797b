//! After a change that the disk refused: the store says what is served again.
//!
//! A change is written, flushed and then made. Where the flush fails the caller is told that it was not made, and what was written may
//! be on the disk all the same: without this, the next start would serve it.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reground_learner::store::Health;
use tracing::{info, warn};

use super::change::By;
use super::error::RolloutError;
use super::ledger::{self, Entry};
use super::rollout::Rollout;

/// How often it is looked whether the store can be written again.
const RETRY: Duration = Duration::from_millis(200);

/// Waits until the store can be written and has it say what is served. It ends with the rollout.
pub(super) async fn agree(rollout: Weak<Rollout>) {
    loop {
        tokio::time::sleep(RETRY).await;
        let Some(rollout) = rollout.upgrade() else { return };
        match rollout.agree_now().await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => warn!(%error, "The store may say something else than what is served; trying again."),
        }
    }
}

impl Rollout {
    /// `false`: the store is still out of order.
    async fn agree_now(&self) -> Result<bool, RolloutError> {
        let _one_at_a_time = self.change.lock().await;
        // It shows what was written, not what is on the disk, until it was opened again.
        if self.store.health() != Health::Healthy {
            return Ok(false);
        }
        let written = self.stored(ledger::route).await?.map(|(route, _)| route).unwrap_or_default();
        let served = self.route();
        if written != served {
            let entry = Entry {
                what: "undo",
                by: By::Itself.name(),
                why: Some("the disk failed when this was written down; it was not made".to_owned()),
                route: served.clone(),
                watched: self.watched(),
            };
            self.stored(move |store| ledger::write(store, &entry)).await?;
            info!(written = %written.live, live = %served.live, "The store says again what is served.");
        }
        // Still under the lock: a change that fails after this one starts another of these.
        self.agreeing.store(false, Ordering::Release);
        Ok(true)
    }
}
