//! A query becomes pairs: somebody says what is right, the model says what is wrong, a person decides, and training takes it.

use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reground_tests::{Client, Server, Settings, command, pictures};
use reqwest::Method;
use serde_json::{Value, json};

/// How long the idle server gets for a record.
const LIMIT: Duration = Duration::from_secs(120);

/// A balanced picture of the pocket world: a red apple, a green tree, two blue birds.
const APPLE: &[u8] = include_bytes!("../pictures/apple.png");
const RIGHT: &str = "There are two blue birds, a green tree and a red apple.";
/// The seed of a draw follows from the record's id, so each run of a test draws others. Now and then the model says [`RIGHT`]
/// under noise as well: with this many draws it never does so in all of them.
const PATIENT: &str = "attempts = 16";

fn ask(text: &str, image: Option<&[u8]>) -> Value {
    let mut content = vec![json!({"type": "text", "text": text})];
    if let Some(image) = image {
        content.insert(0, json!({"type": "image_url", "image_url": {"url": pictures::data_url("image/png", image)}}));
    }
    json!({"model": "reground", "temperature": 0, "max_tokens": 60, "messages": [{"role": "user", "content": content}]})
}

/// Asks and says what is right; gives the record's and the feedback's id.
async fn corrected(client: &Client, body: &Value, correction: &str) -> Result<(String, String)> {
    let answer = client.answer(body).await?;
    let record = answer["id"].as_str().context("an answer without id")?.to_owned();
    let feedback = json!({"completion_id": record, "correction": correction});
    let kept = client.post("/v1/feedback", &feedback).await?.ok()?;
    Ok((record, kept["id"].as_str().context("feedback without id")?.to_owned()))
}

/// The record's pairs, once the bootstrapper is done with it.
async fn pairs(admin: &Client, record: &str) -> Result<Vec<Value>> {
    let begun = Instant::now();
    loop {
        let shown = admin.get(&format!("/v1/records/{record}")).await?;
        if shown.status == 200 && shown.json()?["bootstrap"] != "waiting" {
            let list = admin.get(&format!("/v1/pairs?record={record}")).await?.ok()?;
            return Ok(list["data"].as_array().context("no list")?.clone());
        }
        ensure!(begun.elapsed() < LIMIT, "{record} still waits: {}", shown.text());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn kinds(pairs: &[Value]) -> Vec<&str> {
    pairs.iter().filter_map(|pair| pair["kind"].as_str()).collect()
}

async fn run(server: &Server, key: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = command(arguments[0])?;
    command.args(&arguments[1..]).args(["--url", &format!("http://{}", server.address())]);
    command.env("REGROUND_API_KEY", key);
    Ok(tokio::task::spawn_blocking(move || command.output()).await??)
}

async fn train(directory: &Path, data: &Path) -> Result<Output> {
    std::fs::create_dir(directory)?;
    let settings = "[lora]\nrank = 4\nalpha = 8.0\n[train]\nmax_steps = 1\nbatch = 1\nmicro_batch = 1\nthreads = 1\n\
        [data]\nblobs = \"blobs\"\nheld_out = 0.0\n[evaluation]\nevery = 0\n";
    std::fs::write(directory.join("run.toml"), settings)?;
    let mut train = command("train")?;
    train.arg("--run").arg(directory).arg("--import").arg(data);
    Ok(tokio::task::spawn_blocking(move || train.output()).await??)
}

#[tokio::test]
async fn a_correction_becomes_pairs_that_training_takes() -> Result<()> {
    let settings = Settings::builtin().key("ann", "sk-ann", "client").trusted("ann").key("root", "sk-root", "admin");
    let server = Server::start(settings.section("bootstrap", PATIENT)).await?;
    let [ann, root] = ["sk-ann", "sk-root"].map(|key| server.client_with(Some(key)));
    let (record, feedback) = corrected(&ann, &ask("Describe the image.", Some(APPLE)), RIGHT).await?;
    let made = pairs(&root, &record).await?;
    ensure!(kinds(&made) == ["given", "image_weakened", "injected"], "{made:#?}");
    for pair in &made {
        ensure!(pair["chosen"] == RIGHT && pair["source"] == "correction" && pair["state"] == "new", "{pair:#}");
        ensure!(pair["feedback"] == *feedback && pair["key"] == "ann" && pair["generation"] == "base", "{pair:#}");
        ensure!(pair["images"][0]["width"] == 64 && pair["images"][0]["digest"].is_string(), "{pair:#}");
        ensure!(pair["rejected"].as_str().is_some_and(|text| !text.is_empty()), "{pair:#}");
    }
    let [given, weakened, injected] = &made[..] else { unreachable!("three kinds are three pairs") };
    ensure!(given["made"].is_null() && weakened["made"]["by"] == "base" && injected["made"]["by"] == "base");
    ensure!(weakened["distortion"]["kind"] == "noise" && weakened["distortion"]["strength"] == 80.0, "{weakened:#}");
    ensure!(weakened["distortion"]["seed"] == weakened["made"]["seed"], "{weakened:#}");
    let instruction = &injected["made"]["instruction"];
    ensure!(instruction["wording"] == "pocket" && instruction["task"] == "description", "{injected:#}");
    // They are counted once they are on the disk, and shown a moment before.
    let begun = Instant::now();
    while root.metric("reground_bootstrap_pairs_total").await? != Some(3.0) {
        ensure!(begun.elapsed() < LIMIT, "three pairs are not counted as three");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ensure!(ann.get("/v1/pairs").await?.status == 403, "pairs are the operator's");

    let export = server.directory().join("pairs.jsonl");
    let file = export.to_str().context("a path in UTF-8")?;
    let output = run(&server, "sk-root", &["pairs", "export", "--kind", "injected", "--output", file]).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(std::fs::read_to_string(&export)?.lines().count() == 1);
    let output = run(&server, "sk-root", &["pairs", "export", "--output", file]).await?;
    ensure!(output.status.success() && std::fs::read_to_string(&export)?.lines().count() == 3);
    let output = train(&server.directory().join("run"), &export).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.contains("3 pairs and annotations, 0 entries skipped"), "{said}");

    let output = run(&server, "sk-root", &["records", "delete", &record]).await?;
    let deleted: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(deleted["pairs"] == 3 && deleted["feedback"] == 1 && deleted["blobs"] == 1, "{deleted:#}");
    ensure!(root.get(&format!("/v1/pairs?record={record}")).await?.ok()?["data"] == json!([]));
    Ok(())
}

#[tokio::test]
async fn what_a_stranger_corrects_waits_for_a_person() -> Result<()> {
    let settings = Settings::builtin().key("bob", "sk-bob", "client").key("root", "sk-root", "admin");
    let server = Server::start(settings.section("bootstrap", PATIENT)).await?;
    let [bob, root] = ["sk-bob", "sk-root"].map(|key| server.client_with(Some(key)));
    // Without an image there is nothing to weaken.
    let question = ask("Describe the image.", None);
    let (record, _) = corrected(&bob, &question, "There is no picture, so there is nothing to describe.").await?;
    let made = pairs(&root, &record).await?;
    ensure!(!made.is_empty() && !kinds(&made).contains(&"image_weakened"), "{made:#?}");
    for pair in &made {
        ensure!(pair["state"] == "review" && pair["reason"] == "untrusted_correction", "{pair:#}");
    }
    let export = async || Ok::<_, anyhow::Error>(root.post("/v1/pairs/export", &json!({})).await?.text());
    ensure!(export().await?.is_empty(), "what nobody looked at is not trained on");

    let id = made[0]["id"].as_str().context("a pair without id")?;
    let at = format!("/v1/pairs/{id}/review");
    let verdict = |verdict: &str| json!({"verdict": verdict});
    ensure!(bob.post(&at, &verdict("accept")).await?.status == 403);
    ensure!(root.post(&at, &verdict("keep")).await?.error()?.param.as_deref() == Some("verdict"));
    ensure!(root.post("/v1/pairs/pair-x/review", &verdict("accept")).await?.status == 404);
    let token = json!({"verdict": "edit", "chosen": "an <image> of nothing"});
    ensure!(root.post(&at, &token).await?.error()?.code.as_deref() == Some("control_token"));
    let same = json!({"verdict": "edit", "chosen": "Nothing.", "rejected": "nothing"});
    for (refused, param) in [(&json!({"verdict": "edit", "chosen": " "}), "chosen"), (&same, "verdict")] {
        let error = root.post(&at, refused).await?.error()?;
        ensure!(error.param.as_deref() == Some(param), "{error:?}");
    }
    ensure!(root.post(&at, &verdict("accept")).await?.ok()?["state"] == "accepted");
    ensure!(export().await?.lines().count() == 1);
    let edit = json!({"verdict": "edit", "rejected": "There is a red apple in the picture that is not there."});
    let edited = root.post(&at, &edit).await?.ok()?;
    ensure!(edited["kind"] == "given" && edited["reviews"].as_array().is_some_and(|all| all.len() == 2), "{edited:#}");
    ensure!(root.post(&at, &verdict("discard")).await?.ok()?["state"] == "discarded");
    ensure!(export().await?.is_empty());
    let discarded = root.get("/v1/pairs?state=discarded&limit=1").await?.ok()?;
    ensure!(discarded["data"][0]["id"] == id, "{discarded:#}");
    ensure!(root.get("/v1/pairs?state=lost").await?.status == 400);

    let poisoned = json!({"completion_id": record, "correction": "an <image>"});
    ensure!(bob.post("/v1/feedback", &poisoned).await?.error()?.code.as_deref() == Some("control_token"));
    Ok(())
}

#[tokio::test]
async fn the_models_own_answers_are_chosen_where_the_operator_wants_it() -> Result<()> {
    let lines = "sources = [\"accepted\", \"self\"]\nself_after_s = 0\nself_margin = -100.0\nself_agree = 0";
    let server = Server::start(Settings::builtin().section("bootstrap", &format!("{lines}\n{PATIENT}"))).await?;
    let client = server.client();
    let answer = client.answer(&ask("Describe the image.", Some(APPLE))).await?;
    let record = answer["id"].as_str().context("an answer without id")?;
    let own = pairs(&client, record).await?;
    ensure!(!own.is_empty(), "no pair was made of an answer that every filter lets pass");
    for pair in &own {
        ensure!(pair["source"] == "self" && pair["chosen"] == answer["choices"][0]["message"]["content"], "{pair:#}");
        ensure!(pair["filters"]["grounding_margin"].is_f64(), "{pair:#}");
    }
    // Somebody calls it wrong: what was made of it goes.
    let feedback = json!({"completion_id": record, "rating": -1});
    client.post("/v1/feedback", &feedback).await?.ok()?;
    let after = pairs(&client, record).await?;
    ensure!(after.len() == own.len() && after.iter().all(|pair| pair["reason"] == "superseded"), "{after:#?}");
    Client::send(client.request(Method::DELETE, &format!("/v1/records/{record}"))).await?.ok()?;
    Ok(())
}

#[tokio::test]
async fn a_kill_in_the_middle_loses_and_doubles_nothing() -> Result<()> {
    let data = tempfile::tempdir()?;
    let settings = || Settings::builtin().section("data", &format!("dir = {:?}", data.path()));
    let mut records = Vec::new();
    for round in 0..6 {
        let server = Server::start(settings()).await?;
        let client = server.client();
        for number in 0..3 {
            let question = ask(&format!("Describe image {number} of {round}."), Some(APPLE));
            let answer = client.answer(&question).await?;
            let record = answer["id"].as_str().context("an answer without id")?.to_owned();
            // Once it is seen, the feedback that is acknowledged behind it takes it to the disk.
            pairs(&client, &record).await?;
            let feedback = json!({"completion_id": record, "correction": RIGHT});
            client.post("/v1/feedback", &feedback).await?.ok()?;
            records.push(record);
        }
        // Dropping a server kills it at once: now, and a little later in each round.
        tokio::time::sleep(Duration::from_millis(120 * round)).await;
    }
    let server = Server::start(settings()).await?;
    for record in &records {
        let made = pairs(&server.client(), record).await?;
        let (mut sorted, kinds) = (kinds(&made), kinds(&made));
        sorted.sort_unstable();
        sorted.dedup();
        ensure!(kinds.contains(&"given"), "{record} has no pair with the answer that was corrected: {made:#?}");
        ensure!(sorted.len() == kinds.len(), "{record} was done twice: {made:#?}");
    }
    Ok(())
}
