//! Fetching images from http(s) URLs that strangers wrote.
//!
//! Each hop (the URL, then each redirect) goes through the same gate: the scheme and form of the URL, then its host's
//! addresses, looked up once, every one public. The connection goes to those very addresses; a name that changes its mind
//! afterwards changes nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use actix_web::web::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::sync::Semaphore;
use url::{Host, Url};

use super::address::is_public;
use super::error::{ImageError, excerpt};
use super::network::{Hop, Reply, Resolver, Transport};
use crate::config::ImagesConfig;

/// Fetches at a time, of all requests together. It bounds the memory of bodies under way to this many images.
const PLACES: usize = 64;

/// Longest URL that is looked at.
const MAX_URL: usize = 8 * 1024;

/// Fetches images.
pub(super) struct Fetcher {
    resolver: Arc<dyn Resolver>,
    transport: Arc<dyn Transport>,
    places: Semaphore,
    timeout: Duration,
    redirects: usize,
    max_bytes: usize,
}

impl Fetcher {
    pub(super) fn new(config: &ImagesConfig, resolver: Arc<dyn Resolver>, transport: Arc<dyn Transport>) -> Self {
        Self {
            resolver,
            transport,
            places: Semaphore::new(PLACES),
            timeout: Duration::from_secs(config.fetch_timeout_s),
            redirects: config.fetch_redirects,
            max_bytes: config.max_bytes,
        }
    }

    /// The bytes behind a URL. The time limit covers everything, waiting for a place included.
    pub(super) async fn fetch(&self, url: &str) -> Result<Bytes, ImageError> {
        let url = parse(url)?;
        let host = url.host_str().unwrap_or_default().to_owned();
        tokio::time::timeout(self.timeout, self.follow(url)).await.unwrap_or_else(|_| {
            let seconds = self.timeout.as_secs_f32();
            Err(ImageError::fetch(&host, format!("it took longer than {seconds} s")))
        })
    }

    async fn follow(&self, mut url: Url) -> Result<Bytes, ImageError> {
        let _place = self.places.acquire().await.map_err(|_| ImageError::ShuttingDown)?;
        for _ in 0..=self.redirects {
            let hop = self.check(url).await?;
            let host = hop.url.host_str().unwrap_or_default();
            let reply = self.transport.get(&hop).await.map_err(|error| ImageError::fetch(host, error.to_string()))?;
            match reply.status {
                200 => return self.body(host, reply).await,
                301 | 302 | 303 | 307 | 308 => url = target(&hop.url, reply.location.as_deref())?,
                status => {
                    return Err(ImageError::fetch(host, format!("it answered with status {status}, expected is 200")));
                }
            }
        }
        Err(ImageError::fetch(url.host_str().unwrap_or_default(), format!("more than {} redirects", self.redirects)))
    }

    /// The gate: what passes it may be connected to.
    async fn check(&self, url: Url) -> Result<Hop, ImageError> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err(ImageError::url("it must not hold a user name or password"));
        }
        let port = url.port_or_known_default().ok_or_else(|| ImageError::url("it has no port"))?;
        let addresses = match url.host() {
            Some(Host::Ipv4(address)) => vec![IpAddr::V4(address)],
            Some(Host::Ipv6(address)) => vec![IpAddr::V6(address)],
            Some(Host::Domain(name)) => self
                .resolver
                .resolve(name)
                .await
                .map_err(|_| ImageError::fetch(name, "the host name cannot be resolved"))?,
            None => return Err(ImageError::url("it has no host")),
        };
        let host = url.host_str().unwrap_or_default();
        if addresses.is_empty() {
            return Err(ImageError::fetch(host, "the host name has no address"));
        }
        // One closed address among open ones is a name that is being played with.
        if !addresses.iter().copied().all(is_public) {
            return Err(ImageError::NotPublic { host: excerpt(host) });
        }
        let addresses = addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect();
        Ok(Hop { url, addresses })
    }

    async fn body(&self, host: &str, mut reply: Reply) -> Result<Bytes, ImageError> {
        let too_large = ImageError::TooManyBytes { limit: self.max_bytes };
        check_type(reply.content_type.as_deref())?;
        let max = u64::try_from(self.max_bytes).unwrap_or(u64::MAX);
        if reply.length.is_some_and(|length| length > max) {
            return Err(too_large);
        }
        let mut body = BytesMut::new();
        while let Some(piece) = reply.body.next().await {
            let piece = piece.map_err(|error| ImageError::fetch(host, error.to_string()))?;
            if body.len() + piece.len() > self.max_bytes {
                return Err(too_large);
            }
            body.extend_from_slice(&piece);
        }
        Ok(body.freeze())
    }
}

/// Servers may call an image something vague, or another image type than it is (the data decide); what is clearly no image
/// is not read.
fn check_type(content_type: Option<&str>) -> Result<(), ImageError> {
    let Some(content_type) = content_type else {
        return Ok(());
    };
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    let lower = media_type.to_ascii_lowercase();
    if lower.is_empty() || lower.starts_with("image/") || lower.ends_with("/octet-stream") {
        return Ok(());
    }
    Err(ImageError::UnsupportedMediaType { media_type: excerpt(media_type) })
}

fn parse(url: &str) -> Result<Url, ImageError> {
    if url.len() > MAX_URL {
        return Err(ImageError::url(format!("it is longer than {MAX_URL} bytes; send larger images as data URLs")));
    }
    let url = Url::parse(url).map_err(|error| ImageError::url(error.to_string()))?;
    http_only(url)
}

/// Where a redirect leads.
fn target(from: &Url, location: Option<&str>) -> Result<Url, ImageError> {
    let host = from.host_str().unwrap_or_default();
    let location = location.ok_or_else(|| ImageError::fetch(host, "it redirects without saying where to"))?;
    if location.len() > MAX_URL {
        return Err(ImageError::fetch(host, "it redirects to an endless URL"));
    }
    let to = from.join(location).map_err(|_| ImageError::fetch(host, "it redirects to something that is no URL"))?;
    http_only(to).map_err(|_| ImageError::fetch(host, "it redirects to something that is neither http nor https"))
}

fn http_only(url: Url) -> Result<Url, ImageError> {
    match url.scheme() {
        "http" | "https" => Ok(url),
        scheme => {
            Err(ImageError::url(format!("its scheme is `{}`; allowed are data, http and https", excerpt(scheme))))
        }
    }
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
