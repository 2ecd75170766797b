//! The whole loop on the model inside the binary, with real training: what `reground demo` does over the API, and what it
//! measures.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

/// On however busy a machine.
const LIMIT: Duration = Duration::from_secs(900);

fn value(outcome: &Value, when: &str, set: &str, measure: &str) -> Result<f64> {
    let named = |list: &Value, name: &str| -> Option<Value> {
        list.as_array()?.iter().find(|item| item["name"] == name).cloned()
    };
    let section = named(&outcome[when]["sections"], set).with_context(|| format!("no section {set}"))?;
    let estimate = named(&section["estimates"], measure).with_context(|| format!("no measure {measure}"))?;
    estimate["value"].as_f64().with_context(|| format!("{measure} has no value"))
}

#[tokio::test]
async fn corrected_answers_become_an_adapter_that_hallucinates_less_and_comes_back() -> Result<()> {
    let place = tempfile::tempdir()?;
    let page = place.path().join("page.html");
    let demo = Command::from(reground_tests::command("demo")?)
        .args(["--questions", "400", "--images", "200", "--json", "--page"])
        .arg(&page)
        .current_dir(place.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let output = timeout(LIMIT, demo.wait_with_output()).await.context("it takes too long")??;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{told}");
    let outcome: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(outcome["adapter"].as_str().is_some_and(|id| id.starts_with("ad-")), "{outcome}");
    let of = |when, measure| value(&outcome, when, "captions, balanced", measure);
    let (before, after) = (of("before", "CHAIR_i")?, of("after", "CHAIR_i")?);
    ensure!(after < before, "CHAIR_i went from {before} to {after}\n{}", outcome["table"]);
    let (before, after) = (of("before", "Cover")?, of("after", "Cover")?);
    ensure!(after > before - 0.05, "Cover went from {before} to {after}\n{}", outcome["table"]);
    ensure!(told.contains("`base` is live again"), "{told}");
    ensure!(std::fs::read_to_string(&page)?.contains("<img"), "the page has no pictures");
    Ok(())
}
