//! `reground check-config`.

use std::process::ExitCode;

use super::settings::SettingsArgs;
use super::{print, refuse};

/// Prints the configuration in effect. Secrets stay references and are not read: whoever checks a configuration need not
/// be allowed to see the keys.
pub(super) fn run(settings: SettingsArgs) -> anyhow::Result<ExitCode> {
    match settings.load() {
        Ok(config) => print(&config.to_toml()?),
        Err(error) => Ok(refuse(&error)),
    }
}
