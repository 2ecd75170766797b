//! The answer in one body, and the shapes that it shares with the stream.

use std::borrow::Cow;

use actix_web::HttpResponse;
use actix_web::http::header::HeaderName;
use serde::Serialize;
use utoipa::ToSchema;

use super::Head;
use super::choices::{Choices, finish_reason};
use crate::answer::{AnsweredToken, FinishReason, Piece, Timing, ToolCall};
use crate::api::GENERATION;
use crate::api::error::ApiError;

/// What stands for a log-probability of minus infinity, which JSON cannot write; OpenAI uses the same number.
const NEVER: f32 = -9999.0;

/// The header that says where the time went.
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// A chat completion.
#[derive(Serialize, ToSchema)]
pub struct ChatCompletion<'a> {
    /// `chatcmpl-` and a UUIDv7.
    pub id: &'a str,
    /// `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// As it was asked for.
    pub model: &'a str,
    /// The generation that answered.
    pub system_fingerprint: &'a str,
    /// As many as `n`.
    pub choices: Vec<ChatChoice<'a>>,
    /// What it took.
    pub usage: Usage,
}

/// One answer.
#[derive(Serialize, ToSchema)]
pub struct ChatChoice<'a> {
    /// 0 to `n` - 1.
    pub index: usize,
    /// What the model says.
    pub message: AssistantMessage<'a>,
    /// Of the text's tokens, if they were asked for.
    pub logprobs: Option<Logprobs<'a>>,
    /// `stop`, `length` or `tool_calls`.
    pub finish_reason: &'static str,
}

/// What the model says.
#[derive(Serialize, ToSchema)]
pub struct AssistantMessage<'a> {
    /// `assistant`.
    pub role: &'static str,
    /// The text; `null` when there are tool calls and nothing else.
    pub content: Option<&'a str>,
    /// Always `null`.
    pub refusal: Option<&'static str>,
    /// The calls, if there are any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallShape<'a>>,
}

/// One call of a tool.
#[derive(Serialize, ToSchema)]
pub struct ToolCallShape<'a> {
    /// Its place among the calls; in streams only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    /// `call_` and a UUIDv7.
    pub id: &'a str,
    /// `function`.
    pub r#type: &'static str,
    /// What is called.
    pub function: FunctionShape<'a>,
}

/// A function and what it is called with.
#[derive(Serialize, ToSchema)]
pub struct FunctionShape<'a> {
    /// The function.
    pub name: &'a str,
    /// JSON text.
    pub arguments: &'a str,
}

/// Log-probabilities of an answer's tokens.
#[derive(Serialize, ToSchema)]
pub struct Logprobs<'a> {
    /// One entry a token.
    pub content: Vec<TokenLogprob<'a>>,
    /// Always `null`.
    pub refusal: Option<&'static str>,
}

/// One token.
#[derive(Serialize, ToSchema)]
pub struct TokenLogprob<'a> {
    /// As text; where the token is part of a character only, with replacement characters.
    pub token: Cow<'a, str>,
    /// Natural logarithm of its probability, before temperature and penalties.
    pub logprob: f32,
    /// Exactly what it stands for.
    pub bytes: &'a [u8],
    /// The likeliest tokens in its place, likeliest first; as many as `top_logprobs`.
    pub top_logprobs: Vec<TopLogprob<'a>>,
}

/// A token that could have been.
#[derive(Serialize, ToSchema)]
pub struct TopLogprob<'a> {
    /// As text.
    pub token: Cow<'a, str>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Exactly what it stands for.
    pub bytes: &'a [u8],
}

/// What a request took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Usage {
    /// Tokens of the prompt, those of images included; counted once for all choices.
    pub prompt_tokens: usize,
    /// Tokens of all answers.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// Always zero.
    pub prompt_tokens_details: PromptTokensDetails,
    /// Always zero.
    pub completion_tokens_details: CompletionTokensDetails,
}

/// What OpenAI splits prompts into; nothing here is ever split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    /// 0.
    pub cached_tokens: usize,
    /// 0.
    pub audio_tokens: usize,
}

/// What OpenAI splits answers into; nothing here is ever split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct CompletionTokensDetails {
    /// 0.
    pub reasoning_tokens: usize,
    /// 0.
    pub audio_tokens: usize,
    /// 0.
    pub accepted_prediction_tokens: usize,
    /// 0.
    pub rejected_prediction_tokens: usize,
}

impl Usage {
    pub(super) fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails::default(),
            completion_tokens_details: CompletionTokensDetails::default(),
        }
    }
}

impl<'a> Logprobs<'a> {
    pub(super) fn of(tokens: &'a [AnsweredToken]) -> Self {
        Self { content: tokens.iter().map(TokenLogprob::of).collect(), refusal: None }
    }
}

impl<'a> TokenLogprob<'a> {
    fn of(token: &'a AnsweredToken) -> Self {
        let top = token.top.iter().map(|(bytes, logprob)| TopLogprob {
            token: String::from_utf8_lossy(bytes),
            logprob: logprob.max(NEVER),
            bytes,
        });
        Self {
            token: String::from_utf8_lossy(&token.bytes),
            logprob: token.logprob.max(NEVER),
            bytes: &token.bytes,
            top_logprobs: top.collect(),
        }
    }
}

impl<'a> ToolCallShape<'a> {
    pub(super) fn of(call: &'a ToolCall, index: Option<usize>) -> Self {
        let function = FunctionShape { name: &call.name, arguments: &call.arguments };
        Self { index, id: &call.id, r#type: "function", function }
    }
}

/// One choice while it arrives.
#[derive(Default)]
struct Collected {
    text: String,
    tokens: Vec<AnsweredToken>,
    end: Option<(FinishReason, Vec<ToolCall>)>,
    completion_tokens: usize,
}

/// Waits for all choices and writes them into one body.
///
/// # Errors
/// Any choice failed.
pub(super) async fn respond(head: Head, mut choices: Choices) -> Result<HttpResponse, ApiError> {
    let mut collected: Vec<Collected> = Vec::new();
    collected.resize_with(head.n, Collected::default);
    let mut slowest = None;
    while let Some(piece) = choices.next().await {
        let (index, piece) = piece?;
        let choice = &mut collected[index];
        match piece {
            Piece::Delta { text, tokens } => {
                choice.text.push_str(&text);
                if head.logprobs {
                    choice.tokens.extend(tokens);
                }
            }
            Piece::End { reason, completion_tokens, tool_calls, timing } => {
                slowest = slowest.into_iter().chain([timing]).max_by_key(|timing| timing.queued + timing.engine);
                choice.completion_tokens = completion_tokens;
                choice.end = Some((reason, tool_calls));
            }
        }
    }
    let generation = choices.generation();
    let completion_tokens = collected.iter().map(|choice| choice.completion_tokens).sum();
    let completion = ChatCompletion {
        id: &head.id,
        object: "chat.completion",
        created: head.created,
        model: &head.model,
        system_fingerprint: generation,
        choices: collected.iter().enumerate().map(|(index, choice)| choice.shape(index, head.logprobs)).collect(),
        usage: Usage::new(choices.prompt_tokens(), completion_tokens),
    };
    let mut response = HttpResponse::Ok();
    response.insert_header((GENERATION, generation));
    if let Some(timing) = slowest {
        response.insert_header((SERVER_TIMING, server_timing(timing)));
    }
    Ok(response.json(completion))
}

/// As the header of that name writes it (W3C Server Timing): milliseconds.
fn server_timing(timing: Timing) -> String {
    let [queued, engine] = [timing.queued, timing.engine].map(|time| time.as_secs_f64() * 1000.0);
    format!("queue;dur={queued:.3}, engine;dur={engine:.3}")
}

impl Collected {
    fn shape(&self, index: usize, logprobs: bool) -> ChatChoice<'_> {
        let (reason, calls) = match &self.end {
            Some((reason, calls)) => (*reason, calls.as_slice()),
            None => (FinishReason::Stop, [].as_slice()),
        };
        let tool_calls: Vec<_> = calls.iter().map(|call| ToolCallShape::of(call, None)).collect();
        let silent = self.text.is_empty() && !tool_calls.is_empty();
        let content = if silent { None } else { Some(self.text.as_str()) };
        ChatChoice {
            index,
            message: AssistantMessage { role: "assistant", content, refusal: None, tool_calls },
            logprobs: logprobs.then(|| Logprobs::of(&self.tokens)),
            finish_reason: finish_reason(reason),
        }
    }
}
