//! The model's own answers as annotations: those that pass the grounding filter, as the server chooses them where nobody corrects.

use std::sync::Arc;

use anyhow::{Context, Result};
use rand::Rng;
use reground_learner::bootstrap::distort::{Distortion, DistortionKind, Normalisation};
use reground_learner::bootstrap::ground::same_claim;
use reground_learner::bootstrap::weaken;
use reground_learner::bpo::policy::Policy as _;
use reground_learner::generator::{Question, Turn};
use reground_learner::model;
use reground_learner::pocket::random::stream;
use reground_learner::pocket::world::SIDE;

use super::annotations::Annotation;
use super::maker::{MAX_TOKENS, Maker};

/// What the server takes by default, of [`reground_learner::bootstrap::ground`].
const MARGIN: f64 = 0.3;
const NOISE: f64 = 500.0;
const SAMPLES: u64 = 4;
const AGREE: usize = 3;
const TEMPERATURE: f64 = 0.7;

/// Replaces what is annotated by what the model says, and keeps what the picture and the model's other answers bear out.
pub(super) fn answered(maker: &Maker<'_>, block: Vec<Annotation>) -> Result<Vec<Annotation>> {
    let asked: Vec<_> = block.iter().map(|one| question(one, 0.0, 0)).collect();
    let answers = maker.answers(&asked)?;
    let mut agreeing = vec![0; block.len()];
    for sample in 0..SAMPLES {
        let seed = |one: &Annotation| stream(maker.seed, "comparison sample", one.index * SAMPLES + sample).random();
        let asked: Vec<_> = block.iter().map(|one| question(one, TEMPERATURE, seed(one))).collect();
        for ((count, answer), drawn) in agreeing.iter_mut().zip(&answers).zip(maker.answers(&asked)?) {
            *count += usize::from(same_claim(answer, &drawn));
        }
    }
    let mut kept = Vec::new();
    for ((one, answer), agreeing) in block.into_iter().zip(answers).zip(agreeing) {
        if agreeing >= AGREE && !answer.is_empty() && margin(maker, &one, &answer)? >= MARGIN {
            kept.push(Annotation { chosen: answer, ..one });
        }
    }
    Ok(kept)
}

fn turns(one: &Annotation) -> Vec<Turn> {
    vec![Turn::user([Arc::clone(&one.image)], one.question.as_str())]
}

fn question(one: &Annotation, temperature: f64, seed: u64) -> Question {
    Question {
        generation: None,
        turns: turns(one),
        temperature,
        top_p: 1.0,
        seed,
        max_tokens: MAX_TOKENS,
        answer: None,
    }
}

/// What the picture adds to the answer's log-probability, nats per token.
fn margin(maker: &Maker<'_>, one: &Annotation, answer: &str) -> Result<f64> {
    let seed = stream(maker.seed, "comparison grounding", one.index).random();
    let distortion = Distortion { kind: DistortionKind::Noise, strength: NOISE, seed };
    let distorted = weaken::distorted(&turns(one), &distortion, SIDE as u32, &Normalisation::default())?;
    let model = maker.policy.model();
    let group = |image| -> Result<_> {
        let images = [model.preprocess(image)?];
        Ok(model.group(&[model::Message::user(one.question.as_str(), 1)], &images, &[answer])?)
    };
    let groups = [group(&one.image)?, group(distorted[0].images().next().context("no image")?)?];
    let scores = maker.policy.score(&groups, false)?;
    Ok((scores[0][0] - scores[1][0]) / groups[0].answers[0].len() as f64)
}
