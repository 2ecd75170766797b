//! Adapters that are not what they should be are refused, whole.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use reground_tests::{Client, Server, Settings};
use serde_json::{Value, json};

/// A copy of a golden adapter in a directory of its own.
fn copy(root: &Path, name: &str) -> Result<()> {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/idefics3/adapter");
    std::fs::create_dir(root.join(name))?;
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(from.join(file), root.join(name).join(file))?;
    }
    Ok(())
}

/// The copy with its configuration changed.
fn configured(root: &Path, name: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
    copy(root, name)?;
    let file = root.join(name).join("adapter_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    change(&mut config);
    Ok(std::fs::write(file, config.to_string())?)
}

/// The copy with its weights changed: the header, and the data after it.
fn weighted(root: &Path, name: &str, change: impl FnOnce(&mut Value, &mut Vec<u8>)) -> Result<()> {
    copy(root, name)?;
    let file = root.join(name).join("adapter_model.safetensors");
    let bytes = std::fs::read(&file)?;
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into()?))?;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length])?;
    let mut data = bytes[8 + length..].to_vec();
    change(&mut header, &mut data);
    let header = header.to_string();
    let mut bytes = u64::try_from(header.len())?.to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend(data);
    Ok(std::fs::write(file, bytes)?)
}

fn first_tensor(header: &Value) -> Option<String> {
    header.as_object()?.keys().find(|name| name.ends_with("lora_A.weight")).cloned()
}

async fn load(client: &Client, name: &str) -> Result<reground_tests::Reply> {
    client.post("/v1/load_lora_adapter", &json!({"lora_name": name, "lora_path": name})).await
}

/// A good adapter, and directories that are none in every way that comes to mind.
fn broken(at: &Path) -> Result<Vec<String>> {
    copy(at, "good")?;
    configured(at, "no-rank", |config| drop(config.as_object_mut().map(|config| config.remove("r"))))?;
    configured(at, "rank-zero", |config| config["r"] = json!(0))?;
    configured(at, "rank-huge", |config| config["r"] = json!(1_000_000_000))?;
    configured(at, "rank-other", |config| config["r"] = json!(8))?;
    configured(at, "alpha-text", |config| config["lora_alpha"] = json!("eight"))?;
    configured(at, "dora", |config| config["use_dora"] = json!(true))?;
    configured(at, "another-kind", |config| config["peft_type"] = json!("IA3"))?;
    configured(at, "list-instead", |config| *config = json!([]))?;
    weighted(at, "a-tensor-too-many", |header, _| {
        if let Some(name) = first_tensor(header) {
            header["base_model.model.nowhere.lora_A.weight"] = header[name.as_str()].clone();
        }
    })?;
    weighted(at, "a-tensor-missing", |header, _| {
        if let Some(name) = first_tensor(header) {
            header.as_object_mut().map(|header| header.remove(&name));
        }
    })?;
    weighted(at, "another-shape", |header, _| {
        if let Some(name) = first_tensor(header)
            && let Some(shape) = header[name.as_str()]["shape"].as_array_mut()
        {
            shape.reverse();
        }
    })?;
    weighted(at, "not-a-number", |_, data| data[..4].copy_from_slice(&f32::NAN.to_le_bytes()))?;
    weighted(at, "cut-off", |_, data| data.truncate(data.len() / 2))?;
    copy(at, "no-weights")?;
    std::fs::write(at.join("no-weights/adapter_model.safetensors"), b"")?;
    copy(at, "header-beyond-the-file")?;
    std::fs::write(at.join("header-beyond-the-file/adapter_model.safetensors"), u64::MAX.to_le_bytes())?;
    copy(at, "no-config")?;
    std::fs::write(at.join("no-config/adapter_config.json"), b"{")?;
    weighted(at, "infinite", |_, data| data[..4].copy_from_slice(&f32::INFINITY.to_le_bytes()))?;
    weighted(at, "another-type", |header, _| {
        if let Some(name) = first_tensor(header) {
            header[name.as_str()]["dtype"] = json!("I32");
        }
    })?;
    weighted(at, "beyond-the-data", |header, _| {
        if let Some(name) = first_tensor(header) {
            header[name.as_str()]["data_offsets"] = json!([0, u64::MAX]);
        }
    })?;
    weighted(at, "of-another-layer", |header, _| {
        let Some(tensors) = header.as_object_mut() else { return };
        let renamed = |name: &String| name.replace("layers.0.", "layers.900.");
        *tensors = tensors.iter().map(|(name, tensor)| (renamed(name), tensor.clone())).collect();
    })?;
    weighted(at, "rank-zero-tensors", |header, data| {
        data.clear();
        for tensor in header.as_object_mut().into_iter().flat_map(|tensors| tensors.values_mut()) {
            if let Some(shape) = tensor["shape"].as_array_mut() {
                let rank = if shape[0].as_u64() < shape[1].as_u64() { 0 } else { 1 };
                shape[rank] = json!(0);
                tensor["data_offsets"] = json!([0, 0]);
            }
        }
    })?;
    configured(at, "rank-negative", |config| config["r"] = json!(-4))?;
    configured(at, "rank-fraction", |config| config["r"] = json!(4.5))?;
    copy(at, "a-pipe")?;
    std::fs::remove_file(at.join("a-pipe/adapter_model.safetensors"))?;
    let made = std::process::Command::new("mkfifo").arg(at.join("a-pipe/adapter_model.safetensors")).status()?;
    ensure!(made.success(), "no named pipe: {made}");
    let mut names: Vec<String> =
        at.read_dir()?.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name != "good");
    names.sort();
    Ok(names)
}

#[tokio::test]
async fn what_is_no_adapter_is_refused_and_nothing_changes() -> Result<()> {
    let root = tempfile::tempdir()?;
    let at = root.path();
    let names = broken(at)?;
    let settings = Settings::golden().adapter_root(at);
    let server = Server::start(settings).await?;
    let client = server.client();
    let models = client.get("/v1/models").await?.ok()?;
    let mut failures = Vec::new();
    for name in &names {
        let reply = load(&client, name).await?;
        if reply.status != 400 {
            failures.push(format!("{name}: status {}: {:.200}", reply.status, reply.text()));
            client.post("/v1/unload_lora_adapter", &json!({"lora_name": name})).await?;
            continue;
        }
        let error = reply.error()?;
        if error.code.as_deref() != Some("invalid_adapter") || error.message.len() < 20 {
            failures.push(format!("{name}: {error:?}"));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    ensure!(client.get("/v1/models").await?.ok()?["data"] == models["data"], "a refused adapter is in the list");
    // The good one still loads, and once only.
    ensure!(load(&client, "good").await?.status == 200);
    let again = load(&client, "good").await?;
    ensure!(again.status == 409 && again.error()?.code.as_deref() == Some("conflict"), "status {}", again.status);
    let chat = json!({"model": "reground@good", "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}]});
    client.answer(&chat).await?;
    Ok(())
}

/// Imported and activated, as an operator would, while another adapter is live: refused at one or the other, with one code, and
/// what was live goes on.
#[tokio::test]
async fn a_bad_adapter_never_goes_live_and_the_old_one_answers() -> Result<()> {
    let root = tempfile::tempdir()?;
    let names = broken(root.path())?;
    let server = Server::start(Settings::golden().adapter_root(root.path())).await?;
    let client = server.client();
    let good = client.post("/v1/adapters", &json!({"path": "good"})).await?.ok()?;
    let good = good["id"].as_str().context("no id")?.to_owned();
    client.post(&format!("/v1/adapters/{good}/activate"), &json!({})).await?.ok()?;
    let chat = json!({"model": "reground", "temperature": 0, "max_tokens": 3,
        "messages": [{"role": "user", "content": "hello"}]});
    let before = client.answer(&chat).await?;
    ensure!(before["system_fingerprint"] == *good, "{before}");
    let mut failures = Vec::new();
    for name in &names {
        let mut reply = client.post("/v1/adapters", &json!({"path": name})).await?;
        let mut at = "import";
        if reply.status == 200 {
            let id = reply.json()?["id"].as_str().context("no id")?.to_owned();
            reply = client.post(&format!("/v1/adapters/{id}/activate"), &json!({})).await?;
            at = "activation";
            let gone = client.request(reqwest::Method::DELETE, &format!("/v1/adapters/{id}"));
            Client::send(gone).await?;
        }
        if reply.status != 400 || reply.error()?.code.as_deref() != Some("invalid_adapter") {
            failures.push(format!("{name} at its {at}: status {}: {:.200}", reply.status, reply.text()));
        }
        let now = client.answer(&chat).await?;
        if now["system_fingerprint"] != *good || now["choices"] != before["choices"] {
            failures.push(format!("{name}: {now} answers, not {before}"));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    let list = client.get("/v1/adapters").await?.ok()?;
    ensure!(list["data"].as_array().is_some_and(|all| all.len() == 1), "{list:#}");
    Ok(())
}

#[tokio::test]
async fn files_that_change_after_they_were_taken_in_are_not_served() -> Result<()> {
    let data = tempfile::tempdir()?;
    let settings = || Settings::golden().data(data.path());
    let server = Server::start(settings()).await?;
    let client = server.client();
    let import = async || {
        let adapter = client.post("/v1/adapters", &json!({"path": "adapter"})).await?.ok()?;
        adapter["id"].as_str().map(str::to_owned).context("no id")
    };
    let activate = async |id: &str| client.post(&format!("/v1/adapters/{id}/activate"), &json!({})).await;
    let (first, second) = (import().await?, import().await?);
    activate(&first).await?.ok()?;
    let chat = json!({"model": "reground", "temperature": 0, "max_tokens": 3,
        "messages": [{"role": "user", "content": "hello"}]});
    let before = client.answer(&chat).await?;
    for (id, file) in [(&second, "adapter_config.json"), (&first, "adapter_model.safetensors")] {
        let path = data.path().join("adapters").join(id).join(file);
        let mut bytes = std::fs::read(&path)?;
        *bytes.last_mut().context("an empty file")? ^= 1;
        std::fs::write(path, bytes)?;
    }
    let refused = activate(&second).await?;
    ensure!(refused.status == 400, "{}", refused.text());
    ensure!(refused.error()?.code.as_deref() == Some("adapter_changed"), "{}", refused.text());
    // What was loaded before its files changed goes on; what would load them now does not.
    let now = client.answer(&chat).await?;
    ensure!(now["system_fingerprint"] == *first && now["choices"] == before["choices"], "{now}");
    client.post("/v1/adapters/rollback", &json!({})).await?.ok()?;
    server.kill();

    let server = Server::start(settings()).await?;
    let client = server.client();
    let refused = client.post(&format!("/v1/adapters/{first}/activate"), &json!({})).await?;
    ensure!(refused.error()?.code.as_deref() == Some("adapter_changed"), "{}", refused.text());
    ensure!(client.answer(&chat).await?["system_fingerprint"] == "base", "not the base");
    Ok(())
}

#[tokio::test]
async fn a_live_adapter_whose_files_changed_falls_back_at_the_next_start() -> Result<()> {
    let data = tempfile::tempdir()?;
    let settings = || Settings::golden().data(data.path());
    let server = Server::start(settings()).await?;
    let adapter = server.client().post("/v1/adapters", &json!({"path": "adapter"})).await?.ok()?;
    let id = adapter["id"].as_str().context("no id")?.to_owned();
    server.client().post(&format!("/v1/adapters/{id}/activate"), &json!({})).await?.ok()?;
    server.kill();
    std::fs::write(data.path().join("adapters").join(&id).join("adapter_model.safetensors"), b"other")?;
    let server = Server::start(settings()).await?;
    let route = server.client().get("/v1/adapters").await?.ok()?;
    ensure!(route["route"]["live"] == "base" && server.log_tail().contains("falling back"), "{route}");
    let changes = server.client().get("/v1/adapters/changes").await?.ok()?;
    ensure!(changes["data"][0]["what"] == "fallback", "{changes}");
    Ok(())
}

#[tokio::test]
async fn links_do_not_lead_out_of_the_root() -> Result<()> {
    let place = tempfile::tempdir()?;
    let root = place.path().join("root");
    std::fs::create_dir(&root)?;
    copy(place.path(), "outside")?;
    std::os::unix::fs::symlink(place.path().join("outside"), root.join("link"))?;
    let server = Server::start(Settings::golden().adapter_root(&root)).await?;
    let reply = load(&server.client(), "link").await?;
    ensure!(reply.status == 400, "status {}: {}", reply.status, reply.text());
    ensure!(reply.error()?.param.as_deref() == Some("lora_path"), "{}", reply.text());
    Ok(())
}

#[tokio::test]
async fn without_a_root_no_adapter_is_loaded() -> Result<()> {
    let server = Server::start(Settings::builtin()).await?;
    let reply = load(&server.client(), "adapter").await?;
    ensure!(reply.status == 403, "status {}: {}", reply.status, reply.text());
    ensure!(reply.error()?.message.contains("adapter_root"), "{}", reply.text());
    Ok(())
}

#[tokio::test]
async fn loading_and_unloading_leaves_little_behind() -> Result<()> {
    let server = Server::start(Settings::golden()).await?;
    let client = server.client();
    let cycle = async |count: usize| -> Result<()> {
        for at in 0..count {
            let name = format!("a{at}");
            let reply =
                client.post("/v1/load_lora_adapter", &json!({"lora_name": name, "lora_path": "adapter"})).await?;
            ensure!(reply.status == 200, "{}", reply.text());
            let chat = json!({"model": format!("reground@{name}"), "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}]});
            client.answer(&chat).await?;
            ensure!(client.post("/v1/unload_lora_adapter", &json!({"lora_name": name})).await?.status == 200);
        }
        Ok(())
    };
    cycle(10).await?;
    let before = server.memory_kib()?;
    cycle(20).await?;
    let after = server.memory_kib()?;
    reground_tests::say!("adapters: {before} KiB, {after} KiB after 20 loads more");
    // The model has 1.6 MB; twenty that stay would be 32 MB. What allocators and sleeping threads keep is less than that.
    ensure!(after.saturating_sub(before) < 20 * 1024, "memory grew from {before} to {after} KiB");
    let models = client.get("/v1/models").await?.ok()?;
    ensure!(models["data"].as_array().context("a list")?.len() == 2, "{models}");
    Ok(())
}
