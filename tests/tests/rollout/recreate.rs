//! One generation at a time is loaded: callers wait while it is replaced, and none fails.

use anyhow::{Result, ensure};
use reground_tests::Server;
use serde_json::json;

use super::{activate, changes_under_load, import, question, rollback, settings, text_of};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_wait_while_one_generation_takes_the_place_of_another() -> Result<()> {
    let data = tempfile::tempdir()?;
    changes_under_load(settings(data.path()).section("rollout", "strategy = \"recreate\""), 8, false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_load_leaves_the_old_one_answering() -> Result<()> {
    let data = tempfile::tempdir()?;
    let settings = settings(data.path()).section("rollout", "strategy = \"recreate\"");
    let server = Server::start(settings.clone()).await?;
    let client = server.client();
    let adapter = import(&client).await?;
    activate(&client, &adapter).await?;
    let loaded = client.get("/v1/models").await?.ok()?;
    ensure!(loaded["data"].as_array().map(Vec::len) == Some(2), "more than one is loaded: {loaded}");
    let before = text_of(&client.answer(&question("reground", 1)).await?)?;
    let canary = client.post("/v1/adapters/base/canary", &json!({"percent": 10})).await?;
    ensure!(canary.status == 409 && canary.error()?.message.contains("recreate"), "{}", canary.text());

    // One that is no adapter of this model any more.
    let second = import(&client).await?;
    std::fs::write(data.path().join("adapters").join(&second).join("adapter_model.safetensors"), b"broken")?;
    let refused = client.post(&format!("/v1/adapters/{second}/activate"), &json!({})).await?;
    ensure!(refused.status == 400, "{}", refused.text());
    ensure!(before == text_of(&client.answer(&question("reground", 1)).await?)?, "it answers otherwise");
    drop(server);

    let server = Server::start(settings).await?;
    let client = server.client();
    ensure!(before == text_of(&client.answer(&question("reground", 1)).await?)?, "a restart answers otherwise");
    let route = rollback(&client).await?;
    ensure!(route["live"] == "base" && route["previous"].is_null(), "{route}");
    ensure!(text_of(&client.answer(&question("reground", 1)).await?)?.0 == "base", "the base does not answer");
    Ok(())
}
