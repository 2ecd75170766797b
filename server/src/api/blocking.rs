//! Work that waits for the disk, off the async threads.

use actix_web::web;

use super::error::ApiError;

/// Runs what blocks off the async threads. It runs to its end, also when whoever waits for it has gone.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    web::block(work).await.map_err(|_| ApiError::internal("the thread that used the store is gone"))?
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    /// An uploader that leaves must not take away the file that is being read.
    #[actix_web::test]
    async fn work_keeps_what_it_has_when_nobody_waits_for_it() {
        const LIMIT: Duration = Duration::from_secs(20);
        let file = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let ((begun, has_begun), (left, has_left), (tell, told)) = (channel(), channel::<()>(), channel());
        let mut work = Box::pin(blocking(move || {
            begun.send(()).unwrap();
            has_left.recv_timeout(LIMIT).unwrap();
            tell.send(file.exists()).unwrap();
            Ok(())
        }));
        assert!(futures::poll!(&mut work).is_pending());
        has_begun.recv_timeout(LIMIT).unwrap();
        drop(work);
        left.send(()).unwrap();
        assert!(told.recv_timeout(LIMIT).unwrap());
    }
}
