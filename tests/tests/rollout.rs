//! Adapters go live and come back while clients keep asking.
//!
//! - `loads`: how many engines a process may load. `recreate`: one generation at a time is loaded. `watch`: what is worse is taken back
//!   by itself, unless it is pinned. `shadow`: a second answer that nobody gets. `together`: several people change the route at once.

mod loads;
mod recreate;
mod shadow;
mod together;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reground_tests::{Client, Server, Settings, command};
use serde_json::{Value, json};

const CLIENTS: usize = 8;
/// Activations and rollbacks, each, under load.
const CHANGES: usize = 20;
/// How long the idle server gets to notice something.
const LIMIT: Duration = Duration::from_secs(60);

fn settings(data: &Path) -> Settings {
    Settings::golden().section("data", &format!("dir = {data:?}"))
}

async fn import(client: &Client) -> Result<String> {
    let adapter = client.post("/v1/adapters", &json!({"path": "adapter"})).await?.ok()?;
    adapter["id"].as_str().map(str::to_owned).context("no id")
}

async fn activate(client: &Client, id: &str) -> Result<Value> {
    client.post(&format!("/v1/adapters/{id}/activate"), &json!({})).await?.ok()
}

/// `/v1/adapters`, once it is as wanted.
async fn until(client: &Client, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let begun = Instant::now();
    loop {
        let list = client.get("/v1/adapters").await?.ok()?;
        if wanted(&list) {
            return Ok(list);
        }
        ensure!(begun.elapsed() < LIMIT, "still {list:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Runs `reground adapters` against a server; gives what it prints.
async fn cli(server: &Server, arguments: &[&str]) -> Result<Value> {
    let mut command = command("adapters")?;
    command.args(["--url", &format!("http://{}", server.address())]).args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

async fn rollback(client: &Client) -> Result<Value> {
    client.post("/v1/adapters/rollback", &json!({})).await?.ok()
}

fn question(model: &str, n: usize) -> Value {
    json!({"model": model, "temperature": 0, "max_tokens": 8 + n % 3,
        "messages": [{"role": "user", "content": format!("what color is circle number {}?", n % 4)}]})
}

fn text_of(answer: &Value) -> Result<(String, String)> {
    let text = answer["choices"][0]["message"]["content"].as_str().context("no content")?;
    let generation = answer["system_fingerprint"].as_str().context("no fingerprint")?;
    Ok((generation.to_owned(), text.to_owned()))
}

/// Clients ask without a pause while an adapter is activated and rolled back so many times. Every answer must be there, and be what its
/// generation says alone.
async fn changes_under_load(settings: Settings, changes: usize, canary: bool) -> Result<()> {
    let server = Server::start(settings).await?;
    let client = server.client();
    let adapter = import(&client).await?;

    let stop = Arc::new(AtomicBool::new(false));
    let askers: Vec<_> = (0..CLIENTS)
        .map(|asker| {
            let (client, stop) = (server.client(), stop.clone());
            tokio::spawn(async move {
                let mut answers = Vec::new();
                for n in (asker..).step_by(CLIENTS) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let mut body = question("reground", n);
                    if n % 2 == 0 {
                        answers.push((n, text_of(&client.answer(&body).await?)?));
                    } else {
                        body["stream"] = json!(true);
                        let streamed = client.stream(&body).await?;
                        ensure!(streamed.error().is_none(), "{:?}", streamed.error());
                        let prints: BTreeSet<&str> =
                            streamed.chunks.iter().filter_map(|chunk| chunk["system_fingerprint"].as_str()).collect();
                        ensure!(prints.len() == 1, "one answer, several generations: {prints:?}");
                        let print = prints.into_iter().next().unwrap_or_default().to_owned();
                        answers.push((n, (print, streamed.text(0))));
                    }
                }
                anyhow::Ok(answers)
            })
        })
        .collect();
    for change in 0..changes {
        let route = activate(&client, &adapter).await?;
        ensure!(route["live"] == adapter.as_str() && route["previous"] == "base", "{change}: {route}");
        let route = rollback(&client).await?;
        ensure!(route["live"] == "base", "{change}: {route}");
    }
    if canary {
        // A share of the callers for a while, too.
        let path = format!("/v1/adapters/{adapter}/canary");
        client.post(&path, &json!({"percent": 50, "expected_generation": "base"})).await?.ok()?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    stop.store(true, Ordering::Relaxed);

    let mut answered = BTreeMap::new();
    for asker in askers {
        for (n, (generation, text)) in asker.await?? {
            answered.entry(generation).or_insert_with(Vec::new).push((n, text));
        }
    }
    let generations: Vec<&str> = answered.keys().map(String::as_str).collect();
    ensure!(generations == [adapter.as_str(), "base"], "{generations:?}");
    ensure!(answered.values().map(Vec::len).sum::<usize>() > CLIENTS * 4, "too few answers");
    for (generation, answers) in &answered {
        let live = client.get("/v1/adapters").await?.ok()?["route"]["live"].clone();
        if live != generation.as_str() {
            activate(&client, generation).await?;
        }
        let mut alone = BTreeMap::new();
        for (n, text) in answers {
            let key = n % 12;
            if let std::collections::btree_map::Entry::Vacant(unknown) = alone.entry(key) {
                unknown.insert(text_of(&client.answer(&question("reground", *n)).await?)?);
            }
            ensure!(
                alone[&key] == (generation.clone(), text.clone()),
                "{generation} said {text:?}, alone {:?}",
                alone[&key]
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_notice_nothing_of_twenty_activations_and_twenty_rollbacks() -> Result<()> {
    let data = tempfile::tempdir()?;
    changes_under_load(settings(data.path()), CHANGES, true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_of_a_canary_stays_with_what_it_got() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(settings(data.path())).await?;
    let client = server.client();
    let adapter = import(&client).await?;
    client.post(&format!("/v1/adapters/{adapter}/canary"), &json!({"percent": 40})).await?.ok()?;
    let mut got = BTreeMap::new();
    for round in 0..3 {
        for user in 0..20 {
            let mut body = question("reground", round);
            body["user"] = json!(format!("user-{user}"));
            let (generation, _) = text_of(&client.answer(&body).await?)?;
            let first = got.entry(user).or_insert_with(|| generation.clone());
            ensure!(*first == generation, "user {user} had {first} and has {generation}");
        }
    }
    let tried = got.values().filter(|generation| **generation == adapter).count();
    ensure!((1..20).contains(&tried), "{tried} of 20 users try 40 percent");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_live_survives_kill_9_and_a_stale_change_is_refused() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(settings(data.path())).await?;
    let client = server.client();
    let adapter = import(&client).await?;
    let stale = json!({"expected_generation": "ad-other"});
    let error = client.post(&format!("/v1/adapters/{adapter}/activate"), &stale).await?;
    ensure!((error.status, error.error()?.code.as_deref()) == (409, Some("conflict")), "{}", error.text());
    let nothing = client.post("/v1/adapters/rollback", &json!({})).await?;
    ensure!(nothing.status == 409, "{}", nothing.text());
    activate(&client, &adapter).await?;
    let before = text_of(&client.answer(&question("reground", 1)).await?)?;
    // Dropping a server kills it at once.
    drop(server);

    let server = Server::start(settings(data.path())).await?;
    let client = server.client();
    let after = text_of(&client.answer(&question("reground", 1)).await?)?;
    ensure!(before == after && after.0 == adapter, "{before:?} became {after:?}");
    let list = client.get("/v1/adapters").await?.ok()?;
    ensure!(list["data"][0]["state"] == "live" && list["route"]["previous"] == "base", "{list}");
    let in_use = client.request(reqwest::Method::DELETE, &format!("/v1/adapters/{adapter}"));
    ensure!(Client::send(in_use).await?.status == 409, "a live adapter was removed");

    let url = format!("http://{}", server.address());
    let cli = async |arguments: &[&str]| -> Result<std::process::Output> {
        let mut command = command("adapters")?;
        command.args(["--url", &url]).args(arguments);
        Ok(tokio::task::spawn_blocking(move || command.output()).await??)
    };
    let rolled = cli(&["rollback", "--expected", &adapter]).await?;
    ensure!(rolled.status.success(), "{}", String::from_utf8_lossy(&rolled.stderr));
    ensure!(serde_json::from_slice::<Value>(&rolled.stdout)?["live"] == "base");
    let again = cli(&["rollback"]).await?;
    let message = String::from_utf8_lossy(&again.stderr).into_owned();
    ensure!(!again.status.success() && message.contains("nothing to roll back to"), "{message}");
    let removed = cli(&["remove", &adapter]).await?;
    ensure!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    let changes = client.get("/v1/adapters/changes").await?.ok()?;
    let what: Vec<&str> =
        changes["data"].as_array().context("no list")?.iter().filter_map(|change| change["what"].as_str()).collect();
    ensure!(what == ["rollback", "activate"], "{changes}");
    Ok(())
}
