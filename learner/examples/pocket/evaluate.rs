//! `pocket eval`: what a model makes of the held-out pictures. `pocket held-out`: those pictures as files.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use indicatif::{ProgressBar, ProgressStyle};
use reground_learner::eval::{Bootstrap, ModelAnswerer};
use reground_learner::model::{Model, Workers};
use reground_learner::pocket::held_out::{self, Size};

/// Longer than any caption of the pocket.
const MAX_TOKENS: usize = 64;

pub(crate) fn run(model_directory: &Path, size: Size, json: Option<&Path>) -> Result<()> {
    let model = Model::load(model_directory, DType::F32, &Device::Cpu)
        .with_context(|| format!("loading {}", model_directory.display()))?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = Workers::new(threads)?;
    let mut answerer = ModelAnswerer::new(&model, None, &workers, MAX_TOKENS);
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}")?);
    let report = held_out::evaluate("pocket", &mut answerer, size, Bootstrap::default(), &mut |set, done| {
        bar.set_message(format!("{set}: {done}"));
        bar.tick();
    })?;
    bar.finish_and_clear();
    println!("{report}");
    if let Some(path) = json {
        let file = std::fs::File::create(path).with_context(|| format!("writing {}", path.display()))?;
        serde_json::to_writer_pretty(file, &report)?;
    }
    Ok(())
}

pub(crate) fn write(directory: &Path, size: Size) -> Result<()> {
    held_out::write(directory, size).with_context(|| format!("writing {}", directory.display()))
}
