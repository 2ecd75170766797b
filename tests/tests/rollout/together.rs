//! Several people change the route at once.

use anyhow::{Result, ensure};
use reground_tests::{Client, Server};
use serde_json::json;

use super::{import, settings};

const PEOPLE: usize = 6;
const CHANGES: usize = 40;

/// Activates an adapter again and again. Where it is live already the server says so; nothing else is in the way.
async fn insist(client: Client) -> Result<usize> {
    let adapter = import(&client).await?;
    let mut made = 0;
    for _ in 0..CHANGES {
        let reply = client.post(&format!("/v1/adapters/{adapter}/activate"), &json!({})).await?;
        match reply.status {
            200 => made += 1,
            status => ensure!(status == 409, "status {status}: {}", reply.text()),
        }
    }
    Ok(made)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_loads_is_not_lost_to_the_change_of_another() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(settings(data.path())).await?;
    let people: Vec<_> = (0..PEOPLE).map(|_| tokio::spawn(insist(server.client()))).collect();
    let mut made = 0;
    for person in people {
        made += person.await??;
    }
    ensure!(made > PEOPLE, "only {made} changes were made");
    Ok(())
}
