//! Loading on a thread of its own.
//!
//! The adapter travels through a list that belongs to the thread and that nobody else clears: a second load on the same
//! thread would merge the first one's adapter as well. A fresh thread for each load starts with an empty list.

use std::sync::Arc;

use candle_core::Device as CandleDevice;
use mistralrs::core::Request;
use mistralrs::{DType, IsqBits, Model, ModelBuilder, ModelDType};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::adapter::PreparedAdapter;
use super::{EngineError, ModelFiles};
use crate::config::{Device, Dtype, Isq, ModelConfig};

/// Everything that loading needs, checked.
pub(super) struct Settings {
    pub(super) files: ModelFiles,
    pub(super) isq: Isq,
    pub(super) max_parallel: usize,
    device: CandleDevice,
    dtype: Dtype,
}

impl Settings {
    pub(super) fn new(config: &ModelConfig, files: ModelFiles) -> Result<Self, EngineError> {
        let device = match config.device {
            Device::Cpu => Ok(CandleDevice::Cpu),
            Device::Auto => mistralrs::best_device(false),
            Device::Cuda(number) => CandleDevice::new_cuda(number),
            Device::Metal => CandleDevice::new_metal(0),
        }
        .map_err(|error| EngineError::Load(format!("model.device = {}: {error}", config.device)))?;
        let dtype = match (config.dtype, device.is_cpu()) {
            (Dtype::Auto, true) => Dtype::F32,
            (Dtype::Auto, false) => Dtype::Bf16,
            (Dtype::Bf16 | Dtype::F16, true) => {
                return Err(EngineError::Load(
                    "model.dtype must be f32 on a CPU: mistralrs 0.8.1 fails with bf16 and is slower with f16".into(),
                ));
            }
            (dtype, _) => dtype,
        };
        // A batch above 1 gives wrong answers on a CPU; on an accelerator no run of the equality test has allowed more yet.
        let proven = 1;
        if config.max_parallel > proven {
            return Err(EngineError::Load(format!(
                "model.max_parallel = {}: mistralrs 0.8.1 is only proven to answer alike alone and in company with {proven}",
                config.max_parallel
            )));
        }
        Ok(Self { files, isq: config.isq, max_parallel: proven, device, dtype })
    }

    pub(super) fn device_name(&self) -> String {
        match self.device.location() {
            candle_core::DeviceLocation::Cpu => "cpu".into(),
            candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            candle_core::DeviceLocation::Metal { .. } => "metal".into(),
        }
    }

    pub(super) fn dtype_name(&self) -> &'static str {
        match self.dtype {
            Dtype::Auto | Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        }
    }

    fn builder(&self) -> ModelBuilder {
        let dtype = match self.dtype {
            Dtype::Auto | Dtype::F32 => ModelDType::F32,
            Dtype::F16 => ModelDType::F16,
            Dtype::Bf16 => ModelDType::BF16,
        };
        // Without a prefix cache: on a CPU it never evicts.
        let builder = ModelBuilder::new(self.files.directory.display())
            .with_device(self.device.clone())
            .with_dtype(dtype)
            .with_max_num_seqs(self.max_parallel)
            .with_prefix_cache_n(None);
        match self.isq {
            Isq::Off => builder,
            Isq::Q8 => builder.with_auto_isq(IsqBits::Eight),
            Isq::Q4 => builder.with_auto_isq(IsqBits::Four),
        }
    }

    fn candle_dtype(&self) -> DType {
        match self.dtype {
            Dtype::Auto | Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::Bf16 => DType::BF16,
        }
    }
}

/// A loaded model; dropping it ends its engine.
pub(super) struct Loaded {
    pub(super) model: Model,
    /// Into the engine. Taken once, because asking mistralrs again restarts a dead engine behind our back.
    pub(super) requests: mpsc::Sender<Request>,
}

/// Loads the base, or the base with an adapter merged into it.
pub(super) async fn load(
    settings: Arc<Settings>,
    adapter: Option<Arc<PreparedAdapter>>,
) -> Result<Loaded, EngineError> {
    let runtime = Handle::current();
    let (sender, result) = oneshot::channel();
    std::thread::Builder::new()
        .name("reground-load".into())
        .spawn(move || sender.send(load_here(&settings, adapter, &runtime)))
        .map_err(|error| EngineError::Load(format!("no thread to load on: {error}")))?;
    result
        .await
        .map_err(|_| EngineError::Load("mistralrs panicked while loading; its message is on standard error".into()))?
}

fn load_here(
    settings: &Settings,
    adapter: Option<Arc<PreparedAdapter>>,
    runtime: &Handle,
) -> Result<Loaded, EngineError> {
    mistralrs_quant::clear_applied_loras();
    let note = adapter.map(|adapter| {
        let (applied, note) = adapter.applied(settings.candle_dtype(), &settings.device);
        mistralrs_quant::push_applied_lora(applied);
        note
    });
    let built = runtime.block_on(settings.builder().build());
    mistralrs_quant::clear_applied_loras();
    let model = built
        .map_err(|error| EngineError::Load(format!("mistralrs cannot load {}: {error:#}", settings.files.source)))?;
    if let Some(note) = note {
        note.check()?;
    }
    let requests =
        model.inner().get_sender(None).map_err(|error| EngineError::Load(format!("mistralrs: {error:?}")))?;
    Ok(Loaded { model, requests })
}
