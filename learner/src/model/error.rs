//! Why a model could not be loaded or used.

use super::weight::Quantisation;

/// A failure of loading, prompting or running a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file could not be read or written; the message of the source names the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A file that the model cannot do without is not there.
    #[error("the model has no {file}")]
    MissingFile {
        /// File name inside the model directory.
        file: String,
    },
    /// A JSON file does not parse or lacks a field.
    #[error("{file}: {source}")]
    Json {
        /// File name inside the model directory.
        file: String,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A setting of the checkpoint is not supported, or contradicts another one.
    #[error("{file}: {key} = {value}: {why}")]
    Config {
        /// File name inside the model directory.
        file: &'static str,
        /// Name of the setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// The model belongs to a family that this crate does not know.
    #[error("model_type {found:?} is not a family that can be trained; known are {known}")]
    Family {
        /// `model_type` in config.json.
        found: String,
        /// The families there are.
        known: &'static str,
    },
    /// The checkpoint does not hold a tensor that the model needs.
    #[error("the checkpoint has no tensor {name}")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor of the checkpoint has another shape than the configuration says.
    #[error("tensor {name} has shape {found:?}, the configuration says {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// Shape in the checkpoint.
        found: Vec<usize>,
        /// Shape by config.json.
        expected: Vec<usize>,
    },
    /// A safetensors file is damaged.
    #[error("{file}: not a valid safetensors file: {reason}")]
    Safetensors {
        /// File name.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A checkpoint directory or adapter was refused.
    #[error(transparent)]
    Adapter(#[from] crate::adapter::AdapterError),
    /// The tokenizer could not be loaded or failed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template does not compile or refused the conversation.
    #[error("chat template: {0}")]
    Template(#[from] minijinja::Error),
    /// Text of a message holds a token that only the template may write, such as the image placeholder.
    #[error("message text holds the special token {token:?}")]
    SpecialToken {
        /// The token.
        token: String,
    },
    /// The template wrote another number of image placeholders than there are images.
    #[error("the rendered conversation has {placeholders} image placeholders for {images} images")]
    Placeholders {
        /// Placeholders in the text.
        placeholders: usize,
        /// Images given.
        images: usize,
    },
    /// A prompt and its answer are longer than the model's positions.
    #[error("{length} tokens are more than the model's {limit} positions")]
    TooLong {
        /// Tokens asked for.
        length: usize,
        /// Positions of the model.
        limit: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocabulary}")]
    TokenId {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// A weight cannot be held in so few bits.
    #[error("tensor {name} has rows of {width} values; {quantisation} needs whole blocks of {block}")]
    Unquantisable {
        /// Its name.
        name: String,
        /// What was asked for.
        quantisation: Quantisation,
        /// Values in a row.
        width: usize,
        /// Values in a block.
        block: usize,
    },
    /// An adapter is to be trained on rounded weights.
    #[error("an adapter is trained on a base in full precision, and this one is quantised")]
    QuantisedBase,
    /// A setting of a LoRA or of generation is out of range.
    #[error("{key} = {value} is out of range: {expected}")]
    OutOfRange {
        /// Name of the setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// What would be accepted.
        expected: &'static str,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl ModelError {
    pub(crate) fn json(file: &str) -> impl FnOnce(serde_json::Error) -> Self {
        let file = file.to_owned();
        move |source| Self::Json { file, source }
    }
}
