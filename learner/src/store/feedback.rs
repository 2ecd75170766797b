//! Feedback, and what it means for the record.

use super::rows::{BootstrapState, Feedback, Record};
use super::{Store, StoreError};

impl Store {
    /// Keeps feedback; its record, if it is there already, waits for the bootstrapper again. On disk when this returns.
    ///
    /// # Errors
    /// The id is taken, or the store failed.
    pub fn add_feedback(&self, feedback: &Feedback) -> Result<(), StoreError> {
        self.write(|rows| {
            rows.insert(feedback)?;
            // A record that is still under way arrives waiting.
            let looked_at = rows.get::<Record>(&feedback.record)?;
            if looked_at.is_some_and(|record| record.bootstrap != BootstrapState::Waiting) {
                rows.update::<Record>(&feedback.record, |record| record.bootstrap = BootstrapState::Waiting)?;
            }
            Ok(())
        })
    }
}
