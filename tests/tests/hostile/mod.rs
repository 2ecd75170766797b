//! Hostile input: every case has its exact status and an error that says what is wrong; after each the server goes on.
//!
//! # Layout
//! - [`case`]: what is sent, and what is to come of it.
//! - [`http`], [`parameters`], [`conversation`], [`images`], [`adapters`]: the table, by what is attacked.

mod adapters;
mod case;
mod conversation;
mod http;
mod images;
mod parameters;
mod tripwire;

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Result, ensure};
use reground_tests::{Server, Settings, say};
use serde_json::json;

use case::{ADMIN_KEY, CLIENT_KEY};

/// Bytes that one body may have: above the 10 MB of text, so that the model and not the door refuses those.
const BODY_LIMIT: usize = 12 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_case_is_answered_exactly_and_the_server_goes_on() -> Result<()> {
    let settings = Settings::golden()
        .section("server", &format!("body_limit = {BODY_LIMIT}"))
        .section("images", "max_bytes = 1048576\nmax_per_request = 4")
        .key("client", CLIENT_KEY, "client")
        .key("admin", ADMIN_KEY, "admin");
    let server = Server::start(settings).await?;
    let client = server.client_with(Some(CLIENT_KEY));

    let mut cases = http::cases();
    cases.extend(parameters::cases());
    cases.extend(conversation::cases()?);
    cases.extend(images::cases()?);
    cases.extend(adapters::cases());
    let mut names = BTreeSet::new();
    let twice: Vec<&str> = cases.iter().map(|case| case.name.as_str()).filter(|name| !names.insert(*name)).collect();
    ensure!(twice.is_empty(), "two cases have one name: {twice:?}");
    ensure!(cases.len() >= 200, "only {} cases", cases.len());

    let question = json!({
        "model": "reground", "temperature": 0, "max_tokens": 6, "logprobs": true,
        "messages": [{"role": "user", "content": "is there a boat?"}],
    });
    let choice = |answer: serde_json::Value| answer["choices"][0].clone();
    let before = choice(client.answer(&question).await?);
    let mut failures = Vec::new();
    for (done, case) in cases.iter().enumerate() {
        if done % 50 == 0 {
            say!("hostile: {done} of {} cases", cases.len());
        }
        let (started, memory) = (Instant::now(), server.memory_kib()?);
        if let Err(error) = case.run(&server).await {
            failures.push(format!("{}: {error:#}", case.name));
        }
        if started.elapsed().as_secs() >= 30 {
            failures.push(format!("{}: took {:?}", case.name, started.elapsed()));
        }
        let grown = server.memory_kib()?.saturating_sub(memory) / 1024;
        if grown > 30 {
            say!("hostile: {} MiB more after {}, {:.1} s", grown, case.name, started.elapsed().as_secs_f64());
        }
        match client.answer(&question).await.map(choice) {
            Ok(after) if after == before => {}
            Ok(after) => failures.push(format!("after {}: {after} instead of {before}", case.name)),
            Err(error) => {
                failures.push(format!("after {}: {error:#}\n{}", case.name, server.log_tail()));
                break;
            }
        }
    }
    let log = server.log_tail();
    if log.contains(CLIENT_KEY) || log.contains(ADMIN_KEY) {
        failures.push("a key is in the log".into());
    }
    say!("hostile: {} cases, {} failures, {} MiB resident", cases.len(), failures.len(), server.memory_kib()? / 1024);
    ensure!(failures.is_empty(), "{} of {} cases failed:\n{}", failures.len(), cases.len(), failures.join("\n"));
    Ok(())
}
