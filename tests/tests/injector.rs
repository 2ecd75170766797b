//! Another text model in the server's process says what is wrong.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reground_tests::{Server, Settings, golden_root};
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// How long the idle server gets for a record.
const LIMIT: Duration = Duration::from_secs(120);

/// The language model of the golden checkpoint as a Llama checkpoint.
fn text_model(directory: &Path) -> Result<()> {
    let golden = golden_root().join("model");
    let bytes = std::fs::read(golden.join("model.safetensors"))?;
    let all = SafeTensors::deserialize(&bytes)?;
    let mut text = BTreeMap::new();
    for (name, tensor) in all.iter() {
        if let Some(rest) = name.strip_prefix("model.text_model.") {
            text.insert(format!("model.{rest}"), tensor);
        } else if name == "lm_head.weight" {
            text.insert(name.to_owned(), tensor);
        }
    }
    std::fs::write(directory.join("model.safetensors"), safetensors::serialize(text, None)?)?;
    let config: Value = serde_json::from_slice(&std::fs::read(golden.join("config.json"))?)?;
    let mut config = config["text_config"].clone();
    config["architectures"] = json!(["LlamaForCausalLM"]);
    config["model_type"] = json!("llama");
    // Its tokens are little more than bytes, and the instruction is long.
    config["max_position_embeddings"] = json!(16384);
    std::fs::write(directory.join("config.json"), config.to_string())?;
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(golden.join(file), directory.join(file))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_correction_is_rewritten_by_the_text_model() -> Result<()> {
    let model = tempfile::tempdir()?;
    text_model(model.path())?;
    let lines = format!(
        "injector = \"model\"\ninjector_model = {:?}\ncorrected = false\nweakened = 0\nattempts = 16\nmax_length_ratio = 1000.0\nmax_words = 100000",
        model.path()
    );
    let server =
        Server::start(Settings::builtin().section("bootstrap", &lines).section("model", "dtype = \"f32\"")).await?;
    let client = server.client();
    let question = json!({"model": "reground", "temperature": 0, "max_tokens": 20,
        "messages": [{"role": "user", "content": "Describe the image."}]});
    let answer = client.answer(&question).await?;
    let correction = "There are two blue birds, a green tree and a red apple.";
    client.post("/v1/feedback", &json!({"completion_id": answer["id"], "correction": correction})).await?.ok()?;
    let record = answer["id"].as_str().context("no id")?;
    let begun = Instant::now();
    let pair = loop {
        let list = client.get(&format!("/v1/pairs?record={record}")).await?.ok()?;
        if let Some(pair) = list["data"].as_array().and_then(|pairs| pairs.first()) {
            break client.get(&format!("/v1/pairs/{}", pair["id"].as_str().context("no id")?)).await?.ok()?;
        }
        ensure!(begun.elapsed() < LIMIT, "no pair: {}", client.get(&format!("/v1/records/{record}")).await?.text());
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    ensure!(pair["kind"] == "injected" && pair["chosen"] == correction, "{pair:#}");
    ensure!(pair["made"]["by"].as_str().is_some_and(|by| Path::new(by) == model.path()), "{pair:#}");
    ensure!(pair["made"]["instruction"]["injector"] == "model", "{pair:#}");
    Ok(())
}

#[test]
fn a_text_model_that_is_not_there_is_named() -> Result<()> {
    let empty = tempfile::tempdir()?;
    for (source, said) in
        [("", "bootstrap.injector_model"), (empty.path().to_str().unwrap_or_default(), "no config.json")]
    {
        let lines = format!("injector = \"model\"\ninjector_model = {source:?}");
        let (status, log) = Server::refused(&Settings::builtin().section("bootstrap", &lines))?;
        ensure!(!status.success() && log.contains(said), "{status}: {log}");
    }
    Ok(())
}
