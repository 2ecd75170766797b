//! SIGTERM: open answers finish or end at the deadline with a proper last event; then the process ends with 0.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reground_tests::{Client, ErrorBody, Server, Settings, Streamed, say};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const STREAMS: usize = 20;

fn stream(at: usize, tokens: usize) -> Value {
    json!({
        "model": "reground", "stream": true, "max_tokens": tokens, "temperature": 1, "seed": at, "logit_bias": {"2": -100},
        "messages": [{"role": "user", "content": "describe the image"}],
    })
}

/// What became of a stream: an answer with its events, or a status and an error before the first one.
enum Outcome {
    Streamed(Streamed),
    Refused(u16, ErrorBody),
}

/// Opens the streams and waits until the server has them all.
async fn open(client: &Client, tokens: usize) -> Result<Vec<JoinHandle<Result<Outcome>>>> {
    let mut open = Vec::new();
    for at in 0..STREAMS {
        let client = client.clone();
        open.push(tokio::spawn(async move {
            let body = stream(at, tokens);
            let request = client.request(reqwest::Method::POST, "/v1/chat/completions").json(&body);
            Ok(match client.open(&body).await {
                Ok(stream) => Outcome::Streamed(stream.collect().await?),
                Err(error) => {
                    let text = error.to_string();
                    let status = text.strip_prefix("a stream began with status ").and_then(|rest| rest.get(..3));
                    let status = status
                        .and_then(|status| status.parse().ok())
                        .with_context(|| format!("{request:?}: {error:#}"))?;
                    let body = text.split_once(": ").map(|(_, body)| body).context("a body")?;
                    Outcome::Refused(status, ErrorBody::of(&serde_json::from_str(body)?)?)
                }
            })
        }));
    }
    let started = Instant::now();
    loop {
        let waiting =
            client.metric("reground_queue_waiting_requests").await?.context("no gauge of waiting requests")?;
        let running =
            client.metric("reground_queue_running_requests").await?.context("no gauge of running requests")?;
        if waiting + running >= STREAMS as f64 {
            return Ok(open);
        }
        ensure!(started.elapsed() < Duration::from_secs(30), "only {waiting} streams wait and {running} run");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_streams_finish() -> Result<()> {
    let mut server = Server::start(Settings::golden().section("server", "shutdown_deadline_s = 240")).await?;
    let client = server.client();
    let open = open(&client, 60).await?;
    server.terminate()?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    // A new request is refused, by the socket or with 503.
    if let Ok(reply) = client.ask(&stream(0, 1)).await {
        ensure!(reply.status == 503, "a new request got status {} while shutting down", reply.status);
        reply.error()?;
    }
    for (at, stream) in open.into_iter().enumerate() {
        let Outcome::Streamed(streamed) = stream.await?? else { anyhow::bail!("stream {at} was refused") };
        ensure!(streamed.done, "stream {at} ends without [DONE]: {:?}", streamed.error());
        ensure!(streamed.finish(0) == Some("length"), "stream {at} ends with {:?}", streamed.finish(0));
    }
    let status = server.exit(Duration::from_secs(30)).await?;
    ensure!(status.code() == Some(0), "exit status {status}\n{}", server.log_tail());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_cannot_finish_end_at_the_deadline() -> Result<()> {
    let mut server = Server::start(Settings::golden().section("server", "shutdown_deadline_s = 1")).await?;
    let client = server.client();
    let open = open(&client, 900).await?;
    let started = Instant::now();
    server.terminate()?;
    let (mut finished, mut ended, mut refused) = (0, 0, 0);
    for (at, stream) in open.into_iter().enumerate() {
        match stream.await?? {
            Outcome::Streamed(streamed) if streamed.finish(0).is_some() => {
                ensure!(streamed.done, "stream {at} ends without [DONE]");
                finished += 1;
            }
            Outcome::Streamed(streamed) => {
                let last = streamed.chunks.last().context("a stream without events")?;
                let error = ErrorBody::of(last).with_context(|| format!("stream {at} ends with {last}"))?;
                ensure!(error.code.as_deref() == Some("shutting_down"), "{error:?}");
                ended += 1;
            }
            Outcome::Refused(status, error) => {
                ensure!(status == 503 && error.code.as_deref() == Some("shutting_down"), "status {status}: {error:?}");
                refused += 1;
            }
        }
    }
    let status = server.exit(Duration::from_secs(30)).await?;
    say!(
        "shutdown: {finished} finished, {ended} ended at the deadline, {refused} never began, {:?}",
        started.elapsed()
    );
    ensure!(status.code() == Some(0), "exit status {status}\n{}", server.log_tail());
    ensure!(ended + refused > 0, "all streams finished within the deadline: nothing was tested");
    ensure!(started.elapsed() < Duration::from_secs(20), "it took {:?} with a deadline of 1 s", started.elapsed());
    Ok(())
}

#[tokio::test]
async fn without_work_it_ends_at_once() -> Result<()> {
    let mut server = Server::start(Settings::golden()).await?;
    // An idle connection that is kept alive does not hold the server up.
    let client = server.client();
    client.get("/health").await?;
    server.terminate()?;
    let status = server.exit(Duration::from_secs(10)).await?;
    ensure!(status.code() == Some(0), "exit status {status}\n{}", server.log_tail());
    Ok(())
}

/// What a killed server unpacked its model into goes with the next start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_stays_of_servers_that_were_killed() -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let settings = || Settings::builtin().environment("TMPDIR", &temporary.path().to_string_lossy());
    let unpacked = || -> Result<Vec<_>> {
        let entries =
            std::fs::read_dir(temporary.path())?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        Ok(entries.into_iter().filter(|path| path.join("config.json").is_file()).collect())
    };
    Server::start(settings()).await?.kill();
    let left = unpacked()?;
    ensure!(left.len() == 1, "the model is unpacked into {left:?}");
    // One that has just begun is left alone.
    let server = Server::start(settings()).await?;
    ensure!(unpacked()?.len() == 2, "{:?}", unpacked()?);
    let an_hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
    for directory in unpacked()? {
        std::fs::File::open(directory)?.set_modified(an_hour_ago)?;
    }
    let next = Server::start(settings()).await?;
    let there = unpacked()?;
    ensure!(there.len() == 2 && !there.contains(&left[0]), "{there:?}, {left:?} was left");
    drop((server, next));
    Ok(())
}
