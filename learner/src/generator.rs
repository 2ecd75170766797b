//! What background work asks of whatever serves the model: answers, and log-probabilities of given answers.
//!
//! The server implements it over its engines, behind live traffic: a live query pre-empts background work, which then
//! starts again. Offline the learner's own model implements it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use image::DynamicImage;
use thiserror::Error;

/// Answers questions in the background.
pub trait Generator: Send + Sync {
    /// Answers, or scores the answer that the question brings along.
    ///
    /// # Errors
    /// See [`GeneratorError`].
    fn generate(
        &self,
        question: Question,
    ) -> Pin<Box<dyn Future<Output = Result<Generated, GeneratorError>> + Send + '_>>;
}

/// What to answer, and how.
#[derive(Clone, Debug)]
pub struct Question {
    /// The generation to ask; `None`: the live one.
    pub generation: Option<String>,
    /// The conversation; the last turn is the one to answer.
    pub turns: Vec<Turn>,
    /// 0 is greedy.
    pub temperature: f64,
    /// Smallest set of likeliest tokens whose probability reaches this; 1 is off.
    pub top_p: f64,
    /// Same seed, question and generation: same answer.
    pub seed: u64,
    /// Most tokens of the answer.
    pub max_tokens: usize,
    /// Token ids of an answer to score instead of generating one, end-of-turn token included.
    pub answer: Option<Vec<u32>>,
}

/// One turn of the conversation.
#[derive(Clone, Debug)]
pub struct Turn {
    /// `system`, `user` or `assistant`.
    pub speaker: Speaker,
    /// What is said and shown, in this order.
    pub content: Vec<Piece>,
}

/// A part of a turn.
#[derive(Clone, Debug)]
pub enum Piece {
    /// What is said.
    Text(String),
    /// What is shown.
    Image(Arc<DynamicImage>),
}

impl Turn {
    /// A user's question about images, which are shown before it.
    pub fn user(images: impl IntoIterator<Item = Arc<DynamicImage>>, text: impl Into<String>) -> Self {
        let content = images.into_iter().map(Piece::Image).chain([Piece::Text(text.into())]).collect();
        Self { speaker: Speaker::User, content }
    }

    /// All that is shown.
    pub fn images(&self) -> impl Iterator<Item = &Arc<DynamicImage>> {
        self.content.iter().filter_map(|piece| match piece {
            Piece::Image(image) => Some(image),
            Piece::Text(_) => None,
        })
    }

    /// All that is said.
    pub fn text(&self) -> String {
        let texts = self.content.iter().filter_map(|piece| match piece {
            Piece::Text(text) => Some(text.as_str()),
            Piece::Image(_) => None,
        });
        texts.collect()
    }
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaker {
    /// Standing instructions.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The generation that answered.
    pub generation: String,
    /// The text.
    pub text: String,
    /// Each token's id and natural log-probability under the model itself, end-of-turn token included.
    pub tokens: Vec<(u32, f32)>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum GeneratorError {
    /// The question cannot be answered by this model.
    #[error("{0}")]
    Invalid(String),
    /// The generation that was asked for is not loaded.
    #[error("generation `{0}` is not loaded")]
    NotLoaded(String),
    /// The answer is not whole; another one may be.
    #[error("{0}")]
    Incomplete(String),
    /// The model failed, or is being loaded; another try may succeed.
    #[error("{0}")]
    Failed(String),
}
