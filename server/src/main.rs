<<<<<<< HEAD
//! The `reground` binary: see `reground --help`.
=======
//! The binary `reground`: the library's command line.
>>>>>>> admission

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    reground::cli::run()
}
