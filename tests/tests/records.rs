//! What is asked and answered is written down, found again, judged and deleted.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reground_tests::{Client, Reply, Server, Settings};
use reqwest::Method;
use serde_json::{Value, json};

fn question(more: Value) -> Value {
    let mut body = json!({"model": "reground", "max_tokens": 8, "seed": 1,
        "messages": [{"role": "user", "content": "describe the image for ann@example.org"}]});
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    body
}

fn at(id: &str) -> String {
    format!("/v1/chat/completions/{id}")
}

/// The stored completion, once the recorder's thread has written it.
async fn stored(client: &Client, id: &str) -> Result<Value> {
    let begun = Instant::now();
    loop {
        let reply = client.get(&at(id)).await?;
        if reply.status == 200 {
            return reply.json();
        }
        ensure!(begun.elapsed() < Duration::from_secs(20), "{id} is not stored: {}", reply.text());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn delete(client: &Client, id: &str) -> Result<Reply> {
    Client::send(client.request(Method::DELETE, &at(id))).await
}

fn id_of(answer: &Value) -> Result<&str> {
    answer["id"].as_str().context("an answer without id")
}

#[tokio::test]
async fn stored_completions_are_listed_changed_and_deleted() -> Result<()> {
    let server = Server::start(Settings::builtin()).await?;
    let client = server.client();
    let mut ids = Vec::new();
    for number in 0..3 {
        let more = json!({"store": true, "metadata": {"number": number.to_string(), "kind": "test"}});
        let answer = client.answer(&question(more)).await?;
        let kept = stored(&client, id_of(&answer)?).await?;
        ensure!(kept["choices"][0]["message"]["content"] == answer["choices"][0]["message"]["content"], "{kept}");
        ensure!(kept["usage"]["total_tokens"] == answer["usage"]["total_tokens"], "{kept}");
        ids.push(id_of(&answer)?.to_owned());
    }
    let hidden = client.answer(&question(json!({}))).await?;
    let list = client.get("/v1/chat/completions?limit=2&order=desc&metadata[kind]=test").await?.ok()?;
    let listed: Vec<_> = list["data"].as_array().context("a list")?.iter().map(|item| item["id"].clone()).collect();
    ensure!(listed == [ids[2].as_str(), ids[1].as_str()] && list["has_more"] == true, "{list}");
    let rest = client.get(&format!("/v1/chat/completions?order=desc&after={}", ids[1])).await?.ok()?;
    ensure!(rest["data"].as_array().is_some_and(|data| data.len() == 1) && rest["has_more"] == false, "{rest}");
    ensure!(client.get(&at(id_of(&hidden)?)).await?.status == 404, "what was not asked to be stored is not shown");
    ensure!(client.get("/v1/chat/completions?colour=red").await?.status == 400);

    let said = client.get(&format!("{}/messages", at(&ids[0]))).await?.ok()?;
    ensure!(said["data"][0]["content"] == "describe the image for [redacted:email]", "{said}");
    let changed = client.post(&at(&ids[0]), &json!({"metadata": {"kind": "other"}})).await?.ok()?;
    ensure!(changed["metadata"] == json!({"kind": "other"}), "{changed}");
    let deleted = delete(&client, &ids[0]).await?.ok()?;
    ensure!(deleted["deleted"] == true && deleted["adapters"] == json!([]), "{deleted}");
    ensure!(delete(&client, &ids[0]).await?.status == 404);
    let metric = client.metric("reground_records_total").await?;
    ensure!(metric.is_some_and(|count| count >= 3.0), "{metric:?}");
    Ok(())
}

#[tokio::test]
async fn feedback_comes_during_the_answer_and_only_from_who_asked() -> Result<()> {
    let settings = Settings::builtin().key("ann", "sk-ann", "client").key("bob", "sk-bob", "client");
    let server = Server::start(settings.key("root", "sk-root", "admin")).await?;
    let [ann, bob, root] = ["sk-ann", "sk-bob", "sk-root"].map(|key| server.client_with(Some(key)));
    // Token 2 ends an answer: without it this one goes on for as long as somebody listens.
    let endless = json!({"stream": true, "store": true, "max_tokens": 900, "logit_bias": {"2": -100}});
    let mut stream = ann.open(&question(endless)).await?;
    let first = stream.next().await?.context("a first chunk")?;
    let id = id_of(&first)?.to_owned();
    let judge = |rating: Value| json!({"completion_id": id.clone(), "rating": rating});
    let kept = ann.post("/v1/feedback", &judge(json!(1))).await?.ok()?;
    ensure!(kept["completion_id"] == id.as_str() && kept["object"] == "feedback", "{kept}");
    ensure!(bob.post("/v1/feedback", &judge(json!(-1))).await?.status == 404);
    ensure!(root.post("/v1/feedback", &judge(json!(0.5))).await?.status == 200);
    // The client leaves; what there was of the answer is kept and marked.
    drop(stream);
    let record = stored(&ann, &id).await?;
    let choice = &record["choices"][0];
    ensure!(choice["finish_reason"].is_null(), "{record}");
    ensure!(choice["message"]["content"].as_str().is_some_and(|text| !text.is_empty()), "{record}");
    ensure!(bob.get(&at(&id)).await?.status == 404 && root.get(&at(&id)).await?.status == 200);
    ensure!(delete(&bob, &id).await?.status == 404);
    for wrong in [judge(json!(2)), json!({"completion_id": id}), json!({"completion_id": id, "correction": " "})] {
        ensure!(ann.post("/v1/feedback", &wrong).await?.status == 400, "{wrong}");
    }
    // One was kept before.
    for _ in 1..32 {
        ann.post("/v1/feedback", &judge(json!(1))).await?.ok()?;
    }
    let much = ann.post("/v1/feedback", &judge(json!(1))).await?;
    ensure!(much.status == 409 && much.error()?.code.as_deref() == Some("conflict"), "{}", much.text());
    ensure!(delete(&ann, &id).await?.status == 200);
    ensure!(ann.post("/v1/feedback", &judge(json!(1))).await?.status == 404);
    Ok(())
}

#[tokio::test]
async fn who_does_not_want_to_be_recorded_is_not() -> Result<()> {
    let server = Server::start(Settings::builtin()).await?;
    let client = server.client();
    let never = client.answer(&question(json!({"store": false}))).await?;
    let request = client.request(Method::POST, "/v1/chat/completions").header("x-reground-no-record", "1");
    let opted_out = Client::send(request.json(&question(json!({})))).await?.ok()?;
    let request = client.request(Method::POST, "/v1/chat/completions").header("x-reground-no-record", "1");
    let both = Client::send(request.json(&question(json!({"store": true})))).await?;
    ensure!(both.status == 400 && both.error()?.param.as_deref() == Some("store"), "{}", both.text());
    let recorded = client.answer(&question(json!({"store": true}))).await?;
    // Records are written in order: what would come before this one would be there.
    stored(&client, id_of(&recorded)?).await?;
    for answer in [&never, &opted_out] {
        let feedback = json!({"completion_id": id_of(answer)?, "rating": 1});
        ensure!(client.post("/v1/feedback", &feedback).await?.status == 404, "{answer} was recorded");
    }
    Ok(())
}

#[tokio::test]
async fn a_full_disk_stops_recording_and_not_serving() -> Result<()> {
    let server = Server::start(Settings::builtin().section("data", "min_free_bytes = 9223372036854775807")).await?;
    let client = server.client();
    let answer = client.answer(&question(json!({"store": true}))).await?;
    let begun = Instant::now();
    loop {
        let ready = client.get("/ready").await?.ok()?;
        if ready["store"].as_str().is_some_and(|why| why.contains("kept free")) {
            break;
        }
        ensure!(begun.elapsed() < Duration::from_secs(20), "{ready}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(client.get(&at(id_of(&answer)?)).await?.status == 404);
    ensure!(client.metric("reground_store_degraded").await? == Some(1.0));
    client.answer(&question(json!({}))).await.map(drop)
}
