//! This crate's half of `learner/scripts/trl_compare/run.py`, which says what is compared.
//!
//! ```text
//! trl_compare files DIR            the pocket model's files, all but the weights
//! trl_compare train RUN DATA       imports preference JSONL into RUN (`run.toml` is there) and trains it
//! ```
//! `train` is what `reground train --run RUN --import DATA` does. Standard output has JSON lines: the trainer's events
//! between one that says when it began and one that says what it took.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use reground_learner::bpo::config::RunConfig;
use reground_learner::bpo::data::blobs::BlobDir;
use reground_learner::bpo::data::{self, ReadOptions};
use reground_learner::bpo::metrics::peak_memory_bytes;
use reground_learner::bpo::trainer::{Control, Outcome};
use reground_learner::bpo::{dataset, launch, progress};
use reground_learner::model::DeviceChoice;
use reground_learner::pocket::hub::Shape;
use serde_json::json;

fn train(run: &Path, data: &Path) -> Result<()> {
    let config = RunConfig::load(&run.join("run.toml"))?;
    let blobs = BlobDir::new(run.join(&config.data.blobs));
    let mut pairs = Vec::new();
    let report = data::read(data, &ReadOptions::default(), &blobs, &mut |pair| pairs.push(pair))?;
    ensure!(report.skipped.is_empty(), "skipped: {:?}", report.skipped);
    dataset::freeze(&run.join(&config.data.dataset), &pairs)?;
    drop(pairs);

    // What the process has before there is a model; the rest of its peak is the training's.
    let runtime = peak_memory_bytes();
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let mut out = std::io::stdout();
    let outcome = launch::train(
        run,
        DeviceChoice::Cpu,
        &|| None,
        &Control::default(),
        &mut progress::JsonLines(std::io::stdout()),
    )?;
    ensure!(matches!(outcome, Outcome::Finished { .. }), "{outcome:?}");
    let took = json!({
        "event": "took",
        "seconds": began.elapsed().as_secs_f64(),
        "cpu_seconds": cpu_seconds() - cpu,
        "runtime_bytes": runtime,
        "peak_bytes": peak_memory_bytes(),
    });
    writeln!(out, "{took}")?;
    Ok(())
}

/// User and system CPU seconds of this process; 0 where there is no /proc. Linux counts 100 ticks a second for everyone.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or("").split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["files", directory] => Ok(Shape::default().write(Path::new(directory))?),
        ["train", run, data] => train(Path::new(run), Path::new(data)),
        _ => bail!("trl_compare files DIR | trl_compare train RUN DATA"),
    }
}
