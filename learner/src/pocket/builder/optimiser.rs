//! AdamW over named variables, with a state that can be saved.
//!
//! candle's own AdamW keeps its moments private, so a build could not be resumed with it. The trainer's
//! ([`crate::bpo::adamw`]) computes in f32 as PyTorch does; this one in f64, on gradients that several workers averaged, and the bits of the
//! shipped weights hang on it.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor, Var};

/// Named values, row-major.
pub type Gradients = BTreeMap<String, Vec<f32>>;

/// Decay of the first moment.
const FIRST: f64 = 0.9;
/// Decay of the second moment; shorter than usual, as a build has few steps.
const SECOND: f64 = 0.98;
/// Keeps the division finite.
const EPSILON: f64 = 1e-8;

/// The optimiser's memory of one variable.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// Running mean of the gradient.
    pub first: Vec<f32>,
    /// Running mean of its square.
    pub second: Vec<f32>,
}

/// AdamW: θ ← θ − η ( m̂ / (√v̂ + ε) + λ θ ), with λ = 0 for vectors.
#[derive(Clone, Debug, Default)]
pub struct AdamW {
    /// Steps taken.
    pub step: usize,
    /// Decoupled weight decay λ of matrices.
    pub weight_decay: f64,
    /// Memory by variable name.
    pub moments: BTreeMap<String, Moments>,
}

impl AdamW {
    /// An optimiser before its first step.
    pub fn new(weight_decay: f64) -> Self {
        Self { step: 0, weight_decay, moments: BTreeMap::new() }
    }

    /// One step on the variables that have a gradient.
    ///
    /// # Errors
    /// A failed tensor operation.
    pub fn step(&mut self, variables: &BTreeMap<String, Var>, gradients: &Gradients, rate: f64) -> Result<()> {
        self.step += 1;
        let correction = |decay: f64| 1.0 - decay.powf(self.step as f64);
        let (first_scale, second_scale) = (1.0 / correction(FIRST), 1.0 / correction(SECOND));
        for (name, gradient) in gradients {
            let Some(variable) = variables.get(name) else {
                continue;
            };
            let mut values: Vec<f32> = variable.flatten_all()?.to_vec1()?;
            let moments = self
                .moments
                .entry(name.clone())
                .or_insert_with(|| Moments { first: vec![0.0; values.len()], second: vec![0.0; values.len()] });
            let decay = if variable.rank() > 1 { rate * self.weight_decay } else { 0.0 };
            let state = moments.first.iter_mut().zip(&mut moments.second);
            for ((value, gradient), (first, second)) in values.iter_mut().zip(gradient).zip(state) {
                let g = f64::from(*gradient);
                *first = (f64::from(*first) * FIRST + (1.0 - FIRST) * g) as f32;
                *second = (f64::from(*second) * SECOND + (1.0 - SECOND) * g * g) as f32;
                let direction =
                    f64::from(*first) * first_scale / ((f64::from(*second) * second_scale).sqrt() + EPSILON);
                *value = (f64::from(*value) * (1.0 - decay) - rate * direction) as f32;
            }
            variable.set(&Tensor::from_vec(values, variable.shape(), &Device::Cpu)?)?;
        }
        Ok(())
    }
}

/// The mean of several workers' gradients, added in their order so that sums repeat bit for bit.
pub fn average(workers: Vec<Gradients>) -> Gradients {
    let scale = 1.0 / workers.len().max(1) as f32;
    let mut workers = workers.into_iter();
    let mut sum = workers.next().unwrap_or_default();
    for gradients in workers {
        for (name, values) in gradients {
            match sum.get_mut(&name) {
                Some(total) => total.iter_mut().zip(values).for_each(|(total, value)| *total += value),
                None => {
                    sum.insert(name, values);
                }
            }
        }
    }
    sum.values_mut().flatten().for_each(|value| *value *= scale);
    sum
}

/// Scales gradients down to `limit` if their joint norm is above it; returns the norm before.
pub fn clip(gradients: &mut Gradients, limit: f64) -> f64 {
    let norm = gradients.values().flatten().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    if norm > limit {
        let scale = (limit / norm) as f32;
        gradients.values_mut().flatten().for_each(|value| *value *= scale);
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(values: &[f32]) -> BTreeMap<String, Var> {
        let variable = Var::from_tensor(&Tensor::new(values, &Device::Cpu).unwrap()).unwrap();
        BTreeMap::from([("x".to_owned(), variable)])
    }

    #[test]
    fn the_first_step_goes_one_rate_against_the_sign() {
        let variables = variables(&[1.0, 2.0]);
        let gradients = BTreeMap::from([("x".to_owned(), vec![3.0, -0.5])]);
        AdamW::new(0.1).step(&variables, &gradients, 0.01).unwrap();
        let values: Vec<f32> = variables["x"].to_vec1().unwrap();
        // A vector is not decayed.
        assert!((values[0] - 0.99).abs() < 1e-6 && (values[1] - 2.01).abs() < 1e-6, "{values:?}");
    }

    #[test]
    fn it_finds_the_bottom_of_a_bowl() {
        let variables = variables(&[5.0, -3.0]);
        let mut optimiser = AdamW::new(0.0);
        for step in 0..600 {
            let values: Vec<f32> = variables["x"].to_vec1().unwrap();
            let gradients =
                BTreeMap::from([("x".to_owned(), values.iter().map(|value| 2.0 * (value - 1.0)).collect())]);
            optimiser.step(&variables, &gradients, 0.1 * (1.0 - step as f64 / 600.0)).unwrap();
        }
        let values: Vec<f32> = variables["x"].to_vec1().unwrap();
        assert!(values.iter().all(|value| (value - 1.0).abs() < 1e-2), "{values:?}");
    }

    #[test]
    fn gradients_are_averaged_and_clipped() {
        let worker = |values: &[f32]| BTreeMap::from([("x".to_owned(), values.to_vec())]);
        let mut mean = average(vec![worker(&[2.0, 8.0]), worker(&[4.0, 0.0])]);
        assert_eq!(mean["x"], [3.0, 4.0]);
        assert!((clip(&mut mean, 1.0) - 5.0).abs() < 1e-12);
        assert!((mean["x"][0] - 0.6).abs() < 1e-6 && (mean["x"][1] - 0.8).abs() < 1e-6);
        assert!((clip(&mut mean, 2.0) - 1.0).abs() < 1e-6);
    }
}
