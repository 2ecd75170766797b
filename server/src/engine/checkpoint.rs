//! What can be known of a checkpoint before its weights are loaded.

use std::sync::Arc;

use candle_core::{DType, Device};
use serde_json::Value;

use super::device::device_name;
use super::source::{ModelFiles, read_json};
use super::{EngineError, EngineInfo, Vocabulary};
use crate::config::ModelConfig;

/// What an engine says of the checkpoint that it serves.
///
/// # Errors
/// A file is missing or malformed, or `model.max_len` is more than the model takes.
pub(super) fn info(
    config: &ModelConfig,
    files: &ModelFiles,
    engine: &'static str,
    (device, dtype): (&Device, DType),
    (max_parallel, look_ahead): (usize, usize),
) -> Result<EngineInfo, EngineError> {
    let checkpoint = read_json(&files.directory.join("config.json"))?;
    let text = if checkpoint["text_config"].is_object() { &checkpoint["text_config"] } else { &checkpoint };
    let size = |key: &str| text[key].as_u64().and_then(|size| usize::try_from(size).ok());
    let vocabulary = Arc::new(Vocabulary::read(&files.directory, size("vocab_size"))?);
    let own_max_len = size("max_position_embeddings").unwrap_or(4096);
    if config.max_len > own_max_len {
        return Err(EngineError::Load(format!(
            "model.max_len = {} is more than the model's own {own_max_len}",
            config.max_len
        )));
    }
    Ok(EngineInfo {
        engine,
        source: files.source.clone(),
        family: checkpoint["architectures"][0].as_str().unwrap_or("unknown").into(),
        device: device_name(device),
        dtype: dtype.as_str().into(),
        max_len: if config.max_len == 0 { own_max_len } else { config.max_len },
        max_parallel,
        look_ahead,
        one_batch: false,
        images: checkpoint["vision_config"].is_object(),
        image_tokens: image_tokens(files),
        tools: chat_template(files).contains("tools"),
        vocabulary,
    })
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
