//! The binary `reground`: the library's command line.

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    reground::cli::run()
}
