//! Trains a run directory by hand: `cargo run --release -p reground-learner --example train -- DIR`.
//!
//! `--import FILE [--images ROOT]` first reads preference data (JSONL, LLaVA or BPO JSON) into the run's dataset and blobs.
//! Ctrl-C and SIGTERM pause the run between two steps; the same command goes on. A terminal gets a bar, anything else JSON lines.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use reground_learner::bpo::config::RunConfig;
use reground_learner::bpo::data::blobs::BlobDir;
use reground_learner::bpo::data::{self, ReadOptions};
use reground_learner::bpo::trainer::{Control, Outcome};
use reground_learner::bpo::{dataset, launch, progress};

struct Arguments {
    run: PathBuf,
    import: Option<PathBuf>,
    images: Option<PathBuf>,
}

fn arguments() -> Result<Arguments> {
    let mut given = std::env::args_os().skip(1);
    let (mut run, mut import, mut images) = (None, None, None);
    while let Some(argument) = given.next() {
        let mut value =
            || given.next().map(PathBuf::from).with_context(|| format!("{} needs a path", argument.display()));
        match argument.to_str() {
            Some("--import") => import = Some(value()?),
            Some("--images") => images = Some(value()?),
            Some(flag) if flag.starts_with("--") => bail!("unknown flag {flag}"),
            _ if run.is_none() => run = Some(PathBuf::from(argument)),
            _ => bail!("one run directory, please"),
        }
    }
    let run = run.context("usage: train DIR [--import FILE [--images ROOT]]")?;
    Ok(Arguments { run, import, images })
}

fn import(arguments: &Arguments, file: &Path) -> Result<()> {
    fs_err::create_dir_all(&arguments.run)?;
    let settings = arguments.run.join("run.toml");
    if !settings.exists() {
        fs_err::write(&settings, "")?;
    }
    let config = RunConfig::load(&settings)?;
    let options = ReadOptions { image_root: arguments.images.clone(), ..ReadOptions::default() };
    let blobs = BlobDir::new(arguments.run.join(&config.data.blobs));
    let mut pairs = Vec::new();
    let report = data::read(file, &options, &blobs, &mut |pair| pairs.push(pair))?;
    let mut errors = std::io::stderr();
    for skipped in &report.skipped {
        writeln!(errors, "{}:{}: {}", file.display(), skipped.line, skipped.reason)?;
    }
    let (digest, count) = dataset::freeze(&arguments.run.join(&config.data.dataset), &pairs)?;
    writeln!(errors, "{count} pairs and annotations, {} entries skipped, digest {digest}", report.faults)?;
    Ok(())
}

/// Turns Ctrl-C and SIGTERM into a pause.
fn pause_on_signal(control: Control) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            #[cfg(unix)]
            if let Ok(mut terminate) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
                tokio::select! { _ = tokio::signal::ctrl_c() => {} _ = terminate.recv() => {} }
                return control.pause();
            }
            if tokio::signal::ctrl_c().await.is_ok() {
                control.pause();
            }
        });
    });
    Ok(())
}

fn main() -> Result<()> {
    let arguments = arguments()?;
    if let Some(file) = &arguments.import {
        import(&arguments, file)?;
    }
    let control = Control::default();
    pause_on_signal(control.clone())?;
    let outcome = launch::train(&arguments.run, &|| None, &control, progress::automatic().as_mut())?;
    if let Outcome::Finished { .. } = outcome {
        writeln!(std::io::stderr(), "adapter: {}", arguments.run.join("adapter").display())?;
    }
    Ok(())
}
