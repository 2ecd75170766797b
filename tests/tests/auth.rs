//! Keys and roles.

use anyhow::{Result, ensure};
use reground_tests::{Server, Settings};
use serde_json::json;

const CLIENT: &str = "sk-a-client-of-this-test";
const ADMIN: &str = "sk-an-admin-of-this-test";

#[tokio::test]
async fn a_role_opens_what_it_says() -> Result<()> {
    let server = Server::start(Settings::golden().key("app", CLIENT, "client").key("root", ADMIN, "admin")).await?;
    let (nobody, client, admin) =
        (server.client_with(None), server.client_with(Some(CLIENT)), server.client_with(Some(ADMIN)));
    // Path, and the status for nobody, a client and an admin.
    for (path, statuses) in [
        ("/health", [200, 200, 200]),
        ("/ready", [401, 200, 200]),
        ("/v1/models", [401, 200, 200]),
        ("/openapi.json", [401, 200, 200]),
        ("/metrics", [401, 403, 200]),
        ("/nope", [401, 404, 404]),
    ] {
        for (who, status) in [&nobody, &client, &admin].into_iter().zip(statuses) {
            let reply = who.get(path).await?;
            ensure!(reply.status == status, "{path}: status {} instead of {status}", reply.status);
            ensure!(status != 401 || reply.header("www-authenticate") == Some("Bearer"), "{path}: no WWW-Authenticate");
        }
    }
    let load = json!({"lora_name": "golden", "lora_path": "adapter"});
    for (who, status) in [(&nobody, 401), (&client, 403), (&admin, 200)] {
        ensure!(who.post("/v1/load_lora_adapter", &load).await?.status == status);
    }
    let chat = json!({"model": "reground", "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}]});
    ensure!(nobody.ask(&chat).await?.status == 401);
    client.answer(&chat).await?;
    admin.answer(&chat).await?;
    let log = server.log_tail();
    ensure!(!log.contains(CLIENT) && !log.contains(ADMIN), "a key is in the log");
    ensure!(!log.contains("hello"), "a message is in the log");
    Ok(())
}

#[tokio::test]
async fn without_keys_everyone_on_this_machine_is_an_admin() -> Result<()> {
    let server = Server::start(Settings::golden()).await?;
    for key in [None, Some("sk-anything")] {
        let client = server.client_with(key);
        ensure!(client.get("/metrics").await?.status == 200);
    }
    Ok(())
}

#[test]
fn without_keys_only_loopback_is_listened_on() -> Result<()> {
    let (status, log) = Server::refused(&Settings::golden().section("server", "bind = \"192.0.2.1\""))?;
    ensure!(!status.success(), "it started");
    ensure!(log.contains("server.bind") && log.contains("loopback"), "the log does not say why: {log}");
    Ok(())
}

#[test]
fn a_key_in_the_configuration_itself_is_refused_and_not_repeated() -> Result<()> {
    let keys = "name = \"a\"\nkey = \"sk-in-the-clear\"";
    let (status, log) = Server::refused(&Settings::golden().section("[auth.keys]", keys))?;
    ensure!(!status.success(), "it started");
    ensure!(log.contains("env:") && log.contains("file:"), "the log does not say what is allowed: {log}");
    ensure!(!log.contains("sk-in-the-clear"), "the log repeats the key: {log}");
    Ok(())
}

#[test]
fn an_unknown_setting_is_refused_by_name() -> Result<()> {
    for (section, line, says) in [
        ("server", "prot = 80", "prot"),
        ("admission", "queue = 0", "admission.queue"),
        ("images", "max_side = 99999999", "max_side"),
        ("model", "device = \"tpu\"", "tpu"),
    ] {
        let (status, log) = Server::refused(&Settings::golden_without_device().section(section, line))?;
        ensure!(!status.success(), "{line}: it started");
        ensure!(log.contains(says), "{line}: the log does not name it: {log}");
    }
    Ok(())
}
