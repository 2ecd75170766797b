//! Work that waits for the disk, off the async threads.

use actix_web::web;

use super::error::ApiError;

/// Runs what blocks off the async threads. It runs to its end, also when whoever waits for it has gone.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    web::block(work).await.map_err(|_| ApiError::internal("the thread that used the store is gone"))?
}
