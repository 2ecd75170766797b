//! What answers: one trait, a handle per generation.
//!
//! A *generation* is the base model or the base with one adapter. An [`Engine`] loads generations; a loaded one is an
//! `Arc<dyn Generation>`, and every holder of that `Arc` is a lease: the weights go when the last lease does.
//! Everything above this trait (admission, text, tools, API) is the same for every engine.
//!
//! # Layout
//! - [`request`]: what an engine is asked ([`Generate`]) and what it streams back ([`Event`]).
//! - [`sampler`]: how the next token is chosen; [`grammar`] constrains it. Engines share both, so that a seed means the same everywhere.
//! - [`vocabulary`]: tokens to bytes, control tokens, end of turn.
//! - [`source`]: where a model comes from (inside the binary, a directory, the hub); [`prepared`]: where it is unpacked.
//! - [`native`]: the engine for the families that the learner trains; `mistralrs`: the engine for every other one.
//! - [`checkpoint`]: what is known of a model before it is loaded; [`device`]: where it runs.

mod checkpoint;
#[cfg(test)]
mod conformance;
mod device;
pub mod grammar;
pub mod native;
mod prepared;
pub mod request;
pub mod sampler;
mod schema_limits;
pub mod source;
pub mod vocabulary;

#[cfg(feature = "mistralrs")]
pub mod mistralrs;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

pub(crate) use request::text_bytes;
pub use request::{Content, Event, EventSender, Finish, Generate, Message, Role, Sampling, Token, TokenStream};
pub use vocabulary::Vocabulary;

/// Loads generations of one base model.
pub trait Engine: Send + Sync + 'static {
    /// What is the same for all generations.
    fn info(&self) -> &EngineInfo;

    /// Loads the base (`adapter` is `None`) or the base with the PEFT adapter in a directory.
    fn load(
        &self,
        id: GenerationId,
        adapter: Option<PathBuf>,
    ) -> BoxFuture<'_, Result<Arc<dyn Generation>, EngineError>>;

    /// Whether this process can load one more generation; what answers already stays whatever this says.
    ///
    /// # Errors
    /// [`EngineError::TooManyLoads`], from then on until the process ends.
    fn can_load(&self) -> Result<(), EngineError> {
        Ok(())
    }
}

/// A loaded generation. Holding the `Arc` keeps it loaded.
pub trait Generation: Send + Sync + 'static {
    /// Its id.
    fn id(&self) -> &GenerationId;

    /// False while the engine behind it is being rebuilt after it died.
    fn is_ready(&self) -> bool;

    /// Starts an answer. The caller sees to it that at most [`EngineInfo::max_parallel`] and [`EngineInfo::look_ahead`]
    /// together are inside the engine, which `place` stands for. Dropping the stream ends the generation at its next step.
    /// Compiling a schema and counting a long prompt take a while: what answers strangers calls it where blocking is allowed.
    ///
    /// # Errors
    /// The engine is being rebuilt, or the request cannot be answered by this model.
    fn generate(&self, request: Generate, place: Place) -> Result<TokenStream, EngineError>;

    /// As [`Generation::generate`], for work that live answers go before. Where [`EngineInfo::one_batch`] holds, the engine
    /// computes it only while no live answer is inside, and pauses it in place; elsewhere it is like any other answer.
    ///
    /// # Errors
    /// As [`Generation::generate`].
    fn generate_behind(&self, request: Generate, place: Place) -> Result<TokenStream, EngineError> {
        self.generate(request, place)
    }
}

/// What a sequence occupies (a permit, a lease). The engine drops it when the sequence has left, which can be later than
/// the end of the stream: a cancelled sequence runs to the end of its step.
pub type Place = Box<dyn Send + Sync>;

/// What is the same for all generations of an engine.
#[derive(Clone, Debug)]
pub struct EngineInfo {
    /// `native`, `mistralrs`.
    pub engine: &'static str,
    /// Where the model came from.
    pub source: String,
    /// The architecture as the checkpoint names it (`Idefics3ForConditionalGeneration`).
    pub family: String,
    /// `cpu`, `cuda:0`, `metal`.
    pub device: String,
    /// `f32`, `f16`, `bf16`.
    pub dtype: String,
    /// Most tokens of prompt and answer together.
    pub max_len: usize,
    /// Sequences that may be inside the engine at once.
    pub max_parallel: usize,
    /// Live requests that may be handed over beyond those: they are made ready and wait inside for their turn, so that
    /// the engine does not idle between two.
    pub look_ahead: usize,
    /// Whether all generations share one batch: `max_parallel` then counts over all of them, and work that was begun with
    /// [`Generation::generate_behind`] takes no place from live answers, because it is paused inside while there are any.
    pub one_batch: bool,
    /// Whether images can be part of a message.
    pub images: bool,
    /// Fewest tokens that an image takes in the prompt; 0 if that is not known.
    pub image_tokens: usize,
    /// Whether the chat template has a place for tools.
    pub tools: bool,
    /// Tokens and what they stand for.
    pub vocabulary: Arc<Vocabulary>,
}

impl EngineInfo {
    /// Refuses what surely does not fit, by its length in bytes: megabytes are not worth the time and memory that counting their
    /// tokens takes.
    ///
    /// # Errors
    /// [`EngineError::TooLong`].
    pub fn check_bytes(&self, request: &Generate) -> Result<(), EngineError> {
        self.check_sizes(request.text_bytes(), request.pixels().count())
    }

    /// As [`Self::check_bytes`], by the bytes of all text and the number of images.
    ///
    /// # Errors
    /// [`EngineError::TooLong`].
    pub fn check_sizes(&self, text_bytes: usize, images: usize) -> Result<(), EngineError> {
        self.check_tokens(self.vocabulary.fewest(text_bytes) + images * self.image_tokens).map(drop)
    }

    /// Tokens of the prompt without the template's own, which takes long where the prompt does. Refuses what surely does not fit.
    ///
    /// # Errors
    /// [`EngineError::TooLong`].
    pub fn check_length(&self, request: &Generate) -> Result<usize, EngineError> {
        self.check_bytes(request)?;
        let prompt = request.messages.iter().flat_map(|message| &message.content).fold(0, |sum, part| match part {
            Content::Text(text) => sum + self.vocabulary.count(text),
            Content::Image(_) => sum + self.image_tokens,
        });
        self.check_tokens(prompt)
    }

    fn check_tokens(&self, prompt: usize) -> Result<usize, EngineError> {
        if prompt >= self.max_len {
            return Err(EngineError::TooLong { prompt, max_len: self.max_len });
        }
        Ok(prompt)
    }
}

/// Names what answered: `base`, or the adapter's id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GenerationId(Arc<str>);

impl GenerationId {
    /// The base model without an adapter.
    #[must_use]
    pub fn base() -> Self {
        Self("base".into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for GenerationId {
    fn from(id: &str) -> Self {
        Self(id.into())
    }
}

impl Serialize for GenerationId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for GenerationId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|id| Self(id.into()))
    }
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why an engine could not do what it was asked.
#[derive(Clone, Debug, Error)]
pub enum EngineError {
    /// The request is at fault.
    #[error("{0}")]
    Invalid(String),
    /// Prompt and answer do not fit.
    #[error(
        "the prompt has at least {prompt} tokens; this model takes at most {max_len} for prompt and answer together"
    )]
    TooLong {
        /// Tokens of the prompt; the template's own may be missing.
        prompt: usize,
        /// What the model takes.
        max_len: usize,
    },
    /// The engine died and is being rebuilt.
    #[error("the engine of generation `{0}` is being restarted; try again in a moment")]
    Unavailable(GenerationId),
    /// The engine died or failed while answering.
    #[error("the engine failed: {0}")]
    Failed(String),
    /// A model or adapter cannot be loaded.
    #[error("{0}")]
    Load(String),
    /// Every load leaves something behind, and the limit for that is reached.
    #[error(
        "this process has loaded {0} engines, the most that `model.max_loads` allows, because mistralrs leaves a thread behind with each; \
         what answers goes on answering, and a restart allows as many again"
    )]
    TooManyLoads(usize),
}
