//! Every number that decides the outcome of a build.

use serde::{Deserialize, Serialize};

/// A stage of pretraining.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The vision tower alone, on patch labels.
    Sight,
    /// Connector and language model, on conversations; the vision tower is frozen.
    Speech,
}

impl Stage {
    /// The name in progress and errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sight => "sight",
            Self::Speech => "speech",
        }
    }
}

/// Length and speed of one stage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRecipe {
    /// Optimiser steps.
    pub steps: usize,
    /// Pictures per step, over all workers.
    pub pictures: usize,
    /// Conversations without a picture per step, over all workers.
    pub texts: usize,
    /// Highest learning rate, reached after the warm-up.
    pub learning_rate: f64,
    /// Steps of linear warm-up.
    pub warm_up: usize,
    /// Share of the steps after the warm-up that keep the highest rate. While it is kept nothing depends on the number of
    /// steps, so a build can be shortened or lengthened on its way without becoming another one.
    pub hold: f64,
}

/// How the pocket model is built. The same recipe gives the same weights on the same machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Decides weights, pictures and conversations.
    pub seed: u64,
    /// Data-parallel workers of one thread each, whose gradients are averaged: on matrices this small two of them beat
    /// one worker with two threads. Part of the recipe because it decides the order of the sums.
    pub workers: usize,
    /// The first stage.
    pub sight: StageRecipe,
    /// The second stage.
    pub speech: StageRecipe,
    /// Turns about each picture; all of them share one pass over the picture.
    pub turns: usize,
    /// Decoupled weight decay of matrices; vectors have none.
    pub weight_decay: f64,
    /// Gradients are scaled down to this norm.
    pub clip: f64,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            seed: 0,
            workers: 2,
            sight: StageRecipe { steps: 900, pictures: 32, texts: 0, learning_rate: 1.5e-3, warm_up: 50, hold: 0.0 },
            speech: StageRecipe { steps: 1800, pictures: 24, texts: 8, learning_rate: 2e-3, warm_up: 75, hold: 0.6 },
            turns: 4,
            weight_decay: 0.02,
            clip: 1.0,
        }
    }
}

impl Recipe {
    /// The numbers of `stage`.
    pub fn stage(&self, stage: Stage) -> StageRecipe {
        match stage {
            Stage::Sight => self.sight,
            Stage::Speech => self.speech,
        }
    }

    /// Whether a build that has taken `step` steps of `stage` under `other` stands where this recipe would have brought it:
    /// what differs lies ahead. So a build can be lengthened or shortened while its rate is held.
    pub fn agrees_until(&self, other: &Self, stage: Stage, step: usize) -> bool {
        let mut aligned = other.clone();
        match stage {
            Stage::Sight => {
                aligned.sight.steps = self.sight.steps;
                aligned.speech = self.speech;
            }
            Stage::Speech => aligned.speech.steps = self.speech.steps,
        }
        let (mine, theirs) = (self.stage(stage), other.stage(stage));
        aligned == *self
            && step <= mine.steps
            && (0..step).all(|step| mine.rate(step).total_cmp(&theirs.rate(step)).is_eq())
    }
}

impl StageRecipe {
    /// Learning rate at `step` (from 0): linear warm-up, the highest rate, then half a cosine down to a twentieth.
    pub fn rate(&self, step: usize) -> f64 {
        const FLOOR: f64 = 0.05;
        if step < self.warm_up {
            return self.learning_rate * (step + 1) as f64 / self.warm_up as f64;
        }
        let after = self.steps.saturating_sub(self.warm_up) as f64;
        let held = (self.hold * after).floor();
        let share = ((step - self.warm_up) as f64 - held).max(0.0) / (after - held).max(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * share.min(1.0)).cos());
        self.learning_rate * (FLOOR + (1.0 - FLOOR) * cosine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(hold: f64) -> StageRecipe {
        StageRecipe { steps: 110, pictures: 1, texts: 0, learning_rate: 1.0, warm_up: 10, hold }
    }

    #[test]
    fn the_rate_rises_and_falls() {
        for (step, expected) in [(0, 0.1), (9, 1.0), (10, 1.0), (60, 0.05 + 0.95 * 0.5), (110, 0.05)] {
            assert!((stage(0.0).rate(step) - expected).abs() < 1e-12, "step {step}");
        }
    }

    #[test]
    fn the_rate_is_held_and_does_not_know_the_end_meanwhile() {
        for (step, expected) in [(9, 1.0), (10, 1.0), (69, 1.0), (70, 1.0), (90, 0.05 + 0.95 * 0.5), (110, 0.05)] {
            assert!((stage(0.6).rate(step) - expected).abs() < 1e-12, "step {step}");
        }
        let longer = StageRecipe { steps: 500, ..stage(0.6) };
        assert!((0..70).all(|step| longer.rate(step).total_cmp(&stage(0.6).rate(step)).is_eq()));
    }

    #[test]
    fn recipes_agree_as_long_as_what_differs_lies_ahead() {
        let recipe = Recipe::default();
        let mut longer = recipe.clone();
        longer.speech.steps += 100;
        assert!(longer.agrees_until(&recipe, Stage::Sight, recipe.sight.steps));
        assert!(longer.agrees_until(&recipe, Stage::Speech, 500));
        // The rate of the shorter one has begun to fall by then.
        assert!(!longer.agrees_until(&recipe, Stage::Speech, recipe.speech.steps));
        let other = Recipe { seed: 1, ..recipe.clone() };
        assert!(!other.agrees_until(&recipe, Stage::Sight, 0));
        let mut shorter = recipe.clone();
        shorter.speech.steps = 400;
        assert!(!shorter.agrees_until(&recipe, Stage::Speech, 500));
    }
}
