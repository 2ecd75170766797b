//! What the README tells a newcomer to type works.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use reground_tests::{Server, Settings};
use serde_json::Value;

/// The ```sh blocks that talk to the server, in order.
fn blocks(readme: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<String> = None;
    for line in readme.lines() {
        match &mut open {
            None if line.trim() == "```sh" => open = Some(String::new()),
            None => {}
            Some(block) if line.trim() == "```" => {
                blocks.push(std::mem::take(block));
                open = None;
            }
            Some(block) => {
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    blocks.retain(|block| block.contains("curl"));
    blocks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_to_the_server_does_what_it_says() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("a root")?;
    let readme = std::fs::read_to_string(root.join("README.md")).context("README.md")?;
    let blocks = blocks(&readme);
    let asks = blocks.iter().filter(|block| block.contains("/v1/chat/completions")).count();
    ensure!(asks >= 2, "README.md asks {asks} times; an image and an adapter are to be asked for");
    // As the README starts them: the model inside the binary, and the golden checkpoint for its adapter.
    let builtin = Server::start(Settings::builtin()).await?;
    let golden = Server::start(Settings::golden()).await?;
    for block in &blocks {
        let server = if block.contains("demo") { &golden } else { &builtin };
        let address = server.address().to_string();
        let mut script = block.clone();
        for usual in ["localhost:8080", "127.0.0.1:8080"] {
            script = script.replace(usual, &address);
        }
        ensure!(script.contains(&address), "the command does not talk to port 8080: {block}");
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", &script]).current_dir(root).env("NO_PROXY", "127.0.0.1");
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        ensure!(output.status.success(), "{block}{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        if block.contains("/v1/load_lora_adapter") {
            ensure!(text.contains("demo") && !text.contains("error"), "{block}{text}");
            continue;
        }
        if block.contains("/v1/feedback") {
            let kept: Value = serde_json::from_str(&text).with_context(|| format!("{block}{text}"))?;
            ensure!(kept["object"] == "feedback" && kept["correction"].is_string(), "{block}{kept}");
            continue;
        }
        let answer: Value = serde_json::from_str(&text).with_context(|| format!("{block}{text}"))?;
        ensure!(answer["choices"][0]["message"]["content"].is_string(), "{block}{answer}");
    }
    Ok(())
}
