//! The numbers of a step and of an evaluation, under the names that trainers use.

use serde::{Deserialize, Serialize};

use super::loss::{Loss, PairLoss, PairScores};

/// One optimiser step. A number that no pair of the batch could give is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Optimiser step, from 1.
    pub step: u64,
    /// Passes over the data so far, fractional.
    pub epoch: f64,
    /// Mean loss of the batch's pairs, nats.
    pub loss: f64,
    /// The same of the same pairs with π_ref in the place of π_θ: what a batch costs before anything is learnt.
    #[serde(rename = "loss/reference", default)]
    pub loss_reference: f64,
    /// Unweighted L_bpo, mean over pairs that have a rejected answer.
    #[serde(rename = "loss/bpo", skip_serializing_if = "Option::is_none", default)]
    pub loss_bpo: Option<f64>,
    /// Unweighted L_cond, mean over pairs whose distorted image was scored.
    #[serde(rename = "loss/conditional", skip_serializing_if = "Option::is_none", default)]
    pub loss_conditional: Option<f64>,
    /// Unweighted L_sft, mean over all.
    #[serde(rename = "loss/sft")]
    pub loss_sft: f64,
    /// Mean β·r(y⁺).
    #[serde(rename = "rewards/chosen")]
    pub rewards_chosen: f64,
    /// Mean β·r(y⁻).
    #[serde(rename = "rewards/rejected", skip_serializing_if = "Option::is_none", default)]
    pub rewards_rejected: Option<f64>,
    /// Mean difference of the two over pairs.
    #[serde(rename = "rewards/margins", skip_serializing_if = "Option::is_none", default)]
    pub rewards_margins: Option<f64>,
    /// Share of pairs with a difference above 0.
    #[serde(rename = "rewards/accuracies", skip_serializing_if = "Option::is_none", default)]
    pub rewards_accuracies: Option<f64>,
    /// Mean log π_θ(y⁺|v,x), nats, summed over tokens.
    #[serde(rename = "logps/chosen")]
    pub logps_chosen: f64,
    /// Mean log π_θ(y⁻|v,x).
    #[serde(rename = "logps/rejected", skip_serializing_if = "Option::is_none", default)]
    pub logps_rejected: Option<f64>,
    /// Share of pairs with log π(y⁺|v) > log π(y⁺|ṽ).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image_conditional_accuracy: Option<f64>,
    /// Mean [log π_ref(y⁺) − log π_θ(y⁺)] / |y⁺|, nats per token; what the guard watches.
    pub chosen_drop: f64,
    /// Global L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Prompt and answer tokens through the model per second.
    #[serde(rename = "tokens/s")]
    pub tokens_per_second: f64,
    /// Pairs per second.
    #[serde(rename = "pairs/s")]
    pub pairs_per_second: f64,
    /// Largest resident set of the process so far, bytes; absent where the system does not tell.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub peak_memory_bytes: Option<u64>,
}

/// The held-out split after some step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Optimiser steps taken before it.
    pub step: u64,
    /// Held-out examples scored.
    pub examples: usize,
    /// Mean loss, nats.
    #[serde(rename = "eval/loss")]
    pub loss: f64,
    /// Share of pairs with a positive margin.
    #[serde(rename = "eval/rewards/accuracies")]
    pub accuracy: f64,
    /// Mean β [r(y⁺) − r(y⁻)].
    #[serde(rename = "eval/rewards/margins")]
    pub margin: f64,
    /// Mean log π_θ(y⁺|v,x), nats.
    #[serde(rename = "eval/logps/chosen")]
    pub logps_chosen: f64,
    /// Share of pairs with log π(y⁺|v) > log π(y⁺|ṽ).
    #[serde(rename = "eval/image_conditional_accuracy", skip_serializing_if = "Option::is_none", default)]
    pub image_conditional_accuracy: Option<f64>,
    /// Mean [log π_ref(y⁺) − log π_θ(y⁺)] / |y⁺|, nats per token.
    #[serde(rename = "eval/chosen_drop")]
    pub chosen_drop: f64,
}

/// Sums over pairs, turned into means at the end.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    loss: Mean,
    loss_reference: Mean,
    bpo: Mean,
    conditional: Mean,
    sft: Mean,
    chosen: Mean,
    rejected: Mean,
    margins: Mean,
    accuracies: Mean,
    logps_chosen: Mean,
    logps_rejected: Mean,
    image_conditional: Mean,
    chosen_drop: Mean,
}

#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    count: usize,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn get(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }

    fn or_zero(self) -> f64 {
        self.get().unwrap_or(0.0)
    }
}

impl Sums {
    /// Counts one example in.
    pub(super) fn add(&mut self, loss: &Loss, pair: &PairScores, value: &PairLoss) {
        self.loss.add(value.loss);
        self.loss_reference.add(loss.of(&pair.at_reference()).loss);
        self.sft.add(value.terms.sft);
        let chosen = loss.reward_of(&pair.chosen);
        self.chosen.add(chosen);
        self.logps_chosen.add(pair.chosen.policy);
        self.chosen_drop.add(-pair.chosen.log_ratio() / pair.chosen.tokens.max(1) as f64);
        if let Some(scores) = &pair.rejected {
            let rejected = loss.reward_of(scores);
            self.bpo.add(value.terms.bpo);
            self.rejected.add(rejected);
            self.margins.add(chosen - rejected);
            self.accuracies.add(f64::from(u8::from(chosen > rejected)));
            self.logps_rejected.add(scores.policy);
        }
        if let Some(scores) = &pair.distorted {
            self.conditional.add(value.terms.conditional);
            self.image_conditional.add(f64::from(u8::from(pair.chosen.policy > scores.policy)));
        }
    }

    /// The means, for a step whose other numbers are still to be filled in.
    pub(super) fn into_step(self) -> StepMetrics {
        StepMetrics {
            loss: self.loss.or_zero(),
            loss_reference: self.loss_reference.or_zero(),
            loss_bpo: self.bpo.get(),
            loss_conditional: self.conditional.get(),
            loss_sft: self.sft.or_zero(),
            rewards_chosen: self.chosen.or_zero(),
            rewards_rejected: self.rejected.get(),
            rewards_margins: self.margins.get(),
            rewards_accuracies: self.accuracies.get(),
            logps_chosen: self.logps_chosen.or_zero(),
            logps_rejected: self.logps_rejected.get(),
            image_conditional_accuracy: self.image_conditional.get(),
            chosen_drop: self.chosen_drop.or_zero(),
            ..StepMetrics::default()
        }
    }

    /// The means of an evaluation after `step` optimiser steps.
    pub(super) fn into_evaluation(self, step: u64) -> Evaluation {
        Evaluation {
            step,
            examples: self.loss.count,
            loss: self.loss.or_zero(),
            accuracy: self.accuracies.or_zero(),
            margin: self.margins.or_zero(),
            logps_chosen: self.logps_chosen.or_zero(),
            image_conditional_accuracy: self.image_conditional.get(),
            chosen_drop: self.chosen_drop.or_zero(),
        }
    }
}

/// Largest resident set of this process so far, bytes; `None` where the system does not tell.
pub fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpo::loss::Scores;

    #[test]
    fn means_by_hand_and_annotations_count_for_no_margin() {
        let loss = Loss::paper();
        let scores = |policy, reference, tokens| Scores { policy, reference, tokens };
        let pairs = [
            PairScores {
                chosen: scores(-10.0, -12.0, 4),
                rejected: Some(scores(-9.0, -8.0, 4)),
                distorted: Some(scores(-11.0, -11.0, 4)),
            },
            PairScores {
                chosen: scores(-20.0, -19.0, 2),
                rejected: Some(scores(-5.0, -6.0, 2)),
                distorted: Some(scores(-19.0, -19.0, 2)),
            },
            PairScores { chosen: scores(-3.0, -3.0, 1), rejected: None, distorted: None },
        ];
        let mut sums = Sums::default();
        for pair in &pairs {
            sums.add(&loss, pair, &loss.of(pair));
        }
        let step = sums.into_step();
        assert!((step.rewards_chosen - 0.1 / 3.0).abs() < 1e-12);
        assert!(step.rewards_rejected.unwrap().abs() < 1e-12);
        assert!((step.rewards_margins.unwrap() - 0.05).abs() < 1e-12);
        assert_eq!(step.rewards_accuracies, Some(0.5));
        assert!((step.loss_reference - std::f64::consts::LN_2 * 2.0 / 3.0).abs() < 1e-12, "ln 2 for each pair");
        assert_eq!((step.logps_chosen, step.logps_rejected), (-11.0, Some(-7.0)));
        assert_eq!(step.image_conditional_accuracy, Some(0.5));
        assert!((step.chosen_drop - 0.0).abs() < 1e-12);
    }

    #[test]
    fn names_are_those_of_the_method() {
        let metrics = StepMetrics {
            rewards_rejected: Some(0.0),
            rewards_margins: Some(0.0),
            rewards_accuracies: Some(0.0),
            logps_rejected: Some(0.0),
            image_conditional_accuracy: Some(0.0),
            peak_memory_bytes: Some(1),
            ..StepMetrics::default()
        };
        let json = serde_json::to_value(&metrics).unwrap();
        let names = [
            "loss",
            "loss/reference",
            "rewards/chosen",
            "rewards/rejected",
            "rewards/margins",
            "rewards/accuracies",
            "logps/chosen",
            "logps/rejected",
            "image_conditional_accuracy",
            "grad_norm",
            "learning_rate",
            "tokens/s",
            "pairs/s",
            "peak_memory_bytes",
        ];
        for name in names {
            assert!(json.get(name).is_some(), "{name}");
        }
        assert_eq!(serde_json::from_value::<StepMetrics>(json).unwrap(), metrics);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn peak_memory_is_known_on_linux() {
        assert!(peak_memory_bytes().unwrap() > 1 << 20);
    }
}
