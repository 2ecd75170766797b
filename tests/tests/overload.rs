//! More than fits: a full queue is 429 with `Retry-After`, a passed deadline 504, and both leave the server well.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reground_tests::{Server, Settings, load};
use serde_json::{Value, json};

/// One answer at a time, whichever engine: the others wait.
fn one_place() -> Settings {
    Settings::golden().section("model", "max_parallel = 1")
}

fn long(tokens: usize) -> Value {
    json!({
        "model": "reground", "max_tokens": tokens, "temperature": 0, "logit_bias": {"2": -100},
        "messages": [{"role": "user", "content": "describe the image"}],
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_is_said_so() -> Result<()> {
    let server = Server::start(one_place().section("admission", "queue = 1\nqueue_per_key = 1")).await?;
    let client = &server.client();
    let body = &long(600);
    let jobs = (0..12).map(|_| async move { client.ask(body).await });
    let replies = load::run(jobs, 12, Duration::from_secs(120)).await?;
    let (mut taken, mut full) = (0, 0);
    for reply in &replies {
        match reply.status {
            200 => taken += 1,
            429 => {
                let error = reply.error()?;
                ensure!(
                    error.kind == "rate_limit_error" && error.code.as_deref() == Some("rate_limit_exceeded"),
                    "{error:?}"
                );
                let wait: u64 = reply.header("retry-after").context("no Retry-After")?.parse()?;
                ensure!((1..=60).contains(&wait), "Retry-After: {wait}");
                full += 1;
            }
            status => anyhow::bail!("status {status}: {}", reply.text()),
        }
    }
    ensure!(taken >= 2 && full >= 1, "{taken} taken, {full} refused");
    // The first answers are the same as ever, and there is room again.
    let answers: Vec<Value> = replies
        .iter()
        .filter(|reply| reply.status == 200)
        .map(|reply| Ok(reply.json()?["choices"].clone()))
        .collect::<Result<_>>()?;
    ensure!(answers.iter().all(|answer| *answer == answers[0]));
    ensure!(client.answer(body).await?["choices"] == answers[0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_does_not_crowd_out_another() -> Result<()> {
    let settings = one_place()
        .section("admission", "queue = 64\nqueue_per_key = 16")
        .key("greedy", "sk-greedy", "admin")
        .key("modest", "sk-modest", "client");
    let server = Server::start(settings).await?;
    let greedy = server.client_with(Some("sk-greedy"));
    let crowd: Vec<_> = (0..12)
        .map(|_| {
            let greedy = greedy.clone();
            tokio::spawn(async move { greedy.answer(&long(150)).await.map(|_| Instant::now()) })
        })
        .collect();
    while greedy.metric("reground_queue_waiting_requests").await?.unwrap_or(0.0) < 8.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.client_with(Some("sk-modest")).answer(&long(5)).await?;
    let answered = Instant::now();
    let mut later = 0;
    for request in crowd {
        if request.await?? > answered {
            later += 1;
        }
    }
    // It waited for the one that ran, and perhaps one more, not for all that stood before it.
    ensure!(later >= 5, "only {later} of 12 earlier requests were answered after it");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_ends_an_answer() -> Result<()> {
    let server = Server::start(one_place().section("admission", "deadline_s = 1")).await?;
    let client = &server.client();
    // Sixteen choices, one after the other: far more than fits into a second.
    let mut body = long(900);
    body["n"] = json!(16);
    let reply = client.ask(&body).await?;
    ensure!(reply.status == 504, "status {}: {:.300}", reply.status, reply.text());
    let error = reply.error()?;
    ensure!(error.kind == "server_error" && error.code.as_deref() == Some("deadline_exceeded"), "{error:?}");
    ensure!(error.message.contains("1 s"), "{error:?}");
    ensure!(reply.header("x-should-retry") == Some("false"), "the SDKs would try again");

    body["stream"] = json!(true);
    let streamed = client.stream(&body).await?;
    let error = streamed.error().context("a stream that passes its deadline ends with an error")?;
    ensure!(error["error"]["code"] == "deadline_exceeded" && !streamed.done, "{error}");
    ensure!(streamed.chunks.last() == Some(error), "something follows the error");

    client.answer(&long(3)).await?;
    Ok(())
}
