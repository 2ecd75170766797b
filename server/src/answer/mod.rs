//! From a checked query to an answer: pick the generation, wait for a place, generate, turn tokens into text.
//!
//! The API above knows HTTP and OpenAI's shapes, the engine below knows tokens; what lies between is here and the same
//! for every route and every engine.
//!
//! # Layout
//! - [`Answerer`]: the way of one query.
//! - [`BackgroundGenerator`]: the engine as the learner sees it, behind live queries.
//! - [`Shadow`]: a share of the queries, answered a second time for the counters alone.
//! - [`asked`]: a question of the learner's as a request, and the whole answer.
//! - `account`: how an answer went, for whoever watches its generation.
//! - `text`: tokens to text, stop strings held back until they are sure not to come.
//! - [`tools`]: tool calls, out of the text that models write; the grammar of a call that is demanded.

mod account;
mod answerer;
pub(crate) mod asked;
mod background;
mod shadow;
mod text;
pub(crate) mod tools;

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;
use tokio::time::Instant;

use crate::admission::AdmissionError;
use crate::engine::grammar::Grammar;
use crate::engine::{EngineError, GenerationId, Message, Sampling};
use crate::rollout::{Lease, Sticky};

pub use answerer::{Answer, Answerer};
pub use background::BackgroundGenerator;
pub use shadow::{Comparison, Shadow, ShadowTask, Side};
pub use tools::{ToolCall, ToolChoice};

/// One answer to give. A request with `n` choices is `n` queries.
#[derive(Clone, Debug)]
pub struct Query {
    /// Whom it counts for in the queue: the name of the API key.
    pub key: Arc<str>,
    /// The generation that the caller pinned; `None`: the one that the route has for `sticky`.
    pub generation: Option<GenerationId>,
    /// Who asks, as far as the route is concerned.
    pub sticky: Sticky,
    /// What the route gave already, where several answers must come from one generation.
    pub lease: Option<Lease>,
    /// The conversation.
    pub messages: Vec<Message>,
    /// Tools as OpenAI writes them (`{"type": "function", "function": {…}}`).
    pub tools: Vec<Value>,
    /// Which of them the model may, must or must not call.
    pub tool_choice: ToolChoice,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Most tokens of the answer.
    pub max_tokens: Option<usize>,
    /// Alternatives to report with each token.
    pub top_logprobs: usize,
    /// What the answer must look like.
    pub grammar: Option<Arc<Grammar>>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Whether tokens are wanted as they come (a stream), not only all at the end.
    pub live: bool,
    /// When the last token must be there.
    pub deadline: Instant,
}

/// What arrives of an answer: any number of `Delta`, then one `End`.
#[derive(Clone, Debug)]
pub enum Piece {
    /// More text. It can be empty when tokens arrived that are no text yet (half a character, a possible stop string).
    Delta {
        /// The text.
        text: String,
        /// The tokens that arrived, control tokens left out.
        tokens: Vec<AnsweredToken>,
    },
    /// The answer is complete.
    End {
        /// Why.
        reason: FinishReason,
        /// Tokens generated.
        completion_tokens: usize,
        /// With [`FinishReason::ToolCalls`]: the calls. The text before them was sent as `Delta`.
        tool_calls: Vec<ToolCall>,
        /// Where its time went.
        timing: Timing,
    },
}

/// Where the time of an answer went.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// In the queue in front of the engine.
    pub queued: Duration,
    /// In the engine: from its place there to the last thing that the engine reported of it.
    pub engine: Duration,
}

/// A token as the API shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct AnsweredToken {
    /// Id in the vocabulary.
    pub id: u32,
    /// Its bytes, which need not be UTF-8.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability under the model.
    pub logprob: f32,
    /// Bytes and log-probability of the likeliest tokens, likeliest first.
    pub top: Vec<(Vec<u8>, f32)>,
    /// When the engine made it.
    pub at: Instant,
}

/// OpenAI's `finish_reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// End of turn or a stop string.
    Stop,
    /// `max_tokens` or the model's limit.
    Length,
    /// The model calls tools.
    ToolCalls,
}

/// Why there is no answer, or no more of it.
#[derive(Clone, Debug, Error)]
pub enum AnswerError {
    /// No such generation is loaded.
    #[error("generation `{id}` is not loaded; loaded: {loaded}")]
    UnknownGeneration {
        /// What was asked for.
        id: GenerationId,
        /// What there is.
        loaded: String,
    },
    /// The queue is full.
    #[error("{waiting} requests are waiting, which is the limit; try again in {} s", retry_after.as_secs())]
    QueueFull {
        /// How many wait.
        waiting: usize,
        /// When a place is likely.
        retry_after: Duration,
    },
    /// The deadline passed.
    #[error("the answer was not ready within {} s", after.as_secs_f64().round())]
    Deadline {
        /// How long was waited.
        after: Duration,
    },
    /// The server is going down and the deadline for open answers passed.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl AnswerError {
    /// Why a request that arrived then got no place.
    #[must_use]
    pub fn refused(error: AdmissionError, arrived: Instant) -> Self {
        match error {
            AdmissionError::Full { waiting, retry_after } => Self::QueueFull { waiting, retry_after },
            AdmissionError::Deadline => Self::Deadline { after: arrived.elapsed() },
        }
    }

    /// Whether it is the fault of what answers, not of who asks.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        match self {
            Self::Engine(error) => !matches!(error, EngineError::Invalid(_) | EngineError::TooLong { .. }),
            Self::Deadline { .. } => true,
            Self::UnknownGeneration { .. } | Self::QueueFull { .. } | Self::ShuttingDown => false,
        }
    }
}
