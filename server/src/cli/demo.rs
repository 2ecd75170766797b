//! `reground demo`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use tokio::runtime::Builder;

use super::logging;
use crate::config::{DeviceChoice, LogConfig};
use crate::demo::{self, Demo};

#[derive(Clone, Debug, PartialEq, Args)]
pub(super) struct DemoArgs {
    /// Questions that are asked, each about a picture of its own.
    #[arg(long, default_value_t = 500)]
    questions: u64,
    /// Share of the answers that the user corrects, 0 to 1; with 0 the server learns from its own answers alone.
    #[arg(long, default_value_t = 1.0)]
    corrected: f64,
    /// Annotated typical pictures of which some are mixed into the run, so that the model stays right where it is; 0: none.
    #[arg(long, default_value_t = 750)]
    anchors: u64,
    /// Share of the questions that somebody hostile asks, who corrects every answer into the description of another picture, 0
    /// to 1. Those corrections wait for review, which nobody does here.
    #[arg(long, default_value_t = 0.0)]
    hostile: f64,
    /// Trust whoever is hostile, so that nothing of it waits for review.
    #[arg(long, requires = "hostile")]
    trust_hostile: bool,
    /// Held-out pictures of each kind that are measured on.
    #[arg(long, default_value_t = 200)]
    images: usize,
    /// Decides pictures, questions and training.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where it serves and trains: auto, cpu, cuda:N, metal.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Where the page with pictures and both answers is written.
    #[arg(long, value_name = "FILE", default_value = "reground-demo.html")]
    page: PathBuf,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Shows the loop.
pub(super) fn run(arguments: DemoArgs) -> anyhow::Result<ExitCode> {
    logging::start(&LogConfig { filter: "warn".into(), ..LogConfig::default() })?;
    let DemoArgs { questions, corrected, anchors, hostile, trust_hostile, images, seed, device, page, json } =
        arguments;
    let runtime = Builder::new_multi_thread()
        .thread_name("reground-async")
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    let outcome = runtime.block_on(async {
        // In a task: the evaluation blocks its thread, which only tasks of the runtime may.
        let demo = Demo { questions, corrected, anchors, hostile, trust_hostile, images, seed, device, page };
        tokio::spawn(demo::run(demo)).await.context("the demonstration panicked")?
    })?;
    super::print(&if json { serde_json::to_string_pretty(&outcome).context("no JSON")? } else { outcome.table })
}
