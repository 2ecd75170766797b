//! The `reground` binary: see `reground --help`.

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    reground::cli::run()
}
