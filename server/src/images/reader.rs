//! From the URLs of a request to its images.

use std::fmt;
use std::sync::Arc;

use actix_web::web::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use image::DynamicImage;

use super::budget::Budget;
use super::data_url::DataUrl;
use super::decoders::{Decoders, Undecoded};
use super::direct::{DirectTransport, SystemResolver};
use super::error::{FailedImage, ImageError, excerpt};
use super::fetch::Fetcher;
use super::format::Format;
use super::network::{Resolver, Transport};
use super::pixels::Pixels;
use crate::config::ImagesConfig;
use crate::room::{NoRoom, Room, Share};

/// Images of one request that are read at the same time.
const AT_ONCE: usize = 4;

/// An image that was taken.
#[derive(Clone)]
pub struct ReadImage {
    /// The encoded image as it was received.
    pub bytes: Bytes,
    /// BLAKE3 of `bytes`, 64 hexadecimal digits.
    pub digest: String,
    /// What `bytes` are.
    pub format: Format,
    /// The pixels: upright, always 8-bit RGB (`DynamicImage::ImageRgb8`), over white where the image was transparent.
    pub image: Pixels,
}

impl fmt::Debug for ReadImage {
    /// Without the image: nothing that logs may show it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadImage")
            .field("digest", &self.digest)
            .field("format", &self.format)
            .field("bytes", &self.bytes.len())
            .field("width", &self.image.width())
            .field("height", &self.image.height())
            .finish()
    }
}

/// A file with its share: it is kept for the record long after the pixels have gone, for as long as the client takes to read the answer.
struct File {
    bytes: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for File {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads images. One for the whole server: what it bounds, it bounds for all requests together.
pub struct ImageReader {
    config: Arc<ImagesConfig>,
    decoders: Decoders,
    room: Arc<Room>,
    fetcher: Option<Fetcher>,
}

impl ImageReader {
    /// Reads images by these settings; with `images.allow_http`, from the real network.
    #[must_use]
    pub fn new(config: &ImagesConfig) -> Self {
        Self::with_network(config, Arc::new(SystemResolver), Arc::new(DirectTransport))
    }

    /// The same with another name service and transport.
    #[must_use]
    pub fn with_network(config: &ImagesConfig, resolver: Arc<dyn Resolver>, transport: Arc<dyn Transport>) -> Self {
        let config = Arc::new(config.clone());
        Self {
            decoders: Decoders::new(config.clone()),
            room: Arc::new(Room::new(config.decoded_bytes, config.decoded_bytes_per_key)),
            fetcher: config.allow_http.then(|| Fetcher::new(&config, resolver, transport)),
            config,
        }
    }

    /// Reads one image, which does not count for `images.decoded_bytes`.
    ///
    /// # Errors
    /// See [`ImageError`]: all but [`ImageError::ShuttingDown`] are the request's fault.
    pub async fn read(&self, url: &str) -> Result<ReadImage, ImageError> {
        self.decode(self.open(&Budget::new(&self.config), url).await?, None).await
    }

    /// Reads the images of one request of a key, in order. All together may be four times as large as the largest single image, in
    /// bytes and in pixels. What they take, pixels and files, is reserved from their headers, for all at once, and given back as either
    /// goes.
    ///
    /// # Errors
    /// The first image whose header is refused, else [`ImageError::NoRoom`], else the first one that cannot be decoded; nothing is
    /// kept of the others. With too many images, the first one too many.
    pub async fn read_all(&self, key: &Arc<str>, urls: &[String]) -> Result<Vec<ReadImage>, FailedImage> {
        let limit = self.config.max_per_request;
        if urls.len() > limit {
            return Err(FailedImage { index: limit, error: ImageError::TooMany { count: urls.len(), limit } });
        }
        let budget = &Budget::new(&self.config);
        let opened: Vec<_> =
            urls.iter()
                .enumerate()
                .map(|(index, url)| async move {
                    self.open(budget, url).await.map_err(|error| FailedImage { index, error })
                })
                .collect();
        let opened: Vec<Undecoded> = stream::iter(opened).buffered(AT_ONCE).try_collect().await?;
        let pixels = opened.iter().map(|image| image.header.decoded());
        let sizes: Vec<u64> = pixels.chain(opened.iter().map(|image| image.bytes.len() as u64)).collect();
        let full = |full: NoRoom| FailedImage { index: 0, error: full.into() };
        let mut of_pixels = self.room.take(key, &sizes).map_err(full)?;
        let of_files = of_pixels.split_off(opened.len());
        let reads: Vec<_> = opened
            .into_iter()
            .zip(of_pixels.into_iter().zip(of_files))
            .enumerate()
            .map(|(index, (image, (of_pixels, of_file)))| async move {
                let image =
                    Undecoded { bytes: Bytes::from_owner(File { bytes: image.bytes, _share: of_file }), ..image };
                self.decode(image, Some(of_pixels)).await.map_err(|error| FailedImage { index, error })
            })
            .collect();
        stream::iter(reads).buffered(AT_ONCE).try_collect().await
    }

    /// Decodes an image that was read and stored before: the same pixels again.
    ///
    /// # Errors
    /// See [`ImageError`]; the file is damaged, or the limits were lowered since.
    pub async fn stored(&self, bytes: Vec<u8>) -> Result<DynamicImage, ImageError> {
        let opened = self.decoders.open(bytes.into(), None, &Budget::new(&self.config)).await?;
        Ok(self.decoders.decode(opened).await?.image)
    }

    /// Has the encoded image and reads its header.
    async fn open(&self, budget: &Budget, url: &str) -> Result<Undecoded, ImageError> {
        let url = url.trim_ascii();
        let (bytes, declared) = if DataUrl::is(url) {
            let url = DataUrl::parse(url, self.config.max_bytes)?;
            budget.take_bytes(url.len())?;
            let declared = url.format;
            (Bytes::from(url.decode().await?), Some(declared))
        } else {
            let bytes = self.fetcher_for(url)?.fetch(url).await?;
            budget.take_bytes(bytes.len())?;
            (bytes, None)
        };
        if bytes.len() > self.config.max_bytes {
            return Err(ImageError::TooManyBytes { limit: self.config.max_bytes });
        }
        self.decoders.open(bytes, declared, budget).await
    }

    async fn decode(&self, image: Undecoded, share: Option<Share>) -> Result<ReadImage, ImageError> {
        let bytes = image.bytes.clone();
        let decoded = self.decoders.decode(image).await?;
        let image = Pixels::new(decoded.image, share);
        Ok(ReadImage { bytes, digest: decoded.digest, format: decoded.header.format, image })
    }

    /// What fetches a URL that is no data URL, if it may be fetched at all.
    fn fetcher_for(&self, url: &str) -> Result<&Fetcher, ImageError> {
        let scheme = url.split_once(':').map(|(scheme, _)| scheme);
        let known =
            ["http", "https"].into_iter().find(|known| scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(known)));
        match (known, &self.fetcher, scheme.filter(|scheme| is_scheme(scheme))) {
            (Some(_), Some(fetcher), _) => Ok(fetcher),
            (Some(scheme), None, _) => Err(ImageError::FetchingIsOff { scheme }),
            (None, _, Some(scheme)) => Err(ImageError::url(format!(
                "its scheme is `{}`; allowed are {}",
                excerpt(scheme),
                self.allowed_schemes()
            ))),
            // Most often base64 without what belongs before it: not a word of it is repeated.
            (None, _, None) => {
                Err(ImageError::url(format!("it has no scheme; allowed are {}", self.allowed_schemes())))
            }
        }
    }

    fn allowed_schemes(&self) -> &'static str {
        match self.fetcher {
            Some(_) => "data URLs (data:image/png;base64,…), http and https",
            None => "data URLs (data:image/png;base64,…)",
        }
    }
}

/// RFC 3986, 3.1; longer than any scheme in use is none.
fn is_scheme(text: &str) -> bool {
    text.len() <= 16
        && text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
