//! Runs that nobody asks for.

use reground_learner::store::rows::{Pair, Run};
use reground_learner::store::{Query, Store};

use super::{RunsError, dataset};
use crate::config::TrainConfig;

/// There are enough new pairs.
const PAIRS: &str = "pairs";
/// It is time.
const SCHEDULE: &str = "schedule";
/// How long no run begins by itself after one that came to no step, milliseconds: its pairs are as new as before, and what
/// kept it from its work most likely still does.
const BACK_OFF: u64 = 3_600_000;

/// Why a run is due now, if one is. `now` in milliseconds since 1970.
///
/// # Errors
/// The store failed.
pub(super) fn due(store: &Store, train: &TrainConfig, now: u64) -> Result<Option<&'static str>, RunsError> {
    if !train.enabled || (train.min_pairs == 0 && train.interval_hours == 0) {
        return Ok(None);
    }
    let new = dataset::count_new(store)?;
    if new == 0 || failed_lately(store, now)? {
        return Ok(None);
    }
    if train.min_pairs > 0 && new >= train.min_pairs {
        return Ok(Some(PAIRS));
    }
    if train.interval_hours == 0 {
        return Ok(None);
    }
    let last = Query { limit: 1, newest_first: true, ..Query::default() };
    let since = match store.list_readable::<Run>(&last)?.rows.first() {
        Some(run) => run.created_ms,
        // Without a run, the time begins with the first pair.
        None => {
            let first = Query { limit: 1, ..Query::default() };
            store.list_readable::<Pair>(&first)?.rows.first().map_or(now, |pair| pair.created_ms)
        }
    };
    let interval = train.interval_hours.saturating_mul(3_600_000);
    Ok((now.saturating_sub(since) >= interval).then_some(SCHEDULE))
}

/// Whether a run that nobody asked for failed lately and gave its pairs back, or never had any.
fn failed_lately(store: &Store, now: u64) -> Result<bool, RunsError> {
    let latest = Query { limit: 100, newest_first: true, ..Query::by("state", "failed") };
    let by_itself = |run: &Run| [PAIRS, SCHEDULE].contains(&run.trigger.as_str()) && run.dataset_digest.is_none();
    let lately = |run: &Run| run.finished_ms.is_some_and(|finished| now.saturating_sub(finished) < BACK_OFF);
    Ok(store.list_readable::<Run>(&latest)?.rows.iter().any(|run| by_itself(run) && lately(run)))
}
