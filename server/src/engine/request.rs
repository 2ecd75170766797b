//! What an engine is asked, and what it streams back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use image::DynamicImage;
use serde_json::Value;
use tokio::sync::mpsc;

use super::EngineError;
use super::grammar::Grammar;

/// One answer to generate.
#[derive(Clone, Debug)]
pub struct Generate {
    /// The conversation; the last message is the one to answer.
    pub messages: Vec<Message>,
    /// Tools that the chat template may show to the model, as OpenAI writes them.
    pub tools: Vec<Value>,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Most tokens of the answer, at least 1; `None`: as many as fit.
    pub max_tokens: Option<usize>,
    /// Alternatives to report with each token.
    pub top_logprobs: usize,
    /// What the answer must look like.
    pub grammar: Option<Arc<Grammar>>,
    /// Tokens to score instead of choosing any: the answer is these, with their log-probabilities.
    pub forced: Option<Vec<u32>>,
}

/// One message of the conversation.
#[derive(Clone, Debug)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// Text and images, in order.
    pub content: Vec<Content>,
    /// Tool calls of an assistant message, as OpenAI writes them.
    pub tool_calls: Vec<Value>,
    /// The call that a tool message answers.
    pub tool_call_id: Option<String>,
}

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Standing instructions.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    /// As chat templates write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// A piece of a message.
#[derive(Clone, Debug)]
pub enum Content {
    /// Text, free of the model's control tokens.
    Text(String),
    /// A decoded image, upright.
    Image(Arc<DynamicImage>),
}

/// How the next token is chosen. Penalties, bias, temperature, top-k, top-p and min-p apply in this order.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f64,
    /// Smallest set of likeliest tokens whose probability reaches this; 1 is off.
    pub top_p: f64,
    /// Only so many likeliest tokens; 0 is off.
    pub top_k: usize,
    /// Only tokens at least this share of the likeliest one's probability; 0 is off.
    pub min_p: f64,
    /// Subtracted from a token's logit for each time it was generated.
    pub frequency_penalty: f64,
    /// Subtracted from a token's logit once it was generated.
    pub presence_penalty: f64,
    /// Added to single tokens' logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// Same seed, request and generation: same answer, whatever else runs.
    pub seed: u64,
}

impl Sampling {
    /// The likeliest token at every step.
    #[must_use]
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// A generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Natural logarithm of its probability under the model itself: before penalties, bias, temperature and grammar.
    pub logprob: f32,
    /// The likeliest tokens with theirs, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// End of turn, or the grammar is complete.
    Stop,
    /// `max_tokens`, or the model's limit.
    Length,
}

/// What an engine reports of an answer, in this order: `Started`, any number of `Token`, then `Finished` or `Failed`.
#[derive(Clone, Debug)]
pub enum Event {
    /// The prompt was read.
    Started {
        /// Tokens of the prompt, those of images included.
        prompt_tokens: usize,
    },
    /// The next token. An end-of-turn token is reported too.
    Token(Token),
    /// The answer is complete.
    Finished(Finish),
    /// The engine failed.
    Failed(EngineError),
}

/// The events of one answer. Dropping it ends the generation at its next step.
///
/// The queue is unbounded, but an answer is not: at most [`super::EngineInfo::max_len`] events wait for a slow reader, and
/// the engine never waits for one.
#[derive(Debug)]
pub struct TokenStream {
    events: mpsc::UnboundedReceiver<Event>,
    cancelled: Arc<AtomicBool>,
}

impl TokenStream {
    /// The stream, the sender that fills it, and the flag that an engine looks at between steps.
    #[must_use]
    pub fn channel() -> (Self, mpsc::UnboundedSender<Event>, Arc<AtomicBool>) {
        let (sender, events) = mpsc::unbounded_channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        (Self { events, cancelled: cancelled.clone() }, sender, cancelled)
    }

    /// The next event; `None` after the last one, or if the engine died.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// As [`TokenStream::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_recv(cx)
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}
