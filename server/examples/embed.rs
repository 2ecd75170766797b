//! A server inside another tokio program: `cargo run --release -p reground --example embed`.

use reground::config::Config;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut config = Config::default();
    config.server.port = 0; // any free one
    let data = tempfile::tempdir()?; // a real program keeps its data
    config.data.dir = data.path().into();
    config.model.name = "mine".into();

    let running = reground::serve::start(config).await?;
    println!("listening on http://{}", running.address());

    // The host program does its own work here; the server answers meanwhile.
    let models = reqwest::get(format!("http://{}/v1/models", running.address())).await?.text().await?;
    println!("{models}");

    running.stop().await
}
