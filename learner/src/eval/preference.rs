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

/// All measures of scored pairs, in the order of the tables. Each pair comes with what it is about, its pictures or,
/// without any, its conversation; all pairs about the same are one item.
///
/// Preference accuracy is the share of pairs with log π(y⁺|v) > log π(y⁻|v), reward accuracy the share with a positive
/// margin, image-conditional accuracy the share with log π(y⁺|v) > log π(y⁺|ṽ); drift is the mean of
/// log π_θ(y⁺|v) − log π_ref(y⁺|v), which falls when training pushes the chosen answer down too.
pub fn measures(pairs: &[(String, ScoredPair)], beta: f64) -> Vec<Measure> {
    let number = |holds: bool| f64::from(u8::from(holds));
    let of = |name: &str, value: &dyn Fn(&ScoredPair) -> (f64, f64)| {
        Measure::by_picture(name, pairs.iter().map(|(about, pair)| (about.as_str(), value(pair))))
    };
    vec![
        of("preference accuracy", &|pair| (number(pair.chosen > pair.rejected), 1.0)),
        of("reward accuracy", &|pair| (number(pair.margin(beta) > 0.0), 1.0)),
        of("reward margin", &|pair| (pair.margin(beta), 1.0)),
        of("image-conditional accuracy", &|pair| match pair.chosen_distorted {
            Some(distorted) => (number(pair.chosen > distorted), 1.0),
            None => (0.0, 0.0),
        }),
        of("chosen log-probability", &|pair| (pair.chosen, 1.0)),
        of("chosen drift", &|pair| (pair.chosen - pair.reference_chosen, 1.0)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::measure::Bootstrap;

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
        // The first two are about one picture.
        let pairs: Vec<(String, ScoredPair)> = ["a", "a", "b"].map(str::to_owned).into_iter().zip(pairs).collect();
        let measures = measures(&pairs, 0.1);
        assert!(measures.iter().all(|measure| measure.estimate(Bootstrap::default()).items == 2));
        // Margins at β = 0.1: 0.1 * (1 - -1) = 0.2, 0.1 * (-1 - 1) = -0.2, 0.
        let values: Vec<Option<f64>> = measures.iter().map(Measure::value).collect();
        let expected = [2.0 / 3.0, 1.0 / 3.0, 0.0, 1.0 / 2.0, -13.0 / 3.0, 0.0];
        for (value, expected) in values.iter().zip(expected) {
            assert!((value.unwrap() - expected).abs() < 1e-12, "{value:?} {expected}");
        }
    }
}
