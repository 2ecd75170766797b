//! What answers: changed only by whoever knows the present state, and never without a trace.

use serde_json::Value;

use super::id;
use super::rows::{Audit, RolloutState};
use super::{Query, Store, StoreError};

impl Store {
    /// What answers; the base alone when nothing was ever changed.
    ///
    /// # Errors
    /// The store failed.
    pub fn rollout(&self) -> Result<RolloutState, StoreError> {
        Ok(self.get(RolloutState::ID)?.unwrap_or_default())
    }

    /// Changes what answers and writes the audit of it, both at once; on disk when this returns.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when `expected_generation` is given and not live, what `change` refuses, or a failure of the
    /// store; nothing is changed then.
    pub fn change_rollout(
        &self,
        expected_generation: Option<&str>,
        who: &str,
        action: &str,
        change: impl FnOnce(&mut RolloutState) -> Result<(), StoreError>,
    ) -> Result<RolloutState, StoreError> {
        self.write(|rows| {
            let before = rows.get::<RolloutState>(RolloutState::ID)?.unwrap_or_default();
            if let Some(expected) = expected_generation.filter(|expected| *expected != before.live) {
                return Err(StoreError::Stale { expected: expected.to_owned(), live: before.live });
            }
            let mut after = before.clone();
            change(&mut after)?;
            after.revision = before.revision + 1;
            after.changed_ms = id::now_ms();
            let json = |state: &RolloutState| serde_json::to_value(state).unwrap_or(Value::Null);
            rows.put(&after)?;
            rows.insert(&Audit {
                id: id::new("audit"),
                at_ms: after.changed_ms,
                who: who.to_owned(),
                action: format!("rollout.{action}"),
                before: json(&before),
                after: json(&after),
            })?;
            Ok(after)
        })
    }

    /// The latest changes of any kind, latest first.
    ///
    /// # Errors
    /// The store failed.
    pub fn audit(&self, limit: usize) -> Result<Vec<Audit>, StoreError> {
        Ok(self.list_readable(&Query { limit, newest_first: true, ..Query::default() })?.rows)
    }
}
