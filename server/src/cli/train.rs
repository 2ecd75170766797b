//! `reground train`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result};
use clap::Args;
use reground_learner::bpo::config::RunConfig;
use reground_learner::bpo::data::blobs::BlobDir;
use reground_learner::bpo::data::{self, ReadOptions};
use reground_learner::bpo::trainer::{Control, Outcome};
use reground_learner::bpo::{dataset, launch, progress};
use reground_learner::model::DeviceChoice;
use reground_learner::pocket::shipped;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use crate::os;

#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(super) struct TrainArgs {
    /// The run's directory: run.toml, dataset.jsonl and what the run makes of them.
    #[arg(long, value_name = "DIRECTORY")]
    pub(super) run: PathBuf,
    /// Freeze this preference data (JSONL, LLaVA or BPO JSON) into the run first.
    #[arg(long, value_name = "FILE")]
    pub(super) import: Option<PathBuf>,
    /// Directory that the data's image paths are relative to.
    #[arg(long, value_name = "DIRECTORY", requires = "import")]
    pub(super) images: Option<PathBuf>,
    /// Work for the process at the other end of standard input: a line `pause` pauses the run, the end of the input ends
    /// this process at once.
    #[arg(long, conflicts_with = "import")]
    pub(super) supervised: bool,
    /// Lower this process's priority by so much, 0 to 19; with 19 Linux lets it run only while nobody else wants the core.
    #[arg(long, value_name = "STEPS", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=19))]
    pub(super) nice: u8,
    /// Where it runs: auto, cpu, cuda:N, metal.
    #[arg(long, default_value = "auto")]
    pub(super) device: DeviceChoice,
}

/// Exit code when the supervisor went away.
const UNSUPERVISED: u8 = 3;

/// Trains one run, or goes on with it. Ctrl-C and SIGTERM pause it between two steps.
pub(super) fn run(arguments: &TrainArgs) -> Result<ExitCode> {
    if let Some(file) = &arguments.import {
        import(arguments, file)?;
    }
    // Before there is a second thread: each has a priority of its own.
    os::lower_priority(arguments.nice);
    let control = Control::default();
    pause_on_signal(control.clone())?;
    if arguments.supervised {
        obey(control.clone())?;
    }
    let pocket = || Some(shipped::source());
    let outcome = launch::train(&arguments.run, arguments.device, &pocket, &control, progress::automatic().as_mut())?;
    if let Outcome::Finished { .. } = outcome {
        writeln!(io::stderr(), "The adapter is in {}.", arguments.run.join("adapter").display())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn import(arguments: &TrainArgs, file: &Path) -> Result<()> {
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
    let mut errors = io::stderr();
    for skipped in &report.skipped {
        writeln!(errors, "{}:{}: {}", file.display(), skipped.line, skipped.reason)?;
    }
    let (digest, count) = dataset::freeze(&arguments.run.join(&config.data.dataset), &pairs)?;
    writeln!(errors, "{count} pairs and annotations, {} entries skipped, digest {digest}", report.faults)?;
    Ok(())
}

/// Does what standard input says. Whoever started this process holds the other end, so it closes with that process, however
/// it ends: a training that nobody reads any more must not go on.
fn obey(control: Control) -> Result<()> {
    os::survive_a_stop();
    thread::Builder::new().name("reground-supervisor".into()).spawn(move || {
        for line in io::stdin().lines() {
            match line.as_deref() {
                Ok("pause") => control.pause(),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        // The last checkpoint is whole, whenever this happens.
        std::process::exit(i32::from(UNSUPERVISED));
    })?;
    Ok(())
}

/// Turns Ctrl-C and SIGTERM into a pause. Training has this thread, so the signals get one of their own; it ends with the
/// process.
fn pause_on_signal(control: Control) -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build().context("no runtime for signals")?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    thread::Builder::new().name("reground-signals".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
        });
        control.pause();
    })?;
    Ok(())
}
