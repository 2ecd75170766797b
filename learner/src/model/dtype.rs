//! The number format of a base and its activations.

use std::fmt;

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

use super::error::ModelError;

/// Number format of weights and activations. An adapter is f32 whatever the base is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// f32 on a CPU (bf16 fails there and f16 is slower), bf16 on an accelerator.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits, 5 of exponent.
    F16,
    /// 16 bits, 8 of exponent.
    Bf16,
}

impl Dtype {
    /// The format on a device.
    ///
    /// # Errors
    /// [`ModelError::OutOfRange`] for a half precision on a CPU.
    pub fn on(self, device: &Device) -> Result<DType, ModelError> {
        match (self, device.is_cpu()) {
            (Self::Auto | Self::F32, true) | (Self::F32, false) => Ok(DType::F32),
            (Self::Auto | Self::Bf16, false) => Ok(DType::BF16),
            (Self::F16, false) => Ok(DType::F16),
            (Self::Bf16 | Self::F16, true) => Err(ModelError::OutOfRange {
                key: "dtype",
                value: self.to_string(),
                expected: "f32 on a CPU: candle 0.10 has no other matrix product there that is fast",
            }),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_computes_in_f32_only() {
        assert_eq!(Dtype::Auto.on(&Device::Cpu).unwrap(), DType::F32);
        assert_eq!(Dtype::F32.on(&Device::Cpu).unwrap(), DType::F32);
        for half in [Dtype::Bf16, Dtype::F16] {
            let error = half.on(&Device::Cpu).unwrap_err().to_string();
            assert!(error.contains("dtype") && error.contains("f32 on a CPU"), "{error}");
        }
    }
}
