//! Angles of the rotary positions.

use candle_core::{Device, Result, Tensor};

use super::config::{DecoderConfig, RopeScaling};
use crate::model::ops::rope::Angles;

/// Cosines and sines of every position, `[positions, head dimension / 2]`, f32.
#[derive(Clone, Debug)]
pub(crate) struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    pub(crate) fn new(config: &DecoderConfig, device: &Device) -> Result<Self> {
        let frequencies = frequencies(config);
        let count = frequencies.len();
        let frequencies = Tensor::from_vec(frequencies, (1, count), device)?;
        let positions =
            Tensor::arange(0.0_f32, config.max_positions as f32, device)?.unsqueeze(1)?;
        let angles = positions.matmul(&frequencies)?;
        Ok(Self {
            cos: angles.cos()?,
            sin: angles.sin()?,
        })
    }

    /// Angles of rows at these positions.
    pub(crate) fn at(&self, positions: &[u32]) -> Result<Angles> {
        let index = Tensor::new(positions, self.cos.device())?;
        Ok(Angles {
            cos: self.cos.index_select(&index, 0)?,
            sin: self.sin.index_select(&index, 0)?,
        })
    }
}

/// Frequencies in f32 arithmetic, as transformers and mistralrs have them.
fn frequencies(config: &DecoderConfig) -> Vec<f32> {
    let (theta, width) = (config.rope_theta as f32, config.head_dim);
    let plain = (0..width)
        .step_by(2)
        .map(|i| 1.0 / theta.powf(i as f32 / width as f32));
    match config.rope_scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => {
            plain.map(|frequency| frequency / factor as f32).collect()
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_positions,
        } => {
            let (factor, low, high) = (
                factor as f32,
                low_freq_factor as f32,
                high_freq_factor as f32,
            );
            let original = original_positions as f32;
            plain
                .map(|frequency| {
                    let wavelength = 2.0 * std::f32::consts::PI / frequency;
                    if wavelength < original / high {
                        frequency
                    } else if wavelength > original / low {
                        frequency / factor
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                })
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(rope_scaling: RopeScaling) -> DecoderConfig {
        DecoderConfig {
            hidden_size: 16,
            intermediate_size: 16,
            vocab_size: 8,
            layers: 1,
            heads: 2,
            key_value_heads: 1,
            head_dim: 8,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            rope_scaling,
            max_positions: 16,
        }
    }

    #[test]
    fn scalings() {
        let plain = frequencies(&config(RopeScaling::None));
        assert_eq!(plain.len(), 4);
        assert!((plain[0] - 1.0).abs() < 1e-7 && (plain[1] - 0.1).abs() < 1e-7);
        let linear = frequencies(&config(RopeScaling::Linear { factor: 4.0 }));
        assert!(
            plain
                .iter()
                .zip(&linear)
                .all(|(p, l)| (p / 4.0 - l).abs() < 1e-9)
        );
        // Wavelengths 6.3, 63, 628, 6283 against the bounds 2048 and 8192: three kept, the last on the ramp.
        let llama3 = frequencies(&config(RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_positions: 8192.0,
        }));
        assert_eq!(llama3[..3], plain[..3]);
        let smooth = (8192.0 / (2.0 * std::f64::consts::PI * 1000.0) - 1.0) / 3.0;
        let expected = (1.0 - smooth) * 1e-3 / 8.0 + smooth * 1e-3;
        assert!((f64::from(llama3[3]) - expected).abs() < 1e-8);
    }
}
