//! Held-out preferences, judged by log-probabilities.

use super::measure::Measure;

/// Log-probabilities (natural log, summed over the answer's tokens) of one pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoredPair {
    /// log π_θ(y⁺|v,x).
    pub chosen: f64,
    /// log π_θ(y⁻|v,x).
    pub rejected: f64,
    /// log π_ref(y⁺|v,x).
    pub reference_chosen: f64,
    /// log π_ref(y⁻|v,x).
    pub reference_rejected: f64,
    /// log π_θ(y⁺|ṽ,x): the chosen answer under the distorted image, if it was scored.
    pub chosen_distorted: Option<f64>,
}

impl ScoredPair {
    /// β [ r(y⁺) − r(y⁻) ], the quantity inside the BPO loss.
    pub fn margin(&self, beta: f64) -> f64 {
        beta * ((self.chosen - self.reference_chosen) - (self.rejected - self.reference_rejected))
    }
}

/// All measures of scored pairs, in the order of the tables. One item a pair.
///
/// Preference accuracy is the share of pairs with log π(y⁺|v) > log π(y⁻|v), reward accuracy the share with a positive
/// margin, image-conditional accuracy the share with log π(y⁺|v) > log π(y⁺|ṽ); drift is the mean of
/// log π_θ(y⁺|v) − log π_ref(y⁺|v), which falls when training pushes the chosen answer down too.
pub fn measures(pairs: &[ScoredPair], beta: f64) -> Vec<Measure> {
    let conditional = pairs.iter().map(|pair| match pair.chosen_distorted {
        Some(distorted) => (f64::from(u8::from(pair.chosen > distorted)), 1.0),
        None => (0.0, 0.0),
    });
    vec![
        Measure::share("preference accuracy", pairs.iter().map(|pair| pair.chosen > pair.rejected)),
        Measure::share("reward accuracy", pairs.iter().map(|pair| pair.margin(beta) > 0.0)),
        Measure::mean("reward margin", pairs.iter().map(|pair| pair.margin(beta))),
        Measure::new("image-conditional accuracy", conditional),
        Measure::mean("chosen log-probability", pairs.iter().map(|pair| pair.chosen)),
        Measure::mean("chosen drift", pairs.iter().map(|pair| pair.chosen - pair.reference_chosen)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_counted_by_hand() {
        let pairs = [
            ScoredPair {
                chosen: -2.0,
                rejected: -5.0,
                reference_chosen: -3.0,
                reference_rejected: -4.0,
                chosen_distorted: Some(-6.0),
            },
            ScoredPair {
                chosen: -7.0,
                rejected: -5.0,
                reference_chosen: -6.0,
                reference_rejected: -6.0,
                chosen_distorted: Some(-6.5),
            },
            ScoredPair {
                chosen: -4.0,
                rejected: -4.5,
                reference_chosen: -4.0,
                reference_rejected: -4.5,
                chosen_distorted: None,
            },
        ];
        // Margins at β = 0.1: 0.1 * (1 - -1) = 0.2, 0.1 * (-1 - 1) = -0.2, 0.
        let values: Vec<Option<f64>> = measures(&pairs, 0.1).iter().map(Measure::value).collect();
        let expected = [2.0 / 3.0, 1.0 / 3.0, 0.0, 1.0 / 2.0, -13.0 / 3.0, 0.0];
        for (value, expected) in values.iter().zip(expected) {
            assert!((value.unwrap() - expected).abs() < 1e-12, "{value:?} {expected}");
        }
    }
}
