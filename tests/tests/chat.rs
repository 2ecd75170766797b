//! What an answer looks like, whole and streamed: stop, n, seed, usage, log-probabilities, JSON.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use reground_tests::{Client, Golden, Server, Settings, Which};
use serde_json::{Value, json};

async fn golden() -> Result<(Server, Client)> {
    let server = Server::start(Settings::golden()).await?;
    let client = server.client();
    Ok((server, client))
}

fn ask(more: &Value) -> Value {
    let mut body = json!({
        "model": "reground", "max_tokens": 24, "temperature": 0, "logit_bias": {"2": -100},
        "messages": [{"role": "user", "content": "what is it?"}],
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    body
}

fn text(answer: &Value, choice: usize) -> &str {
    answer["choices"][choice]["message"]["content"].as_str().unwrap_or_default()
}

/// A held-out picture of the pocket world: `pocket held-out` draws it as typical_00107.png.
const APPLE: &[u8] = include_bytes!("../pictures/apple.png");

#[tokio::test]
async fn the_model_inside_the_binary_sees_a_red_apple() -> Result<()> {
    let server = Server::start(Settings::builtin()).await?;
    let ask = |text: &str| {
        let url = format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(APPLE));
        json!({"model": "reground", "temperature": 0, "messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": text},
        ]}]})
    };
    let answer = server.client().answer(&ask("What color is the apple?")).await?;
    ensure!(text(&answer, 0) == "The apple is red.", "{answer}");
    ensure!(answer["choices"][0]["finish_reason"] == "stop", "{answer}");
    // How many it sees is what it gets wrong most often; that there is one it knows.
    let answer = server.client().answer(&ask("Is there an apple in the image?")).await?;
    ensure!(text(&answer, 0).starts_with("Yes, "), "{answer}");
    Ok(())
}

#[tokio::test]
async fn an_answer_has_openais_shape() -> Result<()> {
    let (_server, client) = golden().await?;
    let began = Instant::now();
    let reply = client.ask(&ask(&json!({}))).await?;
    let took_ms = began.elapsed().as_secs_f64() * 1000.0;
    ensure!(reply.header("content-type").is_some_and(|kind| kind.starts_with("application/json")));
    ensure!(reply.header("x-reground-generation") == Some("base"));
    let timing = reply.header("server-timing").context("no Server-Timing")?.to_owned();
    let (queue, engine) = timing
        .strip_prefix("queue;dur=")
        .and_then(|rest| rest.split_once(", engine;dur="))
        .with_context(|| timing.clone())?;
    let (queue, engine): (f64, f64) = (queue.parse()?, engine.parse()?);
    ensure!(queue >= 0.0 && engine > 0.0 && queue + engine < took_ms, "{timing}, of {took_ms} ms in all");
    let answer = reply.ok()?;
    ensure!(answer["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-")), "{answer}");
    ensure!(
        answer["object"] == "chat.completion" && answer["created"].is_u64() && answer["model"] == "reground",
        "{answer}"
    );
    let choice = &answer["choices"][0];
    ensure!(choice["index"] == 0 && choice["finish_reason"] == "length" && choice["logprobs"].is_null(), "{choice}");
    ensure!(choice["message"]["role"] == "assistant" && choice["message"]["refusal"].is_null(), "{choice}");
    let usage = &answer["usage"];
    let number = |name: &str| usage[name].as_u64().with_context(|| format!("no {name} in {usage}"));
    ensure!(number("completion_tokens")? == 24 && number("prompt_tokens")? > 5, "{usage}");
    ensure!(number("total_tokens")? == number("prompt_tokens")? + 24, "{usage}");
    Ok(())
}

#[tokio::test]
async fn a_stream_says_the_same_as_the_whole_answer() -> Result<()> {
    let (_server, client) = golden().await?;
    let whole = client.answer(&ask(&json!({"logprobs": true, "top_logprobs": 2}))).await?;
    let streamed = client.stream(&ask(&json!({"logprobs": true, "top_logprobs": 2, "stream": true}))).await?;
    ensure!(streamed.done && streamed.usage().is_none());
    ensure!(streamed.text(0) == text(&whole, 0), "{:?} instead of {:?}", streamed.text(0), text(&whole, 0));
    ensure!(Value::from(streamed.logprobs(0)) == whole["choices"][0]["logprobs"]["content"]);
    let first = streamed.chunks.first().context("a chunk")?;
    ensure!(first["choices"][0]["delta"]["role"] == "assistant", "{first}");
    for chunk in &streamed.chunks {
        ensure!(chunk["object"] == "chat.completion.chunk" && chunk["id"] == first["id"], "{chunk}");
        ensure!(chunk.get("usage").is_none(), "usage that no one asked for: {chunk}");
    }
    let last = streamed.chunks.last().context("a chunk")?;
    ensure!(last["choices"][0]["finish_reason"] == "length", "{last}");

    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let streamed = client.stream(&ask(&options)).await?;
    let last = streamed.chunks.last().context("a chunk")?;
    ensure!(last["choices"] == json!([]) && last["usage"] == whole["usage"], "{last}");
    let before = &streamed.chunks[..streamed.chunks.len() - 1];
    ensure!(
        before.iter().all(|chunk| chunk.get("usage").is_some_and(Value::is_null)),
        "usage must be null before the end"
    );
    Ok(())
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_before_it() -> Result<()> {
    let (_server, client) = golden().await?;
    let whole = client.answer(&ask(&json!({}))).await?;
    let whole = text(&whole, 0);
    let characters: Vec<char> = whole.chars().collect();
    // Every piece of the answer, of one to four characters, in one place or across tokens.
    for length in 1..=4 {
        for start in 1..characters.len() - length {
            let stop: String = characters[start..start + length].iter().collect();
            // Torn characters are shown as U+FFFD: what was torn is not known to a caller.
            if stop.contains('\u{fffd}') {
                continue;
            }
            let expected = &whole[..whole.find(&stop).context("it is there")?];
            let answer = client.answer(&ask(&json!({"stop": stop}))).await?;
            ensure!(text(&answer, 0) == expected, "stop {stop:?}: {:?} instead of {expected:?}", text(&answer, 0));
            ensure!(answer["choices"][0]["finish_reason"] == "stop", "stop {stop:?}: {answer}");
            let streamed = client.stream(&ask(&json!({"stop": ["never comes", stop], "stream": true}))).await?;
            ensure!(streamed.text(0) == expected, "stop {stop:?}, streamed: {:?}", streamed.text(0));
            ensure!(streamed.finish(0) == Some("stop"));
        }
    }
    let answer = client.answer(&ask(&json!({"stop": "never comes"}))).await?;
    ensure!(text(&answer, 0) == whole && answer["choices"][0]["finish_reason"] == "length");
    Ok(())
}

#[tokio::test]
async fn the_same_seed_says_the_same() -> Result<()> {
    let (_server, client) = golden().await?;
    let seeded = |seed: i64| ask(&json!({"temperature": 1.3, "seed": seed}));
    let mut said = Vec::new();
    for seed in [0, 1, 2, -1, i64::MAX] {
        let answer = client.answer(&seeded(seed)).await?;
        for _ in 0..3 {
            let again = client.answer(&seeded(seed)).await?;
            ensure!(text(&again, 0) == text(&answer, 0), "seed {seed}: {again} instead of {answer}");
        }
        said.push(text(&answer, 0).to_owned());
    }
    said.sort();
    said.dedup();
    ensure!(said.len() == 5, "two seeds say the same: {said:?}");
    // Without a seed two answers differ.
    let free = ask(&json!({"temperature": 1.3}));
    ensure!(text(&client.answer(&free).await?, 0) != text(&client.answer(&free).await?, 0));
    Ok(())
}

#[tokio::test]
async fn several_choices_are_several_answers() -> Result<()> {
    let (_server, client) = golden().await?;
    let more = json!({"temperature": 1.3, "seed": 5, "n": 4});
    let answer = client.answer(&ask(&more)).await?;
    let choices = answer["choices"].as_array().context("choices")?;
    ensure!(choices.len() == 4);
    ensure!(choices.iter().enumerate().all(|(at, choice)| choice["index"] == at), "{answer}");
    let mut said: Vec<&str> = (0..4).map(|choice| text(&answer, choice)).collect();
    let mut streamed = more.clone();
    streamed["stream"] = json!(true);
    let streamed = client.stream(&ask(&streamed)).await?;
    for (choice, said) in said.iter().enumerate() {
        ensure!(streamed.text(choice as u64) == *said, "choice {choice} differs when it is streamed");
    }
    said.sort_unstable();
    said.dedup();
    ensure!(said.len() == 4, "two choices say the same: {said:?}");
    ensure!(answer["usage"]["completion_tokens"] == 4 * 24, "{}", answer["usage"]);
    Ok(())
}

#[tokio::test]
async fn log_probabilities_are_logarithms_of_probabilities() -> Result<()> {
    let (_server, client) = golden().await?;
    let answer = client.answer(&ask(&json!({"logprobs": true, "top_logprobs": 5}))).await?;
    let content = answer["choices"][0]["logprobs"]["content"].as_array().context("log-probabilities")?;
    ensure!(content.len() == 24, "{} entries", content.len());
    for entry in content {
        let logprob = entry["logprob"].as_f64().context("a number")?;
        let top: Vec<f64> =
            entry["top_logprobs"].as_array().into_iter().flatten().filter_map(|top| top["logprob"].as_f64()).collect();
        ensure!(top.len() == 5 && top.is_sorted_by(|a, b| a >= b), "{entry}");
        ensure!(
            top.iter().all(|logprob| *logprob <= 0.0)
                && top.iter().map(|logprob| logprob.exp()).sum::<f64>() <= 1.0 + 1e-6
        );
        // Greedy: the likeliest is the one that was taken, unless that is the end of turn, which was forbidden.
        ensure!((logprob - top[0]).abs() < 1e-6 || (logprob - top[1]).abs() < 1e-6, "{entry}");
        let bytes: Vec<u8> = entry["bytes"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|byte| u8::try_from(byte.as_u64()?).ok())
            .collect();
        ensure!(entry["token"] == String::from_utf8_lossy(&bytes).as_ref(), "{entry}");
    }
    // Temperature does not change what the model thinks.
    let warm = client
        .answer(&ask(&json!({"logprobs": true, "top_logprobs": 5, "temperature": 2, "seed": 1, "max_tokens": 1})))
        .await?;
    let top = |answer: &Value| answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"].clone();
    ensure!(top(&warm) == top(&answer), "{} instead of {}", top(&warm), top(&answer));
    Ok(())
}

#[tokio::test]
async fn a_schema_binds_the_answer() -> Result<()> {
    let (_server, client) = golden().await?;
    let schema = json!({
        "type": "object",
        "properties": {
            "color": {"enum": ["red", "green", "blue"]},
            "count": {"type": "integer", "minimum": 1, "maximum": 9},
            "round": {"type": "boolean"},
            "places": {"type": "array", "items": {"enum": ["left", "right"]}, "minItems": 1, "maxItems": 2},
        },
        "required": ["color", "count", "round", "places"],
        "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "thing", "strict": true, "schema": schema}});
    for seed in 0..10 {
        let more =
            json!({"response_format": format, "temperature": 1, "seed": seed, "max_tokens": 500, "logit_bias": {}});
        let answer = client.answer(&ask(&more)).await?;
        ensure!(answer["choices"][0]["finish_reason"] == "stop", "seed {seed}: {answer}");
        let thing: Value = serde_json::from_str(text(&answer, 0)).with_context(|| format!("seed {seed}: {answer}"))?;
        ensure!(["red", "green", "blue"].iter().any(|color| thing["color"] == *color), "{thing}");
        ensure!(thing["count"].as_u64().is_some_and(|count| (1..=9).contains(&count)), "{thing}");
        ensure!(thing["round"].is_boolean() && thing.as_object().is_some_and(|thing| thing.len() == 4), "{thing}");
        ensure!(thing["places"].as_array().is_some_and(|places| (1..=2).contains(&places.len())), "{thing}");
    }
    Ok(())
}

#[tokio::test]
async fn json_object_is_an_object() -> Result<()> {
    let (_server, client) = golden().await?;
    let mut complete = 0;
    for seed in 0..10 {
        let more = json!({
            "response_format": {"type": "json_object"}, "temperature": 1, "seed": seed, "max_tokens": 300,
            // The closing brace and the end of turn are likely, so that some objects come to an end.
            "logit_bias": {"2": 5, "103": 5},
        });
        let answer = client.answer(&ask(&more)).await?;
        ensure!(text(&answer, 0).trim_start().starts_with('{'), "seed {seed}: {answer}");
        if answer["choices"][0]["finish_reason"] == "stop" {
            let value: Value =
                serde_json::from_str(text(&answer, 0)).with_context(|| format!("seed {seed}: {answer}"))?;
            ensure!(value.is_object(), "{value}");
            complete += 1;
        }
    }
    ensure!(complete > 0, "not one of ten objects came to an end");
    Ok(())
}

#[tokio::test]
async fn several_images_and_turns_are_one_conversation() -> Result<()> {
    let (_server, client) = golden().await?;
    let pairs = Golden::load()?.pairs;
    let image = |at: usize| pairs[at].greedy("reground")["messages"][0]["content"][0].clone();
    let talk = |first: usize, second: usize| {
        ask(&json!({"logprobs": true, "top_logprobs": 1, "messages": [
            {"role": "system", "content": "say what is there"},
            {"role": "user", "content": [image(first), {"type": "text", "text": "what is it?"}]},
            {"role": "assistant", "content": "a red circle."},
            {"role": "user", "content": [{"type": "text", "text": "and here?"}, image(second), image(first)]},
        ]}))
    };
    let said = async |first, second| -> Result<Vec<(Value, f64)>> {
        let answer = client.answer(&talk(first, second)).await?;
        let tokens = answer["choices"][0]["logprobs"]["content"].as_array().context("no log-probabilities")?;
        tokens.iter().map(|one| Ok((one["bytes"].clone(), one["logprob"].as_f64().context("no number")?))).collect()
    };
    // What of a prompt was kept from before rounds another way.
    let same = |a: &[(Value, f64)], b: &[(Value, f64)]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-4)
    };
    let answer = said(0, 1).await?;
    ensure!(same(&said(0, 1).await?, &answer), "the same conversation, another answer");
    ensure!(!same(&said(1, 0).await?, &answer), "the order of images changes nothing");
    ensure!(!same(&said(0, 2).await?, &answer), "another image changes nothing");
    Ok(())
}

#[tokio::test]
async fn detail_is_taken() -> Result<()> {
    let (_server, client) = golden().await?;
    let pair = &Golden::load()?.pairs[0];
    let mut body = pair.greedy("reground");
    for detail in ["auto", "low", "high"] {
        body["messages"][0]["content"][0]["image_url"]["detail"] = json!(detail);
        ensure!(client.answer(&body).await?["usage"]["prompt_tokens"] == pair.prompt_tokens, "detail {detail}");
    }
    ensure!(pair.greedy_ids(Which::Base).len() == 16);
    Ok(())
}
