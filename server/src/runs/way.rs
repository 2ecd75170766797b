//! Training makes way for live queries.
//!
//! The lowest priority is not enough: beside a training thread that has a core, threads that answer were seen queued behind each
//! other on another core for milliseconds (docs/benchmarks.md). A process that stands still has no core.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use crate::admission::Activity;
use crate::os::Stopped;

/// Under live load, training has its share of about every such time.
const TURN: Duration = Duration::from_secs(1);

/// Stops a training process while live queries wait or are answered, but for `min_share` (below 1) of the time. Dropped, the
/// process goes on.
pub(super) async fn make_way(activity: &Activity, process: u32, min_share: f64) -> Infallible {
    let turn = TURN.mul_f64(min_share);
    let owed_by = min_share / (1.0 - min_share);
    // What training has a right to for having stood still, and did not have yet. Short pauses of the load pay a part of it.
    let mut owed = Duration::ZERO;
    loop {
        let ran = Instant::now();
        activity.busy().await;
        owed = owed.saturating_sub(ran.elapsed());
        let began = Instant::now();
        let stopped = match Stopped::stop(process) {
            Ok(stopped) => stopped,
            Err(error) => {
                warn!(%error, "Training does not make way for live queries.");
                return pending().await;
            }
        };
        let most = turn.saturating_sub(owed).as_secs_f64() / owed_by;
        // Without a share it is no number.
        let most = Duration::try_from_secs_f64(most).unwrap_or(Duration::MAX);
        let waited = timeout(most, activity.idle()).await;
        drop(stopped);
        owed += began.elapsed().mul_f64(owed_by);
        if waited.is_err() {
            sleep(owed).await;
            owed = Duration::ZERO;
        }
    }
}
