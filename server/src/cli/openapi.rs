//! `reground openapi`.

use std::process::ExitCode;

use super::print;

/// Prints the description of the HTTP API.
pub(super) fn run() -> anyhow::Result<ExitCode> {
    print(&crate::api::openapi::openapi().to_pretty_json()?)
}
