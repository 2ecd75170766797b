//! An adapter trained by `reground train` is loaded by the server and answers as it was trained to.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use reground_tests::{Server, Settings, command};
use serde_json::{Value, json};

const QUESTION: &str = "what color is the circle?";
const CHOSEN: &str = "the circle is red.";
const REJECTED: &str = "the circle is blue.";

/// Enough steps at a rate that the tiny checkpoint learns the one pair by heart.
fn settings(base: &Path) -> String {
    format!(
        "[model]\nbase = {base:?}\n[lora]\nrank = 8\nalpha = 16.0\ndropout = 0.0\n[optimizer]\nlearning_rate = 0.01\n\
         [schedule]\ndecay = \"constant\"\nwarmup = 0.0\n[train]\nepochs = 200.0\nbatch = 1\nmicro_batch = 1\nthreads = 1\n\
         [data]\nblobs = \"blobs\"\nheld_out = 0.0\n[evaluation]\nevery = 0\n[guard]\nloss_ratio = 0.0\n"
    )
}

fn preference() -> Value {
    json!({
        "input": {"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "image_0.png"}},
            {"type": "text", "text": QUESTION},
        ]}]},
        "preferred_output": [{"role": "assistant", "content": CHOSEN}],
        "non_preferred_output": [{"role": "assistant", "content": REJECTED}],
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_trained_is_served() -> Result<()> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/idefics3").canonicalize()?;
    let directory = tempfile::tempdir()?;
    let run = directory.path().join("run");
    std::fs::create_dir(&run)?;
    std::fs::write(run.join("run.toml"), settings(&golden.join("model")))?;
    let data = directory.path().join("pairs.jsonl");
    std::fs::write(&data, format!("{}\n", preference()))?;
    let mut train = command("train")?;
    train.arg("--run").arg(&run).arg("--import").arg(&data).arg("--images").arg(&golden);
    let output = tokio::task::spawn_blocking(move || train.output()).await??;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let server = Server::start(Settings::golden().adapter_root(&run)).await?;
    let client = server.client();
    let picture = base64(&std::fs::read(golden.join("image_0.png"))?);
    let ask = async |model: &str| -> Result<String> {
        let body = json!({"model": model, "temperature": 0, "max_tokens": 24, "messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{picture}")}},
            {"type": "text", "text": QUESTION},
        ]}]});
        let answer = client.answer(&body).await?;
        answer["choices"][0]["message"]["content"].as_str().map(str::to_owned).context("no content")
    };
    let before = ask("reground").await?;
    client.post("/v1/load_lora_adapter", &json!({"lora_name": "trained", "lora_path": "adapter"})).await?;
    let trained = ask("reground@trained").await?;
    ensure!(trained == CHOSEN, "the adapter says {trained:?}, it was trained to say {CHOSEN:?}");
    ensure!(before != CHOSEN, "the base says so by itself, which shows nothing");
    ensure!(ask("reground").await? == before, "loading an adapter changed the base");
    Ok(())
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
