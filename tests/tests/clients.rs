//! The project's own Rust client against the real binary. The Python one is tested beside the SDK that it extends.

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use reground_client::{Client, Error};
use reground_tests::{Server, Settings};
use serde_json::json;

fn chat() -> serde_json::Value {
    json!({
        "model": "reground", "max_tokens": 12, "temperature": 0, "logit_bias": {"2": -100},
        "messages": [{"role": "user", "content": "hello"}],
    })
}

fn refused<T>(result: Result<T, Error>) -> Result<reground_client::ApiError> {
    match result {
        Ok(_) => anyhow::bail!("it was taken"),
        Err(Error::Api(error)) => Ok(error),
        Err(other) => Err(other.into()),
    }
}

#[tokio::test]
async fn rust() -> Result<()> {
    let server = Server::start(Settings::golden().key("root", "sk-root", "admin")).await?;
    let client = Client::new(&server.base_url())?.with_key("sk-root");

    let whole = client.chat(&chat()).await?;
    let text = whole["choices"][0]["message"]["content"].as_str().context("a text")?;
    let mut chunks = client.stream(&chat()).await?;
    let mut streamed = String::new();
    while let Some(chunk) = chunks.next().await {
        streamed += chunk?["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
    }
    ensure!(streamed == text, "{streamed:?} instead of {text:?}");

    client.load_adapter("golden", "adapter").await?;
    ensure!(client.models().await?.iter().any(|model| model["id"] == "reground@golden"));
    ensure!(refused(client.load_adapter("golden", "adapter").await)?.status == 409);
    client.unload_adapter("golden").await?;
    ensure!(client.models().await?.len() == 2);

    let mut wrong = chat();
    wrong["temperature"] = json!(7);
    let error = refused(client.chat(&wrong).await)?;
    ensure!((error.status, error.code.as_str(), error.param.as_deref()) == (400, "invalid_value", Some("temperature")));
    ensure!(refused(client.stream(&wrong).await)?.status == 400);
    ensure!(refused(Client::new(&server.base_url())?.models().await)?.status == 401);
    Ok(())
}
