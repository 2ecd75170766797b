//! The binary `reground`: the library's command line.

use std::process::ExitCode;

/// glibc's own allocator grew by 3 % over a thousand changes of who answers, where this one did not (docs/benchmarks.md).
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<ExitCode> {
    reground::cli::run()
}
