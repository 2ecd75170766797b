//! Where a model runs, and in which number format.

use candle_core::{DType, Device as CandleDevice, DeviceLocation};

use super::EngineError;
use crate::config::{Device, Dtype, ModelConfig};

/// The device and the number format that the settings mean on this machine.
///
/// # Errors
/// There is no such device, or its engines cannot compute in that format.
pub(super) fn choose(config: &ModelConfig) -> Result<(CandleDevice, DType), EngineError> {
    let device = match config.device {
        Device::Cpu => Ok(CandleDevice::Cpu),
        Device::Auto => best(),
        Device::Cuda(number) => CandleDevice::new_cuda(number),
        Device::Metal => CandleDevice::new_metal(0),
    }
    .map_err(|error| EngineError::Load(format!("model.device = {}: {error}", config.device)))?;
    let dtype = match (config.dtype, device.is_cpu()) {
        (Dtype::Auto | Dtype::F32, true) | (Dtype::F32, false) => DType::F32,
        (Dtype::Auto | Dtype::Bf16, false) => DType::BF16,
        (Dtype::F16, false) => DType::F16,
        (Dtype::Bf16 | Dtype::F16, true) => {
            return Err(EngineError::Load(
                "model.dtype must be f32 on a CPU: candle 0.10 has no other matrix product there that is fast".into(),
            ));
        }
    };
    Ok((device, dtype))
}

fn best() -> candle_core::Result<CandleDevice> {
    if candle_core::utils::metal_is_available() {
        return CandleDevice::new_metal(0);
    }
    CandleDevice::cuda_if_available(0)
}

/// `cpu`, `cuda:0`, `metal`.
pub(super) fn device_name(device: &CandleDevice) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".into(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { .. } => "metal".into(),
    }
}
