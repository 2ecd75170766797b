//! What people say of two generations.

use std::collections::BTreeMap;

use reground_learner::store::rows::{Feedback, Record};
use reground_learner::store::{Query, Store, StoreError};

use crate::rollout::{Sample, Watched};

/// Feedback that is looked at: the latest.
const LATEST: usize = 1000;

/// The ratings of the generation that is watched, and of the other one: of each record the mean of each key's latest rating. What is
/// damaged is left out.
///
/// # Errors
/// The store failed.
pub(super) fn ratings(store: &Store, watched: &Watched) -> Result<(Sample, Sample), StoreError> {
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
        if record.generation == watched.generation.as_str() {
            new.add(mean);
        } else if record.generation == watched.against.as_str() {
            old.add(mean);
        }
    }
    Ok((new, old))
}
