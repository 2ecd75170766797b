//! Weights in fewer bits (`model.isq`) on the native engine: answers, and adapters that go live and come back.

use anyhow::{Context, Result, ensure};
use reground_tests::{Client, Server, Settings, command};
use serde_json::json;

/// The setting as a variable, which goes before what the suite as a whole runs against.
const ENGINE: &str = "REGROUND__MODEL__ENGINE";

/// What answered, its text, and the log-probabilities of its tokens.
async fn ask(client: &Client) -> Result<(String, String, Vec<f64>)> {
    let question = json!({"model": "reground", "temperature": 0, "max_tokens": 12, "logprobs": true,
        "messages": [{"role": "user", "content": "what color is the circle?"}]});
    let answer = client.post("/v1/chat/completions", &question).await?.ok()?;
    let choice = &answer["choices"][0];
    let tokens = choice["logprobs"]["content"].as_array().context("no log-probabilities")?;
    Ok((
        answer["system_fingerprint"].as_str().context("no fingerprint")?.to_owned(),
        choice["message"]["content"].as_str().context("no content")?.to_owned(),
        tokens.iter().filter_map(|token| token["logprob"].as_f64()).collect(),
    ))
}

fn apart(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// `auto` takes the native engine here, too: mistralrs takes no adapter on rounded weights.
#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_goes_live_on_rounded_weights_and_comes_back() -> Result<()> {
    let exact = Server::start(Settings::golden().environment(ENGINE, "native")).await?;
    let exact = ask(&exact.client()).await?;
    for (isq, engine) in [("q8", "native"), ("q4", "auto")] {
        let settings = Settings::golden().environment(ENGINE, engine).section("model", &format!("isq = {isq:?}"));
        let server = Server::start(settings).await?;
        let client = server.client();
        let base = ask(&client).await?;
        ensure!(base.0 == "base", "{base:?}");
        let rounding = apart(&base.2, &exact.2);
        ensure!(rounding > 0.0, "{isq}: nothing was rounded");

        let adapter = client.post("/v1/adapters", &json!({"path": "adapter"})).await?.ok()?;
        let adapter = adapter["id"].as_str().context("no id")?.to_owned();
        client.post(&format!("/v1/adapters/{adapter}/activate"), &json!({})).await?.ok()?;
        let adapted = ask(&client).await?;
        ensure!(adapted.0 == adapter, "{adapted:?}");
        ensure!(adapted.1 != base.1, "{isq}: the adapter changes nothing");

        client.post("/v1/adapters/rollback", &json!({})).await?.ok()?;
        let back = ask(&client).await?;
        ensure!((&back.0, &back.1) == (&base.0, &base.1), "{back:?} after {base:?}");
        ensure!(apart(&back.2, &base.2) < 1e-4, "{back:?} after {base:?}");
    }
    Ok(())
}

#[test]
fn what_does_not_go_together_is_said() -> Result<()> {
    let mut command = command("check-config")?;
    command.args(["--engine", "mistralrs", "--isq", "q8", "--adapter-root", "/adapters"]);
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("model.adapter_root") && said.contains("model.isq"), "{said}");
    Ok(())
}
