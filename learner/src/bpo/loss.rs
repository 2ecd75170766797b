//! The loss of one pair, and its gradient with respect to each sequence's log-probability, in closed form.
//!
//! ```text
//! r(y|v)    = log π_θ(y|v,x) − log π_ref(y|v,x)        divided by |y| when length_normalised
//! ℓ(z)      = −log σ(z)
//! h         = β [ r(y⁺|v) − r(y⁻|v) ]
//! L_bpo     = [ (1−ε) ℓ(h) − ε ℓ(−h) ] / (1−2ε)        ε = label_smoothing; ε = 0 is the paper's −log σ(h)
//! L_cond    = ℓ( β [ r(y⁺|v) − r(y⁺|ṽ) ] )             mDPO, arXiv 2406.11839
//! L_anchor  = ℓ( β r(y⁺|v) − δ )                       mDPO
//! L_sft     = −log π_θ(y⁺|v,x) / |y⁺|
//! L         = bpo·L_bpo + conditional·L_cond + anchor·L_anchor + sft·L_sft
//! ```
//!
//! v is the clean image and ṽ the distorted one; both sides of `L_bpo` see the clean image (BPO, arXiv 2403.08730).
//! The smoothed form is robust DPO (arXiv 2403.00409): unbiased when a share ε of the pairs is labelled the wrong way round.
//! It applies to `L_bpo` alone, because no annotator's label decides which image is the clean one.
//!
//! With r(y⁺) = 2 and r(y⁻) = −1 at β = 0.1, h = 0.3, the loss is ln(1 + e^−0.3) = 0.554355 and its derivative by
//! log π_θ(y⁺|v,x) is −β σ(−0.3) = −0.0425557:
//!
//! ```
//! use reground_learner::bpo::loss::{Loss, PairScores, Scores};
//!
//! let pair = PairScores {
//!     chosen: Scores { policy: -10.0, reference: -12.0, tokens: 5 },
//!     rejected: Some(Scores { policy: -9.0, reference: -8.0, tokens: 5 }),
//!     distorted: None,
//! };
//! let value = Loss::paper().of(&pair);
//! assert!((value.loss - 0.554355).abs() < 1e-6);
//! assert!((value.coefficients.chosen + 0.0425557).abs() < 1e-6);
//! assert!((value.coefficients.rejected - 0.0425557).abs() < 1e-6);
//! ```

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a [`Loss`] cannot be used.
#[derive(Debug, Error, PartialEq)]
pub enum LossError {
    /// A number outside what its formula allows.
    #[error("loss.{key} is {value}, it must be {allowed}")]
    OutOfRange {
        /// The configuration key.
        key: &'static str,
        /// What it was set to.
        value: f64,
        /// What it may be.
        allowed: &'static str,
    },
    /// Every weight is zero, so there is nothing to learn.
    #[error("every weight of the loss (bpo, conditional, anchor, sft) is 0: there is nothing to learn")]
    NoTerm,
}

/// Weights and constants of the loss; the equation is at the top of this file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loss {
    /// β, per nat: how far the policy may leave the reference for one unit of preference. Above 0; the paper's is 0.1.
    pub beta: f64,
    /// Weight of `L_bpo`. At least 0.
    pub bpo: f64,
    /// Weight of `L_cond`, which ties the chosen answer to the image. At least 0.
    pub conditional: f64,
    /// Weight of `L_anchor`, which keeps the chosen answer from becoming less likely. At least 0.
    pub anchor: f64,
    /// δ of `L_anchor`, in units of β·nats: the reward that the chosen answer is pulled above.
    pub delta: f64,
    /// Weight of `L_sft`. At least 0.
    pub sft: f64,
    /// ε: the share of pairs believed to be labelled the wrong way round, 0 ≤ ε < 0.5.
    pub label_smoothing: f64,
    /// Divide every r by its answer's token count, so that length alone is no reward.
    pub length_normalised: bool,
}

/// One sequence under the policy and under the reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// log π_θ(y|·), natural log, summed over the answer's tokens.
    pub policy: f64,
    /// log π_ref(y|·), likewise.
    pub reference: f64,
    /// |y|: the answer's tokens, end-of-turn included; at least 1.
    pub tokens: usize,
}

impl Scores {
    /// log π_θ − log π_ref in nats, whatever `length_normalised` says.
    pub fn log_ratio(&self) -> f64 {
        self.policy - self.reference
    }
}

/// What the loss needs to know of one pair. A term whose sequence is missing is 0 for that pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairScores {
    /// y⁺ given the clean image.
    pub chosen: Scores,
    /// y⁻ given the clean image; `None` for an annotation without a rejected answer.
    pub rejected: Option<Scores>,
    /// y⁺ given the distorted image; `None` when ṽ was not scored.
    pub distorted: Option<Scores>,
}

impl PairScores {
    /// The same pair where the policy is the reference.
    pub fn at_reference(&self) -> Self {
        let at = |scores: &Scores| Scores { policy: scores.reference, ..*scores };
        Self {
            chosen: at(&self.chosen),
            rejected: self.rejected.as_ref().map(at),
            distorted: self.distorted.as_ref().map(at),
        }
    }
}

/// ∂L/∂(log π_θ) of each sequence of a pair; 0 for a sequence that is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Coefficients {
    /// By log π_θ(y⁺|v,x).
    pub chosen: f64,
    /// By log π_θ(y⁻|v,x).
    pub rejected: f64,
    /// By log π_θ(y⁺|ṽ,x).
    pub distorted: f64,
}

/// Unweighted value of each term of one pair, nats; 0 where the term does not apply.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Terms {
    /// L_bpo.
    pub bpo: f64,
    /// L_cond.
    pub conditional: f64,
    /// L_anchor.
    pub anchor: f64,
    /// L_sft.
    pub sft: f64,
}

/// The loss of one pair and its gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairLoss {
    /// L, the weighted sum.
    pub loss: f64,
    /// What it is made of.
    pub terms: Terms,
    /// Its gradient.
    pub coefficients: Coefficients,
}

impl Loss {
    /// The paper's: `L_bpo` alone, β = 0.1.
    pub fn paper() -> Self {
        Self {
            beta: 0.1,
            bpo: 1.0,
            conditional: 0.0,
            anchor: 0.0,
            delta: 0.0,
            sft: 0.0,
            label_smoothing: 0.0,
            length_normalised: false,
        }
    }

    /// `L_bpo + L_sft`: the default, because `L_bpo` alone is free to make the chosen answer less likely too.
    pub fn anchored() -> Self {
        Self { sft: 1.0, ..Self::paper() }
    }

    /// `L_sft` alone: supervised fine-tuning on the chosen answers, the baseline that BPO has to beat.
    pub fn sft_only() -> Self {
        Self { bpo: 0.0, sft: 1.0, ..Self::paper() }
    }

    /// Checks every number against its formula.
    ///
    /// # Errors
    /// The first key out of range, or [`LossError::NoTerm`].
    pub fn validate(&self) -> Result<(), LossError> {
        let at_least_0 = |value: f64| value.is_finite() && value >= 0.0;
        let checks = [
            ("beta", self.beta, self.beta.is_finite() && self.beta > 0.0, "a number above 0"),
            ("bpo", self.bpo, at_least_0(self.bpo), "0 or more"),
            ("conditional", self.conditional, at_least_0(self.conditional), "0 or more"),
            ("anchor", self.anchor, at_least_0(self.anchor), "0 or more"),
            ("delta", self.delta, self.delta.is_finite(), "a finite number"),
            ("sft", self.sft, at_least_0(self.sft), "0 or more"),
            (
                "label_smoothing",
                self.label_smoothing,
                (0.0..0.5).contains(&self.label_smoothing),
                "at least 0 and below 0.5",
            ),
        ];
        for (key, value, ok, allowed) in checks {
            if !ok {
                return Err(LossError::OutOfRange { key, value, allowed });
            }
        }
        if self.bpo + self.conditional + self.anchor + self.sft == 0.0 {
            return Err(LossError::NoTerm);
        }
        Ok(())
    }

    /// Whether any term reads the rejected answer.
    pub fn needs_rejected(&self) -> bool {
        self.bpo > 0.0
    }

    /// Whether any term reads the distorted image.
    pub fn needs_distorted(&self) -> bool {
        self.conditional > 0.0
    }

    /// Value and gradient for one pair. Non-finite scores give a non-finite loss; the caller's guard sees it.
    pub fn of(&self, pair: &PairScores) -> PairLoss {
        let mut terms = Terms::default();
        let mut by = Coefficients::default();
        let chosen = self.reward(&pair.chosen);

        if let Some(rejected) = &pair.rejected {
            let rejected = self.reward(rejected);
            let h = chosen.value - rejected.value;
            let (keep, flip, scale) =
                (1.0 - self.label_smoothing, self.label_smoothing, 1.0 - 2.0 * self.label_smoothing);
            terms.bpo = (keep * neg_log_sigmoid(h) - flip * neg_log_sigmoid(-h)) / scale;
            let slope = -self.bpo * (keep * sigmoid(-h) + flip * sigmoid(h)) / scale;
            by.chosen += slope * chosen.slope;
            by.rejected -= slope * rejected.slope;
        }
        if let Some(distorted) = &pair.distorted {
            let distorted = self.reward(distorted);
            let h = chosen.value - distorted.value;
            terms.conditional = neg_log_sigmoid(h);
            let slope = -self.conditional * sigmoid(-h);
            by.chosen += slope * chosen.slope;
            by.distorted -= slope * distorted.slope;
        }
        let above = chosen.value - self.delta;
        terms.anchor = neg_log_sigmoid(above);
        by.chosen -= self.anchor * sigmoid(-above) * chosen.slope;

        let tokens = pair.chosen.tokens.max(1) as f64;
        terms.sft = -pair.chosen.policy / tokens;
        by.chosen -= self.sft / tokens;

        let loss = weighted(self.bpo, terms.bpo)
            + weighted(self.conditional, terms.conditional)
            + weighted(self.anchor, terms.anchor)
            + weighted(self.sft, terms.sft);
        PairLoss { loss, terms, coefficients: by }
    }

    /// β·r of one sequence, as the metrics `rewards/chosen` and `rewards/rejected` report it, and its derivative by log π_θ.
    fn reward(&self, scores: &Scores) -> Reward {
        let slope = if self.length_normalised { self.beta / scores.tokens.max(1) as f64 } else { self.beta };
        Reward { value: slope * scores.log_ratio(), slope }
    }

    /// β·r of one sequence: the implicit reward that trainers report.
    pub fn reward_of(&self, scores: &Scores) -> f64 {
        self.reward(scores).value
    }
}

struct Reward {
    value: f64,
    slope: f64,
}

/// A weight of 0 switches a term off even where the term is infinite.
fn weighted(weight: f64, term: f64) -> f64 {
    if weight == 0.0 { 0.0 } else { weight * term }
}

/// −log σ(z), without overflow at either end.
fn neg_log_sigmoid(z: f64) -> f64 {
    (-z).max(0.0) + (-z.abs()).exp().ln_1p()
}

fn sigmoid(z: f64) -> f64 {
    if z >= 0.0 {
        1.0 / (1.0 + (-z).exp())
    } else {
        let e = z.exp();
        e / (1.0 + e)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair(logps: [f64; 6], tokens: [usize; 2]) -> PairScores {
        PairScores {
            chosen: Scores { policy: logps[0], reference: logps[1], tokens: tokens[0] },
            rejected: Some(Scores { policy: logps[2], reference: logps[3], tokens: tokens[1] }),
            distorted: Some(Scores { policy: logps[4], reference: logps[5], tokens: tokens[0] }),
        }
    }

    /// Central differences of the loss by each of the three policy log-probabilities.
    fn numeric(loss: &Loss, pair: &PairScores) -> [f64; 3] {
        let step = 1e-4;
        let at = |which: usize, by: f64| {
            let mut moved = *pair;
            match which {
                0 => moved.chosen.policy += by,
                1 => moved.rejected.as_mut().unwrap().policy += by,
                _ => moved.distorted.as_mut().unwrap().policy += by,
            }
            loss.of(&moved).loss
        };
        [0, 1, 2].map(|which| (at(which, step) - at(which, -step)) / (2.0 * step))
    }

    fn combinations() -> Vec<Loss> {
        let off = Loss { bpo: 0.0, ..Loss::paper() };
        let mut all = vec![
            Loss::paper(),
            Loss::anchored(),
            Loss::sft_only(),
            Loss { conditional: 1.0, ..off.clone() },
            Loss { anchor: 0.7, delta: 0.3, ..off.clone() },
            Loss { sft: 0.4, ..off },
            Loss { label_smoothing: 0.2, ..Loss::paper() },
            Loss {
                beta: 0.5,
                conditional: 0.5,
                anchor: 0.25,
                delta: -0.2,
                sft: 2.0,
                label_smoothing: 0.1,
                ..Loss::paper()
            },
        ];
        all.extend(all.clone().into_iter().map(|loss| Loss { length_normalised: true, ..loss }));
        all
    }

    #[test]
    fn step_0_is_ln_2() {
        let same = pair([-20.0, -20.0, -31.0, -31.0, -22.0, -22.0], [7, 9]);
        for smoothing in [0.0, 0.1, 0.4] {
            let loss = Loss { label_smoothing: smoothing, ..Loss::paper() };
            assert!((loss.of(&same).loss - std::f64::consts::LN_2).abs() < 1e-15);
        }
        let conditional = Loss { conditional: 1.0, ..Loss::paper() };
        assert!((conditional.of(&same).loss - 2.0 * std::f64::consts::LN_2).abs() < 1e-15);
        let anchored = Loss::anchored().of(&same);
        assert!((anchored.loss - (std::f64::consts::LN_2 + 20.0 / 7.0)).abs() < 1e-15);
    }

    #[test]
    fn robust_loss_is_the_paper_loss_in_expectation() {
        // With a share ε of labels flipped, the expected robust loss equals the clean paper loss: what makes it "robust".
        let right = pair([-10.0, -12.0, -9.0, -8.0, 0.0, 0.0], [5, 5]);
        let flipped = PairScores { chosen: right.rejected.unwrap(), rejected: Some(right.chosen), distorted: None };
        let noise = 0.3;
        let robust = Loss { label_smoothing: noise, ..Loss::paper() };
        let expected = (1.0 - noise) * robust.of(&right).loss + noise * robust.of(&flipped).loss;
        assert!((expected - Loss::paper().of(&right).loss).abs() < 1e-12);
    }

    #[test]
    fn a_missing_sequence_switches_its_terms_off() {
        let loss = Loss { conditional: 1.0, ..Loss::anchored() };
        let annotation =
            PairScores { rejected: None, distorted: None, ..pair([-6.0, -7.0, 0.0, 0.0, 0.0, 0.0], [3, 3]) };
        let value = loss.of(&annotation);
        assert_eq!(value.loss, 2.0);
        assert_eq!(value.coefficients, Coefficients { chosen: -1.0 / 3.0, rejected: 0.0, distorted: 0.0 });
    }

    #[test]
    fn extreme_scores_stay_finite() {
        for loss in combinations() {
            for far in [1e6, -1e6] {
                let value = loss.of(&pair([far, 0.0, -far, 0.0, -far, 0.0], [4, 4]));
                assert!(value.loss.is_finite(), "{loss:?}");
                assert!(value.coefficients.chosen.is_finite() && value.coefficients.rejected.is_finite(), "{loss:?}");
            }
        }
    }

    #[test]
    fn validation_names_the_key() {
        let cases: [(Loss, &str); 8] = [
            (Loss { beta: 0.0, ..Loss::paper() }, "loss.beta is 0"),
            (Loss { beta: f64::NAN, ..Loss::paper() }, "loss.beta is NaN"),
            (Loss { bpo: -1.0, ..Loss::paper() }, "loss.bpo"),
            (Loss { conditional: f64::INFINITY, ..Loss::paper() }, "loss.conditional"),
            (Loss { anchor: -0.1, ..Loss::paper() }, "loss.anchor"),
            (Loss { delta: f64::NAN, ..Loss::paper() }, "loss.delta"),
            (Loss { label_smoothing: 0.5, ..Loss::paper() }, "loss.label_smoothing is 0.5"),
            (Loss { bpo: 0.0, ..Loss::paper() }, "nothing to learn"),
        ];
        for (loss, message) in cases {
            let error = loss.validate().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        for loss in combinations() {
            assert_eq!(loss.validate(), Ok(()));
        }
    }

    proptest! {
        #[test]
        fn coefficients_are_the_gradient(
            logps in prop::array::uniform6(-40.0..0.0f64), chosen in 1..40usize, rejected in 1..40usize,
        ) {
            let pair = pair(logps, [chosen, rejected]);
            for loss in combinations() {
                let by = loss.of(&pair).coefficients;
                let expected = numeric(&loss, &pair);
                for (closed, numeric) in [by.chosen, by.rejected, by.distorted].into_iter().zip(expected) {
                    prop_assert!((closed - numeric).abs() < 1e-7 * (1.0 + numeric.abs()), "{loss:?}: {closed} {numeric}");
                }
            }
        }

        #[test]
        fn more_margin_is_less_loss(logps in prop::array::uniform6(-40.0..0.0f64), more in 0.01..10.0f64) {
            let before = pair(logps, [6, 6]);
            let mut after = before;
            after.chosen.policy += more;
            for loss in combinations() {
                prop_assert!(loss.of(&after).loss < loss.of(&before).loss, "{loss:?}");
                prop_assert!(loss.of(&before).coefficients.chosen < 0.0);
                prop_assert!(loss.of(&before).coefficients.rejected >= 0.0);
                prop_assert!(loss.of(&before).coefficients.distorted >= 0.0);
            }
        }

        #[test]
        fn the_paper_loss_depends_on_ratios_only(logps in prop::array::uniform6(-40.0..0.0f64), shift in -5.0..5.0f64) {
            let before = pair(logps, [6, 9]);
            let mut after = before;
            after.chosen.policy += shift;
            after.chosen.reference += shift;
            let (a, b) = (Loss::paper().of(&before), Loss::paper().of(&after));
            prop_assert!((a.loss - b.loss).abs() < 1e-12);
        }
    }
}
