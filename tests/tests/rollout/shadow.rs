//! A second answer that nobody gets.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reground_tests::Server;
use serde_json::json;
use tokio::time::sleep;

use super::{cli, import, question, settings, text_of, until};

const QUERIES: usize = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shadow_is_compared_and_answers_nobody() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(settings(data.path())).await?;
    let client = server.client();
    let adapter = import(&client).await?;
    let route = cli(&server, &["shadow", &adapter, "100", "--expected", "base"]).await?;
    ensure!(route["shadow"]["generation"] == adapter.as_str() && route["live"] == "base", "{route}");
    let stale = client
        .post(&format!("/v1/adapters/{adapter}/shadow"), &json!({"percent": 0, "expected_generation": "ad-other"}))
        .await?;
    ensure!(stale.status == 409, "{}", stale.text());
    for n in 0..QUERIES {
        let (generation, _) = text_of(&client.answer(&question("reground", n)).await?)?;
        ensure!(generation == "base", "a caller got the shadow");
    }
    let list = until(&client, |list| list["shadow"]["compared"] == QUERIES).await?;
    let shadow = &list["shadow"];
    ensure!(list["data"][0]["state"] == "shadow" && shadow["failed"] == 0, "{list:#}");
    // The golden adapter says something else than the base.
    ensure!(shadow["same"].as_f64().context("no share")? < 1.0, "{shadow:#}");
    for side in ["of_live", "of_shadow"] {
        let said = &shadow[side];
        ensure!(said["tokens"].as_f64().is_some_and(|tokens| tokens > 1.0), "{shadow:#}");
        ensure!(said["logprob"].as_f64().is_some_and(|logprob| logprob < 0.0), "{shadow:#}");
        ensure!(said["first_token_s"].as_f64().is_some_and(|seconds| seconds > 0.0), "{shadow:#}");
    }
    // The last ones are being written.
    let begun = Instant::now();
    let records = loop {
        let list = client.get("/v1/records?limit=100").await?.ok()?;
        let records = list["data"].as_array().context("no list")?.clone();
        if records.len() >= QUERIES || begun.elapsed() > Duration::from_secs(30) {
            break records;
        }
        sleep(Duration::from_millis(20)).await;
    };
    ensure!(records.len() == QUERIES && records.iter().all(|record| record["generation"] == "base"), "{records:#?}");
    ensure!(client.metric("reground_shadow_answers_total").await? == Some(QUERIES as f64), "the counter differs");
    // Who asks for a generation by name is not answered a second time.
    client.answer(&question("reground@base", 0)).await?;
    let route = cli(&server, &["shadow", &adapter, "0"]).await?;
    ensure!(route["shadow"].is_null(), "{route}");
    let list = client.get("/v1/adapters").await?.ok()?;
    ensure!(list["shadow"].is_null() && list["data"][0]["state"] == "stored", "{list:#}");
    Ok(())
}
