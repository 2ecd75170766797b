//! A record that is deleted is in no later run, and nothing of it stays on the disk.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reground_tests::{Client, Server, pictures};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::life::store;
use super::runs::{begin, fingerprint, settings, until, until_told};

const RECORDS: u32 = 10;
/// What only the deleted record says, in words that the model knows: others are many tokens, and answers of very different
/// lengths are not trained on.
const SECRET: &str = "four blue cats and four green hats";
/// What all others say.
const RIGHT: &str = "There is a red apple in the top left and a green tree.";

/// Asks about a picture of its own and corrects the answer; the record's id.
async fn corrected(client: &Client, number: u32, correction: &str) -> Result<String> {
    let url = pictures::data_url("image/png", &pictures::png(64, 64, number)?);
    let body = json!({"model": "reground", "temperature": 0, "max_tokens": 60, "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Describe the image."}]}]});
    let record = client.answer(&body).await?["id"].as_str().context("no id")?.to_owned();
    client.post("/v1/feedback", &json!({"completion_id": record, "correction": correction})).await?.ok()?;
    Ok(record)
}

async fn pairs(client: &Client, count: usize) -> Result<Vec<Value>> {
    let begun = Instant::now();
    loop {
        let list = client.get("/v1/pairs?state=new&limit=100").await?.ok()?;
        let list = list["data"].as_array().context("no list")?.clone();
        if list.len() >= count {
            return Ok(list);
        }
        ensure!(begun.elapsed() < Duration::from_secs(120), "{} pairs", list.len());
        sleep(Duration::from_millis(50)).await;
    }
}

/// Whether any file below a directory has these bytes in it.
fn is_in(directory: &Path, bytes: &[u8]) -> Result<Option<String>> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let found = if path.is_dir() {
            is_in(&path, bytes)?
        } else {
            let has = std::fs::read(&path)?.windows(bytes.len()).any(|window| window == bytes);
            has.then(|| path.display().to_string())
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_run_does_not_contain_what_was_deleted() -> Result<()> {
    let data = tempfile::tempdir()?;
    let bootstrap = "weakened = 0\ninjected = 0\nmax_length_ratio = 100.0";
    let server = Server::start(settings("max_steps = 6").section("bootstrap", bootstrap).data(data.path())).await?;
    let client = server.client();
    let mut records = Vec::new();
    for number in 0..RECORDS {
        let correction = if number == 0 { format!("There are {SECRET}.") } else { RIGHT.to_owned() };
        records.push(corrected(&client, number, &correction).await?);
    }
    let made = pairs(&client, RECORDS as usize).await?;
    let of_the_first: Vec<&str> =
        made.iter().filter(|pair| pair["record"] == *records[0]).filter_map(|pair| pair["id"].as_str()).collect();
    let image = made.iter().find(|pair| pair["record"] == *records[0]).context("no pair")?["images"][0]["digest"]
        .as_str()
        .context("no digest")?;
    ensure!(!of_the_first.is_empty(), "no pair was made of the record");

    let first = begin(&client, "pairs").await?;
    until_told(&client, &first, "Training begins").await?;
    let dataset = |run: &str| data.path().join("runs").join(run).join("dataset.jsonl");
    ensure!(std::fs::read_to_string(dataset(&first))?.contains(SECRET), "the first run does not have it");
    let done = until(&client, &first, "succeeded").await?;
    let adapter = done["reground"]["adapter"].as_str().context("no adapter")?.to_owned();

    let request = client.request(Method::DELETE, &format!("/v1/records/{}", records[0]));
    let deleted = Client::send(request).await?.ok()?;
    ensure!(deleted["feedback"] == 1 && deleted["pairs"] == of_the_first.len(), "{deleted:#}");
    ensure!(deleted["blobs"] == 1 && deleted["adapters"] == json!([adapter]), "{deleted:#}");

    // Every pair that may be trained on, new ones among them.
    corrected(&client, RECORDS, RIGHT).await?;
    pairs(&client, 1).await?;
    let second = begin(&client, "pairs:all").await?;
    until_told(&client, &second, "Training begins").await?;
    let frozen = std::fs::read_to_string(dataset(&second))?;
    ensure!(frozen.contains(RIGHT) && frozen.lines().count() == RECORDS as usize, "{frozen}");
    for gone in of_the_first.iter().copied().chain([SECRET, image, records[0].as_str()]) {
        ensure!(!frozen.contains(gone), "{gone} is in the later run");
    }
    let kept = data.path().join("runs").join(&second).join("blobs");
    ensure!(!kept.join(&image[..2]).join(image).exists(), "the image is in the later run");
    until(&client, &second, "succeeded").await?;
    ensure!(fingerprint(&client).await? != adapter, "the second adapter is not live");
    server.kill();

    // sled's files have what was deleted until they are written anew.
    let output = store(data.path(), &["compact"]).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(is_in(data.path(), RIGHT.as_bytes())?.is_some(), "what was not deleted is not found either");
    let left = is_in(data.path(), SECRET.as_bytes())?;
    ensure!(left.is_none(), "{left:?} has it still");
    Ok(())
}
