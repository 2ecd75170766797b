//! The real network: the system's name service, and connections straight to checked addresses.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use reqwest::dns::{Name, Resolve, Resolving};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION};
use reqwest::redirect::Policy;

use super::network::{Hop, Reply, Resolver, Transport, TransportError};

/// The system's name service.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        async move {
            let addresses = tokio::net::lookup_host((name, 0)).await?;
            Ok(addresses.map(|address| address.ip()).collect())
        }
        .boxed()
    }
}

/// HTTP over connections to the addresses of the hop.
#[derive(Clone, Copy, Debug, Default)]
pub struct DirectTransport;

impl Transport for DirectTransport {
    fn get<'a>(&'a self, hop: &'a Hop) -> BoxFuture<'a, Result<Reply, TransportError>> {
        async move {
            let response = client(hop)?
                .get(hop.url.clone())
                .header(ACCEPT, HeaderValue::from_static("image/*"))
                .send()
                .await
                .map_err(|error| if error.is_connect() { TransportError::Connect } else { TransportError::Broken })?;
            Ok(Reply {
                status: response.status().as_u16(),
                location: text(response.headers(), &LOCATION),
                content_type: text(response.headers(), &CONTENT_TYPE),
                length: response.content_length(),
                body: response.bytes_stream().map(|bytes| bytes.map_err(|_| TransportError::Broken)).boxed(),
            })
        }
        .boxed()
    }
}

/// A client that can reach the hop's addresses only. It lives for one request, because what it knows of names does.
fn client(hop: &Hop) -> Result<reqwest::Client, TransportError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("reground/", env!("CARGO_PKG_VERSION")))
        .no_proxy()
        .redirect(Policy::none())
        .referer(false)
        // Never asked for, and a body that inflates would get around the limit on its length.
        .no_gzip()
        .no_brotli()
        .no_deflate()
        .no_zstd()
        .pool_max_idle_per_host(0)
        .no_hickory_dns()
        .dns_resolver(Arc::new(NoLookups));
    if let Some(name) = hop.url.domain() {
        builder = builder.resolve_to_addrs(name, &hop.addresses);
    }
    builder.build().map_err(|_| TransportError::Setup)
}

/// Names that were not checked do not resolve.
struct NoLookups;

impl Resolve for NoLookups {
    fn resolve(&self, _: Name) -> Resolving {
        async { Err(io::Error::other("this name was not checked").into()) }.boxed()
    }
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers one connection on loopback, and returns what was asked.
    async fn answer(response: &'static str) -> (SocketAddr, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(response.as_bytes()).await.unwrap();
            String::from_utf8(asked).unwrap()
        });
        (address, served)
    }

    fn hop(url: &str, addresses: Vec<SocketAddr>) -> Hop {
        let url = url.parse().unwrap();
        Hop { url, addresses }
    }

    #[tokio::test]
    async fn a_name_leads_to_its_pinned_address_only() {
        let (address, served) = answer(
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Type: image/png\r\n\
             Content-Length: 3\r\n\r\nabc",
        )
        .await;
        // `.invalid` never resolves: the pinned address is what makes this work.
        let url = format!("http://images.invalid:{}/a.png?b=c", address.port());
        let reply = DirectTransport.get(&hop(&url, vec![address])).await.unwrap();
        assert_eq!(reply.status, 302, "redirects are the caller's business");
        assert_eq!(reply.location.as_deref(), Some("http://127.0.0.1:1/"));
        assert_eq!(reply.content_type.as_deref(), Some("image/png"));
        assert_eq!(reply.length, Some(3));
        let body: Vec<_> = reply.body.collect().await;
        assert_eq!(body, [Ok("abc".into())]);
        let asked = served.await.unwrap();
        assert!(asked.starts_with("GET /a.png?b=c HTTP/1.1\r\n"), "{asked}");
        assert!(!asked.contains("accept-encoding"), "{asked}");
    }

    #[tokio::test]
    async fn an_unchecked_name_leads_nowhere() {
        let found = client(&hop("http://checked.invalid/", vec![])).unwrap().get("http://localhost:1/").send().await;
        let error = format!("{:?}", found.unwrap_err());
        assert!(error.contains("was not checked"), "{error}");
    }

    #[tokio::test]
    async fn what_goes_wrong_is_told_apart() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = closed.local_addr().unwrap();
        drop(closed);
        let url = format!("http://{address}/");
        let refused = DirectTransport.get(&hop(&url, vec![address])).await;
        assert_eq!(refused.err(), Some(TransportError::Connect));

        let (address, _served) = answer("220 this is no HTTP\r\n\r\n").await;
        let url = format!("http://{address}/");
        let garbled = DirectTransport.get(&hop(&url, vec![address])).await;
        assert_eq!(garbled.err(), Some(TransportError::Broken));
    }
}
