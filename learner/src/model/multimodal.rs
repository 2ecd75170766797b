//! A whole model: family, decoder, tokenizer, template.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use image::DynamicImage;
use serde::Serialize;
use serde_json::Value;

use super::adapters::Adapters;
use super::conversation::Message;
use super::decoder::{Decoder, Packed};
use super::error::ModelError;
use super::family::{Family, ImageInput};
use super::idefics3::{self, Idefics3};
use super::source::Source;
use super::template::ChatTemplate;
use super::tokenizer::TextTokenizer;
use super::weight::Quantisation;
use super::weights::Weights;
use crate::bpo::policy::Group;

/// A multimodal model, ready to prompt, run and train.
pub struct Model {
    family: Box<dyn Family>,
    decoder: Decoder,
    tokenizer: TextTokenizer,
    template: ChatTemplate,
}

impl Model {
    /// Loads a checkpoint directory. `dtype` is the type of the frozen weights and the activations: f32 on the CPU
    /// (candle has no other matrix product there), bf16 or f32 on a GPU.
    ///
    /// # Errors
    /// A missing or damaged file, a family or setting that is not supported.
    pub fn load(directory: &Path, dtype: DType, device: &Device) -> Result<Self, ModelError> {
        let source = Source::directory(directory);
        let weights = source.weights(dtype, device)?;
        Self::build(&source, &weights)
    }

    /// A model whose decoder has the weights of its linear layers in fewer bits, everything else f32, on the CPU. It answers and
    /// scores, with adapters too; it is not trained on.
    ///
    /// # Errors
    /// As [`Model::load`]; rows of a weight that are no whole blocks.
    pub fn quantised(source: &Source, quantisation: Quantisation) -> Result<Self, ModelError> {
        let weights = source.quantised_weights(quantisation, |name| Decoder::is_linear(idefics3::DECODER, name))?;
        Self::build(source, &weights)
    }

    /// Whether checkpoints of this `model_type` (config.json) are known.
    pub fn knows(model_type: &str) -> bool {
        idefics3::MODEL_TYPES.contains(&model_type)
    }

    /// Builds a model from its files and tensors that are in memory already, which may be variables.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn build(source: &Source, weights: &Weights) -> Result<Self, ModelError> {
        let config: Value =
            serde_json::from_slice(&source.require("config.json")?).map_err(ModelError::json("config.json"))?;
        let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("").to_owned();
        let (family, decoder): (Box<dyn Family>, Decoder) = if idefics3::MODEL_TYPES.contains(&kind.as_str()) {
            let (family, decoder) = Idefics3::build(source, weights)?;
            (Box::new(family), decoder)
        } else {
            return Err(ModelError::Family { found: kind, known: "idefics3" });
        };
        Ok(Self { family, decoder, tokenizer: TextTokenizer::load(source)?, template: ChatTemplate::load(source)? })
    }

    /// What its family does.
    pub fn family(&self) -> &dyn Family {
        self.family.as_ref()
    }

    /// The language model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// Scales an image and cuts it as the vision tower takes it.
    ///
    /// # Errors
    /// Settings that contradict each other.
    pub fn preprocess(&self, image: &DynamicImage) -> Result<ImageInput, ModelError> {
        self.family.preprocess(image)
    }

    /// Pixel values of an image, as [`Family::pixels`].
    ///
    /// # Errors
    /// A failed tensor operation.
    pub fn pixels(&self, image: &ImageInput) -> Result<Tensor, ModelError> {
        self.family.pixels(&image.tiles)
    }

    /// Features of an image, `[image tokens, hidden]`: everything that the frozen vision tower contributes, so it can be
    /// kept and used for any number of answers.
    ///
    /// # Errors
    /// A failed tensor operation.
    pub fn encode_image(&self, image: &ImageInput) -> Result<Tensor, ModelError> {
        self.family.encode(&self.pixels(image)?)
    }

    /// The rendered conversation up to where the answer begins, image placeholders expanded.
    ///
    /// # Errors
    /// Text with a special token in it; another number of images than image parts; what the template raises.
    pub fn prompt_text(&self, messages: &[Message], images: &[ImageInput]) -> Result<String, ModelError> {
        for part in messages.iter().flat_map(|message| &message.content) {
            if let super::conversation::Part::Text { text } = part
                && let Some(token) = self.tokenizer.special_in(text)
            {
                return Err(ModelError::SpecialToken { token: token.to_owned() });
            }
        }
        let grids: Vec<_> = images.iter().map(|image| image.grid).collect();
        self.expand(&self.template.render(messages, true)?, &grids)
    }

    /// Token ids of a conversation in the template's own shape, up to where the answer begins, its images cut into these
    /// grids. The text must be free of special tokens, and the length is not checked: both are the caller's.
    ///
    /// # Errors
    /// What the template raises; another number of images than places for them.
    pub fn render<M: Serialize>(
        &self,
        messages: &[M],
        tools: &[Value],
        grids: &[(usize, usize)],
    ) -> Result<Vec<u32>, ModelError> {
        self.tokenizer.encode(&self.expand(&self.template.render_with(messages, tools, true)?, grids)?)
    }

    /// A rendered conversation with its image placeholders expanded.
    fn expand(&self, rendered: &str, grids: &[(usize, usize)]) -> Result<String, ModelError> {
        let mut pieces = rendered.split(self.family.placeholder());
        let mut text = pieces.next().unwrap_or_default().to_owned();
        let (mut placeholders, mut grids_left) = (0, grids.iter());
        for piece in pieces {
            placeholders += 1;
            if let Some(grid) = grids_left.next() {
                text.push_str(&self.family.image_text(*grid));
            }
            text.push_str(piece);
        }
        if placeholders != grids.len() {
            return Err(ModelError::Placeholders { placeholders, images: grids.len() });
        }
        Ok(text)
    }

    /// Token ids of a conversation up to where the answer begins.
    ///
    /// # Errors
    /// As [`Model::prompt_text`], and a prompt longer than the model's positions.
    pub fn prompt(&self, messages: &[Message], images: &[ImageInput]) -> Result<Vec<u32>, ModelError> {
        let ids = self.tokenizer.encode(&self.prompt_text(messages, images)?)?;
        let limit = self.decoder.config().max_positions;
        if ids.len() >= limit {
            return Err(ModelError::TooLong { length: ids.len(), limit });
        }
        Ok(ids)
    }

    /// Token ids of an answer as it follows the prompt: with what the template puts before it (often a space) and the
    /// end-of-turn token after it.
    ///
    /// # Errors
    /// Text with a special token in it.
    pub fn answer(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        if let Some(token) = self.tokenizer.special_in(text) {
            return Err(ModelError::SpecialToken { token: token.to_owned() });
        }
        // What the template makes of the answer is the difference between a conversation with and without it.
        let question = Message::user("?", 0);
        let before = self.template.render(std::slice::from_ref(&question), true)?;
        let whole = self.template.render(&[question, Message::assistant(text)], false)?;
        let stops = self.tokenizer.stops();
        let mut ids = self.tokenizer.encode(whole.strip_prefix(&before).unwrap_or(text))?;
        if let Some(end) = ids.iter().position(|id| stops.contains(id)) {
            ids.truncate(end);
        }
        ids.push(stops[0]);
        Ok(ids)
    }

    /// A group to score or train: a conversation, its images, and answers to it.
    ///
    /// # Errors
    /// As [`Model::prompt`] and [`Model::answer`].
    pub fn group(&self, messages: &[Message], images: &[ImageInput], answers: &[&str]) -> Result<Group, ModelError> {
        let features = images.iter().map(|image| self.encode_image(image)).collect::<Result<Vec<_>, _>>()?;
        Ok(Group {
            prompt: Arc::from(self.prompt(messages, images)?),
            features: if features.is_empty() { None } else { Some(Tensor::cat(&features, 0)?) },
            answers: answers
                .iter()
                .map(|answer| Ok(Arc::from(self.answer(answer)?)))
                .collect::<Result<_, ModelError>>()?,
        })
    }

    /// Embeddings of a packed batch, image features in their places, `[rows, hidden]`.
    ///
    /// # Errors
    /// As [`Decoder::embed`].
    pub fn embed(&self, packed: &Packed) -> Result<Tensor, ModelError> {
        self.decoder.embed(packed, Some(self.family.image_token()))
    }

    /// Hidden states of every row of a packed batch, `[rows, hidden]`, before the final normalisation. Differentiable in
    /// everything that is a variable. [`Decoder::logits`] of the rows one needs gives logits.
    ///
    /// # Errors
    /// A sequence that is too long; a failed tensor operation.
    pub fn hidden(&self, packed: &Packed, adapters: &Adapters<'_>) -> Result<Tensor, ModelError> {
        self.decoder.hidden(&self.embed(packed)?, packed, adapters)
    }
}
