//! The chat request as OpenAPI describes it.
//!
//! Requests are not read through these types (see [`super::request`] for why); a test holds the two to the same
//! parameters.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// A chat request. An unknown parameter is refused by name; `null` means the same as leaving a parameter out.
#[derive(Serialize, ToSchema)]
pub struct ChatCompletionRequest {
    /// `name` for the live generation, `name@generation` for one of them.
    pub model: String,
    /// The conversation, with at least one user message.
    pub messages: Vec<RequestMessage>,
    /// 0 is greedy.
    #[schema(minimum = 0, maximum = 2, default = 1)]
    pub temperature: Option<f64>,
    /// Smallest set of likeliest tokens whose probability reaches this; above 0, 1 is off.
    #[schema(exclusive_minimum = 0, maximum = 1, default = 1)]
    pub top_p: Option<f64>,
    /// Extension: only so many likeliest tokens; 0 is off.
    #[schema(minimum = 0, default = 0)]
    pub top_k: Option<u32>,
    /// Extension: only tokens at least this share of the likeliest one's probability; 0 is off.
    #[schema(minimum = 0, maximum = 1, default = 0)]
    pub min_p: Option<f64>,
    /// Subtracted from a token's logit for each time it was generated.
    #[schema(minimum = -2, maximum = 2, default = 0)]
    pub frequency_penalty: Option<f64>,
    /// Subtracted from a token's logit once it was generated.
    #[schema(minimum = -2, maximum = 2, default = 0)]
    pub presence_penalty: Option<f64>,
    /// Token ids with what is added to their logits, -100 to 100.
    pub logit_bias: Option<BTreeMap<String, f64>>,
    /// The same seed, request and generation give the same answer. Choice `i` has the seed `seed + i`. Default: random.
    pub seed: Option<i64>,
    /// Old name of `max_completion_tokens`.
    #[schema(minimum = 1)]
    pub max_tokens: Option<u32>,
    /// Most tokens of each answer. Default: as many as fit.
    #[schema(minimum = 1)]
    pub max_completion_tokens: Option<u32>,
    /// Number of choices.
    #[schema(minimum = 1, maximum = 16, default = 1)]
    pub n: Option<u32>,
    /// One to four texts that end the answer; they are not part of it. At most 256 characters each.
    pub stop: Option<Stop>,
    /// Report each token's natural log-probability under the model itself.
    #[schema(default = false)]
    pub logprobs: Option<bool>,
    /// Alternatives to report with each token; needs `logprobs`.
    #[schema(minimum = 0, maximum = 20)]
    pub top_logprobs: Option<u32>,
    /// What the answer must look like. Not together with `tools`.
    pub response_format: Option<ResponseFormat>,
    /// At most 128 functions; only for models whose chat template has a place for them.
    pub tools: Option<Vec<Tool>>,
    /// Which of them the model may, must or must not call.
    pub tool_choice: Option<ToolChoiceSchema>,
    /// Only `true`.
    #[schema(default = true)]
    pub parallel_tool_calls: Option<bool>,
    /// Server-sent events instead of one body.
    #[schema(default = false)]
    pub stream: Option<bool>,
    /// Needs `stream`.
    pub stream_options: Option<StreamOptions>,
    /// Who the end user is; at most 256 characters. Does not change the answer.
    pub user: Option<String>,
    /// New name of `user`.
    pub safety_identifier: Option<String>,
    /// At most 16 labels: keys of 64, values of 512 characters. Do not change the answer.
    pub metadata: Option<BTreeMap<String, String>>,
    /// `true`: keep the answer for GET /v1/chat/completions; `false`: do not record it at all. Default: recorded as the server
    /// is set up, and not listed.
    pub store: Option<bool>,
    /// Only `["text"]`.
    pub modalities: Option<Vec<String>>,
    /// Only `auto` or `default`; no effect.
    pub service_tier: Option<String>,
    /// Only `none`.
    pub reasoning_effort: Option<String>,
    /// Only `medium`; no effect.
    pub verbosity: Option<String>,
}

/// One message. Text that holds one of the model's control tokens is refused.
#[derive(Serialize, ToSchema)]
pub struct RequestMessage {
    /// `system`, `developer` (the same), `user`, `assistant` or `tool`.
    pub role: String,
    /// What is said; `null` only for an assistant that calls tools. Images in user messages only.
    pub content: Option<MessageContent>,
    /// Calls that an assistant message made.
    pub tool_calls: Option<Vec<Value>>,
    /// The call that a tool message answers: the `id` of one in an earlier assistant message.
    pub tool_call_id: Option<String>,
}

/// Text, or parts.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum MessageContent {
    /// Text.
    Text(String),
    /// Text and images, in order.
    Parts(Vec<ContentPart>),
}

/// A part of a message.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ContentPart {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// An image.
    ImageUrl {
        /// Where it is.
        image_url: ImageUrl,
    },
}

/// Where an image is.
#[derive(Serialize, ToSchema)]
pub struct ImageUrl {
    /// A data URL (`data:image/png;base64,…`); an http or https URL only if the server is set to fetch them.
    pub url: String,
    /// `auto`, `low` or `high`; all mean `auto`, the size that the model's preprocessor makes.
    #[schema(default = "auto")]
    pub detail: Option<String>,
}

/// One text or several.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum Stop {
    /// One.
    One(String),
    /// At most four.
    Several(Vec<String>),
}

/// What the answer must look like.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ResponseFormat {
    /// Anything.
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema {
        /// The schema; it always binds, with `strict` and without.
        json_schema: JsonSchema,
    },
}

/// A schema and its name.
#[derive(Serialize, ToSchema)]
pub struct JsonSchema {
    /// 1 to 64 letters, digits, `_` or `-`.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// The JSON schema.
    #[schema(value_type = Object)]
    pub schema: Value,
    /// No effect.
    pub strict: Option<bool>,
}

/// A function that the model may call.
#[derive(Serialize, ToSchema)]
pub struct Tool {
    /// `function`.
    pub r#type: String,
    /// The function.
    pub function: ToolFunction,
}

/// A function.
#[derive(Serialize, ToSchema)]
pub struct ToolFunction {
    /// 1 to 64 letters, digits, `_` or `-`.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// The JSON schema of its arguments.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    /// No effect.
    pub strict: Option<bool>,
}

/// Which tools the model may, must or must not call.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum ToolChoiceSchema {
    /// `none`, `auto` or `required`.
    Mode(String),
    /// This function: `{"type": "function", "function": {"name": …}}`.
    Function(Value),
}

/// What a stream has besides the answer.
#[derive(Serialize, ToSchema)]
pub struct StreamOptions {
    /// A last chunk with the usage.
    #[schema(default = false)]
    pub include_usage: Option<bool>,
    /// Only `false`.
    #[schema(default = false)]
    pub include_obfuscation: Option<bool>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use utoipa::PartialSchema;

    use super::*;
    use crate::api::chat::request;

    #[test]
    fn the_parser_knows_what_is_described_and_nothing_else() {
        let body = br#"{"model": "m", "messages": [{"role": "user", "content": "hi"}], "no_such_parameter": 1}"#;
        let message = request::parse(body).unwrap_err().message;
        let known: BTreeSet<&str> = message.split("known here: ").nth(1).unwrap().split(", ").collect();
        let schema = serde_json::to_value(ChatCompletionRequest::schema()).unwrap();
        let described: BTreeSet<&str> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(known, described);
    }
}
