//! One side of the comparison: a process that answers blocks of requests when it is told to.
//!
//! Each line of standard input is a concurrency and a number of requests; each line of standard output the block's
//! [`Block`] as JSON. Between two lines it does nothing, so that the other side has the machine.

use std::io::{BufRead, Write, stdin, stdout};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use futures::future::join_all;
use mistralrs::{Model, ModelBuilder, ModelDType, RequestBuilder, TextMessageRole};
use reground::config::{Config, EngineKind};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::TOKENS;

/// What some askers waited, one after the other each.
#[derive(Serialize, Deserialize)]
pub(crate) struct Block {
    /// Of each request.
    pub(crate) latencies: Vec<Duration>,
    /// What of each was neither in the engine nor in the queue in front of it; of a bare call nothing. The first of each asker
    /// is left out: all askers begin at one moment, and what the last of them then waits it would have waited for the engine.
    pub(crate) added: Vec<Duration>,
    /// From the first question to the last answer.
    pub(crate) elapsed: Duration,
}

/// mistralrs in this process.
pub(crate) async fn bare(directory: &str) -> Result<()> {
    let model = ModelBuilder::new(directory)
        .with_device(Device::Cpu)
        .with_dtype(ModelDType::F32)
        .with_max_num_seqs(1)
        .with_prefix_cache_n(None)
        .build()
        .await?;
    let model = Arc::new(model);
    obey(|n| ask_bare(model.clone(), n)).await
}

/// The server and its client in this process, HTTP between them.
pub(crate) async fn endpoint(directory: &str) -> Result<()> {
    let mut config = Config::default();
    config.server.port = 0;
    config.model.source = directory.to_owned();
    config.model.engine = EngineKind::Mistralrs;
    // The endpoint as it is run: with a store, and every answer written down.
    let data = tempfile::tempdir()?;
    config.data.dir = data.path().into();
    let server = reground::serve::start(config).await?;
    let url = format!("http://{}/v1/chat/completions", server.address());
    let client = reqwest::Client::new();
    obey(|n| ask_endpoint(client.clone(), url.clone(), n)).await?;
    server.stop().await
}

/// Does what standard input says, to its end.
async fn obey<F>(ask: impl Fn(usize) -> F) -> Result<()>
where
    F: Future<Output = Result<Waited>>,
{
    for line in stdin().lock().lines() {
        let line = line?;
        let (concurrency, requests) = line.split_once(' ').context("two numbers")?;
        let block = block(concurrency.parse()?, requests.parse()?, &ask).await?;
        println!("{}", serde_json::to_string(&block)?);
        stdout().flush()?;
    }
    Ok(())
}

async fn block<F>(concurrency: usize, requests: usize, ask: &impl Fn(usize) -> F) -> Result<Block>
where
    F: Future<Output = Result<Waited>>,
{
    let began = Instant::now();
    let askers = (0..concurrency).map(|asker| async move {
        let mut waited = Vec::new();
        for n in (asker..requests).step_by(concurrency) {
            waited.push(ask(n).await?);
        }
        anyhow::Ok(waited)
    });
    let waited: Result<Vec<Vec<Waited>>> = join_all(askers).await.into_iter().collect();
    let elapsed = began.elapsed();
    let waited = waited?;
    let latencies = waited.iter().flatten().map(|waited| waited.latency).collect();
    let added = waited.iter().flat_map(|asker| asker.iter().skip(1)).map(|waited| waited.added).collect();
    Ok(Block { latencies, added, elapsed })
}

/// What one request took.
#[derive(Clone, Copy)]
struct Waited {
    latency: Duration,
    added: Duration,
}

/// The same number of tokens for every `n` below 1000.
fn prompt(n: usize) -> String {
    format!("describe the image number {:03} in a few words", n % 1000)
}

async fn ask_bare(model: Arc<Model>, n: usize) -> Result<Waited> {
    static ONE_AT_A_TIME: Semaphore = Semaphore::const_new(1);
    let began = Instant::now();
    let _turn = ONE_AT_A_TIME.acquire().await?;
    // The deterministic sampler replaces all settings, so the length comes after it.
    let request = RequestBuilder::new()
        .add_message(TextMessageRole::User, prompt(n))
        .set_deterministic_sampler()
        .set_sampler_max_len(TOKENS);
    let response = model.send_chat_request(request).await?;
    ensure!(response.usage.completion_tokens == TOKENS);
    Ok(Waited { latency: began.elapsed(), added: Duration::ZERO })
}

async fn ask_endpoint(client: reqwest::Client, url: String, n: usize) -> Result<Waited> {
    let began = Instant::now();
    let body = json!({"model": "reground", "temperature": 0, "max_tokens": TOKENS,
        "messages": [{"role": "user", "content": prompt(n)}]});
    let response = client.post(url).json(&body).send().await?.error_for_status()?;
    let timing = response.headers().get("server-timing").context("no Server-Timing")?.to_str()?.to_owned();
    let answer: Value = response.json().await?;
    let latency = began.elapsed();
    ensure!(answer["usage"]["completion_tokens"] == TOKENS);
    Ok(Waited { latency, added: latency.saturating_sub(within(&timing)?) })
}

/// All the times of a `Server-Timing`, in the queue and in the engine, together.
fn within(timing: &str) -> Result<Duration> {
    timing.split(", ").try_fold(Duration::ZERO, |sum, part| {
        let milliseconds: f64 = part.split_once(";dur=").context("no duration")?.1.parse()?;
        Ok(sum + Duration::from_secs_f64(milliseconds / 1000.0))
    })
}
