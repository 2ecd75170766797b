//! mistralrs leaves a thread behind with every engine that it loads, so that their number has a limit.

use anyhow::{Result, ensure};
use reground_tests::Server;
use serde_json::json;

use super::{activate, import, question, rollback, settings, text_of};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_limit_of_loads_what_answers_goes_on() -> Result<()> {
    let data = tempfile::tempdir()?;
    // The base and two activations.
    let settings = settings(data.path()).section("model", "engine = \"mistralrs\"\nmax_loads = 3");
    let server = Server::start(settings.clone()).await?;
    let client = server.client();
    let (first, second) = (import(&client).await?, import(&client).await?);
    activate(&client, &first).await?;
    activate(&client, &second).await?;
    let before = text_of(&client.answer(&question("reground", 1)).await?)?;
    let third = import(&client).await?;
    for (change, body) in [("activate", json!({})), ("canary", json!({"percent": 10}))] {
        let refused = client.post(&format!("/v1/adapters/{third}/{change}"), &body).await?;
        let error = refused.error()?;
        ensure!(refused.status == 409 && error.message.contains("model.max_loads"), "{change}: {error:?}");
    }
    ensure!(before == text_of(&client.answer(&question("reground", 1)).await?)?, "it answers otherwise");
    ensure!(client.metric("reground_engine_loads_total").await? == Some(3.0), "the counter differs");
    let route = rollback(&client).await?;
    ensure!(route["live"] == first.as_str(), "{route}");
    ensure!(text_of(&client.answer(&question("reground", 1)).await?)?.0 == first, "the one before does not answer");
    drop(server);

    // A restart allows as many again, and serves what was live.
    let server = Server::start(settings).await?;
    let client = server.client();
    ensure!(text_of(&client.answer(&question("reground", 1)).await?)?.0 == first, "the restart serves something else");
    activate(&client, &third).await?;
    Ok(())
}
