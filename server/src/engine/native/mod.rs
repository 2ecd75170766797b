//! The engine for the families that the learner trains: our own decode loop over the learner's model.
//!
//! One copy of the base, one thread that computes, one batch for all: a generation is the base or a few megabytes of adapter
//! beside it, so loading one is reading its file, and sequences of several generations share each step. What was served is
//! what is trained, because it is the same forward pass and the same preprocessing.
//!
//! # Layout
//! - [`generation`]: a loaded generation, and what happens to a request before it reaches the thread.
//! - [`prompt`]: messages in the template's shape.
//! - [`scheduler`]: the thread: who is admitted, and what is computed in which order.
//! - [`sequence`]: one answer under way.
//! - [`features`]: what the vision tower made of images, kept for the next question about them.
//! - [`awake`]: threads that do not fall asleep within a step.
//! - [`prefixes`]: keys and values of prompts, kept for the next prompt that begins the same.

mod awake;
mod features;
mod generation;
mod prefixes;
mod prompt;
#[cfg(test)]
mod quantised_tests;
mod scheduler;
mod sequence;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use futures::future::BoxFuture;
use rayon::ThreadPoolBuilder;
use reground_learner::adapter::PeftAdapter;
use reground_learner::model::{KeyValues, Lora, Model, Source};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use self::features::FeatureCache;
use self::generation::NativeGeneration;
use self::prefixes::PrefixCache;
use self::scheduler::{Scheduler, Work};
use self::sequence::Sequence;
use super::source::ModelFiles;
use super::{Engine, EngineError, EngineInfo, Generation, GenerationId, checkpoint, device};
use crate::config::ModelConfig;

/// Sequences inside at once where `model.max_parallel` is 0.
const MAX_PARALLEL: usize = 16;

/// Serves generations with the learner's model.
pub struct NativeEngine {
    core: Arc<Core>,
}

/// What all generations share. The thread ends when the last one has gone.
struct Core {
    info: EngineInfo,
    model: Arc<Model>,
    features: Arc<FeatureCache>,
    prefixes: Arc<PrefixCache>,
    arrivals: Sender<Sequence>,
    thread: JoinHandle<()>,
    /// Requests on their way to the thread: images being prepared.
    tasks: TaskTracker,
    /// Keeps a temporary directory for as long as its model is used.
    _files: ModelFiles,
}

impl NativeEngine {
    /// Loads the base and starts the thread.
    ///
    /// # Errors
    /// A file of the checkpoint is missing or malformed, its family is not the learner's, or a setting does not go with it.
    pub fn new(config: &ModelConfig, files: ModelFiles) -> Result<Self, EngineError> {
        let (device, dtype) = device::choose(config)?;
        let quantisation = config.isq.quantisation();
        if let Some(quantisation) = quantisation
            && !device.is_cpu()
        {
            return Err(EngineError::Load(format!(
                "model.isq = \"{quantisation}\": the native engine holds weights so on a CPU only, and the device is {}; set \
                 model.device = \"cpu\", or model.isq = \"off\"",
                device::device_name(&device)
            )));
        }
        let max_parallel = if config.max_parallel == 0 { MAX_PARALLEL } else { config.max_parallel };
        let mut about = checkpoint::info(config, &files, "native", (&device, dtype), (max_parallel, 0))?;
        about.one_batch = true;
        let model = match quantisation {
            None => Model::load(&files.directory, dtype, &device),
            Some(quantisation) => Model::quantised(&Source::directory(&files.directory), quantisation),
        };
        let model = model.map_err(|error| EngineError::Load(format!("{}: {error}", files.source)))?;
        if let Some(quantisation) = quantisation {
            info!(model.isq = %quantisation, "The weights of the decoder's linear layers were rounded; adapters come in f32 beside them.");
        }
        // A checkpoint that does not say how many positions it has is read with its family's default.
        about.max_len = about.max_len.min(model.decoder().config().max_positions);
        let bytes_per_token = KeyValues::bytes_per_token(model.decoder().config(), dtype);
        let fitting = config.kv_cache_bytes / bytes_per_token;
        if fitting < about.max_len {
            warn!(
                "model.kv_cache_bytes = {} holds {fitting} tokens, so prompt and answer together are limited to them instead of {}.",
                config.kv_cache_bytes, about.max_len
            );
            about.max_len = fitting;
        }
        let model = Arc::new(model);
        let features = Arc::new(FeatureCache::new(config.vision_cache_bytes));
        let prefixes = Arc::new(PrefixCache::new(config.prefix_cache_bytes, bytes_per_token));
        let (arrivals, received) = mpsc::channel();
        let work = Work {
            model: model.clone(),
            vocabulary: about.vocabulary.clone(),
            features: features.clone(),
            prefixes: prefixes.clone(),
        };
        let scheduler = Scheduler::new(work, received, config.kv_cache_bytes, max_parallel);
        // The thread that decides is one of those that compute: a product is not handed over and waited for.
        let pool = ThreadPoolBuilder::new()
            .num_threads(rayon::current_num_threads())
            .thread_name(|at| format!("reground-core-{at}"))
            .build()
            .map_err(|error| EngineError::Load(format!("no threads for the engine: {error}")))?;
        let thread = std::thread::Builder::new()
            .name("reground-engine".into())
            .spawn(move || pool.install(|| scheduler.run()))
            .map_err(|error| EngineError::Load(format!("no thread for the engine: {error}")))?;
        let tasks = TaskTracker::new();
        Ok(Self {
            core: Arc::new(Core { info: about, model, features, prefixes, arrivals, thread, tasks, _files: files }),
        })
    }
}

impl Engine for NativeEngine {
    fn info(&self) -> &EngineInfo {
        &self.core.info
    }

    fn load(
        &self,
        id: GenerationId,
        adapter: Option<PathBuf>,
    ) -> BoxFuture<'_, Result<Arc<dyn Generation>, EngineError>> {
        Box::pin(async move {
            let (adapter, weights) = match adapter {
                Some(directory) => {
                    let model = self.core.model.clone();
                    let read = tokio::task::spawn_blocking(move || {
                        let adapter = PeftAdapter::read(&directory).map_err(|error| error.to_string())?;
                        let lora = Lora::load(model.decoder(), &adapter).map_err(|error| error.to_string())?;
                        let weights = adapter.digest().map_err(|error| error.to_string())?;
                        Ok((Some(Arc::new(lora)), weights))
                    });
                    let read = read.await.map_err(|error| error.to_string()).and_then(|read| read);
                    let unusable = |error| EngineError::Load(format!("the adapter cannot be used: {error}"));
                    read.map_err(unusable)?
                }
                None => (None, prefixes::base()),
            };
            Ok(Arc::new(NativeGeneration::new(id, adapter, weights, self.core.clone())) as Arc<dyn Generation>)
        })
    }
}
