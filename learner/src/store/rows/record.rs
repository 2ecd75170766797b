//! One answered query.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Row, word};
use crate::bpo::pair::{ImageRef, Message, Part, Role};

/// One answered query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// `chatcmpl-…`, as the client knows it.
    pub id: String,
    /// When the request arrived, milliseconds since 1970.
    pub created_ms: u64,
    /// The model's configured name.
    pub model: String,
    /// The generation that answered.
    pub generation: String,
    /// Name of the API key.
    pub key: String,
    /// OpenAI's `user`, if it was given.
    #[serde(default)]
    pub user: Option<String>,
    /// What the turns of one conversation have in common; sampling is decided by it.
    pub conversation: String,
    /// Whether the client asked for it (`store: true`): only these are shown as stored completions.
    #[serde(default)]
    pub stored: bool,
    /// OpenAI's `metadata`.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// The images that the messages index.
    pub images: Vec<ImageRef>,
    /// The messages of the request.
    pub messages: Vec<RecordedMessage>,
    /// Tools as OpenAI writes them.
    #[serde(default)]
    pub tools: Vec<Value>,
    /// The other parameters under their OpenAI names, defaults filled in.
    pub parameters: Map<String, Value>,
    /// The answers, `n` of them.
    pub answers: Vec<Answer>,
    /// Tokens of the prompt, images included.
    pub prompt_tokens: usize,
    /// How long it took.
    pub timings: Timings,
    /// BLAKE3 of the configuration that was in force.
    pub config_digest: String,
    /// Places that redaction rules changed.
    #[serde(default)]
    pub redactions: usize,
    /// How far the bootstrapper is with it.
    #[serde(default)]
    pub bootstrap: BootstrapState,
}

/// One message of the request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RecordedMessage {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Text and images in order.
    pub content: Vec<Part>,
    /// Tool calls of an assistant's message, as OpenAI writes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<Value>,
    /// The call that a tool's message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

/// One answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The text, as far as it got.
    pub text: String,
    /// Tool calls, as OpenAI writes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<Value>,
    /// How it ended.
    pub finish: Finish,
    /// Ids of its tokens, control tokens left out.
    pub token_ids: Vec<u32>,
    /// Natural logarithm of each token's probability under the model; as many as `token_ids`.
    pub token_logprobs: Vec<f32>,
    /// Tokens generated, control tokens included.
    pub completion_tokens: usize,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// End of turn or a stop string.
    Stop,
    /// `max_tokens` or the model's limit.
    Length,
    /// The model calls tools.
    ToolCalls,
    /// The client left.
    #[default]
    Cancelled,
    /// The engine failed, or time was up.
    Failed,
}

/// How long it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// From the request's head to the first token, milliseconds; `None` when none came.
    pub first_token_ms: Option<u64>,
    /// From the request's head to the end, milliseconds.
    pub total_ms: u64,
}

/// How far the bootstrapper is with a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootstrapState {
    /// To be looked at.
    #[default]
    Waiting,
    /// Pairs were made.
    Done,
    /// Looked at; no pair came of it.
    Skipped,
}

impl Record {
    /// The conversation as training reads it; `None` where tools take part, which pairs do not know.
    #[must_use]
    pub fn training_messages(&self) -> Option<Vec<Message>> {
        let message = |said: &RecordedMessage| {
            let role = match said.role.as_str() {
                "system" => Role::System,
                "user" => Role::User,
                "assistant" if said.tool_calls.is_empty() => Role::Assistant,
                _ => return None,
            };
            Some(Message { role, content: said.content.clone() })
        };
        self.tools.is_empty().then(|| self.messages.iter().map(message).collect())?
    }
}

impl Row for Record {
    const KIND: &'static str = "record";
    const PREFIX: &'static str = "chatcmpl";

    fn id(&self) -> &str {
        &self.id
    }

    fn indexes(&self) -> Vec<(&'static str, String)> {
        let mut indexes = vec![
            ("generation", self.generation.clone()),
            ("bootstrap", word(self.bootstrap)),
            ("key", self.key.clone()),
            ("conversation", self.conversation.clone()),
        ];
        if self.stored {
            indexes.push(("stored", "true".to_owned()));
            indexes.extend(self.metadata.iter().map(|(key, value)| ("metadata", format!("{key}={value}"))));
        }
        indexes
    }

    fn blobs(&self) -> Vec<&str> {
        self.images.iter().map(|image| image.digest.as_str()).collect()
    }
}
