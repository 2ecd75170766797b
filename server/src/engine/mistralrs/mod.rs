//! The engine for the families that the learner does not know: mistralrs.
//!
//! An adapter is merged into the weights while they load, so each generation is an engine of its own. What the crate does
//! wrong in 0.8.1, and how this module stays clear of it:
//! - a batch above 1 gives wrong answers on a CPU: one sequence at a time there;
//! - its sampler has no seed and its log-probabilities are base 10: a logits processor ([`tap`]) chooses the tokens;
//! - its stream stalls the engine for a slow reader: tokens leave through the tap, the engine sends one message at the end;
//! - its engine can panic on its own thread: the closed channel is noticed and the generation loaded anew ([`generation`]);
//! - every engine leaves a sleeping thread behind: their number has a limit ([`load`]).
//!
//! # Layout
//! - [`adapter`]: a PEFT directory as the merge wants it, and the proof that every tensor was used.
//! - [`generation`]: a loaded generation.
//! - [`load`]: loading on a thread of its own.
//! - [`prompt`]: messages in mistralrs' shape.
//! - [`tap`]: where tokens are chosen and reported.

mod adapter;
mod generation;
mod load;
mod prompt;
mod tap;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod tiny_text;

use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use reground_learner::adapter::{ModuleShapes, checkpoint_shapes};

use self::adapter::PreparedAdapter;
use self::generation::MistralrsGeneration;
use self::load::Settings;
use super::checkpoint;
use super::source::ModelFiles;
use super::{Engine, EngineError, EngineInfo, Generation, GenerationId};
use crate::config::{Isq, ModelConfig};

/// Requests that are ready when the engine becomes free. More would only leave the fair queue earlier.
const LOOK_AHEAD: usize = 1;

/// Loads generations with mistralrs.
pub struct MistralrsEngine {
    info: EngineInfo,
    settings: Arc<Settings>,
    /// The base's linear layers, to check adapters against.
    layers: ModuleShapes,
}

impl MistralrsEngine {
    /// Reads what can be known of the model before it is loaded.
    ///
    /// # Errors
    /// A file of the checkpoint is missing or malformed, or a setting does not go with it.
    pub fn new(config: &ModelConfig, files: ModelFiles) -> Result<Self, EngineError> {
        let files = files.for_mistralrs()?;
        let settings = Settings::new(config, files)?;
        let info = checkpoint::info(
            config,
            &settings.files,
            "mistralrs",
            (&settings.device, settings.dtype),
            (settings.max_parallel, LOOK_AHEAD),
        )?;
        let layers = match settings.files.gguf {
            // Quantised: no adapter can be merged.
            Some(_) => ModuleShapes::new(),
            None => {
                checkpoint_shapes(&settings.files.directory).map_err(|error| EngineError::Load(error.to_string()))?
            }
        };
        Ok(Self { info, settings: Arc::new(settings), layers })
    }

    /// Whether loads run short, so that what is loaded is better kept.
    pub(crate) fn loads_run_short(&self) -> bool {
        load::loads_run_short(self.settings.max_loads)
    }
}

impl Engine for MistralrsEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn load(
        &self,
        id: GenerationId,
        adapter: Option<PathBuf>,
    ) -> BoxFuture<'_, Result<Arc<dyn Generation>, EngineError>> {
        Box::pin(async move {
            if adapter.is_some() && self.settings.isq != Isq::Off {
                return Err(EngineError::Load(
                    "an adapter cannot be merged into quantised layers: set model.isq = \"off\"".into(),
                ));
            }
            let prepared = match adapter {
                Some(directory) => {
                    let layers = self.layers.clone();
                    let read = tokio::task::spawn_blocking(move || PreparedAdapter::read(&directory, &layers)).await;
                    Some(Arc::new(
                        read.map_err(|error| EngineError::Load(format!("reading the adapter failed: {error}")))??,
                    ))
                }
                None => None,
            };
            let generation = MistralrsGeneration::load(id, self.settings.clone(), prepared, &self.info).await?;
            Ok(generation as Arc<dyn Generation>)
        })
    }

    fn can_load(&self) -> Result<(), EngineError> {
        load::check_loads(self.settings.max_loads)
    }
}
