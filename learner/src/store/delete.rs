//! Deleting a record, and all that hangs on it.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use serde::Serialize;

use super::feedback::remove_feedback;
use super::rows::{AdapterRow, Pair, Record, Run};
use super::usage::Usage;
use super::{Committed, Query, Store, StoreError, Transaction};

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
    /// disk when this returns; adapters that were trained on it are named, not removed. Damaged rows go as well.
    ///
    /// # Errors
    /// [`StoreError::Missing`], or a failure of the store.
    pub fn delete_record(&self, id: &str) -> Result<Deleted, StoreError> {
        Ok(self.delete_all(&[id])?.pop().unwrap_or_default())
    }

    /// Deletes those of these records that are there, in one change with one wait for the disk. The blobs count for the last one.
    ///
    /// # Errors
    /// [`StoreError::Missing`] if none is there, or a failure of the store.
    fn delete_all(&self, records: &[&str]) -> Result<Vec<Deleted>, StoreError> {
        let _nobody_writes = self.blob_use.write().unwrap_or_else(PoisonError::into_inner);
        let Committed { done: mut deleted, released, epoch } = self.commit_deletion(|rows| {
            let deleted = records.iter().map(|record| delete(rows, record));
            let deleted = deleted.filter_map(Result::transpose).collect::<Result<Vec<_>, _>>()?;
            if deleted.is_empty() {
                return Err(StoreError::Missing { kind: "record", id: records.join(", ") });
            }
            Ok(deleted)
        })?;
        // The files go after the rows are gone for good: a crash leaves a blob that nobody needs, never a row without one.
        self.flush_of(epoch)?;
        let blobs = self.remove_unneeded(&released)?;
        if let Some(last) = deleted.last_mut() {
            last.blobs = blobs;
        }
        Ok(deleted)
    }

    /// What records take, bytes: their rows, and the blobs that they need and that are no uploaded files.
    ///
    /// # Errors
    /// The store failed.
    pub fn record_bytes(&self) -> Result<u64, StoreError> {
        Ok(Usage::read(self)?.bytes())
    }

    /// Deletes the oldest records until none is older than `max_age_ms` and all together take at most `max_bytes` by
    /// [`Self::record_bytes`]; 0 is no limit. Gives the number of records deleted. A damaged record does not say how old it is
    /// and stays; [`Self::verify`] tells of it.
    ///
    /// # Errors
    /// The store failed.
    pub fn retain(&self, now_ms: u64, max_age_ms: u64, max_bytes: u64) -> Result<usize, StoreError> {
        const AT_ONCE: usize = 64;
        let mut usage = if max_bytes > 0 { Some(Usage::read(self)?) } else { None };
        let mut deleted = 0;
        loop {
            let oldest = self.list_readable::<Record>(&Query { limit: AT_ONCE, ..Query::default() })?;
            let mut gone = Vec::new();
            for record in &oldest.rows {
                let too_old = max_age_ms > 0 && now_ms.saturating_sub(record.created_ms) > max_age_ms;
                let too_much = usage.as_ref().is_some_and(|usage| usage.bytes() > max_bytes);
                if !too_old && !too_much {
                    break;
                }
                if let Some(usage) = &mut usage {
                    usage.forget(&record.id);
                }
                gone.push(record.id.as_str());
            }
            if gone.is_empty() {
                return Ok(deleted);
            }
            deleted += match self.delete_all(&gone) {
                // Somebody else was faster.
                Err(StoreError::Missing { .. }) => 0,
                all => all?.len(),
            };
            if gone.len() < oldest.rows.len() || !oldest.more {
                return Ok(deleted);
            }
        }
    }
}

/// Deletes a record with its feedback and its pairs; `None` if it is not there.
fn delete(rows: &mut Transaction<'_>, record: &str) -> Result<Option<Deleted>, StoreError> {
    if !rows.purge::<Record>(record)?.0 {
        return Ok(None);
    }
    let (mut deleted, mut adapters) = (Deleted::default(), BTreeSet::new());
    deleted.feedback = remove_feedback(rows, record)?;
    for pair in rows.ids::<Pair>("record", record)? {
        let (there, pair) = rows.purge::<Pair>(&pair)?;
        deleted.pairs += usize::from(there);
        // One that cannot be read does not say which runs it was in.
        for run in pair.iter().flat_map(|pair| &pair.runs) {
            match rows.get::<Run>(run) {
                // Nor does a damaged run say which adapter it gave; the adapter's own row may.
                Err(StoreError::Damaged { .. }) => {}
                found => adapters.extend(found?.and_then(|run| run.adapter)),
            }
            adapters.extend(rows.ids::<AdapterRow>("run", run)?);
        }
    }
    deleted.adapters = adapters.into_iter().collect();
    Ok(Some(deleted))
}
