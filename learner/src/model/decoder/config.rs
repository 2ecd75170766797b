//! Shape of a decoder of the Llama kind.

/// How rotary frequencies are stretched for contexts longer than the pretraining's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by the factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3's: long wavelengths divided by the factor, short ones kept, a ramp between.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths over `original_positions / low_freq_factor` are stretched whole.
        low_freq_factor: f64,
        /// Wavelengths under `original_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Positions of the pretraining.
        original_positions: f64,
    },
}

/// Sizes of the language model.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Width.
    pub hidden_size: usize,
    /// Width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Tokens.
    pub vocab_size: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub key_value_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// ε of the RMS normalisations.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Their scaling.
    pub rope_scaling: RopeScaling,
    /// Longest sequence, tokens.
    pub max_positions: usize,
}
