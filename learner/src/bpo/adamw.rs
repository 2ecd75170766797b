//! AdamW with PyTorch's update rule, and clipping by the global norm.
//!
//! ```text
//! θ ← θ (1 − lr·λ)
//! m ← β₁ m + (1 − β₁) g            v ← β₂ v + (1 − β₂) g²
//! θ ← θ − lr/(1 − β₁ᵗ) · m / ( √v / √(1 − β₂ᵗ) + ε )
//! ```
//!
//! `candle_nn::AdamW` hides its moments, and a run that cannot save them cannot resume exactly; hence this one. The
//! moments are f32 like the LoRA tensors, and every operation is element by element, so a step gives the same bits every time.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::policy::Gradients;

/// Why a step could not be taken.
#[derive(Debug, Error)]
pub enum OptimizerError {
    /// A number outside what the rule allows.
    #[error("optimizer.{key} is {value}, it must be {allowed}")]
    OutOfRange {
        /// The configuration key.
        key: &'static str,
        /// What it was set to.
        value: f64,
        /// What it may be.
        allowed: &'static str,
    },
    /// A trainable tensor without a gradient: some operation of the model cut it, which candle does silently.
    #[error("no gradient reached the trainable tensor {0}")]
    MissingGradient(String),
    /// A gradient or moment for a tensor that is not trainable.
    #[error("{what} for {name}, which is no trainable tensor of this model")]
    Unknown {
        /// `gradient` or `moment`.
        what: &'static str,
        /// The tensor's name.
        name: String,
    },
    /// A moment whose shape is not its tensor's.
    #[error("the moment of {name} has shape {got:?}, the tensor has {want:?}")]
    Shape {
        /// The tensor's name.
        name: String,
        /// Shape found.
        got: Vec<usize>,
        /// Shape wanted.
        want: Vec<usize>,
    },
    /// The tensor library failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Section `[optimizer]` of a run's configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// Peak learning rate. Default 2e-6, the paper's for 7 B parameters; a model of a few million wants about 1e-3.
    pub learning_rate: f64,
    /// β₁, decay of the first moment, 0 ≤ β₁ < 1. Default 0.9.
    pub beta1: f64,
    /// β₂, decay of the second moment, 0 ≤ β₂ < 1. Default 0.999.
    pub beta2: f64,
    /// ε, above 0. Default 1e-8.
    pub epsilon: f64,
    /// λ, decoupled weight decay per unit of learning rate, at least 0. Default 0, the paper's.
    pub weight_decay: f64,
    /// Gradients whose global L2 norm is above this are scaled down to it; 0 switches clipping off. Default 1.0.
    pub max_grad_norm: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { learning_rate: 2e-6, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 }
    }
}

impl AdamWConfig {
    /// Checks every number.
    ///
    /// # Errors
    /// The first key out of range.
    pub fn validate(&self) -> Result<(), OptimizerError> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let at_least_0 = |value: f64| value.is_finite() && value >= 0.0;
        let below_1 = |value: f64| (0.0..1.0).contains(&value);
        let checks = [
            ("learning_rate", self.learning_rate, positive(self.learning_rate), "a number above 0"),
            ("beta1", self.beta1, below_1(self.beta1), "at least 0 and below 1"),
            ("beta2", self.beta2, below_1(self.beta2), "at least 0 and below 1"),
            ("epsilon", self.epsilon, positive(self.epsilon), "a number above 0"),
            ("weight_decay", self.weight_decay, at_least_0(self.weight_decay), "0 or more"),
            ("max_grad_norm", self.max_grad_norm, at_least_0(self.max_grad_norm), "0 (off) or more"),
        ];
        for (key, value, ok, allowed) in checks {
            if !ok {
                return Err(OptimizerError::OutOfRange { key, value, allowed });
            }
        }
        Ok(())
    }
}

/// The optimiser and its state.
#[derive(Clone, Debug)]
pub struct AdamW {
    config: AdamWConfig,
    step: u64,
    first: BTreeMap<String, Tensor>,
    second: BTreeMap<String, Tensor>,
}

impl AdamW {
    /// Zero moments for `parameters`.
    ///
    /// # Errors
    /// Fails when the device is out of memory.
    pub fn new(config: AdamWConfig, parameters: &BTreeMap<String, Tensor>) -> Result<Self, OptimizerError> {
        let zeros = |parameters: &BTreeMap<String, Tensor>| {
            parameters
                .iter()
                .map(|(name, tensor)| Ok((name.clone(), tensor.zeros_like()?)))
                .collect::<Result<_, OptimizerError>>()
        };
        Ok(Self { config, step: 0, first: zeros(parameters)?, second: zeros(parameters)? })
    }

    /// Continues from a checkpoint: `step` updates taken, moments by tensor name.
    ///
    /// # Errors
    /// A moment that is missing, unknown or of another shape than its tensor.
    pub fn resume(
        config: AdamWConfig,
        parameters: &BTreeMap<String, Tensor>,
        step: u64,
        first: BTreeMap<String, Tensor>,
        second: BTreeMap<String, Tensor>,
    ) -> Result<Self, OptimizerError> {
        for moments in [&first, &second] {
            if let Some(name) = moments.keys().find(|name| !parameters.contains_key(*name)) {
                return Err(OptimizerError::Unknown { what: "moment", name: name.clone() });
            }
            for (name, tensor) in parameters {
                let moment = moments.get(name).ok_or_else(|| OptimizerError::MissingGradient(name.clone()))?;
                if moment.dims() != tensor.dims() {
                    let (got, want) = (moment.dims().to_vec(), tensor.dims().to_vec());
                    return Err(OptimizerError::Shape { name: name.clone(), got, want });
                }
            }
        }
        Ok(Self { config, step, first, second })
    }

    /// Updates taken so far.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// First and second moments by tensor name, f32.
    pub fn moments(&self) -> (&BTreeMap<String, Tensor>, &BTreeMap<String, Tensor>) {
        (&self.first, &self.second)
    }

    /// One update with learning rate `lr`; returns the new tensors, detached.
    ///
    /// # Errors
    /// A gradient that is missing or belongs to no parameter.
    pub fn step(
        &mut self,
        parameters: &BTreeMap<String, Tensor>,
        gradients: &Gradients,
        lr: f64,
    ) -> Result<BTreeMap<String, Tensor>, OptimizerError> {
        if let Some(name) = gradients.keys().find(|name| !parameters.contains_key(*name)) {
            return Err(OptimizerError::Unknown { what: "gradient", name: name.clone() });
        }
        self.step += 1;
        let AdamWConfig { beta1, beta2, epsilon, weight_decay, .. } = self.config;
        let correct1 = 1.0 - beta1.powf(self.step as f64);
        let correct2 = (1.0 - beta2.powf(self.step as f64)).sqrt();
        let mut updated = BTreeMap::new();
        for (name, tensor) in parameters {
            let missing = || OptimizerError::MissingGradient(name.clone());
            let gradient = gradients.get(name).ok_or_else(missing)?.detach();
            let first = self.first.get_mut(name).ok_or_else(missing)?;
            let second = self.second.get_mut(name).ok_or_else(missing)?;
            *first = ((&*first * beta1)? + (&gradient * (1.0 - beta1))?)?;
            *second = ((&*second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
            let denominator = ((second.sqrt()? / correct2)? + epsilon)?;
            let change = ((&*first / denominator)? * (lr / correct1))?;
            let decayed =
                if weight_decay == 0.0 { tensor.detach() } else { (tensor.detach() * (1.0 - lr * weight_decay))? };
            updated.insert(name.clone(), (decayed - change)?);
        }
        Ok(updated)
    }
}

/// L2 norm over all gradients together.
///
/// # Errors
/// Fails when the tensor library does.
pub fn global_norm(gradients: &Gradients) -> candle_core::Result<f64> {
    if gradients.is_empty() {
        return Ok(0.0);
    }
    let squares =
        gradients.values().map(|gradient| gradient.sqr()?.sum_all()).collect::<candle_core::Result<Vec<_>>>()?;
    // Looked at together: a GPU would be waited for once for each otherwise.
    let squares = Tensor::stack(&squares, 0)?.to_vec1::<f32>()?;
    Ok(squares.into_iter().map(f64::from).sum::<f64>().sqrt())
}

/// Scales all gradients so that their global norm is at most `max_norm` (0: leaves them), and returns the norm before.
/// PyTorch's `clip_grad_norm_`, its 1e-6 included.
///
/// # Errors
/// Fails when the tensor library does.
pub fn clip_global_norm(gradients: &mut Gradients, max_norm: f64) -> candle_core::Result<f64> {
    let norm = global_norm(gradients)?;
    let scale = max_norm / (norm + 1e-6);
    if max_norm > 0.0 && scale < 1.0 {
        for gradient in gradients.values_mut() {
            *gradient = (&*gradient * scale)?;
        }
    }
    Ok(norm)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn one(name: &str, values: &[f32]) -> BTreeMap<String, Tensor> {
        BTreeMap::from([(name.to_owned(), Tensor::new(values, &Device::Cpu).unwrap())])
    }

    fn values(map: &BTreeMap<String, Tensor>, name: &str) -> Vec<f32> {
        map[name].to_vec1().unwrap()
    }

    #[test]
    fn first_step_by_hand() {
        // m = 0.1 g and v = 0.001 g², both corrected back to g and g²: the step is lr · g / (|g| + ε), whatever g is.
        let parameters = one("a", &[1.0, 2.0, -3.0]);
        let mut adam = AdamW::new(AdamWConfig::default(), &parameters).unwrap();
        let after = adam.step(&parameters, &one("a", &[0.5, -4.0, 0.001]), 0.01).unwrap();
        for (got, want) in values(&after, "a").into_iter().zip([0.99, 2.01, -3.01]) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
    }

    #[test]
    fn twenty_steps_agree_with_the_textbook_form_in_f64() {
        let config = AdamWConfig { weight_decay: 0.1, epsilon: 1e-6, ..AdamWConfig::default() };
        let mut parameters = one("a", &[0.7, -0.2]);
        let mut adam = AdamW::new(config.clone(), &parameters).unwrap();
        let (mut theta, mut m, mut v) = ([0.7f64, -0.2], [0.0f64; 2], [0.0f64; 2]);
        for t in 1..=20i32 {
            let gradient = [f64::from(t).sin(), 0.3 - 0.05 * f64::from(t)];
            let lr = 0.02 / f64::from(t);
            for i in 0..2 {
                m[i] = 0.9 * m[i] + 0.1 * gradient[i];
                v[i] = 0.999 * v[i] + 0.001 * gradient[i] * gradient[i];
                let (m_hat, v_hat) = (m[i] / (1.0 - 0.9f64.powi(t)), v[i] / (1.0 - 0.999f64.powi(t)));
                theta[i] -= lr * (m_hat / (v_hat.sqrt() + 1e-6) + 0.1 * theta[i]);
            }
            parameters = adam.step(&parameters, &one("a", &gradient.map(|g| g as f32)), lr).unwrap();
        }
        for (got, want) in values(&parameters, "a").into_iter().zip(theta) {
            assert!((f64::from(got) - want).abs() < 2e-6, "{got} {want}");
        }
    }

    #[test]
    fn saved_state_continues_bit_for_bit() {
        let mut parameters = one("a", &[0.7, -0.2, 0.1]);
        let mut adam = AdamW::new(AdamWConfig::default(), &parameters).unwrap();
        let gradient = |t: u32| one("a", &[t as f32 * 0.1, -0.3, 1.0 / (t + 1) as f32]);
        for t in 0..5 {
            parameters = adam.step(&parameters, &gradient(t), 1e-2).unwrap();
        }
        let (first, second) = adam.moments();
        let mut other =
            AdamW::resume(AdamWConfig::default(), &parameters, adam.step_count(), first.clone(), second.clone())
                .unwrap();
        let (mut a, mut b) = (parameters.clone(), parameters);
        for t in 5..9 {
            a = adam.step(&a, &gradient(t), 1e-2).unwrap();
            b = other.step(&b, &gradient(t), 1e-2).unwrap();
        }
        assert_eq!(values(&a, "a"), values(&b, "a"));
    }

    #[test]
    fn a_cut_or_unknown_gradient_is_an_error() {
        let parameters = one("a", &[1.0]);
        let mut adam = AdamW::new(AdamWConfig::default(), &parameters).unwrap();
        let cut = adam.step(&parameters, &Gradients::new(), 0.1).unwrap_err();
        assert_eq!(cut.to_string(), "no gradient reached the trainable tensor a");
        let mut both = one("a", &[1.0]);
        both.extend(one("b", &[1.0]));
        assert!(adam.step(&parameters, &both, 0.1).unwrap_err().to_string().contains("gradient for b"));
        let shape = AdamW::resume(AdamWConfig::default(), &parameters, 1, one("a", &[0.0, 0.0]), one("a", &[0.0]));
        assert!(shape.unwrap_err().to_string().contains("shape [2]"));
    }

    #[test]
    fn clipping_by_hand() {
        let mut gradients = one("a", &[3.0]);
        gradients.extend(one("b", &[0.0, 4.0]));
        assert_eq!(clip_global_norm(&mut gradients, 0.0).unwrap(), 5.0);
        assert_eq!(clip_global_norm(&mut gradients, 10.0).unwrap(), 5.0);
        assert_eq!(values(&gradients, "b"), [0.0, 4.0]);
        assert_eq!(clip_global_norm(&mut gradients, 1.0).unwrap(), 5.0);
        assert!((values(&gradients, "a")[0] - 0.6).abs() < 1e-6);
        assert!((global_norm(&gradients).unwrap() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn validation_names_the_key() {
        assert!(AdamWConfig::default().validate().is_ok());
        let wrong = AdamWConfig { beta2: 1.0, ..AdamWConfig::default() };
        assert_eq!(
            wrong.validate().unwrap_err().to_string(),
            "optimizer.beta2 is 1, it must be at least 0 and below 1"
        );
        assert!(AdamWConfig { learning_rate: 0.0, ..AdamWConfig::default() }.validate().is_err());
    }
}
