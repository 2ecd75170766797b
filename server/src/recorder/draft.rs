//! A record while its answer comes.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use reground_learner::store::id;
use reground_learner::store::rows::{Answer, Finish, Record};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Recorder;
use super::image::EncodedImage;
use crate::answer::{FinishReason, Piece, ToolCall};
use crate::images::ReadImage;

/// A record while its answer comes. Dropping it hands it to the recorder: complete, or marked as cancelled.
pub struct Draft {
    recorder: Arc<Recorder>,
    /// `None` only while it is dropped.
    record: Option<Record>,
    images: Vec<EncodedImage>,
    arrival: Instant,
    begun: bool,
}

impl Draft {
    /// Begins a record of `n` answers to a request that arrived then. From here on there can be feedback to it.
    #[must_use]
    pub fn new(recorder: Arc<Recorder>, mut record: Record, n: usize, images: &[ReadImage], arrival: Instant) -> Self {
        record.config_digest.clone_from(&recorder.config_digest);
        record.created_ms = id::now_ms().saturating_sub(milliseconds(arrival.elapsed()));
        record.answers = vec![Answer::default(); n];
        let key: Arc<str> = record.key.as_str().into();
        recorder.shared.open.lock().unwrap_or_else(PoisonError::into_inner).insert(record.id.clone(), key);
        let images = images.iter().map(EncodedImage::from).collect();
        Self { recorder, record: Some(record), images, arrival, begun: false }
    }

    /// A generation took it.
    pub fn begun(&mut self, generation: &str, prompt_tokens: usize) {
        self.begun = true;
        if let Some(record) = &mut self.record {
            record.generation = generation.to_owned();
            record.prompt_tokens = prompt_tokens;
        }
    }

    /// A piece of one answer came.
    pub fn piece(&mut self, index: usize, piece: &Piece) {
        let Some(record) = &mut self.record else { return };
        let Some(answer) = record.answers.get_mut(index) else { return };
        match piece {
            Piece::Delta { text, tokens } => {
                if let Some(first) = tokens.first() {
                    record.timings.first_token_ms.get_or_insert_with(|| milliseconds(first.at - self.arrival));
                }
                answer.text.push_str(text);
                answer.token_ids.extend(tokens.iter().map(|token| token.id));
                // JSON has no infinity; a token that was forced can have none of the model's probability.
                answer.token_logprobs.extend(tokens.iter().map(|token| token.logprob.max(-9999.0)));
                answer.completion_tokens += tokens.len();
            }
            Piece::End { reason, completion_tokens, tool_calls, .. } => {
                answer.completion_tokens = *completion_tokens;
                answer.tool_calls = tool_calls.iter().map(tool_call).collect();
                answer.finish = match reason {
                    FinishReason::Stop => Finish::Stop,
                    FinishReason::Length => Finish::Length,
                    FinishReason::ToolCalls => Finish::ToolCalls,
                };
            }
        }
    }

    /// The answers that have not ended broke off, and not because the client left.
    pub fn failed(&mut self) {
        for answer in self.record.iter_mut().flat_map(|record| &mut record.answers) {
            if answer.finish == Finish::Cancelled {
                answer.finish = Finish::Failed;
            }
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let Some(mut record) = self.record.take() else { return };
        if !self.begun {
            self.recorder.shared.close(&record.id);
            return;
        }
        record.timings.total_ms = milliseconds(self.arrival.elapsed());
        self.recorder.submit(record, std::mem::take(&mut self.images));
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn tool_call(call: &ToolCall) -> Value {
    json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}})
}
