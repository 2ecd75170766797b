//! The weight of a frozen linear layer, whole or in fewer bits.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};

use super::error::ModelError;
use super::ops::{linear, quantised_linear};

/// In how many bits the weights of the decoder's linear layers are held. Embedding, output layer, normalisations, the vision
/// side and every adapter stay f32, and so do the activations: what is computed is exactly the model with rounded weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantisation {
    /// 8.5 bits for a weight: Q8_0, 32 values and their scale.
    Q8,
    /// 4.5 bits for a weight: Q4_K where rows are whole blocks of 256 values, else Q4_0, which is less exact.
    Q4,
}

impl Quantisation {
    /// A matrix `[out, in]` on the CPU in blocks of fewer bits.
    ///
    /// # Errors
    /// [`ModelError::Unquantisable`]: its rows are no whole blocks.
    pub fn quantise(self, name: &str, weight: &Tensor) -> std::result::Result<QTensor, ModelError> {
        let (_, width) = weight.dims2()?;
        let format = match self {
            Self::Q8 => GgmlDType::Q8_0,
            Self::Q4 if width.is_multiple_of(GgmlDType::Q4K.block_size()) => GgmlDType::Q4K,
            Self::Q4 => GgmlDType::Q4_0,
        };
        let block = format.block_size();
        if !width.is_multiple_of(block) {
            return Err(ModelError::Unquantisable { name: name.to_owned(), quantisation: self, width, block });
        }
        Ok(QTensor::quantize(weight, format)?)
    }
}

impl fmt::Display for Quantisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        })
    }
}

impl FromStr for Quantisation {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        match text {
            "q8" => Ok(Self::Q8),
            "q4" => Ok(Self::Q4),
            _ => Err("there are `q8` and `q4`".into()),
        }
    }
}

/// The weight of a linear layer, `[out, in]`.
#[derive(Clone, Debug)]
pub(crate) enum Weight {
    /// Every value, in the type of the activations.
    Full(Tensor),
    /// Blocks of fewer bits, on the CPU.
    Quantised(Arc<QTensor>),
}

impl Weight {
    /// `(out, in)`.
    pub(crate) fn shape(&self) -> Result<(usize, usize)> {
        match self {
            Self::Full(weight) => weight.dims2(),
            Self::Quantised(blocks) => blocks.shape().dims2(),
        }
    }

    /// `x·Wᵀ`, `[rows, out]`.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Full(weight) => linear(x, weight, None),
            Self::Quantised(blocks) => quantised_linear(x, blocks),
        }
    }

    /// The weight for a backward pass.
    ///
    /// # Errors
    /// It is quantised: adapters are trained on a base in full precision.
    pub(crate) fn full(&self) -> Result<&Tensor> {
        match self {
            Self::Full(weight) => Ok(weight),
            Self::Quantised(_) => bail!("{}", ModelError::QuantisedBase),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::model::ops::finite_difference::{distance, random};

    #[test]
    fn four_bits_take_the_better_blocks_where_rows_are_whole_ones() {
        for (width, format) in [(512, GgmlDType::Q4K), (576, GgmlDType::Q4_0), (1536, GgmlDType::Q4K)] {
            let blocks = Quantisation::Q4.quantise("w", &random((3, width), 1)).unwrap();
            assert_eq!(blocks.dtype(), format, "{width}");
        }
        assert_eq!(Quantisation::Q8.quantise("w", &random((3, 512), 1)).unwrap().dtype(), GgmlDType::Q8_0);
    }

    #[test]
    fn rows_that_are_no_whole_blocks_are_refused_by_name() {
        for quantisation in [Quantisation::Q8, Quantisation::Q4] {
            let error = quantisation.quantise("layers.3.w", &random((2, 48), 1)).unwrap_err().to_string();
            assert!(error.contains("layers.3.w") && error.contains("48") && error.contains("32"), "{error}");
        }
    }

    #[test]
    fn a_quantised_weight_has_the_shape_and_nearly_the_products_of_the_full_one() {
        let (x, w) = (random((3, 256), 1), random((5, 256), 2));
        let full = Weight::Full(w.clone());
        for (quantisation, bound) in [(Quantisation::Q8, 0.06), (Quantisation::Q4, 1.2)] {
            let quantised = Weight::Quantised(Arc::new(quantisation.quantise("w", &w).unwrap()));
            assert_eq!(quantised.shape().unwrap(), (5, 256));
            let apart = distance(&quantised.apply(&x).unwrap(), &full.apply(&x).unwrap());
            assert!(apart > 0.0 && apart < bound, "{quantisation}: {apart}");
            assert!(quantised.full().unwrap_err().to_string().contains("full precision"));
        }
        assert_eq!(full.full().unwrap().dtype(), DType::F32);
    }

    #[test]
    fn names_go_both_ways() {
        for quantisation in [Quantisation::Q8, Quantisation::Q4] {
            assert_eq!(quantisation.to_string().parse(), Ok(quantisation));
        }
        assert!("q5".parse::<Quantisation>().is_err());
    }
}
