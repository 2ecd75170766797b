//! A model that is named by its hub id: downloaded once, then served from the cache. The hub is one on loopback.

use std::path::Path;

use anyhow::{Result, ensure};
use reground_tests::{Hub, Server, Settings};
use serde_json::json;
use tempfile::TempDir;

const ID: &str = "reground-tests/tiny";
/// Listed by the hub, and of no use to the server.
const USELESS: [&str; 4] = ["README.md", "pytorch_model.bin", "onnx/model.onnx", "onnx/config.json"];

fn hub(broken: Option<&str>) -> Result<Hub> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/idefics3/model");
    Hub::start(ID, &directory, &USELESS, broken)
}

/// A server of that model with this cache. No hub but the one at `endpoint` is asked, and no proxy.
fn settings(endpoint: &str, cache: &TempDir) -> Settings {
    Settings::builtin()
        .section("model", &format!("source = {ID:?}\ndevice = \"cpu\"\ndtype = \"f32\""))
        .environment("RAYON_NUM_THREADS", "1")
        .environment("HF_ENDPOINT", endpoint)
        .environment("HF_HOME", &cache.path().display().to_string())
        .environment("NO_PROXY", "127.0.0.1")
}

async fn answer(server: &Server) -> Result<String> {
    let body = json!({"model": "reground", "temperature": 0, "max_tokens": 8, "logit_bias": {"2": -100},
        "messages": [{"role": "user", "content": "describe the image"}]});
    let answer = server.client().answer(&body).await?;
    Ok(answer["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned())
}

/// Nothing listens there.
fn closed_endpoint() -> Result<String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(format!("http://{}", listener.local_addr()?))
}

#[tokio::test]
async fn a_model_is_downloaded_once_and_then_served_without_the_hub() -> Result<()> {
    let (hub, cache) = (hub(None)?, tempfile::tempdir()?);
    let server = Server::start(settings(&hub.endpoint(), &cache)).await?;
    let first = answer(&server).await?;
    ensure!(!first.is_empty());
    drop(server);
    let sent = hub.sent();
    for needed in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        ensure!(sent.iter().filter(|name| *name == needed).count() == 1, "{needed}: {sent:?}");
    }

    let server = Server::start(settings(&hub.endpoint(), &cache)).await?;
    ensure!(answer(&server).await? == first);
    ensure!(hub.sent() == sent, "the cache has it: {:?}", hub.sent());
    drop((server, hub));

    let server = Server::start(settings(&closed_endpoint()?, &cache)).await?;
    ensure!(answer(&server).await? == first);
    ensure!(server.log_tail().contains("taken from the cache"), "{}", server.log_tail());
    Ok(())
}

#[test]
fn without_hub_and_cache_the_error_says_what_to_do() -> Result<()> {
    let cache = tempfile::tempdir()?;
    let (status, log) = Server::refused(&settings(&closed_endpoint()?, &cache))?;
    ensure!(!status.success(), "it started");
    for part in [ID, "cannot be downloaded from the hub", "not complete in its cache", "give a directory"] {
        ensure!(log.contains(part), "the log does not say {part:?}: {log}");
    }
    Ok(())
}

#[test]
fn an_unknown_id_is_named() -> Result<()> {
    let (hub, cache) = (hub(None)?, tempfile::tempdir()?);
    let settings = settings(&hub.endpoint(), &cache).flag("--model=reground-tests/other");
    let (status, log) = Server::refused(&settings)?;
    ensure!(!status.success(), "it started");
    ensure!(log.contains("reground-tests/other") && log.contains("404"), "{log}");
    Ok(())
}

#[tokio::test]
async fn a_download_that_broke_off_is_not_taken_for_a_model_and_goes_on() -> Result<()> {
    let cache = tempfile::tempdir()?;
    let broken = hub(Some("model.safetensors"))?;
    let (status, log) = Server::refused(&settings(&broken.endpoint(), &cache))?;
    ensure!(!status.success() && log.contains("cannot be downloaded"), "{log}");
    drop(broken);
    let (status, log) = Server::refused(&settings(&closed_endpoint()?, &cache))?;
    ensure!(!status.success() && log.contains("not complete in its cache"), "{log}");

    let hub = hub(None)?;
    let server = Server::start(settings(&hub.endpoint(), &cache)).await?;
    ensure!(!answer(&server).await?.is_empty());
    ensure!(hub.sent().contains(&"model.safetensors".to_owned()), "{:?}", hub.sent());
    Ok(())
}
