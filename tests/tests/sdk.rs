//! The official SDKs, installed from their registries by the test itself, run unchanged against the binary.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use reground_tests::{Server, Settings, say};

const KEY: &str = "sk-of-the-sdk-tests";
const ADMIN_KEY: &str = "sk-of-the-sdk-tests-for-admins";

/// Where the SDKs are installed: beside the build, kept between runs.
fn place(name: &str) -> Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let deps = executable.parent().and_then(Path::parent).context("the test executable has no build directory")?;
    let place = deps.join("sdk").join(name);
    std::fs::create_dir_all(&place)?;
    Ok(place)
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk").join(name)
}

/// Installs, unless what is pinned is installed already: the pins are copied last, so half an install does not count.
fn install(place: &Path, pins: &Path, commands: &[(&str, &[&str])]) -> Result<()> {
    let mark = place.join("installed");
    let wanted = std::fs::read(pins)?;
    if std::fs::read(&mark).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    for (program, arguments) in commands {
        say!("{program} {}", arguments.join(" "));
        let status = Command::new(program).args(*arguments).current_dir(place).stdout(Stdio::null()).status();
        let status = status.with_context(|| format!("cannot start {program}"))?;
        ensure!(status.success(), "{program} {} failed: {status}", arguments.join(" "));
    }
    Ok(std::fs::write(mark, wanted)?)
}

/// Runs the SDK's own tests against two servers: a usual one, and one whose queue holds a single request.
async fn run(mut command: Command) -> Result<()> {
    let settings = || Settings::golden().key("sdk", KEY, "client").key("root", ADMIN_KEY, "admin");
    let server = Server::start(settings()).await?;
    let narrow = settings().section("admission", "queue = 1\nqueue_per_key = 1").section("model", "max_parallel = 1");
    let narrow = Server::start(narrow).await?;
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/idefics3/image_0.png");
    command
        .env("REGROUND_URL", server.base_url())
        .env("REGROUND_NARROW_URL", narrow.base_url())
        .env("REGROUND_KEY", KEY)
        .env("REGROUND_ADMIN_KEY", ADMIN_KEY)
        .env("REGROUND_IMAGE", image)
        // The servers are on this machine, whatever proxy the environment names.
        .env("NO_PROXY", "127.0.0.1")
        .env("no_proxy", "127.0.0.1")
        .stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{}\n{text}\n{}", output.status, server.log_tail());
    }
    for line in
        text.lines().filter(|line| line.starts_with("Ran ") || line.starts_with("# pass") || line.contains("ℹ pass"))
    {
        say!("sdk: {line}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python() -> Result<()> {
    let place = place("python")?;
    let pins = source("python").join("requirements.txt");
    let clients = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("a root")?.join("clients");
    let python = ["python3.13", "python3.12", "python3.11", "python3"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()))
        .context("no python3: install Python 3.10 or later with its venv module")?;
    let requirements = pins.to_str().context("a path in UTF-8")?.to_owned();
    install(
        &place,
        &pins,
        &[
            (python, &["-m", "venv", "--clear", "venv"]),
            (
                "venv/bin/python",
                &["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", &requirements],
            ),
        ],
    )?;
    // One after the other: the second one loads adapters, which the first one would see in the list of models.
    for test in ["test_sdk", "test_client", "test_fine_tuning"] {
        let mut command = Command::new(place.join("venv/bin/python"));
        command.args(["-m", "unittest", "--verbose", test]).current_dir(source("python"));
        command.env("PYTHONPATH", clients.join("python")).env("PYTHONDONTWRITEBYTECODE", "1");
        run(command).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node() -> Result<()> {
    let place = place("node")?;
    for file in ["package.json", "package-lock.json", "sdk.test.mjs"] {
        std::fs::copy(source("node").join(file), place.join(file))?;
    }
    let pins = place.join("package-lock.json");
    install(&place, &pins, &[("npm", &["ci", "--no-audit", "--no-fund", "--loglevel=error"])])?;
    let mut command = Command::new("node");
    command.args(["--test", "sdk.test.mjs"]).current_dir(&place);
    run(command).await
}
