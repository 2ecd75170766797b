//! What weakening an image does to the pocket's captions: for choosing a kind and a strength. A negative is of use if it is as
//! fluent and as long as an answer to the clean picture, and wrong more often.
//!
//! ```text
//! cargo run --release -p reground-learner --example weakening -- 200 noise:80 noise:300 blur:2 blank:0
//! ```
//!
//! The first argument is the number of balanced held-out pictures, the others are kinds and strengths as in the configuration.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use image::DynamicImage;
use reground_learner::bootstrap::distort::{Distortion, DistortionKind, Normalisation};
use reground_learner::eval::run::{self, Asker};
use reground_learner::eval::{EvalError, ImageSource, ModelAnswerer};
use reground_learner::model::{Model, Workers};
use reground_learner::pocket::held_out::{self, Example, PocketReader};
use reground_learner::pocket::shipped;
use reground_learner::pocket::world::{SIDE, Statistics};

const USAGE: &str = "usage: weakening PICTURES KIND:STRENGTH…";
const MAX_TOKENS: usize = 64;
const COLUMNS: [&str; 4] = ["CHAIR_i", "Cover", "malformed", "mean length"];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let pictures = arguments.next().context(USAGE)?.parse().context(USAGE)?;
    let distortions = arguments.map(|text| parse(&text)).collect::<Result<Vec<_>>>()?;

    let source = shipped::source();
    let model = Model::build(&source, &source.weights(DType::F32, &Device::Cpu)?)?;
    let workers = Workers::new(0)?;
    let clean = held_out::examples(Statistics::Balanced, pictures, 1);

    println!("| pictures | {} |\n|{}", COLUMNS.join(" | "), "---|".repeat(COLUMNS.len() + 1));
    println!("| clean | {} |", row(&model, &workers, &clean)?);
    for (name, distortion) in distortions {
        let distorted =
            clean.iter().zip(0..).map(|(one, seed)| weakened(one, distortion, seed)).collect::<Result<Vec<_>>>()?;
        println!("| {name} | {} |", row(&model, &workers, &distorted)?);
    }
    Ok(())
}

fn parse(text: &str) -> Result<(String, Distortion)> {
    let Some((kind, strength)) = text.split_once(':') else { bail!("{text:?} is no KIND:STRENGTH\n{USAGE}") };
    let kind: DistortionKind = serde_json::from_value(kind.into()).with_context(|| format!("no kind {kind:?}"))?;
    let strength = strength.parse().with_context(|| format!("{strength:?} is no number"))?;
    Ok((text.to_owned(), Distortion { kind, strength, seed: 0 }))
}

fn weakened(example: &Example, distortion: Distortion, seed: u64) -> Result<Example> {
    let image = DynamicImage::ImageRgb8(example.image.as_ref().clone());
    let distorted = Distortion { seed, ..distortion }.apply_within(&image, SIDE as u32, &Normalisation::default())?;
    Ok(Example { image: Arc::new(distorted.to_rgb8()), ..example.clone() })
}

/// The measures of greedy captions, as the cells of a Markdown row.
fn row(model: &Model, workers: &Workers, examples: &[Example]) -> Result<String> {
    let mut answerer = ModelAnswerer::new(model, None, workers, MAX_TOKENS);
    let mut asker = Asker { answerer: &mut answerer, batch: 64, progress: &mut |_| () };
    let image = |name: &str| {
        let found = examples.iter().find(|example| example.name == name);
        let memory = found.map(|example| ImageSource::Memory(Arc::clone(&example.image)));
        memory.ok_or_else(|| EvalError::Empty(name.to_owned()))
    };
    let measures = run::captions(&mut asker, &held_out::caption_items(examples), &PocketReader, &image)?;
    let cell = |name: &str| {
        let value = measures.iter().find(|measure| measure.name() == name).and_then(|measure| measure.value());
        match value {
            None => "–".to_owned(),
            Some(value) if name == "mean length" => format!("{value:.1} words"),
            Some(value) => format!("{:.1} %", value * 100.0),
        }
    };
    Ok(COLUMNS.map(cell).join(" | "))
}
