//! Choosing the next token.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::error::ModelError;

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most probable token; higher values flatten the distribution. At least 0.
    pub temperature: f64,
    /// Only the most probable tokens that together have this probability are drawn from, 0 … 1; 1 means all.
    pub top_p: f64,
    /// Decides the draws. The same seed gives the same answer, whatever else is in the batch.
    pub seed: u64,
}

impl Sampling {
    /// The most probable token every time.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// A temperature below 0 or not finite, a `top_p` outside 0 … 1.
    pub fn validate(&self) -> Result<(), ModelError> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(ModelError::OutOfRange {
                key: "temperature",
                value: self.temperature.to_string(),
                expected: "0 or more",
            });
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(ModelError::OutOfRange {
                key: "top_p",
                value: self.top_p.to_string(),
                expected: "more than 0, at most 1",
            });
        }
        Ok(())
    }
}

/// The draws of one sequence.
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the beginning of its sequence of draws.
    pub fn new(sampling: Sampling) -> Self {
        Self {
            sampling,
            rng: ChaCha8Rng::seed_from_u64(sampling.seed),
        }
    }

    /// The next token, and its log-probability (natural, of the model itself: temperature and `top_p` left out).
    /// Of equal logits the first token counts as the more probable.
    pub fn choose(&mut self, logits: &[f32]) -> (u32, f32) {
        let mut best = 0;
        for (token, logit) in logits.iter().enumerate() {
            if *logit > logits[best] {
                best = token;
            }
        }
        let largest = f64::from(logits[best]);
        let total: f64 = logits
            .iter()
            .map(|logit| (f64::from(*logit) - largest).exp())
            .sum();
        let token = if self.sampling.temperature == 0.0 {
            best
        } else {
            self.draw(logits, largest)
        };
        (
            token as u32,
            (f64::from(logits[token]) - largest - total.ln()) as f32,
        )
    }

    fn draw(&mut self, logits: &[f32], largest: f64) -> usize {
        let weight = |logit: f32| ((f64::from(logit) - largest) / self.sampling.temperature).exp();
        let mut weighted: Vec<(usize, f64)> = logits
            .iter()
            .enumerate()
            .map(|(token, logit)| (token, weight(*logit)))
            .collect();
        let mut total: f64 = weighted.iter().map(|(_, weight)| weight).sum();
        if self.sampling.top_p < 1.0 {
            // A stable sort, so that equal tokens stay in the order of the vocabulary.
            weighted.sort_by(|a, b| b.1.total_cmp(&a.1));
            let wanted = self.sampling.top_p * total;
            let mut sum = 0.0;
            let kept = weighted.iter().take_while(|(_, weight)| {
                let more = sum < wanted;
                sum += weight;
                more
            });
            let kept = kept.count().max(1);
            weighted.truncate(kept);
            total = weighted.iter().map(|(_, weight)| weight).sum();
        }
        let mut left = self.rng.random::<f64>() * total;
        for (token, weight) in &weighted {
            left -= weight;
            if left < 0.0 {
                return *token;
            }
        }
        // Rounding may leave a remainder after the last token.
        weighted.last().map_or(0, |(token, _)| *token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(sampling: Sampling, logits: &[f32]) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        let mut sampler = Sampler::new(sampling);
        for _ in 0..20_000 {
            counts[sampler.choose(logits).0 as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    #[test]
    fn greedy_and_its_log_probability() {
        let logits = [0.0, 2.0_f32.ln(), 2.0_f32.ln()];
        let (token, log_prob) = Sampler::new(Sampling::greedy()).choose(&logits);
        assert_eq!(token, 1);
        assert!((log_prob - 0.4_f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn draws_follow_temperature_and_nucleus() {
        let logits = [0.0, 1.0_f32, 2.0];
        let shares = share(
            Sampling {
                temperature: 1.0,
                top_p: 1.0,
                seed: 1,
            },
            &logits,
        );
        let total = 1.0 + 1.0_f64.exp() + 2.0_f64.exp();
        assert!(
            (shares[2] - 2.0_f64.exp() / total).abs() < 0.015
                && (shares[0] - 1.0 / total).abs() < 0.015
        );
        let cold = share(
            Sampling {
                temperature: 0.5,
                top_p: 1.0,
                seed: 1,
            },
            &logits,
        );
        assert!((cold[2] / cold[1] - 2.0_f64.exp()).abs() < 0.8);
        let nucleus = share(
            Sampling {
                temperature: 1.0,
                top_p: 0.7,
                seed: 1,
            },
            &logits,
        );
        assert_eq!(
            nucleus[0], 0.0,
            "0.665 is not yet 0.7, so two tokens are in"
        );
        assert!(nucleus[1] > 0.2);
        let first = share(
            Sampling {
                temperature: 1.0,
                top_p: 0.5,
                seed: 1,
            },
            &logits,
        );
        assert!((first[2] - 1.0).abs() < 1e-9);
    }

    #[test]
    fn ranges() {
        assert!(
            Sampling {
                temperature: -1.0,
                ..Sampling::greedy()
            }
            .validate()
            .is_err()
        );
        assert!(
            Sampling {
                temperature: f64::NAN,
                ..Sampling::greedy()
            }
            .validate()
            .is_err()
        );
        assert!(
            Sampling {
                top_p: 0.0,
                ..Sampling::greedy()
            }
            .validate()
            .is_err()
        );
        assert!(
            Sampling {
                temperature: 0.2,
                top_p: 0.9,
                seed: 3
            }
            .validate()
            .is_ok()
        );
    }
}
