//! `reground serve`.

use std::process::ExitCode;

use anyhow::Context;
use tokio::runtime::Builder;

use super::settings::SettingsArgs;
use super::{logging, refuse};

/// Serves until it is told to stop.
pub(super) fn run(settings: SettingsArgs) -> anyhow::Result<ExitCode> {
    let config = match settings.load() {
        Ok(config) => config,
        Err(error) => return Ok(refuse(&error)),
    };
    logging::start(&config.log)?;
    // A plain tokio runtime, not actix's: that one has a single thread, and the answers under way run here.
    let runtime = Builder::new_multi_thread()
        .thread_name("reground-async")
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    runtime.block_on(crate::serve::run(config))?;
    Ok(ExitCode::SUCCESS)
}
