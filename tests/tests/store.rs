//! `reground store`: the data directory without a server.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use reground_tests::{Server, Settings, command, pictures};
use serde_json::{Value, json};

use super::life::{store, verify};

async fn told(data: &Path, arguments: &[&str]) -> Result<Value> {
    let output = store(data, arguments).await?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[tokio::test]
async fn a_data_directory_is_looked_over_compacted_and_taken_along() -> Result<()> {
    let place = tempfile::tempdir()?;
    let [data, other, out, again] = ["data", "other", "out", "again"].map(|name| place.path().join(name));
    let path = |path: &Path| path.to_str().map(str::to_owned).context("a path in UTF-8");
    let mut server = Server::start(Settings::builtin().data(&data)).await?;
    let client = server.client();
    let mut records = Vec::new();
    for number in 0..3 {
        let url = pictures::data_url("image/png", &pictures::png(32, 32, number)?);
        let body = json!({"model": "reground", "max_tokens": 4, "store": true, "messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]}]});
        let id = client.answer(&body).await?["id"].as_str().context("no id")?.to_owned();
        client.post("/v1/feedback", &json!({"completion_id": id, "rating": 1})).await?.ok()?;
        records.push(id);
    }
    server.terminate()?;
    server.exit(std::time::Duration::from_secs(30)).await?;

    let found = verify(&data).await?;
    ensure!(found["rows"]["record"] == 3 && found["rows"]["feedback"] == 3 && found["blobs"] == 3, "{found:#}");
    let stats = told(&data, &["stats"]).await?;
    ensure!(stats["stats"]["rows"]["record"] == 3 && stats["record_bytes"].as_u64() > Some(1000), "{stats:#}");
    let compacted = told(&data, &["compact"]).await?;
    ensure!(compacted["bytes_after"].as_u64() > Some(0) && compacted["blobs"] == 0, "{compacted:#}");
    let exported = told(&data, &["export", &path(&out)?]).await?;
    ensure!(exported["blobs"] == 3 && exported["left_out"] == json!([]), "{exported:#}");
    let imported = told(&other, &["import", &path(&out)?]).await?;
    ensure!(imported["rows"] == exported["rows"] && imported["same"] == 0, "{imported:#}");
    told(&other, &["export", &path(&again)?]).await?;
    ensure!(std::fs::read(out.join("rows.jsonl"))? == std::fs::read(again.join("rows.jsonl"))?, "not the same rows");
    let server = Server::start(Settings::builtin().data(&other)).await?;
    for id in &records {
        ensure!(server.client().get(&format!("/v1/chat/completions/{id}")).await?.status == 200, "{id} is not there");
    }
    Ok(())
}

#[tokio::test]
async fn damage_is_named_and_a_wrong_directory_makes_none() -> Result<()> {
    let place = tempfile::tempdir()?;
    let data = place.path().join("data");
    let server = Server::start(Settings::builtin().data(&data)).await?;
    let url = pictures::data_url("image/png", &pictures::png(32, 32, 1)?);
    let body = json!({"model": "reground", "max_tokens": 2, "store": true, "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]}]});
    let id = server.client().answer(&body).await?["id"].as_str().context("no id")?.to_owned();
    let begun = std::time::Instant::now();
    while server.client().get(&format!("/v1/chat/completions/{id}")).await?.status != 200 {
        ensure!(begun.elapsed() < std::time::Duration::from_secs(20), "it is not stored");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    server.client().post("/v1/feedback", &json!({"completion_id": id, "rating": 1})).await?.ok()?;
    server.kill();
    let shelf = std::fs::read_dir(data.join("blobs"))?.next().context("no blob")??.path();
    let blob = std::fs::read_dir(shelf)?.next().context("no blob")??;
    std::fs::write(blob.path(), b"damaged")?;
    for arguments in [&["verify"][..], &["verify", "--repair"]] {
        let output = store(&data, arguments).await?;
        ensure!(output.status.code() == Some(1), "{arguments:?}: {}", output.status);
        let found: Value = serde_json::from_slice(&output.stdout)?;
        let problems = found["problems"].to_string();
        ensure!(problems.contains(&*blob.file_name().to_string_lossy()), "{arguments:?}: {found:#}");
    }
    // What is lost can be seen, deleted, and is gone then.
    let server = Server::start(Settings::builtin().data(&data)).await?;
    let request = server.client().request(reqwest::Method::DELETE, &format!("/v1/records/{id}"));
    reground_tests::Client::send(request).await?.ok()?;
    server.kill();
    verify(&data).await?;

    let wrong = place.path().join("wrong");
    for arguments in [&["verify"][..], &["compact"], &["stats"], &["export", "x"]] {
        let output = store(&wrong, arguments).await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1) && said.contains("there is no store"), "{arguments:?}: {said}");
    }
    ensure!(!wrong.exists(), "a directory was made");
    let output = command("store")?.arg("verify").args(["--config", "none.toml"]).output()?;
    ensure!(output.status.code() == Some(2), "{}", output.status);
    Ok(())
}
