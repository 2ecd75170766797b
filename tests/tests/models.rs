//! The list of models, and names that pin a generation.

use anyhow::{Result, ensure};
use reground_tests::{Server, Settings};
use serde_json::{Value, json};

#[tokio::test]
async fn generations_come_and_go_in_the_list() -> Result<()> {
    let server = Server::start(Settings::golden().section("model", "name = \"team/eyes\"")).await?;
    let client = server.client();
    let ids = |list: &Value| -> Vec<String> {
        list["data"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|model| Some(model["id"].as_str()?.to_owned()))
            .collect()
    };
    ensure!(ids(&client.get("/v1/models").await?.ok()?) == ["team/eyes", "team/eyes@base"]);
    client.post("/v1/load_lora_adapter", &json!({"lora_name": "golden", "lora_path": "adapter"})).await?;
    let list = client.get("/v1/models").await?.ok()?;
    ensure!(ids(&list) == ["team/eyes", "team/eyes@base", "team/eyes@golden"], "{list}");
    ensure!(list["object"] == "list");
    for id in ids(&list) {
        let model = client.get(&format!("/v1/models/{id}")).await?.ok()?;
        ensure!(model["id"] == id.as_str() && model["object"] == "model" && model["created"].is_u64(), "{model}");
        ensure!(model["live"] == (id != "team/eyes@golden"), "{model}");
        let chat = json!({"model": id, "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}]});
        let answer = client.answer(&chat).await?;
        ensure!(answer["model"] == id.as_str(), "{answer}");
        ensure!(answer["system_fingerprint"] == model["generation"], "{answer}");
    }
    client.post("/v1/unload_lora_adapter", &json!({"lora_name": "golden"})).await?;
    ensure!(ids(&client.get("/v1/models").await?.ok()?) == ["team/eyes", "team/eyes@base"]);
    ensure!(client.get("/v1/models/team/eyes@golden").await?.status == 404);
    Ok(())
}
