//! Loading on a thread of its own.
//!
//! The adapter travels through a list that belongs to the thread and that nobody else clears: a second load on the same
//! thread would merge the first one's adapter as well. A fresh thread for each load starts with an empty list.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::Device;
use metrics::counter;
use mistralrs::core::Request;
use mistralrs::{
    DType, GgufModelBuilder, IsqBits, MemoryGpuConfig, Model, ModelBuilder, ModelDType, PagedAttentionConfig,
    PagedAttentionMetaBuilder,
};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::adapter::PreparedAdapter;
use super::{EngineError, ModelFiles};
use crate::config::{Isq, ModelConfig};
use crate::engine::device;

/// Sequences inside at once that are proven to answer alike alone and in company. A batch above 1 gives wrong answers on a CPU; on
/// CUDA, where other code attends, `tests/gpu/run` is the proof, which no GPU has run yet.
const PROVEN: usize = 1;

/// Engines that this process has loaded. mistralrs 0.8.1 leaves a thread behind with each (its `IntervalLogger`), which sleeps for the
/// life of the process; nothing that it offers ends one.
static LOADS: AtomicUsize = AtomicUsize::new(0);

/// Refuses one more load at the limit.
pub(super) fn check_loads(most: usize) -> Result<(), EngineError> {
    match LOADS.load(Ordering::Relaxed) {
        loads if loads >= most => Err(EngineError::TooManyLoads(loads)),
        _ => Ok(()),
    }
}

/// Whether at least half of the loads are used up: from here on what is loaded is better kept.
pub(super) fn loads_run_short(most: usize) -> bool {
    LOADS.load(Ordering::Relaxed) >= most / 2
}

/// Everything that loading needs, checked.
pub(super) struct Settings {
    pub(super) files: ModelFiles,
    pub(super) isq: Isq,
    pub(super) max_parallel: usize,
    /// Engines that this process may load.
    pub(super) max_loads: usize,
    /// Bytes of keys and values in pages; `None` for a cache of each sequence's own.
    pub(super) paged_bytes: Option<usize>,
    pub(super) device: Device,
    pub(super) dtype: DType,
}

impl Settings {
    pub(super) fn new(config: &ModelConfig, files: ModelFiles) -> Result<Self, EngineError> {
        let (device, dtype) = device::choose(config)?;
        let is_proven = config.max_parallel <= PROVEN;
        if !is_proven && (device.is_cpu() || !config.unproven_parallel) {
            return Err(EngineError::Load(format!(
                "model.max_parallel = {}: mistralrs 0.8.1 is only proven to answer alike alone and in company with {PROVEN}",
                config.max_parallel
            )));
        }
        if config.paged_attention && !device.is_cuda() {
            return Err(EngineError::Load("model.paged_attention: mistralrs has it on CUDA only".into()));
        }
        let paged_bytes = config.paged_attention.then_some(config.kv_cache_bytes);
        let (max_parallel, max_loads) = (config.max_parallel.max(PROVEN), config.max_loads);
        Ok(Self { files, isq: config.isq, max_parallel, max_loads, paged_bytes, device, dtype })
    }

    /// Pages for keys and values, if there are to be any. Their number is fixed, because beside this engine there is room for the
    /// next one.
    fn pages(&self) -> anyhow::Result<Option<PagedAttentionConfig>> {
        let pages = |bytes: usize| {
            PagedAttentionMetaBuilder::default().with_gpu_memory(MemoryGpuConfig::MbAmount(bytes >> 20)).build()
        };
        self.paged_bytes.map(pages).transpose()
    }

    async fn build(&self) -> anyhow::Result<Model> {
        let directory = self.files.directory.display();
        // Without a prefix cache: on a CPU it never evicts.
        if let Some(file) = &self.files.gguf {
            let builder = GgufModelBuilder::new(directory.to_string(), vec![file])
                .with_tok_model_id(directory)
                .with_device(self.device.clone())
                .with_max_num_seqs(self.max_parallel)
                .with_prefix_cache_n(None);
            let builder = match self.pages()? {
                Some(pages) => builder.with_paged_attn(pages),
                None => builder,
            };
            return builder.build().await;
        }
        let dtype = match self.dtype {
            DType::F16 => ModelDType::F16,
            DType::BF16 => ModelDType::BF16,
            _ => ModelDType::F32,
        };
        let builder = ModelBuilder::new(directory)
            .with_device(self.device.clone())
            .with_dtype(dtype)
            .with_max_num_seqs(self.max_parallel)
            .with_prefix_cache_n(None);
        let builder = match self.pages()? {
            Some(pages) => builder.with_paged_attn(pages),
            None => builder,
        };
        let builder = match self.isq {
            Isq::Off => builder,
            Isq::Q8 => builder.with_auto_isq(IsqBits::Eight),
            Isq::Q4 => builder.with_auto_isq(IsqBits::Four),
        };
        builder.build().await
    }
}

/// A loaded model; dropping it ends its engine.
pub(super) struct Loaded {
    pub(super) model: Model,
    /// Into the engine. Taken once, because asking mistralrs again restarts a dead engine behind our back.
    pub(super) requests: mpsc::Sender<Request>,
    /// Who holds one has the engine: mistralrs' own limit does not hold for requests that arrive while it is idle. Closed
    /// when the engine has died.
    pub(super) turns: Arc<Semaphore>,
}

/// Loads the base, or the base with an adapter merged into it.
pub(super) async fn load(
    settings: Arc<Settings>,
    adapter: Option<Arc<PreparedAdapter>>,
) -> Result<Loaded, EngineError> {
    let loads = LOADS.fetch_add(1, Ordering::Relaxed) + 1;
    // The first one comes before the recorder of metrics does.
    counter!("reground_engine_loads_total").absolute(loads as u64);
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
        let (applied, note) = adapter.applied(settings.dtype, &settings.device);
        mistralrs_quant::push_applied_lora(applied);
        note
    });
    let built = runtime.block_on(settings.build());
    mistralrs_quant::clear_applied_loras();
    let model = built
        .map_err(|error| EngineError::Load(format!("mistralrs cannot load {}: {error:#}", settings.files.source)))?;
    if let Some(note) = note {
        note.check()?;
    }
    let requests =
        model.inner().get_sender(None).map_err(|error| EngineError::Load(format!("mistralrs: {error:?}")))?;
    Ok(Loaded { model, requests, turns: Arc::new(Semaphore::new(settings.max_parallel)) })
}
