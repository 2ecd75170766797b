//! `pocket build`: the pocket model from a seed, resumed if it was interrupted.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use reground_learner::pocket::builder::{Progress, Recipe, Stage, build};
use reground_learner::pocket::hub::Shape;

/// Steps between log lines where there is no terminal to draw a bar on.
const LOG_EVERY: usize = 25;

pub(crate) fn run(recipe: &Recipe, out: &Path) -> Result<()> {
    // Each worker is one thread. candle reads this variable for every product, so it is set for a process of its own.
    const THREADS: &str = "RAYON_NUM_THREADS";
    if std::env::var(THREADS).as_deref() != Ok("1") {
        let status = Command::new(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .env(THREADS, "1")
            .status()
            .context("starting the builder with one thread a worker")?;
        ensure!(status.success(), "the builder ended with {status}");
        return Ok(());
    }
    let mut display = Display::new()?;
    build(recipe, &Shape::default(), out, &mut |progress| {
        display.show(progress);
        ControlFlow::Continue(())
    })?;
    println!("the pocket model is in {}", out.display());
    Ok(())
}

/// A bar per stage in a terminal, lines elsewhere. Shows running means, as one step is noisy.
struct Display {
    bar: Option<ProgressBar>,
    stage: Option<Stage>,
    loss: f32,
    accuracy: f32,
}

impl Display {
    fn new() -> Result<Self> {
        let style = "{prefix} {bar:30} {pos}/{len} {elapsed} (left {eta}) {msg}";
        let bar = if std::io::stderr().is_terminal() {
            Some(ProgressBar::new(0).with_style(ProgressStyle::with_template(style)?))
        } else {
            None
        };
        Ok(Self { bar, stage: None, loss: 0.0, accuracy: 0.0 })
    }

    fn show(&mut self, progress: Progress) {
        if self.stage != Some(progress.stage) {
            self.stage = Some(progress.stage);
            (self.loss, self.accuracy) = (progress.loss, progress.accuracy);
            if let Some(bar) = &self.bar {
                bar.set_length(progress.steps as u64);
                bar.set_prefix(progress.stage.name());
                bar.reset();
            }
        }
        self.loss += 0.1 * (progress.loss - self.loss);
        self.accuracy += 0.1 * (progress.accuracy - self.accuracy);
        let text = format!("loss {:.4} accuracy {:.3}", self.loss, self.accuracy);
        match &self.bar {
            Some(bar) => {
                bar.set_message(text);
                bar.set_position(progress.step as u64);
            }
            None if progress.step.is_multiple_of(LOG_EVERY)
                || progress.step == 1
                || progress.step == progress.steps =>
            {
                let Progress { stage, step, steps, gradient_norm, seconds, .. } = progress;
                eprintln!("{} {step}/{steps} {text} gradient {gradient_norm:.2} after {seconds:.0} s", stage.name());
            }
            None => {}
        }
    }
}
