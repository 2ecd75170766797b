//! The loop: both stages, with data-parallel workers, checkpoints and a look at every step.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::DType;

use super::checkpoint::{self, Standing, write_whole};
use super::course;
use super::error::BuildError;
use super::initial;
use super::lesson::Encoder;
use super::network::{Network, Outcome};
use super::optimiser::{AdamW, average, clip};
use super::recipe::{Recipe, Stage};
use crate::model::Weights;
use crate::pocket::hub::Shape;

/// Steps between checkpoints.
const SAVE_EVERY: usize = 50;

/// A step that was just taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// The stage.
    pub stage: Stage,
    /// Steps taken of the stage.
    pub step: usize,
    /// Steps of the stage.
    pub steps: usize,
    /// Loss of this step.
    pub loss: f32,
    /// Accuracy of this step.
    pub accuracy: f32,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Seconds of work so far, over all sittings.
    pub seconds: f64,
}

/// The file that says where the build in `directory` stands.
pub fn checkpoint_path(directory: &Path) -> PathBuf {
    directory.join("build.safetensors")
}

/// Builds the pocket model into `directory`, going on from the checkpoint there if there is one. `look` sees every step
/// and may stop the build, which then saves a checkpoint. Returns whether the model is finished and written.
///
/// # Errors
/// A checkpoint of another recipe, a diverged loss, a failed tensor operation, or what the file system says.
pub fn build(
    recipe: &Recipe,
    shape: &Shape,
    directory: &Path,
    look: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<bool, BuildError> {
    fs_err::create_dir_all(directory)?;
    let heads = initial::sight_heads(shape, recipe.seed)?;
    let network = Network::new(shape, initial::weights(shape, recipe.seed)?, &heads)?;
    let path = checkpoint_path(directory);
    let (mut standing, mut optimiser) = if path.exists() {
        let (standing, optimiser) = checkpoint::load(&path, &network.with_heads())?;
        if !recipe.agrees_until(&standing.recipe, standing.stage, standing.step) {
            let reason = "belongs to a build with another recipe; build into another directory".to_owned();
            return Err(BuildError::Checkpoint { path, reason });
        }
        let recipe = recipe.clone();
        (Standing { recipe, ..standing }, optimiser)
    } else {
        let standing = Standing { recipe: recipe.clone(), stage: Stage::Sight, step: 0, seconds: 0.0 };
        (standing, AdamW::new(recipe.weight_decay))
    };
    let mut workers = (0..recipe.workers.max(1)).map(|_| Encoder::new(shape)).collect::<Result<Vec<_>, _>>()?;
    loop {
        if standing.step == recipe.stage(standing.stage).steps {
            match standing.stage {
                Stage::Sight => {
                    standing = Standing { stage: Stage::Speech, step: 0, ..standing };
                    optimiser = AdamW::new(recipe.weight_decay);
                    continue;
                }
                Stage::Speech => break,
            }
        }
        let started = Instant::now();
        let mut progress = step(recipe, shape, &standing, &network, &mut optimiser, &mut workers)?;
        standing.step += 1;
        standing.seconds += started.elapsed().as_secs_f64();
        progress.seconds = standing.seconds;
        let stopped = look(progress).is_break();
        if stopped || standing.step.is_multiple_of(SAVE_EVERY) || standing.step == progress.steps {
            checkpoint::save(&path, &standing, &network.with_heads(), &optimiser)?;
        }
        if stopped {
            return Ok(false);
        }
    }
    shape.write(directory)?;
    let weights = Weights::from_variables(network.variables());
    write_whole(&directory.join("model.safetensors"), &weights.serialize(DType::BF16)?)?;
    let mut recipe_text = serde_json::to_string_pretty(&standing).map_err(std::io::Error::from)?;
    recipe_text.push('\n');
    write_whole(&directory.join("build.json"), recipe_text.as_bytes())?;
    Ok(true)
}

fn step(
    recipe: &Recipe,
    shape: &Shape,
    standing: &Standing,
    network: &Network,
    optimiser: &mut AdamW,
    workers: &mut [Encoder],
) -> Result<Progress, BuildError> {
    let (stage, step) = (standing.stage, standing.step);
    let numbers = recipe.stage(stage);
    let count = workers.len();
    let outcomes: Vec<Result<Outcome, BuildError>> = std::thread::scope(|scope| {
        let running: Vec<_> = workers
            .iter_mut()
            .enumerate()
            .map(|(worker, encoder)| {
                scope.spawn(move || {
                    // Items are dealt like cards, so that shares differ by at most one.
                    let share = |items: usize| (worker..items).step_by(count);
                    match stage {
                        Stage::Sight => {
                            let items: Vec<_> = share(numbers.pictures)
                                .map(|item| course::sight(recipe.seed, step, item, shape.patch))
                                .collect();
                            network.sight(&items)
                        }
                        Stage::Speech => {
                            let pictures = share(numbers.pictures)
                                .map(|item| course::conversation(recipe.seed, step, item, recipe.turns));
                            let texts = share(numbers.texts).map(|item| course::text(recipe.seed, step, item));
                            network.speech(&pictures.chain(texts).collect::<Vec<_>>(), encoder)
                        }
                    }
                })
            })
            .collect();
        running
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let outcomes = outcomes.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mean = |number: fn(&Outcome) -> f32| outcomes.iter().map(number).sum::<f32>() / outcomes.len() as f32;
    let (loss, accuracy) = (mean(|outcome| outcome.loss), mean(|outcome| outcome.accuracy));
    if !loss.is_finite() {
        return Err(BuildError::Diverged { stage: stage.name(), step, loss });
    }
    let mut gradients = average(outcomes.into_iter().map(|outcome| outcome.gradients).collect());
    let gradient_norm = clip(&mut gradients, recipe.clip);
    optimiser.step(&network.with_heads(), &gradients, numbers.rate(step))?;
    Ok(Progress { stage, step: step + 1, steps: numbers.steps, loss, accuracy, gradient_norm, seconds: 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pocket::builder::recipe::StageRecipe;

    fn recipe() -> Recipe {
        let stage = StageRecipe { steps: 3, pictures: 3, texts: 1, learning_rate: 1e-3, warm_up: 1, hold: 0.0 };
        Recipe { sight: stage, speech: stage, turns: 2, ..Recipe::default() }
    }

    #[test]
    fn a_build_that_was_stopped_ends_like_one_that_was_not() {
        let shape = Shape::default();
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut losses = Vec::new();
        let finished = build(&recipe(), &shape, whole.path(), &mut |progress| {
            losses.push(progress.loss);
            ControlFlow::Continue(())
        });
        assert!(finished.unwrap());
        assert_eq!(losses.len(), 6);
        assert!(losses[2] < losses[0], "{losses:?}");
        // Stopped after every step, in the middle of both stages and between them.
        let mut sittings = 0;
        while !build(&recipe(), &shape, parts.path(), &mut |_| ControlFlow::Break(())).unwrap() {
            sittings += 1;
        }
        assert_eq!(sittings, 6);
        let weights = |directory: &Path| std::fs::read(directory.join("model.safetensors")).unwrap();
        assert!(weights(whole.path()) == weights(parts.path()), "weights differ");
        let other = Recipe { seed: 1, ..recipe() };
        let error = build(&other, &shape, parts.path(), &mut |_| ControlFlow::Continue(())).unwrap_err();
        assert!(error.to_string().contains("another recipe"), "{error}");
    }
}
