//! What the endpoint costs over the bare engine: `cargo run --release -p reground --example overhead`.
//!
//! The same model and the same prompts go through mistralrs directly (`send_request` in this process) and through the
//! endpoint over HTTP, in alternating blocks of one run. One sequence is inside the engine at a time on both sides, because
//! more give wrong answers on a CPU; the bare calls queue on a semaphore. The model has random weights and the shape below.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor, safetensors};
use futures::future::join_all;
use mistralrs::{Model, ModelBuilder, ModelDType, RequestBuilder, TextMessageRole};
use reground::config::Config;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

/// Requests of one block.
const REQUESTS: usize = 32;
/// Blocks of each kind for each concurrency; many short ones, because a machine's speed drifts.
const BLOCKS: usize = 12;
/// Tokens of each answer: a description of a few sentences.
const TOKENS: usize = 128;

#[tokio::main]
async fn main() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/idefics3/model");
    grow(&golden, directory.path())?;

    let bare = Arc::new(
        ModelBuilder::new(directory.path().display())
            .with_device(Device::Cpu)
            .with_dtype(ModelDType::F32)
            .with_max_num_seqs(1)
            .with_prefix_cache_n(None)
            .build()
            .await?,
    );
    let mut config = Config::default();
    config.server.port = 0;
    config.model.source = directory.path().display().to_string();
    config.log.filter = "warn".into();
    let server = reground::serve::start(config).await?;
    let url = format!("http://{}/v1/chat/completions", server.address());
    let client = reqwest::Client::new();

    println!("{REQUESTS} requests a block, {BLOCKS} blocks a side, {TOKENS} tokens an answer\n");
    println!(
        "| concurrency | bare requests/s | endpoint requests/s | endpoint/bare | median of the blocks | bare p50 ms | endpoint p50 ms | bare p99 ms | endpoint p99 ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for concurrency in [1, 8, 32] {
        let (mut direct, mut served) = (Figures::default(), Figures::default());
        let mut ratios = Vec::new();
        // A first block of each warms caches and is not counted. Who comes first changes, so that drift cancels.
        for block in 0..=BLOCKS {
            let bare_first = block % 2 == 0;
            let mut bare_block = None;
            if bare_first {
                bare_block = Some(block_of(concurrency, |n| ask_bare(bare.clone(), n)).await?);
            }
            let served_block = block_of(concurrency, |n| ask_endpoint(client.clone(), url.clone(), n)).await?;
            let bare_block = match bare_block {
                Some(block) => block,
                None => block_of(concurrency, |n| ask_bare(bare.clone(), n)).await?,
            };
            if block > 0 {
                ratios.push(bare_block.0.as_secs_f64() / served_block.0.as_secs_f64());
                direct.add(bare_block);
                served.add(served_block);
            }
        }
        ratios.sort_unstable_by(f64::total_cmp);
        let (bare_rate, served_rate) = (direct.rate(), served.rate());
        println!(
            "| {concurrency} | {bare_rate:.1} | {served_rate:.1} | {:.3} | {:.3} | {:.1} | {:.1} | {:.1} | {:.1} |",
            served_rate / bare_rate,
            (ratios[(BLOCKS - 1) / 2] + ratios[BLOCKS / 2]) / 2.0,
            direct.percentile(50),
            served.percentile(50),
            direct.percentile(99),
            served.percentile(99),
        );
    }
    server.stop().await
}

#[derive(Default)]
struct Figures {
    latencies: Vec<Duration>,
    elapsed: Duration,
}

impl Figures {
    fn add(&mut self, (elapsed, latencies): (Duration, Vec<Duration>)) {
        self.elapsed += elapsed;
        self.latencies.extend(latencies);
        self.latencies.sort_unstable();
    }

    fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// Milliseconds.
    fn percentile(&self, percent: usize) -> f64 {
        let last = self.latencies.len() - 1;
        self.latencies[last * percent / 100].as_secs_f64() * 1000.0
    }
}

/// Asks `REQUESTS` questions with `concurrency` askers; the whole time, and each answer's.
async fn block_of<F>(concurrency: usize, ask: impl Fn(usize) -> F) -> Result<(Duration, Vec<Duration>)>
where
    F: Future<Output = Result<()>>,
{
    let began = Instant::now();
    let askers = (0..concurrency).map(|asker| {
        let ask = &ask;
        async move {
            let mut latencies = Vec::new();
            for n in (asker..REQUESTS).step_by(concurrency) {
                let began = Instant::now();
                ask(n).await?;
                latencies.push(began.elapsed());
            }
            anyhow::Ok(latencies)
        }
    });
    let latencies: Result<Vec<Vec<Duration>>> = join_all(askers).await.into_iter().collect();
    Ok((began.elapsed(), latencies?.concat()))
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
    let grown: Result<std::collections::HashMap<String, Tensor>> = tensors
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
