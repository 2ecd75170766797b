//! How much is decoded at once.

use std::sync::Arc;

use actix_web::web::Bytes;
use image::DynamicImage;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::budget::Budget;
use super::decode::{Header, largest_memory};
use super::error::ImageError;
use super::format::Format;
use crate::config::ImagesConfig;

/// Memory that all images being decoded may take together, unless a single one within the limits needs more.
const MEMORY: u64 = 1 << 30;

/// Memory is counted in pieces of this many bytes, so that the count fits a semaphore.
const PIECE: u64 = 64 << 10;

/// An image of which the header was read and the pixels were not.
pub(super) struct Undecoded {
    /// What its header says.
    pub(super) header: Header,
    /// The encoded image.
    pub(super) bytes: Bytes,
}

/// An image decoded.
pub(super) struct Decoded {
    /// What its header said.
    pub(super) header: Header,
    /// BLAKE3 of the encoded bytes, 64 hexadecimal digits.
    pub(super) digest: String,
    /// Upright, RGB.
    pub(super) image: DynamicImage,
}

/// Decodes on threads where blocking is allowed: only as many images at a time as there are processors, and only while
/// the memory they need is within bounds. Whoever waits holds encoded bytes only.
pub(super) struct Decoders {
    config: Arc<ImagesConfig>,
    threads: Arc<Semaphore>,
    memory: Arc<Semaphore>,
}

impl Decoders {
    pub(super) fn new(config: Arc<ImagesConfig>) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let memory = MEMORY.max(largest_memory(&config));
        Self {
            config,
            threads: Arc::new(Semaphore::new(threads)),
            memory: Arc::new(Semaphore::new(usize::try_from(pieces(memory)).unwrap_or(1))),
        }
    }

    /// Reads the header of an image that must be of the declared format, if one is declared.
    pub(super) async fn open(
        &self,
        bytes: Bytes,
        declared: Option<Format>,
        budget: &Budget,
    ) -> Result<Undecoded, ImageError> {
        let format = Format::of_bytes(&bytes)?;
        if let Some(declared) = declared.filter(|declared| *declared != format) {
            return Err(ImageError::MediaTypeMismatch { declared, found: format });
        }
        let thread = acquire(&self.threads, 1).await?;
        let (config, encoded) = (self.config.clone(), bytes.clone());
        let (thread, header) = blocking(format, move || (thread, Header::read(&encoded, &config))).await?;
        drop(thread);
        let header = header?;
        budget.take_pixels(header.pixels())?;
        Ok(Undecoded { header, bytes })
    }

    /// Decodes an image.
    ///
    /// A caller that stops waiting does not free what the decoder still holds: the permits go along with the work.
    pub(super) async fn decode(&self, image: Undecoded) -> Result<Decoded, ImageError> {
        let Undecoded { header, bytes } = image;
        let thread = acquire(&self.threads, 1).await?;
        let memory = acquire(&self.memory, pieces(header.memory())).await?;
        let (image, digest) = blocking(header.format, move || {
            let _held = (thread, memory);
            (header.decode(&bytes), blake3::hash(&bytes).to_hex().to_string())
        })
        .await?;
        Ok(Decoded { header, digest, image: image? })
    }
}

fn pieces(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(PIECE)).unwrap_or(u32::MAX)
}

async fn acquire(semaphore: &Arc<Semaphore>, permits: u32) -> Result<OwnedSemaphorePermit, ImageError> {
    semaphore.clone().acquire_many_owned(permits).await.map_err(|_| ImageError::ShuttingDown)
}

/// Runs work off the asynchronous threads. A decoder that panics has met an image that its authors did not think of; that
/// is the image's fault.
async fn blocking<T: Send + 'static>(
    format: Format,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        if error.is_cancelled() {
            ImageError::ShuttingDown
        } else {
            ImageError::undecodable(format, "its decoder failed on it")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;
    use image::{ImageFormat, RgbImage};

    impl Decoders {
        async fn read(&self, bytes: Bytes, declared: Option<Format>, budget: &Budget) -> Result<Decoded, ImageError> {
            self.decode(self.open(bytes, declared, budget).await?).await
        }
    }

    fn image(side: u32) -> Bytes {
        fixtures::encode(&RgbImage::new(side, side).into(), ImageFormat::Png).into()
    }

    #[tokio::test]
    async fn a_panic_is_an_error_of_the_image() {
        let result = blocking(Format::Gif, || {
            assert!(std::hint::black_box(false), "as decoders do");
        });
        let error = result.await.unwrap_err();
        assert_eq!(error.code(), "invalid_image");
    }

    #[tokio::test]
    async fn nothing_is_held_afterwards() {
        let config = Arc::new(ImagesConfig::default());
        let decoders = Decoders::new(config.clone());
        let before = (decoders.threads.available_permits(), decoders.memory.available_permits());
        let budget = Budget::new(&config);
        for (bytes, declared) in [
            (image(9), Some(Format::Png)),
            (image(9), Some(Format::Gif)),
            (image(9).slice(..60), None),
            (Bytes::from_static(b"nothing"), None),
        ] {
            let _ = decoders.read(bytes, declared, &budget).await;
        }
        let after = (decoders.threads.available_permits(), decoders.memory.available_permits());
        assert_eq!(before, after);
    }

    #[tokio::test]
    async fn memory_is_waited_for() {
        let config = Arc::new(ImagesConfig::default());
        let decoders = Decoders::new(config.clone());
        let all = u32::try_from(decoders.memory.available_permits()).unwrap();
        let held = acquire(&decoders.memory, all).await.unwrap();
        let budget = Budget::new(&config);
        let mut decoding = std::pin::pin!(decoders.read(image(9), None, &budget));
        let soon = std::time::Duration::from_millis(50);
        assert!(tokio::time::timeout(soon, &mut decoding).await.is_err());
        drop(held);
        let decoded = decoding.await.unwrap();
        assert_eq!((decoded.header.width, decoded.header.height), (9, 9));
        assert_eq!(decoded.digest.len(), 64);
    }
}
