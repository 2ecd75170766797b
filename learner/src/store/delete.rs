//! Deleting a record, and all that hangs on it.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use serde::Serialize;

use super::rows::{AdapterRow, Feedback, Pair, Record, Run};
use super::{Query, Store, StoreError};

/// What went with a record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Deleted {
    /// Feedback that was removed.
    pub feedback: usize,
    /// Pairs that were removed.
    pub pairs: usize,
    /// Images that nobody else needed, and other large parts.
    pub blobs: usize,
    /// Adapters that were trained on it: they still know what they learned.
    pub adapters: Vec<String>,
}

impl Store {
    /// Deletes a record with its feedback, its pairs and, when nobody else needs them, its images. All of it is gone from the
    /// disk when this returns; adapters that were trained on it are named, not removed.
    ///
    /// # Errors
    /// [`StoreError::Missing`], or a failure of the store.
    pub fn delete_record(&self, id: &str) -> Result<Deleted, StoreError> {
        let _nobody_writes = self.blob_use.write().unwrap_or_else(PoisonError::into_inner);
        let (mut deleted, released) = self.commit(|rows| {
            if rows.remove::<Record>(id)?.is_none() {
                return Err(StoreError::Missing { kind: "record", id: id.to_owned() });
            }
            let (mut deleted, mut adapters) = (Deleted::default(), BTreeSet::new());
            for feedback in rows.ids::<Feedback>("record", id)? {
                deleted.feedback += usize::from(rows.remove::<Feedback>(&feedback)?.is_some());
            }
            for pair in rows.ids::<Pair>("record", id)? {
                let Some(pair) = rows.remove::<Pair>(&pair)? else { continue };
                deleted.pairs += 1;
                for run in &pair.runs {
                    adapters.extend(rows.get::<Run>(run)?.and_then(|run| run.adapter));
                    adapters.extend(rows.ids::<AdapterRow>("run", run)?);
                }
            }
            deleted.adapters = adapters.into_iter().collect();
            Ok(deleted)
        })?;
        // The files go after the rows are gone for good: a crash leaves a blob that nobody needs, never a row without one.
        self.flush()?;
        deleted.blobs = self.remove_unneeded(&released)?;
        Ok(deleted)
    }

    /// Deletes the oldest records until none is older than `max_age_ms` and all together take at most `max_bytes`, images
    /// included; 0 is no limit. Gives the number of records deleted.
    ///
    /// # Errors
    /// The store failed.
    pub fn retain(&self, now_ms: u64, max_age_ms: u64, max_bytes: u64) -> Result<usize, StoreError> {
        const AT_ONCE: usize = 64;
        let mut deleted = 0;
        loop {
            let oldest = self.list::<Record>(&Query { limit: AT_ONCE, ..Query::default() })?;
            let mut excess = if max_bytes == 0 { 0 } else { self.record_bytes()?.saturating_sub(max_bytes) };
            let mut gone = 0;
            for record in &oldest.rows {
                let too_old = max_age_ms > 0 && now_ms.saturating_sub(record.created_ms) > max_age_ms;
                if !too_old && excess == 0 {
                    break;
                }
                let before = if too_old { 0 } else { self.record_bytes()? };
                match self.delete_record(&record.id) {
                    Ok(_) | Err(StoreError::Missing { .. }) => gone += 1,
                    Err(error) => return Err(error),
                }
                if !too_old {
                    excess = excess.saturating_sub(before.saturating_sub(self.record_bytes()?));
                }
            }
            deleted += gone;
            if gone < AT_ONCE {
                return Ok(deleted);
            }
        }
    }
}
