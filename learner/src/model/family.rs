//! What differs between families of multimodal models.

use candle_core::Tensor;
use image::DynamicImage;

use super::error::ModelError;

/// An image as a family's vision tower takes it.
#[derive(Clone, Debug)]
pub struct ImageInput {
    /// Pixel values in the family's own arrangement; `[tiles, 3, height, width]` for Idefics3.
    pub pixels: Tensor,
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

    /// Pixel values of an image, exactly as the serving engine makes them.
    ///
    /// # Errors
    /// Settings that contradict each other; a failed tensor operation.
    fn preprocess(&self, image: &DynamicImage) -> Result<ImageInput, ModelError>;

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
