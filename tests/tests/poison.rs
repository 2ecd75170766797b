//! Somebody corrects right answers into wrong ones: what becomes of it without training, and, with `--ignored`, with it.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reground_tests::{Client, Server, Settings, command, pictures, say};
use serde_json::{Value, json};
use tokio::process::Command;

/// On however busy a machine.
const LIMIT: Duration = Duration::from_secs(1200);

/// Asks and lies; the pairs that came of it.
async fn lied(liar: &Client, admin: &Client, number: u32) -> Result<Vec<Value>> {
    let url = pictures::data_url("image/png", &pictures::png(64, 64, number)?);
    let body = json!({"model": "reground", "temperature": 0, "max_tokens": 60, "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": format!("Describe image {number}.")}]}]});
    let record = liar.answer(&body).await?["id"].as_str().context("no id")?.to_owned();
    let lie = format!("There are two pink cats and a blue dog in image {number}.");
    liar.post("/v1/feedback", &json!({"completion_id": record, "correction": lie})).await?.ok()?;
    let begun = Instant::now();
    loop {
        let shown = admin.get(&format!("/v1/records/{record}")).await?;
        if shown.status == 200 && shown.json()?["bootstrap"] != "waiting" {
            let list = admin.get(&format!("/v1/pairs?record={record}")).await?.ok()?;
            return Ok(list["data"].as_array().context("no list")?.clone());
        }
        ensure!(begun.elapsed() < Duration::from_secs(120), "{record} still waits");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

#[tokio::test]
async fn no_key_brings_more_pairs_than_its_cap_and_none_without_review() -> Result<()> {
    let bootstrap = "weakened = 0\ninjected = 0\nmax_per_key = 3\nmax_length_ratio = 100.0";
    let settings = Settings::builtin().key("mallory", "sk-mallory", "client").key("root", "sk-root", "admin");
    let settings = settings.section("bootstrap", bootstrap).section("train", "min_pairs = 0");
    let server = Server::start(settings).await?;
    let [mallory, root] = ["sk-mallory", "sk-root"].map(|key| server.client_with(Some(key)));
    let mut made = Vec::new();
    for number in 0..6 {
        made.extend(lied(&mallory, &root, number).await?);
    }
    ensure!(made.len() == 3, "{} pairs of one key: {made:#?}", made.len());
    ensure!(made.iter().all(|pair| pair["state"] == "review" && pair["key"] == "mallory"), "{made:#?}");
    let refused = root.get("/metrics").await?.text();
    ensure!(
        refused.lines().any(|line| line.starts_with("reground_bootstrap_rejections_total") && line.contains("key")),
        "{refused}"
    );
    // Another key is not kept out by it, and nothing can be trained on before a person has looked.
    let own = lied(&root, &root, 7).await?;
    ensure!(own.len() == 1 && own[0]["state"] == "new", "{own:#?}");
    let export = root.post("/v1/pairs/export", &json!({})).await?.text();
    ensure!(export.lines().count() == 1 && !export.contains("image 0."), "{export}");
    Ok(())
}

async fn demo(place: &Path, arguments: &[&str]) -> Result<Output> {
    let demo = Command::from(command("demo")?)
        .args(["--images", "200", "--json", "--page"])
        .arg(place.join("page.html"))
        .args(arguments)
        .current_dir(place)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    tokio::time::timeout(LIMIT, demo.wait_with_output()).await.context("it takes too long")?.map_err(Into::into)
}

/// Balanced CHAIR_i before and after.
fn chair(outcome: &Value) -> Result<[f64; 2]> {
    let value = |when: &str| {
        let named = |list: &Value, name: &str| list.as_array()?.iter().find(|item| item["name"] == name).cloned();
        let section = named(&outcome[when]["sections"], "captions, balanced")?;
        named(&section["estimates"], "CHAIR_i")?["value"].as_f64()
    };
    Ok([value("before").context("no CHAIR_i before")?, value("after").context("no CHAIR_i after")?])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "three whole demonstrations: about six minutes"]
async fn poison_is_not_trained_on_without_review_and_refused_by_the_gate_without_any() -> Result<()> {
    let place = tempfile::tempdir()?;
    let output = demo(place.path(), &["--hostile", "0.05"]).await?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{told}");
    let outcome: Value = serde_json::from_slice(&output.stdout)?;
    let pairs = &outcome["hostile_pairs"];
    say!("5 % hostile, reviewed by nobody: pairs {pairs}, CHAIR_i {:?}", chair(&outcome)?);
    ensure!(pairs["review"].as_u64() > Some(10) && pairs["used"] == 0 && pairs["new"] == 0, "{pairs}");
    let [before, after] = chair(&outcome)?;
    ensure!(after < before, "CHAIR_i went from {before} to {after}");

    // What 5 % do when they are trusted: said, not judged. The gate may or may not see it.
    let output = demo(place.path(), &["--hostile", "0.05", "--trust-hostile"]).await?;
    if output.status.success() {
        let outcome: Value = serde_json::from_slice(&output.stdout)?;
        say!("5 % hostile and trusted: passed; pairs {}, CHAIR_i {:?}", outcome["hostile_pairs"], chair(&outcome)?);
    } else {
        say!("5 % hostile and trusted: {}", String::from_utf8_lossy(&output.stderr));
    }

    let output = demo(place.path(), &["--hostile", "1", "--trust-hostile"]).await?;
    let told = String::from_utf8_lossy(&output.stderr);
    say!("all hostile and trusted: {told}");
    ensure!(!output.status.success() && told.contains("the gate did not pass"), "{told}");
    Ok(())
}
