//! Where a model runs, and in which number format.

use candle_core::{DType, Device, DeviceLocation};

use super::EngineError;
use crate::config::ModelConfig;

/// The device and the number format that the settings mean on this machine.
///
/// # Errors
/// There is no such device, or its engines cannot compute in that format.
pub(super) fn choose(config: &ModelConfig) -> Result<(Device, DType), EngineError> {
    let device = config
        .device
        .open()
        .map_err(|error| EngineError::Load(format!("model.device = {}: {error}", config.device)))?;
    let dtype = config.dtype.on(&device).map_err(|error| EngineError::Load(format!("model.{error}")))?;
    Ok((device, dtype))
}

/// `cpu`, `cuda:0`, `metal`.
pub(super) fn device_name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".into(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { .. } => "metal".into(),
    }
}
