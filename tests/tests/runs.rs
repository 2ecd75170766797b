//! From an uploaded file to an adapter that answers, with real training on the model inside the binary.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use reground_tests::upload::{form, lines, preferences, upload};
use reground_tests::{Client, Server, Settings};
use serde_json::{Value, json};

/// A run of these tests ends within this time, on however busy a machine.
const LIMIT: Duration = Duration::from_secs(180);

/// Training that changes little, judged on few pictures: these tests are about what happens around it.
pub(super) fn settings(train: &str) -> Settings {
    let gate = "pocket_images = 24\nresamples = 200\nmax_answers = 4\nmax_length_ratio = 100.0\nbroken_margin = 1.0\n\
        chair_margin = 1.0\ncover_margin = 1.0\npope_margin = 1.0";
    let small = "min_pairs = 0\nlearning_rate = 1e-5\nbatch = 4\nthreads = 1\nrank = 4\nalpha = 8.0\nnice = 0";
    Settings::builtin()
        .section("model", "device = \"cpu\"")
        .section("train", &format!("{small}\n{train}"))
        .section("gate", gate)
        .environment("RAYON_NUM_THREADS", "1")
}

async fn uploaded(client: &Client, count: u32) -> Result<String> {
    let file = upload(client, "pairs.jsonl", &lines(&preferences(count)?)).await?.ok()?;
    file["id"].as_str().map(str::to_owned).context("no id")
}

pub(super) async fn begin(client: &Client, file: &str) -> Result<String> {
    let job = client.post("/v1/fine_tuning/jobs", &json!({"model": "reground", "training_file": file})).await?.ok()?;
    job["id"].as_str().map(str::to_owned).context("no id")
}

pub(super) async fn job(client: &Client, id: &str) -> Result<Value> {
    client.get(&format!("/v1/fine_tuning/jobs/{id}")).await?.ok()
}

pub(super) async fn events(client: &Client, id: &str) -> Result<Vec<Value>> {
    let page = client.get(&format!("/v1/fine_tuning/jobs/{id}/events?limit=100")).await?.ok()?;
    page["data"].as_array().cloned().context("no events")
}

/// Waits for a status; every other one that is an end is an error.
pub(super) async fn until(client: &Client, id: &str, status: &str) -> Result<Value> {
    let begun = Instant::now();
    loop {
        let job = job(client, id).await?;
        let now = job["status"].as_str().unwrap_or_default();
        if now == status {
            return Ok(job);
        }
        if ["succeeded", "failed", "cancelled"].contains(&now) || begun.elapsed() > LIMIT {
            bail!("{job:#}\n{:#}", json!(events(client, id).await?));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until a message of the job's begins so.
pub(super) async fn until_told(client: &Client, id: &str, beginning: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        let told = events(client, id).await?;
        if told.iter().any(|event| event["message"].as_str().is_some_and(|text| text.starts_with(beginning))) {
            return Ok(());
        }
        ensure!(begun.elapsed() < LIMIT, "no {beginning:?} in {told:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(super) async fn fingerprint(client: &Client) -> Result<String> {
    let body = json!({"model": "reground", "temperature": 0, "max_tokens": 8,
        "messages": [{"role": "user", "content": "Hello"}]});
    client.answer(&body).await?["system_fingerprint"].as_str().map(str::to_owned).context("no fingerprint")
}

/// The process that trains the run of this id.
fn process(id: &str) -> Option<PathBuf> {
    std::fs::read_dir("/proc").ok()?.filter_map(|entry| Some(entry.ok()?.path())).find(|process| {
        std::fs::read(process.join("cmdline")).is_ok_and(|line| {
            let line = String::from_utf8_lossy(&line);
            line.contains("\0train\0") && line.contains(id)
        })
    })
}

fn kill(process: &Path) -> Result<()> {
    let id = process.file_name().and_then(|name| name.to_str()).context("no process")?;
    let status = Command::new("sh").args(["-c", "kill -KILL \"$0\"", id]).status()?;
    ensure!(status.success(), "cannot kill {id}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_becomes_an_adapter_that_answers() -> Result<()> {
    let server = Server::start(settings("epochs = 1.0\ncheckpoint_every = 3")).await?;
    let client = server.client();
    let file = uploaded(&client, 24).await?;
    let listed = client.get("/v1/files?purpose=fine-tune").await?.ok()?;
    ensure!(listed["data"][0]["id"] == *file && listed["data"][0]["status"] == "processed", "{listed}");
    let content = client.get(&format!("/v1/files/{file}/content")).await?;
    ensure!(content.body == lines(&preferences(24)?), "the bytes are others");

    ensure!(fingerprint(&client).await? == "base", "something is live already");
    let id = begin(&client, &file).await?;
    let done = until(&client, &id, "succeeded").await?;
    let adapter = done["reground"]["adapter"].as_str().context("no adapter")?.to_owned();
    ensure!(done["fine_tuned_model"] == format!("reground@{adapter}"), "{done}");
    ensure!(done["gate"]["passed"] == true && done["error"].is_null(), "{done}");
    let checks = done["gate"]["checks"].as_array().context("no checks")?;
    let asked = |name: &str| checks.iter().any(|check| check["name"] == name && check["outcome"] == "passed");
    ensure!(
        asked("pocket captions, balanced: Cover") && asked("pocket POPE adversarial, typical: accuracy"),
        "{done:#}"
    );
    ensure!(done["model"] == "reground@base" && done["reground"]["pairs"] == 24, "{done}");
    ensure!(fingerprint(&client).await? == adapter, "the adapter is not live");

    let told = events(&client, &id).await?;
    let metrics: Vec<&Value> = told.iter().filter(|event| event["type"] == "metrics").collect();
    ensure!(metrics.iter().any(|event| event["data"]["train_loss"].is_f64()), "{told:#?}");
    ensure!(told[0]["message"].as_str().is_some_and(|text| text.ends_with("is live.")), "{:#}", told[0]);
    let checkpoints = client.get(&format!("/v1/fine_tuning/jobs/{id}/checkpoints")).await?.ok()?;
    ensure!(checkpoints["data"].as_array().is_some_and(|list| !list.is_empty()), "{checkpoints}");
    ensure!(client.metric("reground_runs_total").await?.is_some_and(|runs| runs >= 1.0), "no metric");
    let body = json!({"model": format!("reground@{adapter}"), "max_tokens": 4,
        "messages": [{"role": "user", "content": "Hello"}]});
    let pinned = client.answer(&body).await?;
    ensure!(pinned["system_fingerprint"] == *adapter, "the name of the result does not answer");

    // The next run continues it; then both are taken back.
    let second = begin(&client, &file).await?;
    let second = until(&client, &second, "succeeded").await?;
    ensure!(second["reground"]["parent"] == *adapter, "{second}");
    ensure!(fingerprint(&client).await? != adapter, "the second one is not live");
    client.post("/v1/adapters/rollback", &json!({})).await?.ok()?;
    ensure!(fingerprint(&client).await? == adapter, "not what was live before");
    client.post("/v1/adapters/rollback", &json!({})).await?.ok()?;
    ensure!(fingerprint(&client).await? == "base", "not the base");

    let request = client.request(reqwest::Method::DELETE, &format!("/v1/files/{file}"));
    ensure!(Client::send(request).await?.ok()?["deleted"] == true, "not deleted");
    ensure!(client.get(&format!("/v1/files/{file}")).await?.status == 404, "still there");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_training_goes_on_and_none_outlives_its_server() -> Result<()> {
    let server = Server::start(settings("epochs = 10.0\ncheckpoint_every = 2")).await?;
    let client = server.client();
    let file = uploaded(&client, 24).await?;
    let id = begin(&client, &file).await?;
    until_told(&client, &id, "Checkpoint").await?;
    kill(&process(&id).context("no process")?)?;
    let done = until(&client, &id, "succeeded").await?;
    ensure!(done["reground"]["restarts"] == 1, "{done}");
    ensure!(fingerprint(&client).await? == *done["reground"]["adapter"].as_str().unwrap_or_default(), "not live");

    let second = begin(&client, &file).await?;
    until_told(&client, &second, "Step 1/").await?;
    let jobs = format!("/v1/fine_tuning/jobs/{second}");
    let paused = client.post(&format!("{jobs}/pause"), &json!({})).await?.ok()?;
    ensure!(paused["status"] == "paused", "{paused}");
    until_told(&client, &second, "Paused").await?;
    ensure!(client.post(&format!("{jobs}/resume"), &json!({})).await?.ok()?["status"] == "queued", "not queued");
    until_told(&client, &second, "Training goes on").await?;
    ensure!(client.post(&format!("{jobs}/cancel"), &json!({})).await?.ok()?["status"] == "cancelled", "not cancelled");
    let again = client.post(&format!("{jobs}/cancel"), &json!({})).await?;
    ensure!(again.status == 409, "{}", again.text());

    let third = begin(&client, &file).await?;
    until_told(&client, &third, "Step 1/").await?;
    let orphan = process(&third).context("no process")?;
    // Killed, not stopped: nothing of it can tell its child.
    drop(server);
    let begun = Instant::now();
    while orphan.exists() {
        ensure!(begun.elapsed() < Duration::from_secs(20), "the training outlives its server");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_training_that_stands_still_for_live_queries_does_not_outlive_its_server_either() -> Result<()> {
    let server = Server::start(settings("epochs = 100.0\nmin_share = 0.0")).await?;
    let client = server.client();
    let id = begin(&client, &uploaded(&client, 24).await?).await?;
    until_told(&client, &id, "Step 1/").await?;
    let process = process(&id).context("no process")?;
    let asking: Vec<_> = (0..4)
        .map(|_| {
            let client = client.clone();
            // Until the server is gone.
            tokio::spawn(async move { while fingerprint(&client).await.is_ok() {} })
        })
        .collect();
    let begun = Instant::now();
    let stands_still = || {
        let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|after| after.trim_start().starts_with('T'))
    };
    while !stands_still() {
        ensure!(begun.elapsed() < LIMIT, "training does not make way for live queries");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(server);
    for asks in asking {
        asks.await?;
    }
    let begun = Instant::now();
    while process.exists() {
        ensure!(begun.elapsed() < Duration::from_secs(20), "the training outlives its server, and stands still");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_used_is_refused_by_name() -> Result<()> {
    let server = Server::start(
        settings("max_file_bytes = 200000").key("root", "sk-root", "admin").key("user", "sk-user", "client"),
    )
    .await?;
    let client = server.client();
    let good = preferences(2)?;
    let mut bad = good.clone();
    bad[1]["input"]["messages"][0]["content"][0]["image_url"]["url"] = json!("data:image/png;base64,AAAA");
    let error = upload(&client, "bad.jsonl", &lines(&bad)).await?.error()?;
    ensure!(error.code.as_deref() == Some("invalid_file") && error.message.contains("line 2"), "{error:?}");
    let error = upload(&client, "bad.jsonl", b"not json").await?.error()?;
    ensure!(error.message.contains("line 1"), "{error:?}");
    let reply = upload(&client, "large.jsonl", &vec![b' '; 300_000]).await?;
    ensure!(reply.status == 413, "{}", reply.text());
    let file = lines(&good);
    for (fields, param) in [
        (vec![("purpose", None, &b"vision"[..]), ("file", Some("x"), &file[..])], "purpose"),
        (vec![("file", Some("x"), &file[..])], "purpose"),
        (vec![("purpose", None, &b"fine-tune"[..])], "file"),
        (vec![("purpose", None, &b"fine-tune"[..]), ("extra", None, b"1"), ("file", Some("x"), &file[..])], "extra"),
    ] {
        let reply = form(&client, &fields).await?;
        ensure!(reply.status == 400 && reply.error()?.param.as_deref() == Some(param), "{}", reply.text());
    }
    let reply = client.post("/v1/files", &json!({})).await?;
    ensure!(reply.status == 415, "{}", reply.text());
    ensure!(client.get("/v1/files").await?.ok()?["data"] == json!([]), "something was kept");

    for (body, param) in [
        (json!({"model": "reground", "training_file": "file-none"}), "training_file"),
        (json!({"model": "reground", "training_file": "pairs"}), "training_file"),
        (json!({"model": "reground", "training_file": "pairs", "validation_file": "file-1"}), "validation_file"),
        (json!({"model": "gpt-4o", "training_file": "pairs"}), "model"),
        (json!({"model": "reground@ad-none", "training_file": "pairs"}), "model"),
    ] {
        let error = client.post("/v1/fine_tuning/jobs", &body).await?.error()?;
        ensure!(error.param.as_deref() == Some(param), "{body}: {error:?}");
    }
    ensure!(client.get("/v1/fine_tuning/jobs/ftjob-none").await?.status == 404, "a job that is not there");
    let user = server.client_with(Some("sk-user"));
    ensure!(upload(&user, "x", &file).await?.status == 403, "a client's key uploads");
    ensure!(user.get("/v1/fine_tuning/jobs").await?.status == 403, "a client's key sees jobs");
    Ok(())
}
