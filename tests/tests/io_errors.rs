//! A disk that fails with EIO while the route changes, and then a restart: what answers is what the store says and what the caller
//! was told.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reground_tests::disk::{Disk, Errors};
use reground_tests::{Client, Server};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::life::{import_adapter, make_adapter, settings, verify};

const LIMIT: Duration = Duration::from_secs(60);
const BASE: &str = "base";

/// Makes a generation live, by activation or by rollback.
async fn change(client: &Client, generation: &str) -> Result<reground_tests::Reply> {
    if generation == BASE {
        return client.post("/v1/adapters/rollback", &json!({})).await;
    }
    client.post(&format!("/v1/adapters/{generation}/activate"), &json!({})).await
}

/// A change that the disk refuses; the caller is told that it was not made, and what answered goes on.
async fn is_refused(client: &Client, next: &str, live: &str) -> Result<()> {
    let reply = change(client, next).await?;
    let error = reply.error()?;
    ensure!(reply.status == 503 && error.code.as_deref() == Some("storage_unavailable"), "{error:?}");
    ensure!(error.message.contains("was not made"), "{error:?}");
    ensure!(answers(client).await? == live, "{live} does not answer any more");
    Ok(())
}

async fn answers(client: &Client) -> Result<String> {
    let body = json!({"model": "reground", "max_tokens": 1, "store": false,
        "messages": [{"role": "user", "content": "Hello"}]});
    let answer = client.answer(&body).await?;
    Ok(answer["system_fingerprint"].as_str().context("no fingerprint")?.to_owned())
}

/// The last change that the store has; null if it has none.
async fn written(client: &Client) -> Result<Value> {
    Ok(client.get("/v1/adapters/changes").await?.ok()?["data"].get(0).cloned().unwrap_or_default())
}

/// Waits until the store works again and its last change is the one to what is live.
async fn until_it_agrees(client: &Client, live: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        let ready = client.get("/ready").await?.ok()?;
        if ready["store"].is_null() && written(client).await?["after"]["live"] == live {
            return Ok(());
        }
        ensure!(begun.elapsed() < LIMIT, "{live} is live, the store says {}; {ready}", written(client).await?);
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_the_disk_refused_is_not_made_after_a_restart() -> Result<()> {
    let root = tempfile::tempdir()?;
    make_adapter(root.path()).await?;
    let disk = Disk::new()?;
    let start = || Server::start(settings(root.path()).disk(&disk, false));
    let mut server = start().await?;
    let adapter = import_adapter(&server.client()).await?;
    // There is a change to compare with.
    change(&server.client(), &adapter).await?.ok()?;
    change(&server.client(), BASE).await?.ok()?;
    let mut live = BASE;
    for errors in [Errors::Flushes, Errors::Changes] {
        for next in [adapter.as_str(), BASE] {
            disk.errors(errors)?;
            is_refused(&server.client(), next, live).await?;
            disk.errors(Errors::None)?;
            until_it_agrees(&server.client(), live).await.with_context(|| format!("{errors:?}"))?;
            server.kill();
            verify(&disk.data()).await?;
            server = start().await?;
            ensure!(answers(&server.client()).await? == live, "{errors:?}: {next} is live after the restart");

            change(&server.client(), next).await?.ok()?;
            live = next;
        }
    }
    Ok(())
}

/// Nobody could take back what the disk may have taken: it is there or it is not, and the store and the server agree on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_with_its_disk_serves_what_the_store_says() -> Result<()> {
    let root = tempfile::tempdir()?;
    make_adapter(root.path()).await?;
    let disk = Disk::new()?;
    let start = || Server::start(settings(root.path()).disk(&disk, false));
    let mut server = start().await?;
    let adapter = import_adapter(&server.client()).await?;
    for errors in [Errors::Flushes, Errors::Changes, Errors::Flushes, Errors::Changes] {
        let live = answers(&server.client()).await?;
        let next = if live == BASE { adapter.as_str() } else { BASE };
        disk.errors(errors)?;
        is_refused(&server.client(), next, &live).await?;
        server.kill();
        disk.errors(Errors::None)?;
        verify(&disk.data()).await?;
        server = start().await?;
        let client = server.client();
        let (after, list) = (answers(&client).await?, client.get("/v1/adapters").await?.ok()?);
        ensure!([next, &live].contains(&after.as_str()) && list["route"]["live"] == *after, "{after}: {list}");
        let last = written(&client).await?;
        ensure!(last.is_null() && after == BASE || last["after"]["live"] == *after, "{after} answers: {last}");
        // The next change starts from it.
        let other = if after == BASE { adapter.as_str() } else { BASE };
        change(&client, other).await?.ok()?;
        ensure!(answers(&client).await? == other, "{other} does not answer");
    }
    Ok(())
}
