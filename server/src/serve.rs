//! The server from start to stop. (A placeholder until the parts are put together.)

use crate::config::Config;

/// Serves until it is told to stop.
///
/// # Errors
/// Always: nothing is put together yet.
pub async fn run(config: Config) -> anyhow::Result<()> {
    std::future::ready(Err(anyhow::anyhow!("cannot serve {} yet", config.model.name))).await
}
