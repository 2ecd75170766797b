//! Where the binary is.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow, ensure};

use crate::say;

/// The binary under test: `REGROUND_BIN`, or the one beside the test executable, built if it is missing or older than its sources.
pub(crate) fn path() -> Result<PathBuf> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOUND.get_or_init(|| find().map_err(|error| format!("{error:#}"))).clone().map_err(|error| anyhow!(error))
}

/// A command of the binary, with nothing to read.
///
/// # Errors
/// There is no binary and it cannot be built.
pub fn command(name: &str) -> Result<Command> {
    let mut command = Command::new(path()?);
    command.arg(name).stdin(Stdio::null());
    Ok(command)
}

/// Whether this program is a test, in target/release/deps, and not one of this package's own, as target/release/slow_readers.
pub(crate) fn is_test() -> bool {
    let executable = std::env::current_exe().unwrap_or_default();
    executable.parent().is_some_and(|directory| directory.ends_with("deps"))
}

fn find() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("REGROUND_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "REGROUND_BIN names {}, which is no file", path.display());
        return Ok(path);
    }
    let executable = std::env::current_exe()?;
    let directory = executable.parent().context("the test executable has no directory")?;
    let profile = if is_test() { directory.parent().unwrap_or(directory) } else { directory };
    let binary = profile.join("reground");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("tests/ has no parent")?;
    if is_current(&binary, root) {
        return Ok(binary);
    }
    say!("building the binary under test");
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // As a part of the workspace: by itself it would have other features, and with them another mistralrs.
    build.args(["build", "--workspace", "--bin", "reground"]).current_dir(root);
    // What the test was told of its own package is not for build scripts: some run again when it changes (ring's), and then
    // everything above them is compiled again, mistralrs, too.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            build.env_remove(name.as_ref());
        }
    }
    if profile.ends_with("release") {
        build.arg("--release");
    }
    if let Some(target) = profile.parent() {
        build.arg("--target-dir").arg(target);
    }
    let status = build.status().context("cannot start cargo")?;
    ensure!(
        status.success() && binary.is_file(),
        "`cargo build --workspace --bin reground` did not make {}",
        binary.display()
    );
    Ok(binary)
}

/// Whether the binary is there and no source of it is newer.
fn is_current(binary: &Path, root: &Path) -> bool {
    let Ok(built) = binary.metadata().and_then(|file| file.modified()) else { return false };
    ["server/src", "server/Cargo.toml", "learner/src", "learner/Cargo.toml", "Cargo.lock"]
        .iter()
        .all(|source| newest(&root.join(source)).is_none_or(|changed| changed <= built))
}

fn newest(path: &Path) -> Option<SystemTime> {
    if !path.is_dir() {
        return path.metadata().ok()?.modified().ok();
    }
    path.read_dir().ok()?.flatten().filter_map(|entry| newest(&entry.path())).max()
}
