//! What the endpoint costs over the bare engine: `cargo run --release -p reground --example overhead`.
//!
//! The same model and the same prompts go through mistralrs directly (`send_request` in the same process) and through the
//! endpoint over HTTP (client and server in one process). Each side runs in processes of its own, in turn: two engines in
//! one process share a thread pool, and what one leaves behind there slows the other by more than what is measured here.
//! One sequence is inside the engine at a time on both sides, because more give wrong answers on a CPU; the bare calls
//! queue on a semaphore. The model has random weights and the shape below.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor, safetensors};
use futures::future::join_all;
use mistralrs::{Model, ModelBuilder, ModelDType, RequestBuilder, TextMessageRole};
use reground::config::{Config, EngineKind};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

/// Processes of each side.
const ROUNDS: usize = 5;
/// Requests of one process at each concurrency, after `WARM` uncounted ones.
const REQUESTS: usize = 64;
const WARM: usize = 8;
const CONCURRENCY: [usize; 3] = [1, 8, 32];
/// Tokens of each answer: a description of a few sentences.
const TOKENS: usize = 128;
/// What a process measures.
const SIDES: [&str; 2] = ["bare", "endpoint"];

#[tokio::main]
async fn main() -> Result<()> {
    match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [side, directory] => measure(side, directory).await,
        _ => compare(),
    }
}

/// Runs the processes in turn and prints the table.
fn compare() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/idefics3/model");
    grow(&golden, directory.path())?;
    let mut rounds = vec![];
    for round in 0..ROUNDS {
        let mut sides = SIDES;
        // Who comes first changes, so that drift cancels.
        sides.rotate_left(round % 2);
        let mut measured = HashMap::new();
        for side in sides {
            eprintln!("round {} of {ROUNDS}: {side}", round + 1);
            let output = Command::new(std::env::current_exe()?).arg(side).arg(directory.path()).output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            measured.insert(side, serde_json::from_slice::<Vec<Figures>>(&output.stdout)?);
        }
        rounds.push(measured);
    }

    println!("{ROUNDS} processes a side, {REQUESTS} requests at each concurrency, {TOKENS} tokens an answer\n");
    println!(
        "| concurrency | bare requests/s | endpoint requests/s | endpoint/bare (least to most of the rounds) | bare p50 ms | endpoint p50 ms | bare p99 ms (of the rounds) | endpoint p99 ms (of the rounds) |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (at, concurrency) in CONCURRENCY.into_iter().enumerate() {
        let [bare, endpoint] = SIDES.map(|side| rounds.iter().map(|round| &round[side][at]).collect::<Vec<_>>());
        let ratios = sorted(bare.iter().zip(&endpoint).map(|(bare, endpoint)| endpoint.rate() / bare.rate()));
        let tails = |side: &[&Figures]| {
            let tails = sorted(side.iter().map(|figures| figures.percentile(99)));
            tails.iter().map(|tail| format!("{tail:.0}")).collect::<Vec<_>>().join(" ")
        };
        let (bare_all, endpoint_all) = (Figures::pooled(&bare), Figures::pooled(&endpoint));
        println!(
            "| {concurrency} | {:.2} | {:.2} | {:.3} ({:.3} to {:.3}) | {:.1} | {:.1} | {:.1} ({}) | {:.1} ({}) |",
            bare_all.rate(),
            endpoint_all.rate(),
            endpoint_all.rate() / bare_all.rate(),
            ratios[0],
            ratios[ROUNDS - 1],
            bare_all.percentile(50),
            endpoint_all.percentile(50),
            bare_all.percentile(99),
            tails(&bare),
            endpoint_all.percentile(99),
            tails(&endpoint),
        );
    }
    Ok(())
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values
}

/// Measures one side and prints the figures of each concurrency as JSON.
async fn measure(side: &str, directory: &str) -> Result<()> {
    let mut figures = Vec::new();
    if side == "bare" {
        let bare = ModelBuilder::new(directory)
            .with_device(Device::Cpu)
            .with_dtype(ModelDType::F32)
            .with_max_num_seqs(1)
            .with_prefix_cache_n(None)
            .build()
            .await?;
        let bare = Arc::new(bare);
        for concurrency in CONCURRENCY {
            block_of(WARM, concurrency, |n| ask_bare(bare.clone(), n)).await?;
            figures.push(block_of(REQUESTS, concurrency, |n| ask_bare(bare.clone(), n)).await?);
        }
    } else {
        let mut config = Config::default();
        config.server.port = 0;
        config.model.source = directory.to_owned();
        config.model.engine = EngineKind::Mistralrs;
        config.log.filter = "warn".into();
        // The endpoint as it is run: with a store, and every answer written down.
        let data = tempfile::tempdir()?;
        config.data.dir = data.path().into();
        let server = reground::serve::start(config).await?;
        let url = format!("http://{}/v1/chat/completions", server.address());
        let client = reqwest::Client::new();
        for concurrency in CONCURRENCY {
            block_of(WARM, concurrency, |n| ask_endpoint(client.clone(), url.clone(), n)).await?;
            figures.push(block_of(REQUESTS, concurrency, |n| ask_endpoint(client.clone(), url.clone(), n)).await?);
        }
        server.stop().await?;
    }
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

#[derive(Default, Serialize, Deserialize)]
struct Figures {
    latencies: Vec<Duration>,
    elapsed: Duration,
}

impl Figures {
    fn pooled(several: &[&Self]) -> Self {
        Self {
            latencies: several.iter().flat_map(|figures| figures.latencies.clone()).collect(),
            elapsed: several.iter().map(|figures| figures.elapsed).sum(),
        }
    }

    fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// Milliseconds.
    fn percentile(&self, percent: usize) -> f64 {
        let latencies = sorted(self.latencies.iter().map(|latency| latency.as_secs_f64() * 1000.0));
        latencies[(latencies.len() - 1) * percent / 100]
    }
}

/// Asks so many questions with `concurrency` askers.
async fn block_of<F>(requests: usize, concurrency: usize, ask: impl Fn(usize) -> F) -> Result<Figures>
where
    F: Future<Output = Result<()>>,
{
    let began = Instant::now();
    let askers = (0..concurrency).map(|asker| {
        let ask = &ask;
        async move {
            let mut latencies = Vec::new();
            for n in (asker..requests).step_by(concurrency) {
                let began = Instant::now();
                ask(n).await?;
                latencies.push(began.elapsed());
            }
            anyhow::Ok(latencies)
        }
    });
    let latencies: Result<Vec<Vec<Duration>>> = join_all(askers).await.into_iter().collect();
    Ok(Figures { elapsed: began.elapsed(), latencies: latencies?.concat() })
}

fn prompt(n: usize) -> String {
    format!("describe the image number {n} in a few words")
}

async fn ask_bare(model: Arc<Model>, n: usize) -> Result<()> {
    static ONE_AT_A_TIME: Semaphore = Semaphore::const_new(1);
    let _turn = ONE_AT_A_TIME.acquire().await?;
    // The deterministic sampler replaces all settings, so the length comes after it.
    let request = RequestBuilder::new()
        .add_message(TextMessageRole::User, prompt(n))
        .set_deterministic_sampler()
        .set_sampler_max_len(TOKENS);
    let response = model.send_chat_request(request).await?;
    ensure!(response.usage.completion_tokens > 0);
    Ok(())
}

async fn ask_endpoint(client: reqwest::Client, url: String, n: usize) -> Result<()> {
    let body = json!({"model": "reground", "temperature": 0, "max_tokens": TOKENS,
        "messages": [{"role": "user", "content": prompt(n)}]});
    let response: Value = client.post(url).json(&body).send().await?.error_for_status()?.json().await?;
    ensure!(response["usage"]["completion_tokens"].as_u64() > Some(0));
    Ok(())
}

/// A checkpoint of the golden one's kind, about twelve times its size: every width is multiplied, weights are random.
fn grow(from: &Path, to: &Path) -> Result<()> {
    const FACTOR: usize = 4;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(from.join("config.json"))?)?;
    for (part, keys) in [
        ("text_config", ["hidden_size", "intermediate_size", "head_dim"].as_slice()),
        ("vision_config", ["hidden_size", "intermediate_size"].as_slice()),
    ] {
        for key in keys {
            let width = config[part][*key].as_u64().context("a width")?;
            config[part][*key] = (width * FACTOR as u64).into();
        }
    }
    std::fs::write(to.join("config.json"), config.to_string())?;

    // Positions, patches, the vocabulary and the patches' own pixels keep their size.
    let fixed = [342, 3, 16];
    let tensors = safetensors::load(from.join("model.safetensors"), &Device::Cpu)?;
    let grown: Result<HashMap<String, Tensor>> = tensors
        .into_iter()
        .map(|(name, tensor)| {
            let is_positions = name.contains("position_embedding");
            let shape: Vec<usize> = tensor
                .dims()
                .iter()
                .enumerate()
                .map(
                    |(axis, &size)| {
                        if fixed.contains(&size) || (is_positions && axis == 0) { size } else { size * FACTOR }
                    },
                )
                .collect();
            let is_norm = name.contains("norm") && name.ends_with("weight");
            let grown = if is_norm {
                Tensor::ones(shape, candle_core::DType::F32, &Device::Cpu)?
            } else {
                Tensor::randn(0_f32, 0.02, shape, &Device::Cpu)?
            };
            Ok((name, grown))
        })
        .collect();
    safetensors::save(&grown?, to.join("model.safetensors"))?;
    Ok(())
}
