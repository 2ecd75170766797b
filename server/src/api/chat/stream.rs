//! The answer as server-sent events.
//!
//! actix pulls: what a slow client does not take stays in the answers' queues, which their length bounds. When the client
//! leaves, the stream is dropped, and the answers with it, which cancels them.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::http::header;
use actix_web::web::Bytes;
use actix_web::{Error, HttpResponse};
use futures::Stream;
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep};
use utoipa::ToSchema;

use super::Head;
use super::choices::{Choices, finish_reason};
use super::response::{Logprobs, ToolCallShape, Usage};
use crate::answer::{AnswerError, Piece};
use crate::api::GENERATION;
use crate::api::error::ApiError;

/// Chunks that are ready together go out in one write, up to this many bytes.
const WRITE: usize = 16 * 1024;

/// One event of a stream.
#[derive(Serialize, ToSchema)]
pub struct ChatCompletionChunk<'a> {
    /// The same in all chunks.
    pub id: &'a str,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// As it was asked for.
    pub model: &'a str,
    /// The generation that answers.
    pub system_fingerprint: &'a str,
    /// One; none in the last chunk with the usage.
    pub choices: &'a [ChunkChoice<'a>],
    /// Only with `stream_options.include_usage`: `null` but in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
}

/// More of one choice.
#[derive(Serialize, ToSchema)]
pub struct ChunkChoice<'a> {
    /// 0 to `n` - 1.
    pub index: usize,
    /// What is new.
    pub delta: ChunkDelta<'a>,
    /// Of the tokens that arrived, if they were asked for.
    pub logprobs: Option<Logprobs<'a>>,
    /// In the choice's last chunk: `stop`, `length` or `tool_calls`.
    pub finish_reason: Option<&'static str>,
}

/// What is new in a chunk.
#[derive(Default, Serialize, ToSchema)]
pub struct ChunkDelta<'a> {
    /// `assistant`, in the choice's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
    /// `null`, in the choice's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub refusal: Option<Option<&'static str>>,
    /// Calls of tools, whole.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallShape<'a>>,
}

/// Waits for the first piece, so that what fails before it has its own status, and opens the stream.
///
/// # Errors
/// A choice failed before the first piece.
pub(super) async fn respond(head: Head, mut choices: Choices, keep_alive: Duration) -> Result<HttpResponse, ApiError> {
    let first = choices.next().await.transpose()?;
    let generation = choices.generation().to_owned();
    let mut events = Events {
        opened: vec![false; head.n],
        head,
        generation: generation.clone(),
        choices,
        completion_tokens: 0,
        keep_alive,
        idle: Box::pin(sleep(keep_alive)),
        written: Vec::new(),
        done: false,
    };
    if let Some((index, piece)) = first {
        events.piece(index, piece);
    }
    Ok(HttpResponse::Ok()
        .insert_header((GENERATION, generation))
        .insert_header((header::CONTENT_TYPE, "text/event-stream"))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        // nginx would hold events back otherwise.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(events))
}

struct Events {
    head: Head,
    generation: String,
    choices: Choices,
    /// Which choices had their first chunk.
    opened: Vec<bool>,
    completion_tokens: usize,
    keep_alive: Duration,
    /// When the next comment is due.
    idle: Pin<Box<Sleep>>,
    /// Events that wait for the next write.
    written: Vec<u8>,
    done: bool,
}

impl Stream for Events {
    type Item = Result<Bytes, Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        while !this.done && this.written.len() < WRITE {
            match this.choices.poll_next(cx) {
                Poll::Ready(Some(Ok((index, piece)))) => this.piece(index, piece),
                Poll::Ready(Some(Err(error))) => this.failed(error),
                Poll::Ready(None) => this.finished(),
                Poll::Pending => break,
            }
        }
        if !this.written.is_empty() {
            this.idle.as_mut().reset(Instant::now() + this.keep_alive);
            return Poll::Ready(Some(Ok(std::mem::take(&mut this.written).into())));
        }
        if this.done {
            return Poll::Ready(None);
        }
        if this.idle.as_mut().poll(cx).is_ready() {
            this.idle.as_mut().reset(Instant::now() + this.keep_alive);
            return Poll::Ready(Some(Ok(Bytes::from_static(b": keep-alive\n\n"))));
        }
        Poll::Pending
    }
}

impl Events {
    fn piece(&mut self, index: usize, piece: Piece) {
        if !std::mem::replace(&mut self.opened[index], true) {
            let delta =
                ChunkDelta { role: Some("assistant"), content: Some(""), refusal: Some(None), ..ChunkDelta::default() };
            self.chunk(ChunkChoice { index, delta, logprobs: None, finish_reason: None });
        }
        match piece {
            Piece::Delta { text, tokens } => {
                let logprobs = self.head.logprobs && !tokens.is_empty();
                if text.is_empty() && !logprobs {
                    return;
                }
                let delta = ChunkDelta { content: Some(&text), ..ChunkDelta::default() };
                let logprobs = logprobs.then(|| Logprobs::of(&tokens));
                self.chunk(ChunkChoice { index, delta, logprobs, finish_reason: None });
            }
            Piece::End { reason, completion_tokens, tool_calls, .. } => {
                self.completion_tokens += completion_tokens;
                if !tool_calls.is_empty() {
                    let calls = tool_calls.iter().enumerate();
                    let calls = calls.map(|(place, call)| ToolCallShape::of(call, Some(place))).collect();
                    let delta = ChunkDelta { tool_calls: calls, ..ChunkDelta::default() };
                    self.chunk(ChunkChoice { index, delta, logprobs: None, finish_reason: None });
                }
                let delta = ChunkDelta::default();
                self.chunk(ChunkChoice { index, delta, logprobs: None, finish_reason: Some(finish_reason(reason)) });
            }
        }
    }

    fn chunk(&mut self, choice: ChunkChoice<'_>) {
        let usage = self.head.include_usage.then_some(None);
        self.event(&[choice], usage);
    }

    fn event(&mut self, choices: &[ChunkChoice<'_>], usage: Option<Option<Usage>>) {
        let chunk = ChatCompletionChunk {
            id: &self.head.id,
            object: "chat.completion.chunk",
            created: self.head.created,
            model: &self.head.model,
            system_fingerprint: &self.generation,
            choices,
            usage,
        };
        write_event(&mut self.written, &chunk);
    }

    fn finished(&mut self) {
        if self.head.include_usage {
            let usage = Usage::new(self.choices.prompt_tokens(), self.completion_tokens);
            self.event(&[], Some(Some(usage)));
        }
        self.written.extend_from_slice(b"data: [DONE]\n\n");
        self.done = true;
    }

    /// The status is long sent: the error is the last event, and no `[DONE]` follows. The official SDKs raise it.
    fn failed(&mut self, error: AnswerError) {
        let error = ApiError::from(error);
        if error.status.is_server_error() {
            tracing::error!(completion.id = self.head.id, generation = self.generation, %error, "A stream broke off");
        }
        write_event(&mut self.written, &error.body());
        self.done = true;
    }
}

fn write_event(buffer: &mut Vec<u8>, value: &impl Serialize) {
    buffer.extend_from_slice(b"data: ");
    // Writing plain structs into memory cannot fail.
    if let Err(error) = serde_json::to_writer(&mut *buffer, value) {
        tracing::error!(%error, "An event could not be written");
    }
    buffer.extend_from_slice(b"\n\n");
}
