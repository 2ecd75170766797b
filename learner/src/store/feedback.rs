//! Feedback: what it means for the record, how much of it is kept, and when it goes.

use std::collections::BTreeSet;

use super::rows::{BootstrapState, Feedback, Record, Row};
use super::{Query, Store, StoreError, Transaction, keys};

/// Most feedback that is kept of one API key to one record. The latest counts, so that nobody needs more.
pub const FEEDBACK_LIMIT: usize = 32;

impl Store {
    /// Keeps feedback; its record, if it is there already, waits for the bootstrapper again. One that is not there must be
    /// `expected`: else it was deleted, and nothing of it may stay. On disk when this returns.
    ///
    /// # Errors
    /// The record is neither there nor expected, the id is taken, the key has said [`FEEDBACK_LIMIT`] things of the record
    /// already, or the store failed.
    pub fn add_feedback(&self, feedback: &Feedback, expected: bool) -> Result<(), StoreError> {
        self.write(|rows| {
            let record = rows.get::<Record>(&feedback.record)?;
            if record.is_none() && !expected {
                return Err(StoreError::Missing { kind: Record::KIND, id: feedback.record.clone() });
            }
            let mut said = 0;
            for id in rows.ids::<Feedback>("record", &feedback.record)? {
                said += match rows.get::<Feedback>(&id) {
                    // It does not say whose it is.
                    Err(StoreError::Damaged { .. }) => 0,
                    other => usize::from(other?.is_some_and(|other| other.key == feedback.key)),
                };
            }
            if said >= FEEDBACK_LIMIT {
                return Err(StoreError::FeedbackLimit { record: feedback.record.clone(), key: feedback.key.clone() });
            }
            rows.insert(feedback)?;
            // A record that is still under way arrives waiting.
            if record.is_some_and(|record| record.bootstrap != BootstrapState::Waiting) {
                rows.update::<Record>(&feedback.record, |record| record.bootstrap = BootstrapState::Waiting)?;
            }
            Ok(())
        })
    }

    /// Removes the feedback to a record that will never come; gives the number of rows. Feedback to one that is there stays.
    ///
    /// # Errors
    /// The store failed.
    pub fn drop_feedback(&self, record: &str) -> Result<usize, StoreError> {
        if self.count::<Feedback>(&Query::by("record", record))? == 0 {
            return Ok(0);
        }
        self.write(|rows| {
            if rows.get::<Record>(record)?.is_some() {
                return Ok(0);
            }
            remove_feedback(rows, record)
        })
    }

    /// Removes the feedback to records that are neither here nor, as `is_under_way` tells, on their way; gives the number of
    /// rows.
    ///
    /// # Errors
    /// The store failed.
    pub fn drop_stray_feedback(&self, is_under_way: impl Fn(&str) -> bool) -> Result<usize, StoreError> {
        let mut records = BTreeSet::new();
        self.read(|db| {
            for key in db.scan_prefix(keys::indexes(Feedback::KIND, "record")).keys() {
                // Ids are never escaped.
                records.extend(keys::value(&key?).map(str::to_owned));
            }
            Ok(())
        })?;
        let mut dropped = 0;
        for record in records {
            // In this order: between the two looks a record can only arrive.
            if !is_under_way(&record) && !self.read(|db| Ok(db.contains_key(keys::row(Record::KIND, &record))?))? {
                dropped += self.drop_feedback(&record)?;
            }
        }
        Ok(dropped)
    }
}

/// Removes all feedback to a record; gives the number of rows.
pub(super) fn remove_feedback(rows: &mut Transaction<'_>, record: &str) -> Result<usize, StoreError> {
    let mut removed = 0;
    for id in rows.ids::<Feedback>("record", record)? {
        removed += usize::from(rows.purge::<Feedback>(&id)?.0);
    }
    Ok(removed)
}
