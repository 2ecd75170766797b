//! Tool calls, with a checkpoint whose chat template has a place for tools.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use reground_tests::{Client, Server, Settings};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Shows the tools, the calls that were made, and what came of them.
const TEMPLATE: &str = "<|im_start|>{% if tools %}System: {% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<end_of_utterance>\n{% endif %}\
{% for message in messages %}{{ message['role'] | capitalize }}: \
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for c in message['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}\
{% for call in message['tool_calls'] or [] %}{{ call['function']['name'] }}{% endfor %}<end_of_utterance>\n{% endfor %}\
{% if add_generation_prompt %}Assistant:{% endif %}";

/// A server of the golden weights with that template. The directory goes with the test.
async fn server() -> Result<(Server, TempDir)> {
    let directory = tempfile::tempdir()?;
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/idefics3/model");
    for entry in std::fs::read_dir(golden)? {
        let entry = entry?;
        std::fs::copy(entry.path(), directory.path().join(entry.file_name()))?;
    }
    let file = directory.path().join("tokenizer_config.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    tokenizer["chat_template"] = TEMPLATE.into();
    std::fs::write(&file, tokenizer.to_string())?;
    let source = format!("source = {:?}\ndevice = \"cpu\"\ndtype = \"f32\"", directory.path());
    let settings = Settings::builtin().section("model", &source).environment("RAYON_NUM_THREADS", "1");
    Ok((Server::start(settings).await?, directory))
}

fn tool(name: &str, values: [&str; 2]) -> Value {
    let parameters = json!({"type": "object", "properties": {"place": {"enum": values}},
        "required": ["place"], "additionalProperties": false});
    json!({"type": "function", "function": {"name": name, "description": "Looks.", "parameters": parameters}})
}

fn ask(choice: &Value, seed: u64) -> Value {
    json!({
        "model": "reground", "seed": seed, "max_tokens": 200, "tool_choice": choice,
        "tools": [tool("weather", ["Oslo", "Rome"]), tool("time", ["Lima", "Bonn"])],
        "messages": [{"role": "user", "content": "what is it like in Oslo?"}],
    })
}

/// Name and place of the one call of a message, checked.
fn call(message: &Value) -> Result<(String, String)> {
    let calls = message["tool_calls"].as_array().with_context(|| format!("no call: {message}"))?;
    ensure!(calls.len() == 1 && calls[0]["type"] == "function", "{message}");
    ensure!(calls[0]["id"].as_str().is_some_and(|id| id.starts_with("call_")), "{message}");
    let function = &calls[0]["function"];
    let name = function["name"].as_str().context("a name")?;
    let arguments: Value = serde_json::from_str(function["arguments"].as_str().context("arguments are text")?)?;
    let place = arguments["place"].as_str().context("a place")?;
    let allowed = match name {
        "weather" => ["Oslo", "Rome"],
        "time" => ["Lima", "Bonn"],
        _ => anyhow::bail!("no tool is called {name}"),
    };
    ensure!(allowed.contains(&place) && arguments.as_object().is_some_and(|o| o.len() == 1), "{function}");
    Ok((name.into(), place.into()))
}

#[tokio::test]
async fn a_demanded_call_follows_its_schema_whole_and_streamed() -> Result<()> {
    let (server, _directory) = server().await?;
    let client = server.client();
    let one = json!({"type": "function", "function": {"name": "time"}});
    for seed in 0..4 {
        for choice in [json!("required"), one.clone()] {
            let body = ask(&choice, seed);
            let answer = client.answer(&body).await?;
            ensure!(answer["choices"][0]["finish_reason"] == "tool_calls", "{answer}");
            ensure!(answer["choices"][0]["message"]["content"].is_null(), "{answer}");
            let whole = call(&answer["choices"][0]["message"])?;
            ensure!(choice == "required" || whole.0 == "time", "{whole:?}");
            ensure!(streamed(&client, body).await? == whole);
        }
    }
    Ok(())
}

/// The call that the deltas of a stream add up to.
async fn streamed(client: &Client, mut body: Value) -> Result<(String, String)> {
    body["stream"] = true.into();
    let answer = client.open(&body).await?.collect().await?;
    let deltas = || answer.chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]);
    let calls = || deltas().filter_map(|delta| delta["tool_calls"].as_array()).flatten();
    ensure!(calls().all(|call| call["index"] == 0), "{:?}", answer.chunks);
    let first = calls().next().context("no call was streamed")?;
    let arguments: String = calls().filter_map(|call| call["function"]["arguments"].as_str()).collect();
    let last = answer.chunks.iter().rev().find_map(|chunk| chunk["choices"][0]["finish_reason"].as_str());
    ensure!(last == Some("tool_calls"), "{last:?}");
    let function = json!({"name": first["function"]["name"], "arguments": arguments});
    call(&json!({"tool_calls": [{"id": first["id"], "type": first["type"], "function": function}]}))
}

#[tokio::test]
async fn the_template_sees_tools_calls_and_results() -> Result<()> {
    let (server, _directory) = server().await?;
    let client = server.client();
    let prompt_tokens = |body: Value| {
        let client = client.clone();
        async move { client.answer(&body).await?["usage"]["prompt_tokens"].as_u64().context("prompt tokens") }
    };
    let mut short = ask(&json!("auto"), 0);
    short["max_tokens"] = 1.into();
    let shown = prompt_tokens(short.clone()).await?;
    let mut hidden = short.clone();
    hidden["tool_choice"] = "none".into();
    let without = prompt_tokens(hidden).await?;
    ensure!(shown > without + 50, "{shown} tokens with tools, {without} without");

    let function = json!({"name": "weather", "arguments": "{\"place\": \"Oslo\"}"});
    let called = json!({"role": "assistant", "content": null,
        "tool_calls": [{"id": "call_1", "type": "function", "function": function}]});
    let result = json!({"role": "tool", "tool_call_id": "call_1", "content": "it rains"});
    let mut more = short.clone();
    let messages = more["messages"].as_array_mut().context("messages")?;
    messages.extend([called, result]);
    let continued = prompt_tokens(more).await?;
    ensure!(continued > shown + 10, "{continued} tokens with the call and its result, {shown} without");
    Ok(())
}

#[tokio::test]
async fn a_model_without_a_place_for_tools_says_so() -> Result<()> {
    let server = Server::start(Settings::golden()).await?;
    let reply = server.client().ask(&ask(&json!("auto"), 0)).await?;
    ensure!(reply.status == 400, "{}", reply.status);
    let error = reply.error()?;
    ensure!(error.param.as_deref() == Some("tools") && error.message.contains("template"), "{error:?}");
    Ok(())
}
