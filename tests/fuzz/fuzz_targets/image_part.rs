//! Images of a request: data URLs with any bytes, any text as URL, and pages and redirects of a made-up web.
//!
//! The first byte says which; the rest is the input. Wrong is: a panic outside a decoder (one inside counts as a refusal,
//! as in the server), an image beyond the limits, pixels that are not RGB, a message that repeats what was sent, a hop to
//! an address that is not public, and what AddressSanitizer and libFuzzer's own limits find.

#![no_main]

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use libfuzzer_sys::fuzz_target;
use reground::config::ImagesConfig;
use reground::images::{Hop, ImageReader, Reply, Resolver, Transport, TransportError, is_public};

const TYPES: [&str; 5] = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];

/// Small, so that a run meets the limits often and never decodes for long.
fn config() -> ImagesConfig {
    ImagesConfig {
        max_bytes: 64 * 1024,
        max_side: 2048,
        max_pixels: 1 << 20,
        allow_http: true,
        ..ImagesConfig::default()
    }
}

/// A page: where it redirects to, and what it holds.
#[derive(Clone, Default)]
struct Page {
    location: String,
    body: Bytes,
}

/// Every name resolves to the address of its first four bytes; every page is the same one.
#[derive(Default)]
struct Web(Mutex<Page>);

impl Resolver for Web {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        let mut address = [8; 4];
        for (to, from) in address.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        async move { Ok(vec![IpAddr::from(address)]) }.boxed()
    }
}

impl Transport for Web {
    fn get<'a>(&'a self, hop: &'a Hop) -> BoxFuture<'a, Result<Reply, TransportError>> {
        assert!(!hop.addresses.is_empty());
        assert!(hop.addresses.iter().all(|address| is_public(address.ip())));
        assert!(matches!(hop.url.scheme(), "http" | "https"));
        let page = self.0.lock().unwrap_or_else(|e| e.into_inner()).clone();
        let redirects = !page.location.is_empty();
        async move {
            Ok(Reply {
                status: if redirects { 302 } else { 200 },
                location: redirects.then_some(page.location),
                content_type: None,
                length: None,
                body: stream::iter([Ok(page.body)]).boxed(),
            })
        }
        .boxed()
    }
}

struct World {
    web: Arc<Web>,
    reader: ImageReader,
    runtime: tokio::runtime::Runtime,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let web = Arc::new(Web::default());
        World {
            reader: ImageReader::with_network(&config(), web.clone(), web.clone()),
            web,
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"),
        }
    })
}

fuzz_target!(
    init: {
        // libFuzzer's hook ends the process at every panic; the server survives those of decoders. What panics on the
        // fuzzer's own thread still ends the run.
        std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    },
    |data: &[u8]| {
        let Some((kind, input)) = data.split_first() else {
            return;
        };
        let world = world();
        let url = match usize::from(*kind) % 7 {
            kind @ 0..5 => format!("data:{};base64,{}", TYPES[kind], BASE64_STANDARD.encode(input)),
            5 => String::from_utf8_lossy(input).into_owned(),
            _ => {
                let mut lines = input.splitn(3, |byte| *byte == b'\n');
                let mut line = || lines.next().unwrap_or_default();
                let url = format!("http://{}", String::from_utf8_lossy(line()));
                let page = Page {
                    location: String::from_utf8_lossy(line()).into_owned(),
                    body: Bytes::copy_from_slice(line()),
                };
                *world.web.0.lock().unwrap_or_else(|e| e.into_inner()) = page;
                url
            }
        };
        match world.runtime.block_on(world.reader.read(&url)) {
            Ok(read) => {
                let (width, height) = (read.image.width(), read.image.height());
                assert!(width.max(height) <= 2048 && u64::from(width) * u64::from(height) <= 1 << 20);
                assert!(read.image.as_rgb8().is_some());
                assert!(read.bytes.len() <= 64 * 1024);
            }
            Err(error) => {
                assert!(!error.is_server_fault(), "{error}");
                assert!(error.to_string().chars().count() < 400, "{error}");
            }
        }
    }
);
