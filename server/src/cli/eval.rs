//! `reground eval`.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use reground_learner::bootstrap::distort::Distortion;
use reground_learner::eval::offline::evaluate;
use reground_learner::eval::{Bootstrap, Offline, Reader};
use reground_learner::model::{DeviceChoice, Quantisation};
use reground_learner::pocket::shipped;

#[derive(Clone, Debug, PartialEq, Args)]
pub(super) struct EvalArgs {
    /// Checkpoint directory of the model, or `pocket` for the model inside the binary.
    #[arg(long, value_name = "DIRECTORY")]
    pub(super) model: PathBuf,
    /// Hold the linear layers of its decoder in fewer bits, as `model.isq` does with the native engine: q8, q4. On the CPU only.
    #[arg(long, value_name = "BITS")]
    pub(super) isq: Option<Quantisation>,
    /// PEFT directory of an adapter on it.
    #[arg(long, value_name = "DIRECTORY")]
    pub(super) adapter: Option<PathBuf>,
    /// Evaluation set: captions, POPE's questions or preference data, told apart by their keys. May be given several times.
    #[arg(long = "set", value_name = "FILE", required_unless_present = "amber")]
    pub(super) sets: Vec<PathBuf>,
    /// AMBER's `data` directory, with its queries, annotations, relations and safe words.
    #[arg(long, value_name = "DIRECTORY")]
    pub(super) amber: Option<PathBuf>,
    /// Directory of the images. Default: the directory that a set is in, or AMBER's.
    #[arg(long, value_name = "DIRECTORY")]
    pub(super) images: Option<PathBuf>,
    /// Names of objects as CHAIR's synonyms.txt has them. Default: the names that a caption set annotates.
    #[arg(long, value_name = "FILE", conflicts_with = "pocket_captions")]
    pub(super) synonyms: Option<PathBuf>,
    /// Read captions as those of the pocket world, with colours, numbers and places.
    #[arg(long)]
    pub(super) pocket_captions: bool,
    /// Ask POPE's three kinds of questions about captioned images, too: so many present objects of each, and as many absent.
    #[arg(long, value_name = "OBJECTS", default_value_t = 0)]
    pub(super) pope: usize,
    /// Diffusion step, 0 to 999, of the noise on the image of preference data, for the image-conditional accuracy.
    #[arg(long, value_name = "STEP", default_value_t = 900.0)]
    pub(super) noise: f64,
    /// Items of each set, from its start, and of AMBER's queries of each type; 0 for all.
    #[arg(long, value_name = "ITEMS", default_value_t = 0)]
    pub(super) limit: usize,
    /// Longest answer, tokens.
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    pub(super) max_tokens: usize,
    /// Questions asked at once.
    #[arg(long, value_name = "QUESTIONS", default_value_t = 16)]
    pub(super) batch: usize,
    /// Where it runs: auto, cpu, cuda:N, metal.
    #[arg(long, default_value = "auto")]
    pub(super) device: DeviceChoice,
    /// Threads; 0 for all cores.
    #[arg(long, default_value_t = 0)]
    pub(super) threads: usize,
    /// Decides the resamples of the confidence intervals, the sampled questions and the noise.
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub(super) json: bool,
}

/// Measures a model on sets in files and prints the result.
pub(super) fn run(arguments: EvalArgs) -> Result<ExitCode> {
    let json = arguments.json;
    let mut errors = io::stderr();
    let terminal = errors.is_terminal();
    let report = evaluate(&settings(arguments), &|| Some(shipped::source()), &mut |section, done| {
        if terminal {
            // The line is written over by the next; progress that cannot be shown is no error.
            let _ = write!(errors, "\r\x1b[K{section}: {done}").and_then(|()| errors.flush());
        }
    });
    if terminal {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
    let report = report?;
    super::print(&if json { serde_json::to_string_pretty(&report).context("no JSON")? } else { report.to_string() })
}

fn settings(arguments: EvalArgs) -> Offline {
    let EvalArgs {
        model,
        isq,
        adapter,
        sets,
        amber,
        images,
        pope,
        limit,
        max_tokens,
        batch,
        device,
        threads,
        seed,
        ..
    } = arguments;
    let reader = match arguments.synonyms {
        Some(file) => Reader::Synonyms(file),
        None if arguments.pocket_captions => Reader::Pocket,
        None => Reader::Annotated,
    };
    let defaults = Offline::default();
    Offline {
        model,
        isq,
        adapter,
        sets,
        amber,
        images,
        reader,
        pope_per_image: pope,
        distortion: Distortion { strength: arguments.noise, seed, ..defaults.distortion },
        limit,
        max_tokens,
        batch,
        device,
        threads,
        bootstrap: Bootstrap { seed, ..Bootstrap::default() },
    }
}
