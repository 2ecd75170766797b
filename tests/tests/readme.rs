//! What the README tells a newcomer to type works.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use reground_tests::{Server, Settings};
use serde_json::Value;

/// The ```sh blocks that talk to the server.
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
    blocks.retain(|block| block.contains("curl") && block.contains("/v1/chat/completions"));
    blocks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_commands_answer() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("a root")?;
    let readme = std::fs::read_to_string(root.join("README.md")).context("README.md")?;
    let blocks = blocks(&readme);
    ensure!(!blocks.is_empty(), "README.md has no ```sh block with a curl to /v1/chat/completions");
    let server = Server::start(Settings::builtin()).await?;
    let address = server.address().to_string();
    for block in blocks.iter().take(2) {
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
        if text.starts_with("data: ") {
            ensure!(text.trim_end().ends_with("data: [DONE]"), "{block}{text}");
            continue;
        }
        let answer: Value = serde_json::from_str(&text).with_context(|| format!("{block}{text}"))?;
        ensure!(answer["choices"][0]["message"]["content"].is_string(), "{block}{answer}");
    }
    Ok(())
}
