//! What learning costs those who ask: how long live queries take beside a server that makes pairs, and beside one that trains as
//! well, over a server that does neither. `target/release/live_latency [rounds]` after `cargo build --release --workspace --bins`
//!
//! Three processes serve the built-in model, and all but one of them are stopped at any moment: they take turns in short blocks,
//! so that whatever else the machine does falls on each alike. The load is light: one asks, waits for the answer, and asks again
//! after a pause, in which the background has the machine.

use std::fmt::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reground_tests::{Client, Server, Settings, pictures, say, upload};
use serde_json::{Value, json};

const ROUNDS: usize = 20;
/// Questions of one block.
const BLOCK: usize = 12;
const PAUSE: Duration = Duration::from_millis(100);
const TOKENS: usize = 32;
/// Corrected answers that wait for the bootstrapper, and the negatives of each: more than it gets done.
const WAITING: u32 = 150;
const NEGATIVES: usize = 16;

#[derive(Default)]
struct Seen {
    first_token: Vec<Duration>,
    total: Vec<Duration>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let rounds = std::env::args().nth(1).map_or(Ok(ROUNDS), |given| given.parse()).context("rounds")?;
    let alone = Settings::builtin().section("bootstrap", "enabled = false").section("train", "enabled = false");
    let pairs = Settings::builtin()
        .section("bootstrap", &format!("weakened = {NEGATIVES}\ninjected = {NEGATIVES}"))
        .section("record", "queue = 10000");
    let settings = [alone, pairs.clone().section("train", "enabled = false"), pairs.section("train", "min_pairs = 0")];
    let names = ["neither", "making pairs", "making pairs and training"];
    let mut servers = Vec::new();
    for (settings, name) in settings.into_iter().zip(names) {
        let server = Server::start(settings).await?;
        if name != "neither" {
            fill(&server.client()).await?;
        }
        if name.ends_with("training") {
            train(&server.client()).await?;
        }
        signal(&server, "STOP")?;
        servers.push((name, server, Seen::default()));
    }
    for round in 0..rounds {
        for (name, server, seen) in &mut servers {
            signal(server, "CONT")?;
            block(&server.client(), round, seen).await.with_context(|| format!("beside {name}"))?;
            signal(server, "STOP")?;
        }
        say!("round {} of {rounds}", round + 1);
    }
    for (name, server, _) in &servers {
        signal(server, "CONT")?;
        let client = server.client();
        if *name != "neither" {
            let waiting = client.get("/v1/records?bootstrap=waiting&limit=1").await?.ok()?;
            ensure!(waiting["data"][0].is_object(), "{name}: nothing was left to do, so it did not work all the time");
        }
        if name.ends_with("training") {
            let jobs = client.get("/v1/fine_tuning/jobs?limit=1").await?.ok()?;
            ensure!(jobs["data"][0]["status"] == "running", "{name}: it does not train any more: {jobs}");
        }
    }
    println!("{}", table(&servers));
    Ok(())
}

fn question(number: u32) -> Result<Value> {
    let url = pictures::data_url("image/png", &pictures::png(64, 64, number)?);
    Ok(json!({"model": "reground", "temperature": 0, "max_tokens": TOKENS, "logit_bias": {"2": -100},
        "messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Describe the image."}]}]}))
}

/// Corrected answers for the bootstrapper.
async fn fill(client: &Client) -> Result<()> {
    for number in 0..WAITING {
        let mut body = question(number)?;
        body["logit_bias"] = json!({});
        let answer = client.answer(&body).await?;
        let correction = json!({"completion_id": answer["id"], "correction": "There is a red circle in the center."});
        client.post("/v1/feedback", &correction).await?.ok()?;
    }
    Ok(())
}

/// A run that lasts longer than the measuring.
async fn train(client: &Client) -> Result<()> {
    let file = upload::upload(client, "pairs.jsonl", &upload::lines(&upload::preferences(64)?)).await?.ok()?;
    let method = json!({"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 1000}}});
    let job = json!({"model": "reground", "training_file": file["id"], "method": method});
    let job = client.post("/v1/fine_tuning/jobs", &job).await?.ok()?;
    let id = job["id"].as_str().context("no id")?;
    let begun = Instant::now();
    loop {
        let events = client.get(&format!("/v1/fine_tuning/jobs/{id}/events?limit=100")).await?.ok()?;
        if events["data"].as_array().is_some_and(|events| events.iter().any(|event| event["type"] == "metrics")) {
            return Ok(());
        }
        ensure!(begun.elapsed() < Duration::from_secs(120), "no step of training: {events}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn block(client: &Client, round: usize, seen: &mut Seen) -> Result<()> {
    for number in 0..=BLOCK {
        let mut body = question(1000 + u32::try_from(round * (BLOCK + 1) + number)?)?;
        body["stream"] = json!(true);
        // What is recorded here would be more to do.
        body["store"] = json!(false);
        let asked = Instant::now();
        let mut stream = client.open(&body).await?;
        let mut first = None;
        while let Some(chunk) = stream.next().await? {
            if chunk["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty()) {
                first.get_or_insert_with(|| asked.elapsed());
            }
        }
        let total = asked.elapsed();
        // The first one pays for the process having been stopped.
        if number > 0 {
            seen.first_token.push(first.context("an answer without text")?);
            seen.total.push(total);
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Stops or continues a server and the processes that it started.
fn signal(server: &Server, signal: &str) -> Result<()> {
    let mut ids = vec![server.id()];
    ids.extend(children(server.id())?);
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    let status = Command::new("sh").arg("-c").arg(format!("kill -{signal} {}", ids.join(" "))).status()?;
    ensure!(status.success(), "cannot send SIG{signal}: {status}");
    Ok(())
}

fn children(parent: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Gone meanwhile, or one.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{id}/stat")) else { continue };
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        if after_name.split_whitespace().nth(1) == Some(parent.to_string().as_str()) {
            found.push(id);
        }
    }
    Ok(found)
}

fn table(servers: &[(&str, Server, Seen)]) -> String {
    let mut text = String::from(
        "| beside | questions | first token p50 ms | p95 ms | over neither | answer p50 ms | p95 ms | over neither |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    let base = &servers[0].2;
    for (name, _, seen) in servers {
        let _ = write!(text, "| {name} | {} |", seen.total.len());
        for (times, base) in [(&seen.first_token, &base.first_token), (&seen.total, &base.total)] {
            let (middle, tail) = (percentile(times, 50), percentile(times, 95));
            let _ = write!(text, " {middle:.1} | {tail:.1} | {:.3} |", tail / percentile(base, 95));
        }
        text.push('\n');
    }
    text
}

/// By nearest rank: milliseconds.
fn percentile(times: &[Duration], percent: usize) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    let rank = (times.len() * percent).div_ceil(100).max(1);
    times.get(rank - 1).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
}
