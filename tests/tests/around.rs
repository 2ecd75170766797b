//! Health, metrics, request ids, CORS, the API's description.

use anyhow::{Context, Result, ensure};
use reground_tests::{Client, Server, Settings};
use reqwest::Method;
use serde_json::json;

fn chat() -> serde_json::Value {
    json!({
        "model": "reground", "max_tokens": 8, "temperature": 0, "logit_bias": {"2": -100},
        "messages": [{"role": "user", "content": "hello"}],
    })
}

#[tokio::test]
async fn health_and_readiness_are_told_apart() -> Result<()> {
    let server = Server::start(Settings::golden()).await?;
    let client = server.client();
    ensure!(client.get("/health").await?.ok()? == json!({"status": "ok"}));
    ensure!(client.get("/ready").await?.ok()? == json!({"status": "ready", "generation": "base"}));
    Ok(())
}

#[tokio::test]
async fn metrics_count_what_happened() -> Result<()> {
    let server = Server::start(Settings::golden()).await?;
    let client = server.client();
    for _ in 0..3 {
        client.answer(&chat()).await?;
    }
    let mut streamed = chat();
    streamed["stream"] = json!(true);
    client.stream(&streamed).await?;
    ensure!(client.ask(&json!({})).await?.status == 400);
    let text = client.get("/metrics").await?.text();
    // The last event of a stream may be read before the server counted it.
    let value = |start: &str| {
        let line = text.lines().find(|line| line.starts_with(start) && !line.starts_with('#'));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .with_context(|| format!("no {start} in\n{text}"))
    };
    ensure!(value("reground_requests_total{route=\"/v1/chat/completions\",status=\"400\"}")? == 1.0, "{text}");
    ensure!(value("reground_requests_total{route=\"/v1/chat/completions\",status=\"200\"}")? >= 3.0, "{text}");
    ensure!(value("reground_answers_total{generation=\"base\",outcome=\"length\"}")? == 4.0, "{text}");
    ensure!(value("reground_output_tokens_total{generation=\"base\"}")? == 32.0, "{text}");
    ensure!(value("reground_prompt_tokens_total{generation=\"base\"}")? > 40.0, "{text}");
    ensure!(value("reground_first_token_seconds_count{generation=\"base\"}")? == 4.0, "{text}");
    ensure!(value("reground_output_rate_tokens_per_second_count{generation=\"base\"}")? == 4.0, "{text}");
    ensure!(value("reground_queue_waiting_requests{generation=")? == 0.0, "{text}");
    ensure!(value("reground_queue_running_requests{generation=")? == 0.0, "{text}");
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (_, value) = line.rsplit_once(' ').with_context(|| format!("{line:?} is no metric"))?;
        ensure!(value.parse::<f64>().is_ok(), "{line:?} is no metric");
    }
    Ok(())
}

#[tokio::test]
async fn a_request_has_an_id_in_and_out() -> Result<()> {
    let server = Server::start(Settings::golden()).await?;
    let client = server.client();
    let given = Client::send(client.request(Method::GET, "/nope").header("x-request-id", "mine-1.2:3_4")).await?;
    ensure!(given.header("x-request-id") == Some("mine-1.2:3_4"));
    let mut made = Vec::new();
    for id in ["", "with space", "<script>", &"x".repeat(129)] {
        let reply = Client::send(client.request(Method::GET, "/health").header("x-request-id", id)).await?;
        let id = reply.header("x-request-id").context("no id")?.to_owned();
        ensure!(id.starts_with("req-") && id.len() > 36, "{id:?}");
        made.push(id);
    }
    made.sort();
    made.dedup();
    ensure!(made.len() == 4, "ids come twice");
    // The log comes through a pipe of its own, a little after the answer.
    for _ in 0..500 {
        if server.log_tail().contains("mine-1.2:3_4") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    ensure!(server.log_tail().contains("mine-1.2:3_4"), "the id is not in the log\n{}", server.log_tail());
    let mut streamed = chat();
    streamed["stream"] = json!(true);
    let stream = client.open(&streamed).await?;
    ensure!(stream.headers.contains_key("x-request-id"));
    ensure!(stream.headers.get("x-reground-generation").is_some_and(|generation| generation == "base"));
    Ok(())
}

#[tokio::test]
async fn browsers_are_let_in_from_configured_origins_only() -> Result<()> {
    let origin = "https://app.example";
    let preflight = |client: &Client, from: &str| {
        client
            .request(Method::OPTIONS, "/v1/chat/completions")
            .header("origin", from)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type")
    };
    let server = Server::start(Settings::golden().section("server", &format!("cors_origins = [{origin:?}]"))).await?;
    let client = server.client();
    let reply = Client::send(preflight(&client, origin)).await?;
    ensure!(matches!(reply.status, 200 | 204), "status {}", reply.status);
    ensure!(reply.header("access-control-allow-origin") == Some(origin));
    ensure!(reply.header("access-control-allow-methods").is_some_and(|methods| methods.contains("POST")));
    let headers = reply.header("access-control-allow-headers").unwrap_or_default().to_lowercase();
    ensure!(headers.contains("authorization") && headers.contains("content-type"), "{headers}");
    let reply = Client::send(client.request(Method::GET, "/v1/models").header("origin", origin)).await?;
    ensure!(reply.status == 200 && reply.header("access-control-allow-origin") == Some(origin));
    // Errors too: without the header a page could not read them.
    let reply = Client::send(client.request(Method::GET, "/nope").header("origin", origin)).await?;
    ensure!(reply.status == 404 && reply.header("access-control-allow-origin") == Some(origin));
    for other in ["https://evil.example", "http://app.example", "https://app.example.evil", "null"] {
        let reply = Client::send(preflight(&client, other)).await?;
        ensure!(reply.header("access-control-allow-origin").is_none(), "{other} is let in");
        let reply = Client::send(client.request(Method::GET, "/v1/models").header("origin", other)).await?;
        ensure!(reply.header("access-control-allow-origin").is_none(), "{other} is let in");
    }

    let closed = Server::start(Settings::golden()).await?;
    let reply = Client::send(preflight(&closed.client(), origin)).await?;
    ensure!(reply.header("access-control-allow-origin").is_none());
    Ok(())
}

#[tokio::test]
async fn the_description_lists_the_routes() -> Result<()> {
    let server = Server::start(Settings::golden()).await?;
    let description = server.client().get("/openapi.json").await?.ok()?;
    ensure!(description["openapi"].as_str().is_some_and(|version| version.starts_with("3.")));
    for (path, method) in [
        ("/v1/chat/completions", "post"),
        ("/v1/models", "get"),
        ("/v1/models/{model}", "get"),
        ("/v1/load_lora_adapter", "post"),
        ("/v1/unload_lora_adapter", "post"),
        ("/health", "get"),
        ("/ready", "get"),
        ("/metrics", "get"),
    ] {
        ensure!(description["paths"][path][method].is_object(), "{method} {path} is not described");
    }
    Ok(())
}
