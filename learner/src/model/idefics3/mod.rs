//! Idefics3 and SmolVLM: a SigLIP-like vision tower, a pixel-shuffle connector, a Llama decoder.
//!
//! # Layout
//! - [`Idefics3Config`], [`VisionConfig`]: config.json (`config`).
//! - [`Preprocessor`]: images to pixel values (`preprocess`).
//! - `prompt`: the text around image placeholders.
//! - `vision`: vision tower and connector.

mod config;
mod preprocess;
mod prompt;
mod vision;

use candle_core::Tensor;
use image::{DynamicImage, GenericImageView, RgbImage};
use serde_json::Value;

pub use config::{Idefics3Config, VisionConfig};
pub use preprocess::Preprocessor;
use vision::Vision;

use super::decoder::Decoder;
use super::error::ModelError;
use super::family::{Family, ImageInput};
use super::source::Source;
use super::weights::Weights;

/// `model_type` values of this family.
pub(super) const MODEL_TYPES: [&str; 1] = ["idefics3"];

/// Where its tensors have the decoder.
pub(super) const DECODER: &str = "model.text_model";

/// The vision side of an Idefics3.
pub struct Idefics3 {
    config: Idefics3Config,
    preprocessor: Preprocessor,
    vision: Vision,
    tokens_per_tile: usize,
}

impl Idefics3 {
    /// Builds the vision side and the decoder.
    ///
    /// # Errors
    /// Settings that are not supported, tensors that are missing or of another shape.
    pub fn build(source: &Source, weights: &Weights) -> Result<(Self, Decoder), ModelError> {
        let config = Idefics3Config::parse(&source.require("config.json")?)?;
        let preprocessor = Preprocessor::load(source, &config)?;
        let tokens_per_tile = config.tokens_per_tile();
        let processor: Value = source.json("processor_config.json")?.unwrap_or(Value::Null);
        let stated = ["image_seq_len", "image_seq_length"].iter().find_map(|key| processor.get(key)?.as_u64());
        if let Some(stated) = stated.filter(|stated| *stated != tokens_per_tile as u64) {
            return Err(ModelError::Config {
                file: "processor_config.json",
                key: "image_seq_len",
                value: stated.to_string(),
                why: format!("the vision tower makes {tokens_per_tile} tokens of a tile"),
            });
        }
        let head = Some("lm_head.weight").filter(|name| !config.tied_head && weights.contains(name));
        let decoder = Decoder::new(config.text.clone(), DECODER, head, weights)?;
        let vision = Vision::new(&config, weights)?;
        Ok((Self { config, preprocessor, vision, tokens_per_tile }, decoder))
    }

    /// The configuration.
    pub fn config(&self) -> &Idefics3Config {
        &self.config
    }

    /// How images become pixel values.
    pub fn preprocessor(&self) -> &Preprocessor {
        &self.preprocessor
    }
}

impl Family for Idefics3 {
    fn name(&self) -> &'static str {
        MODEL_TYPES[0]
    }

    fn image_token(&self) -> u32 {
        self.config.image_token_id
    }

    fn placeholder(&self) -> &'static str {
        prompt::PLACEHOLDER
    }

    fn preprocess(&self, image: &DynamicImage) -> Result<ImageInput, ModelError> {
        let tiles = self.preprocessor.tiles(image)?.into();
        Ok(ImageInput { tiles, grid: self.grid(image.dimensions())? })
    }

    fn pixels(&self, tiles: &[RgbImage]) -> Result<Tensor, ModelError> {
        Ok(self.preprocessor.pixels(tiles, self.vision.device())?.to_dtype(self.vision.dtype())?)
    }

    fn grid(&self, size: (u32, u32)) -> Result<(usize, usize), ModelError> {
        self.preprocessor.grid(size)
    }

    fn image_text(&self, grid: (usize, usize)) -> String {
        prompt::image_text(grid.0, grid.1, self.tokens_per_tile)
    }

    fn patches(&self, pixels: &Tensor) -> Result<Tensor, ModelError> {
        self.vision.patches(pixels)
    }

    fn encode(&self, pixels: &Tensor) -> Result<Tensor, ModelError> {
        self.vision.connect(&self.vision.patches(pixels)?, pixels.dim(0)?)
    }
}
