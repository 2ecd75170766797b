//! Image URLs that point at this machine, with fetching on: refused before anything is connected.
//!
//! Only loopback addresses stand here: a test that names another one would reach for it if the code were wrong. Private
//! and metadata addresses, redirects and names that change their mind are tested inside the server, where the resolver and
//! the connector are injected.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use reground_tests::{Server, Settings};
use serde_json::json;

/// A port of this machine that counts who connects.
struct Tripwire {
    port: u16,
    touched: Arc<AtomicUsize>,
}

impl Tripwire {
    fn new() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let touched = Arc::new(AtomicUsize::new(0));
        let count = touched.clone();
        std::thread::spawn(move || {
            for _connection in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Ok(Self { port, touched })
    }
}

#[tokio::test]
async fn image_urls_never_reach_this_machine() -> Result<()> {
    let tripwire = Tripwire::new()?;
    let server = Server::start(Settings::golden().section("images", "allow_http = true\nfetch_timeout_s = 2")).await?;
    let client = server.client();
    let port = tripwire.port;
    let hosts = [
        "127.0.0.1",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "127.255.255.254",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:0:0:1]",
        "user:hunter2@127.0.0.1",
        "example.invalid@127.0.0.1",
        "\u{ff11}\u{ff12}\u{ff17}.0.0.1",
        "127\u{3002}0\u{3002}0\u{3002}1",
    ];
    for host in hosts {
        for scheme in ["http", "https"] {
            let url = format!("{scheme}://{host}:{port}/a.png");
            let body = json!({
                "model": "reground", "max_tokens": 2,
                "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}],
            });
            let reply = client.ask(&body).await?;
            ensure!(reply.status == 400, "{url}: status {}: {:.300}", reply.status, reply.text());
            let error = reply.error()?;
            // A resolver need not know every way to write localhost; whom it does not know is not connected to.
            let unknown = error.message.contains("cannot be resolved");
            let refused = match error.code.as_deref() {
                Some("image_url_not_allowed" | "invalid_image_url") => true,
                Some("image_fetch_failed") => unknown,
                _ => false,
            };
            ensure!(refused, "{url}: {error:?}");
            ensure!(error.param.as_deref() == Some("messages[0].content[0].image_url.url"), "{url}: {error:?}");
            ensure!(!error.message.contains("hunter2"), "{url}: the message repeats the password");
        }
    }
    ensure!(tripwire.touched.load(Ordering::SeqCst) == 0, "the server connected to this machine");
    // The tripwire works: this one is meant to be seen.
    drop(std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port))?);
    for _ in 0..100 {
        if tripwire.touched.load(Ordering::SeqCst) == 1 {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    anyhow::bail!("the tripwire does not work")
}
