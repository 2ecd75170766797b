//! The seam to [`crate::images`]: the one thing that the API needs of it.

use std::sync::Arc;

use futures::future::BoxFuture;
use image::DynamicImage;

/// Reads the images of a request.
pub trait ReadImages: Send + Sync + 'static {
    /// Reads all images, in order.
    fn read_all<'a>(&'a self, urls: &'a [String]) -> BoxFuture<'a, Result<Vec<Arc<DynamicImage>>, ImageRefused>>;
}

/// The image of a request that was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRefused {
    /// Its place among the images of the request, from 0.
    pub index: usize,
    /// OpenAI's `code` of the error.
    pub code: &'static str,
    /// What is wrong and what is allowed.
    pub message: String,
    /// The request was fine and the server is not (503 rather than 400).
    pub server_fault: bool,
}

impl ReadImages for crate::images::ImageReader {
    fn read_all<'a>(&'a self, urls: &'a [String]) -> BoxFuture<'a, Result<Vec<Arc<DynamicImage>>, ImageRefused>> {
        Box::pin(async move {
            match crate::images::ImageReader::read_all(self, urls).await {
                Ok(images) => Ok(images.into_iter().map(|image| image.image).collect()),
                Err(failed) => Err(ImageRefused {
                    index: failed.index,
                    code: failed.error.code(),
                    message: failed.error.to_string(),
                    server_fault: failed.error.is_server_fault(),
                }),
            }
        })
    }
}
