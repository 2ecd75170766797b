//! Rows of runs. One that is damaged must not stop the others.

use reground_learner::store::rows::Run;
use reground_learner::store::{Query, Store, StoreError};
use tracing::debug;

use super::RunsError;

/// The runs that `query` asks for. One whose row is damaged is left out.
///
/// # Errors
/// The store failed.
pub(super) fn runs(store: &Store, query: Query) -> Result<Vec<Run>, RunsError> {
    let most = query.limit;
    let mut query = Query { limit: 1, ..query };
    let mut runs = Vec::new();
    while most == 0 || runs.len() < most {
        query.after = match store.list::<Run>(&query) {
            Ok(page) => {
                let Some(run) = page.rows.into_iter().next() else { break };
                runs.push(run);
                runs.last().map(|run| run.id.clone())
            }
            Err(StoreError::Damaged { id, why, .. }) => {
                debug!(run.id = %id, why, "A run is damaged and left out.");
                Some(id)
            }
            Err(error) => return Err(error.into()),
        };
    }
    Ok(runs)
}
