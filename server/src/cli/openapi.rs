//! `reground openapi`.

use std::process::ExitCode;

use utoipa::openapi::{Info, OpenApi, OpenApiBuilder};

use super::print;

/// Prints the description of the HTTP API.
pub(super) fn run() -> anyhow::Result<ExitCode> {
    print(&document().to_pretty_json()?)
}

/// A stand-in until `crate::api::openapi()` is there, which describes the routes; then `run` prints that one.
fn document() -> OpenApi {
    OpenApiBuilder::new().info(Info::new("Reground", env!("CARGO_PKG_VERSION"))).build()
}
