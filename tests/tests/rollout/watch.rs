//! What is worse is taken back by itself, unless it is pinned.

use anyhow::{Context, Result, ensure};
use reground_tests::{Client, Golden, Server, Settings};
use serde_json::{Value, json};

use super::{activate, cli, import, question, settings, text_of, until};

const RATED: usize = 6;

fn watched(data: &std::path::Path) -> Settings {
    settings(data).section("watch", "interval_s = 1\nmin_ratings = 5\ngrounding_answers = 1000\nmin_grounding = 1000")
}

/// Asks and says of every answer how good it is.
async fn rate(client: &Client, rating: f64) -> Result<()> {
    for n in 0..RATED {
        let answer = client.answer(&question("reground", n)).await?;
        let feedback = json!({"completion_id": answer["id"], "rating": rating});
        client.post("/v1/feedback", &feedback).await?.ok()?;
    }
    Ok(())
}

fn signal<'a>(list: &'a Value, name: &str) -> Option<&'a Value> {
    list["watched"][0]["signals"].as_array()?.iter().find(|signal| signal["signal"] == name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_people_like_less_are_taken_back_for_good() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(watched(data.path())).await?;
    let client = server.client();
    let adapter = import(&client).await?;
    rate(&client, 1.0).await?;
    activate(&client, &adapter).await?;
    let list = until(&client, |list| signal(list, "ratings").is_some()).await?;
    ensure!(list["watched"][0]["against"] == "base" && list["watched"][0]["state"] == "watching", "{list:#}");
    ensure!(signal(&list, "ratings").context("no signal")?["verdict"] == "too_few", "{list:#}");
    rate(&client, -1.0).await?;
    let list = until(&client, |list| list["route"]["live"] == "base").await?;
    ensure!(list["route"]["previous"].is_null() && list["watched"] == json!([]), "{list:#}");
    let changes = client.get("/v1/adapters/changes").await?.ok()?;
    let why = changes["data"][0]["why"].as_str().unwrap_or_default();
    ensure!(changes["data"][0]["what"] == "watch" && changes["data"][0]["by"] == "reground", "{changes:#}");
    ensure!(why == "ratings: -1.0000 mean rating (n = 6) against 1.0000 (n = 6); 0.25 lower is allowed", "{why}");
    ensure!(client.metric("reground_watch_breaches_total").await? == Some(1.0), "the counter differs");
    let again = client.post("/v1/adapters/rollback", &json!({})).await?;
    ensure!(again.status == 409, "a rollback brings it back: {}", again.text());
    // Killed.
    drop(server);
    let server = Server::start(watched(data.path())).await?;
    ensure!(text_of(&server.client().answer(&question("reground", 1)).await?)?.0 == "base", "it is back");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pinned_stays_until_it_is_not_and_a_restart_watches_on() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(watched(data.path())).await?;
    let client = server.client();
    let adapter = import(&client).await?;
    rate(&client, 1.0).await?;
    activate(&client, &adapter).await?;
    let other = client.post("/v1/adapters/base/pin", &json!({})).await?;
    ensure!(other.status == 409 && other.error()?.message.contains("activate it first"), "{}", other.text());
    let route = cli(&server, &["pin", &adapter, "--expected", &adapter]).await?;
    ensure!(route["pinned"] == true, "{route}");
    rate(&client, -1.0).await?;
    until(&client, |list| list["watched"][0]["state"] == "held").await?;
    drop(server);

    let server = Server::start(watched(data.path())).await?;
    let client = server.client();
    let list = until(&client, |list| list["watched"][0]["state"] == "held").await?;
    ensure!(list["route"]["pinned"] == true && list["route"]["live"] == adapter.as_str(), "{list:#}");
    cli(&server, &["unpin", &adapter]).await?;
    until(&client, |list| list["route"]["live"] == "base").await?;
    let changes = client.get("/v1/adapters/changes").await?.ok()?;
    let what: Vec<&str> =
        changes["data"].as_array().context("no list")?.iter().filter_map(|change| change["what"].as_str()).collect();
    ensure!(what == ["watch", "unpin", "pin", "activate"], "{changes:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_answers_are_scored_by_both_generations_with_and_without_their_pictures() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(watched(data.path())).await?;
    let client = server.client();
    let adapter = import(&client).await?;
    let golden = Golden::load()?;
    for pair in &golden.pairs {
        client.answer(&pair.greedy("reground")).await?;
    }
    client.post(&format!("/v1/adapters/{adapter}/canary"), &json!({"percent": 10})).await?.ok()?;
    let pictures = golden.pairs.len();
    let list = until(&client, |list| {
        signal(list, "grounding")
            .is_some_and(|signal| signal["new_count"] == pictures && signal["old_count"] == pictures)
    })
    .await?;
    let grounding = signal(&list, "grounding").context("no signal")?;
    let [new, old] = ["new", "old"].map(|side| grounding[side].as_f64().unwrap_or_default());
    ensure!(new != 0.0 && old != 0.0 && new != old, "{grounding}");
    ensure!(list["watched"][0]["trial"] == "canary" && grounding["verdict"] == "too_few", "{list:#}");
    Ok(())
}
