//! Many requests at once, bounded in number and time.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;

/// Runs the jobs with at most `at_once` under way and returns their results in the order of the jobs.
///
/// # Errors
/// A job fails, or not all are done within `limit`.
pub async fn run<T, J>(jobs: impl IntoIterator<Item = J>, at_once: usize, limit: Duration) -> Result<Vec<T>>
where
    J: Future<Output = Result<T>>,
{
    let results = futures::stream::iter(jobs).buffered(at_once).collect::<Vec<Result<T>>>();
    tokio::time::timeout(limit, results)
        .await
        .with_context(|| format!("not all requests were answered within {limit:?}"))?
        .into_iter()
        .collect()
}
