//! What differs between families of multimodal models.

use std::sync::Arc;

use candle_core::Tensor;
use image::{DynamicImage, RgbImage};

use super::error::ModelError;

/// An image, scaled and cut as a family's vision tower takes it. Pixel values, which need four times the memory, are made of it
/// where they are looked at ([`Family::pixels`]).
#[derive(Clone, Debug)]
pub struct ImageInput {
    /// The tiles, at least one. Copies share them.
    pub tiles: Arc<[RgbImage]>,
    /// Rows and columns of the grid that the image was cut into; `(0, 0)` if it was not.
    pub grid: (usize, usize),
}

/// One family: how an image becomes pixel values, tokens in the prompt and features. The decoder, the tokenizer and the
/// chat template are the same code for all.
pub trait Family: Send + Sync {
    /// `model_type` in config.json.
    fn name(&self) -> &'static str;

    /// Id of the token that stands for one row of features.
    fn image_token(&self) -> u32;

    /// What the chat template writes for an image.
    fn placeholder(&self) -> &'static str;

    /// Scales an image and cuts it, exactly as the serving engine does.
    ///
    /// # Errors
    /// Settings that contradict each other.
    fn preprocess(&self, image: &DynamicImage) -> Result<ImageInput, ModelError>;

    /// Pixel values of tiles in the family's own arrangement; `[tiles, 3, height, width]` for Idefics3.
    ///
    /// # Errors
    /// Tiles of another size; a failed tensor operation.
    fn pixels(&self, tiles: &[RgbImage]) -> Result<Tensor, ModelError>;

    /// What [`Family::preprocess`] will give as the grid of an image of this width and height.
    ///
    /// # Errors
    /// Settings that contradict each other.
    fn grid(&self, size: (u32, u32)) -> Result<(usize, usize), ModelError>;

    /// The text that replaces the placeholder of an image that was cut into this grid ([`ImageInput::grid`]).
    fn image_text(&self, grid: (usize, usize)) -> String;

    /// Vision tower without what leads to the language model: `[patches, vision width]`. Differentiable in the weights
    /// that are variables.
    ///
    /// # Errors
    /// Pixel values of another shape; a failed tensor operation.
    fn patches(&self, pixels: &Tensor) -> Result<Tensor, ModelError>;

    /// Vision tower and connector: `[image tokens, hidden]`. Differentiable in the weights that are variables.
    ///
    /// # Errors
    /// As [`Family::patches`].
    fn encode(&self, pixels: &Tensor) -> Result<Tensor, ModelError>;
}
