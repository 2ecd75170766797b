//! Served tokens and log-probabilities equal those of PyTorch, for the base and for an adapter, however they are mixed.

use anyhow::{Context, Result, ensure};
use reground_tests::{Client, Golden, Pair, Server, Settings, Which, load, say};
use serde_json::{Value, json};
use std::time::Duration;

/// Two implementations in f32 differ by less.
const TOLERANCE: f64 = 1e-4;

/// The model's name with the generation that answers.
fn model(which: Which) -> &'static str {
    match which {
        Which::Base => "reground@base",
        Which::Adapter => "reground@golden",
    }
}

async fn load_adapter(client: &Client, name: &str, path: &str) -> Result<()> {
    let reply = client.post("/v1/load_lora_adapter", &json!({"lora_name": name, "lora_path": path})).await?;
    ensure!(reply.status == 200, "loading {path}: status {}: {}", reply.status, reply.text());
    Ok(())
}

async fn unload_adapter(client: &Client, name: &str) -> Result<()> {
    let reply = client.post("/v1/unload_lora_adapter", &json!({"lora_name": name})).await?;
    ensure!(reply.status == 200, "unloading {name}: status {}: {}", reply.status, reply.text());
    Ok(())
}

/// The tokens of an answer, as bytes and log-probability.
fn tokens(answer: &Value) -> Result<Vec<(Vec<u8>, f64)>> {
    let content = answer["choices"][0]["logprobs"]["content"].as_array().context("no log-probabilities")?;
    content.iter().map(token).collect()
}

fn token(entry: &Value) -> Result<(Vec<u8>, f64)> {
    let bytes = entry["bytes"].as_array().context("no bytes")?;
    let bytes = bytes.iter().filter_map(|byte| u8::try_from(byte.as_u64()?).ok()).collect();
    Ok((bytes, entry["logprob"].as_f64().context("no log-probability")?))
}

/// Asks the golden question and compares the greedy tokens.
async fn check_greedy(client: &Client, golden: &Golden, pair: &Pair, which: Which) -> Result<()> {
    let answer = client.answer(&pair.greedy(model(which))).await?;
    let served: Vec<Vec<u8>> = tokens(&answer)?.into_iter().map(|(bytes, _)| bytes).collect();
    let tokens = golden.tokens(&pair.greedy_ids(which))?;
    let expected: Vec<Vec<u8>> = tokens.iter().map(|token| token.name.clone()).collect();
    ensure!(served == expected, "{}, {:?}: {served:?} instead of {expected:?}", which.name(), pair.question);
    let text = answer["choices"][0]["message"]["content"].as_str().context("no text")?;
    // Neither control tokens nor white space before the first word are shown.
    let shown: Vec<u8> = tokens.iter().filter(|token| !token.control).flat_map(|token| token.name.clone()).collect();
    ensure!(
        text == String::from_utf8_lossy(&shown).trim_start(),
        "{}: the text {text:?} is not its tokens",
        which.name()
    );
    ensure!(answer["usage"]["prompt_tokens"] == pair.prompt_tokens, "usage {}", answer["usage"]);
    ensure!(answer["usage"]["completion_tokens"] == 16, "usage {}", answer["usage"]);
    ensure!(
        answer["choices"][0]["finish_reason"] == "length",
        "finish_reason {}",
        answer["choices"][0]["finish_reason"]
    );
    let generation = if which == Which::Base { "base" } else { "golden" };
    ensure!(answer["system_fingerprint"] == generation, "system_fingerprint {}", answer["system_fingerprint"]);
    Ok(())
}

async fn check_all(client: &Client, golden: &Golden, which: Which) -> Result<()> {
    for pair in &golden.pairs {
        check_greedy(client, golden, pair, which).await?;
    }
    Ok(())
}

/// Forces the annotated answer and compares every log-probability with PyTorch's. Returns how many were compared.
async fn check_logprobs(client: &Client, golden: &Golden, pair: &Pair, which: Which) -> Result<usize> {
    let (forcing, steps) = pair.forcing(which).context("not one token can be forced")?;
    let mut request = pair.greedy(model(which));
    for (name, value) in forcing.as_object().context("an object")? {
        request[name] = value.clone();
    }
    let answer = client.answer(&request).await?;
    let served = tokens(&answer)?;
    ensure!(served.len() == steps, "{} tokens instead of {steps}", served.len());
    let entries = answer["choices"][0]["logprobs"]["content"].as_array().context("no log-probabilities")?;
    let mut compared = 0;
    for step in 0..steps {
        let wanted = &golden.tokens(&pair.chosen[step..=step])?[0].name;
        ensure!(served[step].0 == *wanted, "step {step}: {:?} instead of {wanted:?}", served[step].0);
        let expected = pair.logprobs(which)[step];
        ensure!((served[step].1 - expected).abs() < TOLERANCE, "step {step}: {} instead of {expected}", served[step].1);
        compared += 1 + check_top(golden, &entries[step], &pair.distributions(which)[step])?;
    }
    Ok(compared)
}

/// The twenty likeliest tokens, likeliest first, each with its log-probability.
fn check_top(golden: &Golden, entry: &Value, distribution: &[f64]) -> Result<usize> {
    let mut likeliest: Vec<(u32, f64)> = (0..).zip(distribution.iter().copied()).collect();
    likeliest.sort_by(|a, b| b.1.total_cmp(&a.1));
    let top: Vec<(Vec<u8>, f64)> =
        entry["top_logprobs"].as_array().context("no alternatives")?.iter().map(token).collect::<Result<_>>()?;
    ensure!(top.len() == 20, "{} alternatives instead of 20", top.len());
    let mut compared = 0;
    for ((bytes, logprob), (id, expected)) in top.iter().zip(&likeliest) {
        ensure!((logprob - expected).abs() < TOLERANCE, "alternative {bytes:?}: {logprob} instead of {expected}");
        // Two tokens as likely as each other may stand in either order.
        let wanted = &golden.tokens(&[*id])?[0].name;
        let near = |other: &(u32, f64)| other.0 != *id && (other.1 - expected).abs() < TOLERANCE;
        ensure!(bytes == wanted || likeliest.iter().any(near), "alternative {bytes:?} instead of {wanted:?}");
        compared += 1;
    }
    Ok(compared)
}

#[tokio::test]
async fn greedy_tokens_and_log_probabilities_are_those_of_pytorch() -> Result<()> {
    let golden = Golden::load()?;
    let server = Server::start(Settings::golden()).await?;
    let client = server.client();
    load_adapter(&client, "golden", "adapter").await?;
    let (mut compared, mut forced) = (0, 0);
    for pair in &golden.pairs {
        for which in [Which::Base, Which::Adapter] {
            check_greedy(&client, &golden, pair, which).await?;
            compared += check_logprobs(&client, &golden, pair, which).await?;
            forced += 1;
        }
    }
    say!("golden: {compared} log-probabilities compared in {forced} forced answers");
    ensure!(compared >= 21 * 40, "only {compared} log-probabilities compared");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn base_and_adapter_side_by_side_do_not_touch_each_other() -> Result<()> {
    let golden = Golden::load()?;
    let server = Server::start(Settings::golden()).await?;
    let client = server.client();
    load_adapter(&client, "golden", "adapter").await?;
    let (client, golden) = (&client, &golden);
    let jobs = (0..48).map(|at| async move {
        let which = if at % 2 == 0 { Which::Base } else { Which::Adapter };
        check_greedy(client, golden, &golden.pairs[at / 2 % golden.pairs.len()], which).await
    });
    load::run(jobs, 16, Duration::from_secs(120)).await?;
    Ok(())
}

#[tokio::test]
async fn adapters_loaded_one_after_the_other_do_not_mix() -> Result<()> {
    let golden = Golden::load()?;
    let server = Server::start(Settings::golden()).await?;
    let client = server.client();
    for round in 0..3 {
        // Another adapter before the one that is compared: what it leaves behind would show.
        load_adapter(&client, "other", "train_end").await?;
        let question = |model: &str| golden.pairs[0].greedy(model);
        let other = tokens(&client.answer(&question("reground@other")).await?)?;
        ensure!(
            other != tokens(&client.answer(&question("reground@base")).await?)?,
            "round {round}: the other adapter changes nothing, so the test proves nothing"
        );
        load_adapter(&client, "golden", "adapter").await?;
        check_all(&client, &golden, Which::Adapter).await?;
        check_all(&client, &golden, Which::Base).await?;
        unload_adapter(&client, "other").await?;
        check_all(&client, &golden, Which::Adapter).await?;
        ensure!(client.ask(&question("reground@other")).await?.status == 404, "an unloaded adapter still answers");
        unload_adapter(&client, "golden").await?;
        check_all(&client, &golden, Which::Base).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_go_on_while_adapters_come_and_go() -> Result<()> {
    let golden = Golden::load()?;
    let server = Server::start(Settings::golden()).await?;
    let (client, golden) = (&server.client(), &golden);
    load_adapter(client, "golden", "adapter").await?;
    let changes = async {
        for _ in 0..5 {
            load_adapter(client, "passing", "train_end").await?;
            unload_adapter(client, "passing").await?;
        }
        anyhow::Ok(())
    };
    let answers = async {
        for _ in 0..5 {
            check_all(client, golden, Which::Base).await?;
            check_all(client, golden, Which::Adapter).await?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(changes, answers)?;
    Ok(())
}

#[tokio::test]
async fn an_answer_under_way_keeps_its_unloaded_adapter() -> Result<()> {
    let golden = Golden::load()?;
    let server = Server::start(Settings::golden()).await?;
    let client = server.client();
    load_adapter(&client, "golden", "adapter").await?;
    let mut request = golden.pairs[0].greedy("reground@golden");
    request["max_tokens"] = json!(300);
    // Never the end-of-turn token.
    request["logit_bias"] = json!({"2": -100});
    let whole = client.answer(&request).await?;
    request["stream"] = json!(true);
    let mut stream = client.open(&request).await?;
    stream.next().await?.context("a first chunk")?;
    unload_adapter(&client, "golden").await?;
    let rest = stream.collect().await?;
    ensure!(rest.done && rest.finish(0) == Some("length"), "the stream broke off: {:?}", rest.error());
    let text = whole["choices"][0]["message"]["content"].as_str().context("a text")?;
    ensure!(text.ends_with(&rest.text(0)), "the answer changed when its adapter was unloaded");
    Ok(())
}
