//! Together = alone: whatever else runs, a request gets the answer that it gets alone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reground_tests::{Client, Server, Settings, load, pictures, say};
use serde_json::{Value, json};

const REQUESTS: usize = 64;
const ROUNDS: usize = 10;

/// What is compared of an answer.
#[derive(Debug, PartialEq)]
struct Answer {
    texts: Vec<String>,
    finish: Vec<String>,
    /// The bytes of every token, of every choice.
    tokens: Vec<Value>,
    logprobs: Vec<f64>,
    usage: Value,
}

/// Text and image, lengths from 1 to 200 tokens, greedy and seeded, base and adapter, streamed and not.
fn request(at: usize) -> Result<Value> {
    let question = format!("what is left of the {} number {at}?", ["circle", "square", "boat", "triangle"][at % 4]);
    let mut content = vec![json!({"type": "text", "text": question})];
    if at.is_multiple_of(2) {
        // Eight images for 32 requests: some share one, and a cache could mix them up.
        let image = pictures::png(20 + (at % 16) as u32 * 5, 30, (at % 16) as u32)?;
        content.insert(0, json!({"type": "image_url", "image_url": {"url": pictures::data_url("image/png", &image)}}));
    }
    let mut body = json!({
        "model": if at % 8 < 6 { "reground" } else { "reground@golden" },
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 1 + at * 199 / (REQUESTS - 1),
        "logprobs": true,
        // Never the end-of-turn token, so that every length is as planned.
        "logit_bias": {"2": -100},
    });
    if (at / 2).is_multiple_of(2) {
        body["temperature"] = json!(0);
    } else {
        body["temperature"] = json!(1.2);
        body["top_p"] = json!(0.95);
        body["seed"] = json!(at);
    }
    if (at / 4).is_multiple_of(2) {
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
    }
    if at % 16 == 7 {
        body["n"] = json!(3);
    }
    Ok(body)
}

async fn answer(client: &Client, body: &Value) -> Result<Answer> {
    let choices = body["n"].as_u64().unwrap_or(1);
    let (mut texts, mut finish, mut content) = (Vec::new(), Vec::new(), Vec::new());
    let usage;
    if body["stream"] == true {
        let streamed = client.stream(body).await?;
        ensure!(streamed.done, "no [DONE]: {:?}", streamed.error());
        for choice in 0..choices {
            texts.push(streamed.text(choice));
            finish.push(streamed.finish(choice).context("no finish_reason")?.to_owned());
            content.extend(streamed.logprobs(choice));
        }
        usage = streamed.usage().context("no usage")?.clone();
    } else {
        let reply = client.answer(body).await?;
        for choice in reply["choices"].as_array().context("no choices")? {
            texts.push(choice["message"]["content"].as_str().context("no text")?.to_owned());
            finish.push(choice["finish_reason"].as_str().context("no finish_reason")?.to_owned());
            content.extend(choice["logprobs"]["content"].as_array().context("no log-probabilities")?.clone());
        }
        usage = reply["usage"].clone();
    }
    let logprobs = content.iter().filter_map(|entry| entry["logprob"].as_f64()).collect();
    Ok(Answer {
        texts,
        finish,
        tokens: content.into_iter().map(|entry| entry["bytes"].clone()).collect(),
        logprobs,
        usage,
    })
}

/// Equal to the byte; a log-probability may be rounded another way when a cache was warm.
fn same(alone: &Answer, together: &Answer) -> bool {
    let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-4;
    alone.texts == together.texts
        && alone.finish == together.finish
        && alone.tokens == together.tokens
        && alone.usage == together.usage
        && alone.logprobs.len() == together.logprobs.len()
        && alone.logprobs.iter().zip(&together.logprobs).all(near)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_at_once_answer_as_each_does_alone() -> Result<()> {
    // On two threads, as a server has: what they share could mix.
    // Byte for byte holds for one sequence at a time. The native engine computes them together, and a neighbour changes
    // rounding: its own tests hold it to 1e-4 and to the tokens.
    let settings = Settings::golden().environment("RAYON_NUM_THREADS", "2").section("model", "engine = \"mistralrs\"");
    let server = Server::start(settings).await?;
    let client = server.client();
    client.post("/v1/load_lora_adapter", &json!({"lora_name": "golden", "lora_path": "adapter"})).await?;
    let requests: Vec<Value> = (0..REQUESTS).map(request).collect::<Result<_>>()?;

    let started = Instant::now();
    let mut alone = Vec::new();
    for body in &requests {
        alone.push(answer(&client, body).await?);
    }
    let tokens: u64 = alone.iter().filter_map(|answer| answer.usage["completion_tokens"].as_u64()).sum();
    say!("together: {REQUESTS} alone, {tokens} tokens, {:.1} s", started.elapsed().as_secs_f64());
    for (body, answer) in requests.iter().zip(&alone) {
        let planned = body["max_tokens"].as_u64().unwrap_or(0) * body["n"].as_u64().unwrap_or(1);
        ensure!(answer.usage["completion_tokens"] == planned, "{} tokens instead of {planned}", answer.usage);
    }
    let mut different: Vec<&Vec<String>> = alone.iter().map(|answer| &answer.texts).collect();
    different.sort();
    different.dedup();
    ensure!(different.len() > REQUESTS / 2, "only {} different answers: a mix-up would not show", different.len());

    for round in 0..ROUNDS {
        let started = Instant::now();
        // Every round in another order.
        let order: Vec<usize> = (0..REQUESTS).map(|at| (at * (2 * round + 1) + round) % REQUESTS).collect();
        let (client, requests) = (&client, &requests);
        let jobs = order.iter().map(|&at| async move { Ok((at, answer(client, &requests[at]).await?)) });
        for (at, together) in load::run(jobs, REQUESTS, Duration::from_secs(240)).await? {
            ensure!(
                same(&alone[at], &together),
                "round {round}, request {at}: {}\nalone    {:?}\ntogether {together:?}",
                requests[at],
                alone[at]
            );
        }
        say!("together: round {} of {ROUNDS}, {:.1} s", round + 1, started.elapsed().as_secs_f64());
    }
    Ok(())
}
