//! Readers that are slow or leave: nothing of them stays behind, and no other answer suffers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reground_tests::{Client, Server, Settings, load, say};
use serde_json::{Value, json};

const LEAVING: usize = 50;
const LONG: u64 = 400;
/// Answers of a wave: those that are left, one that is crawled through, and those beside them.
const ANSWERS: usize = LEAVING + 1 + BESIDE;
const BESIDE: usize = 8;
/// The first thousands of records take some 18 KiB of memory each, whatever `data.cache_bytes` is, until the store trims its cache;
/// that memory then stays level is shown by `store_memory` in the learner's tests.
const OF_A_RECORD_KIB: u64 = 32;

fn long(at: usize) -> Value {
    json!({
        "model": "reground", "stream": true, "max_tokens": LONG, "temperature": 1, "seed": at, "logit_bias": {"2": -100},
        "messages": [{"role": "user", "content": format!("describe the image number {at}")}],
    })
}

fn normal() -> Value {
    json!({
        "model": "reground", "max_tokens": 40, "temperature": 0, "logprobs": true,
        "messages": [{"role": "user", "content": "how many objects are there?"}],
    })
}

/// Takes a few chunks and leaves without a word; every fifth leaves before anything came.
async fn leave(client: &Client, at: usize) -> Result<()> {
    let body = long(at);
    if at.is_multiple_of(5) {
        // Running out of time is the point.
        drop(tokio::time::timeout(Duration::from_millis(50), client.open(&body)).await);
        return Ok(());
    }
    let mut stream = client.open(&body).await?;
    for _ in 0..3 {
        stream.next().await?.context("the stream ended early")?;
    }
    Ok(())
}

/// Reads one byte a second over a connection of its own, then leaves.
fn crawl(server: &Server, seconds: u64) -> Result<std::thread::JoinHandle<Result<usize>>> {
    let body = long(1000).to_string();
    let mut connection = TcpStream::connect(server.address())?;
    connection.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(
        connection,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        server.address(),
        body.len()
    )?;
    Ok(std::thread::spawn(move || {
        let mut byte = [0];
        let mut taken = 0;
        for _ in 0..seconds {
            taken += connection.read(&mut byte)?;
            std::thread::sleep(Duration::from_secs(1));
        }
        Ok(taken)
    }))
}

/// Waits until no request waits or runs.
async fn idle(client: &Client) -> Result<()> {
    let started = Instant::now();
    loop {
        let waiting =
            client.metric("reground_queue_waiting_requests").await?.context("no gauge of waiting requests")?;
        let running =
            client.metric("reground_queue_running_requests").await?.context("no gauge of running requests")?;
        if waiting == 0.0 && running == 0.0 {
            return Ok(());
        }
        ensure!(started.elapsed() < Duration::from_secs(60), "after 60 s {waiting} requests wait and {running} run");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether two JSON values are the same but for rounding: numbers may differ by 1e-4, because sequences that are computed
/// together round differently than alone.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (Value::Number(a), Value::Number(b)) => a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| (a - b).abs() < 1e-4),
        (a, b) => a == b,
    }
}

/// One reader that crawls, fifty that leave, and eight normal requests beside them.
async fn wave(server: &Server, client: &Client, expected: &Value) -> Result<()> {
    let crawler = crawl(server, 6)?;
    let leaving = load::run((0..LEAVING).map(|at| leave(client, at)), LEAVING, Duration::from_secs(120));
    let beside = load::run((0..BESIDE).map(|_| async { client.answer(&normal()).await }), 2, Duration::from_secs(120));
    let (_, answers) = tokio::try_join!(leaving, beside)?;
    for answer in answers {
        ensure!(
            same(&answer["choices"], expected),
            "a normal answer changed: {} instead of {expected}",
            answer["choices"]
        );
    }
    let taken = tokio::task::spawn_blocking(move || crawler.join()).await?;
    let taken = taken.map_err(|_| anyhow::anyhow!("the crawling reader panicked"))??;
    ensure!(taken == 6, "the crawling reader got {taken} bytes in 6 s");
    idle(client).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_them_stays_behind() -> Result<()> {
    stays_behind(Settings::golden().section("record", "enabled = false"), 0).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_them_stays_behind_but_their_records() -> Result<()> {
    stays_behind(Settings::golden(), OF_A_RECORD_KIB).await
}

/// Memory may grow by a tenth, and by so much for each answer.
async fn stays_behind(settings: Settings, of_an_answer_kib: u64) -> Result<()> {
    let server = Server::start(settings).await?;
    let client = server.client();
    let expected = client.answer(&normal()).await?["choices"].clone();
    // Allocator and thread pools reach their size in the first waves.
    for _ in 0..3 {
        wave(&server, &client, &expected).await?;
    }
    let measure = || -> Result<_> { Ok((server.memory_kib()?, server.threads()?, server.open_files()?)) };
    let (memory, threads, files) = measure()?;
    let generated = client.metric("reground_output_tokens_total").await?.context("no count of tokens")?;
    for _ in 0..3 {
        wave(&server, &client, &expected).await?;
    }
    let after = measure()?;
    let generated = client.metric("reground_output_tokens_total").await?.context("no count of tokens")? - generated;
    say!(
        "slow readers: memory {memory} → {} KiB, threads {threads} → {}, files {files} → {}",
        after.0,
        after.1,
        after.2
    );
    say!("slow readers: {generated} tokens generated in three waves");
    let most = memory as f64 * 1.1 + (3 * ANSWERS as u64 * of_an_answer_kib) as f64;
    ensure!(after.0 as f64 <= most, "memory grew from {memory} to {} KiB", after.0);
    // The pool for what blocks comes and goes by itself; one left behind by each reader would be a hundred and fifty.
    ensure!(after.1 <= threads + 16, "threads grew from {threads} to {}", after.1);
    ensure!(after.2 <= files + 4, "open files grew from {files} to {}", after.2);
    // Who left is not generated for any more: far fewer tokens than were asked for.
    let asked = (3 * LEAVING) as f64 * LONG as f64;
    ensure!(generated < asked / 2.0, "{generated} tokens were generated of {asked} that nobody waited for");
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place() -> Result<()> {
    let settings = Settings::golden().section("model", "max_parallel = 1");
    let server = Server::start(settings.section("admission", "queue = 2\nqueue_per_key = 2")).await?;
    let client = server.client();
    for _ in 0..10 {
        let mut streams = Vec::new();
        for at in 0..3 {
            // One runs and two wait; the waiting ones have no headers yet.
            let (client, body) = (client.clone(), long(at));
            streams.push(tokio::spawn(async move { client.stream(&body).await }));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        for stream in streams {
            stream.abort();
        }
        idle(&client).await?;
    }
    client.answer(&normal()).await?;
    Ok(())
}
