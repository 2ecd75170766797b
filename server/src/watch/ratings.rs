//! What people say of two generations.

use std::collections::BTreeMap;

use reground_learner::store::rows::{Audit, Feedback, Record, RolloutState};
use reground_learner::store::{Query, Store, StoreError};
use serde::Deserialize;

use crate::rollout::{Sample, Trial, Watched};

/// Feedback that is looked at: the latest.
const LATEST: usize = 1000;
/// Rows of the audit that are read at once.
const PAGE: usize = 64;
/// What the audit calls a change of the route, before the name of the change.
const ACTION: &str = "rollout.";

/// The ratings of the generation that is watched, and of the other one: of each record the mean of each key's latest rating. What
/// either answered before they are compared does not count, but for a generation that was replaced: it is compared by what it did
/// before. What is damaged is left out.
///
/// # Errors
/// The store failed.
pub(super) fn ratings(store: &Store, watched: &Watched) -> Result<(Sample, Sample), StoreError> {
    let since = has_traffic_since(store, watched)?;
    let said = store.list_readable::<Feedback>(&Query { limit: LATEST, newest_first: true, ..Query::default() })?.rows;
    let mut of_records: BTreeMap<String, BTreeMap<String, f64>> = BTreeMap::new();
    for Feedback { record, key, rating, .. } in said {
        if let Some(rating) = rating {
            // The latest comes first.
            of_records.entry(record).or_default().entry(key).or_insert(rating);
        }
    }
    let (mut new, mut old) = (Sample::default(), Sample::default());
    for (record, ratings) in of_records {
        // A record that is under way still is not there yet.
        let record = match store.get::<Record>(&record) {
            Ok(Some(record)) => record,
            Ok(None) | Err(StoreError::Damaged { .. }) => continue,
            Err(error) => return Err(error),
        };
        let mean = ratings.values().sum::<f64>() / ratings.len() as f64;
        // It may have answered long ago, too: somebody activates it again, perhaps because it was mended since.
        let counts = record.created_ms > since;
        if record.generation == watched.generation.as_str() {
            if counts {
                new.add(mean);
            }
        } else if record.generation == watched.against.as_str() && (counts || watched.trial == Trial::Live) {
            old.add(mean);
        }
    }
    Ok((new, old))
}

/// Since when what is watched has its traffic, milliseconds since 1970. The audit tells: a restart begins the window anew, and what was
/// said before it still counts.
fn has_traffic_since(store: &Store, watched: &Watched) -> Result<u64, StoreError> {
    let id = watched.generation.as_str();
    let had_it = |change: &Audit| {
        RolloutState::deserialize(&change.before).is_ok_and(|before| match watched.trial {
            Trial::Live => before.live == id,
            Trial::Canary => before.canary.is_some_and(|canary| canary.adapter == id),
        })
    };
    let mut query = Query { limit: PAGE, newest_first: true, ..Query::default() };
    loop {
        let page = store.list_readable::<Audit>(&query)?;
        if let Some(change) = page.rows.iter().find(|row| row.action.starts_with(ACTION) && !had_it(row)) {
            return Ok(change.at_ms.min(watched.began_ms));
        }
        if !page.more {
            return Ok(watched.began_ms);
        }
        query.after = page.rows.last().map(|row| row.id.clone());
    }
}
