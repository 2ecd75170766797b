//! Where a model runs.

use std::fmt;
use std::str::FromStr;

use candle_core::{Device, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Where a model is to run: `auto`, `cpu`, `cuda:N` or `metal`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first accelerator this build knows, else the CPU.
    #[default]
    Auto,
    /// All cores.
    Cpu,
    /// The CUDA device with this number.
    Cuda(usize),
    /// Apple's GPU.
    Metal,
}

impl DeviceChoice {
    /// The device itself. A build for CUDA does not fall back to the CPU: that would only be noticed by how slow it is.
    ///
    /// # Errors
    /// There is no such device, or this build knows none of its kind.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto if candle_core::utils::metal_is_available() => Device::new_metal(0),
            Self::Auto => Device::cuda_if_available(0),
            Self::Cuda(number) => Device::new_cuda(number),
            Self::Metal => Device::new_metal(0),
        }
    }
}

/// Bytes of the device's memory that nobody uses; `None` if it does not say.
pub fn free_bytes(device: &Device) -> Option<usize> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => cuda.cuda_stream().context().mem_get_info().ok().map(|(free, _)| free),
        _ => None,
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "metal" => Ok(Self::Metal),
            "cuda" => Ok(Self::Cuda(0)),
            other => other
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| "there are `auto`, `cpu`, `cuda:N` (N counts from 0) and `metal`".into()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl<'de> Deserialize<'de> for DeviceChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for DeviceChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in ["auto", "cpu", "cuda:0", "cuda:3", "metal"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for name in ["", "0", "gpu", "cuda:", "cuda:-1", "cuda:x"] {
            assert!(name.parse::<DeviceChoice>().unwrap_err().contains("cuda:N"), "{name}");
        }
    }

    #[test]
    fn what_this_build_does_not_know_is_an_error() {
        assert!(DeviceChoice::Cpu.open().unwrap().is_cpu());
        if !candle_core::utils::cuda_is_available() {
            let error = DeviceChoice::Cuda(0).open().unwrap_err().to_string();
            assert!(error.contains("cuda"), "{error}");
        }
    }
}
