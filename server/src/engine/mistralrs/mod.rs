//! The engine for every family: mistralrs.
//!
//! An adapter is merged into the weights while they load, so each generation is an engine of its own. What the crate does
//! wrong in 0.8.1, and how this module stays clear of it:
//! - a batch above 1 gives wrong answers on a CPU: one sequence at a time there;
//! - its sampler has no seed and its log-probabilities are base 10: a logits processor ([`tap`]) chooses the tokens;
//! - its stream stalls the engine for a slow reader: tokens leave through the tap, the engine sends one message at the end;
//! - its engine can panic on its own thread: the closed channel is noticed and the generation loaded anew ([`generation`]).
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
pub(crate) use tap::LETHAL_SEED;

use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use reground_learner::adapter::{ModuleShapes, checkpoint_shapes};
use serde_json::Value;

use self::adapter::PreparedAdapter;
use self::generation::MistralrsGeneration;
use self::load::Settings;
use super::source::{ModelFiles, read_json};
use super::{Engine, EngineError, EngineInfo, Generation, GenerationId, Vocabulary};
use crate::config::{Isq, ModelConfig};

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
        let directory = &files.directory;
        let checkpoint = read_json(&directory.join("config.json"))?;
        let text = if checkpoint["text_config"].is_object() { &checkpoint["text_config"] } else { &checkpoint };
        let size = |key: &str| text[key].as_u64().and_then(|size| usize::try_from(size).ok());
        let vocabulary = Arc::new(Vocabulary::read(directory, size("vocab_size"))?);
        let own_max_len = size("max_position_embeddings").unwrap_or(4096);
        if config.max_len > own_max_len {
            return Err(EngineError::Load(format!(
                "model.max_len = {} is more than the model's own {own_max_len}",
                config.max_len
            )));
        }
        let settings = Settings::new(config, files)?;
        let layers =
            checkpoint_shapes(&settings.files.directory).map_err(|error| EngineError::Load(error.to_string()))?;
        let info = EngineInfo {
            engine: "mistralrs",
            source: settings.files.source.clone(),
            family: checkpoint["architectures"][0].as_str().unwrap_or("unknown").into(),
            device: settings.device_name(),
            dtype: settings.dtype_name().into(),
            max_len: if config.max_len == 0 { own_max_len } else { config.max_len },
            max_parallel: settings.max_parallel,
            images: checkpoint["vision_config"].is_object(),
            image_tokens: image_tokens(&settings.files),
            tools: chat_template(&settings.files).contains("tools"),
            vocabulary,
        };
        Ok(Self { info, settings: Arc::new(settings), layers })
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
}

/// `image_seq_len` of processor_config.json, which Idefics3 has.
fn image_tokens(files: &ModelFiles) -> usize {
    let settings = read_json(&files.directory.join("processor_config.json")).unwrap_or_default();
    settings["image_seq_len"].as_u64().and_then(|tokens| usize::try_from(tokens).ok()).unwrap_or(0)
}

/// The chat template, wherever the checkpoint keeps it.
fn chat_template(files: &ModelFiles) -> String {
    let read = |name: &str| fs_err::read_to_string(files.directory.join(name)).unwrap_or_default();
    let tokenizer: Value = serde_json::from_str(&read("tokenizer_config.json")).unwrap_or_default();
    format!("{}{}{}", tokenizer["chat_template"], read("chat_template.json"), read("chat_template.jinja"))
}
