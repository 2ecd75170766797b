//! OpenAI's chat request, checked by hand: every parameter is honoured or refused by name.
//!
//! [`parse`] knows nothing of HTTP, of the model or of the configuration; what depends on those is checked in
//! [`super::query`]. `null` means the same as leaving a parameter out.
//!
//! Taken although they change nothing, because their only accepted value is what this server does anyway: `modalities:
//! ["text"]`, `service_tier: "auto" | "default"`, `reasoning_effort: "none"`, `verbosity: "medium"`.
//! `store: true` keeps the answer for GET /v1/chat/completions, `false` keeps it from being recorded at all.
//! `user`, `safety_identifier` and `metadata` describe the request and do not change the answer. `top_k` and `min_p` are
//! extensions that other open servers know too.

use std::collections::BTreeMap;

use serde_json::Value;

use super::format;
use super::messages::{self, ChatMessage};
use super::tools;
use crate::answer::ToolChoice;
use crate::api::error::{ApiError, code};
use crate::api::json::{self, Fields, Path};
use crate::engine::grammar::Grammar;

/// Most choices of one request.
pub const MAX_N: u32 = 16;

/// Most stop strings of one request.
const MAX_STOPS: usize = 4;

/// Longest stop string in characters.
const MAX_STOP_LENGTH: usize = 256;

/// A chat request that is well formed. Whether this server can answer it is another question.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// What was asked for: `name` or `name@generation`.
    pub model: String,
    /// The conversation, with at least one user message.
    pub messages: Vec<ChatMessage>,
    /// 0 (greedy) to 2; default 1.
    pub temperature: f64,
    /// Above 0, at most 1 (off, the default).
    pub top_p: f64,
    /// 0 (off, the default) or more.
    pub top_k: usize,
    /// 0 (off, the default) to 1.
    pub min_p: f64,
    /// -2 to 2; default 0.
    pub frequency_penalty: f64,
    /// -2 to 2; default 0.
    pub presence_penalty: f64,
    /// Token ids, not yet checked against the vocabulary, with -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// `None`: a random one.
    pub seed: Option<u64>,
    /// `max_completion_tokens` or `max_tokens`, at least 1.
    pub max_tokens: Option<usize>,
    /// Number of choices, 1 to [`MAX_N`].
    pub n: usize,
    /// At most four texts.
    pub stop: Vec<String>,
    /// Whether log-probabilities are shown.
    pub logprobs: bool,
    /// Alternatives per token, 0 to 20.
    pub top_logprobs: usize,
    /// `response_format`; `None`: text.
    pub grammar: Option<Grammar>,
    /// Tools as OpenAI writes them.
    pub tools: Vec<Value>,
    /// Which of them the model may call.
    pub tool_choice: ToolChoice,
    /// Server-sent events instead of one body.
    pub stream: bool,
    /// A last chunk with the usage.
    pub include_usage: bool,
    /// Who the end user is, in the caller's words.
    pub user: Option<String>,
    /// The caller's labels.
    pub metadata: BTreeMap<String, String>,
    /// Whether to keep the answer; `None`: as the server is set up.
    pub store: Option<bool>,
}

/// Parses and checks a body.
///
/// # Errors
/// 400 that names the parameter at fault and what is allowed.
pub fn parse(body: &[u8]) -> Result<ChatRequest, ApiError> {
    let at = Path::Root;
    let mut fields = Fields::of(json::parse(body)?, &at)?;
    let model = fields.required("model", json::string)?;
    let messages = fields.required("messages", messages::parse)?;
    let temperature = fields.optional("temperature", |v, at| json::number(v, at, 0.0..=2.0))?.unwrap_or(1.0);
    let top_p = fields.optional("top_p", top_p)?.unwrap_or(1.0);
    let top_k = fields.optional("top_k", |v, at| json::size(v, at, 0..=1_000_000))?.unwrap_or(0);
    let min_p = fields.optional("min_p", |v, at| json::number(v, at, 0.0..=1.0))?.unwrap_or(0.0);
    let frequency_penalty = fields.optional("frequency_penalty", penalty)?.unwrap_or(0.0);
    let presence_penalty = fields.optional("presence_penalty", penalty)?.unwrap_or(0.0);
    let logit_bias = fields.optional("logit_bias", logit_bias)?.unwrap_or_default();
    let seed = fields.optional("seed", |v, at| json::integer(v, at, i64::MIN..=i64::MAX))?.map(i64::cast_unsigned);
    let max_tokens = max_tokens(&mut fields)?;
    let n = fields.optional("n", |v, at| json::size(v, at, 1..=MAX_N))?.unwrap_or(1);
    let stop = fields.optional("stop", stop)?.unwrap_or_default();
    let (logprobs, top_logprobs) = logprobs(&mut fields)?;
    let grammar = fields.optional("response_format", format::parse)?.flatten();
    let (tools, tool_choice) = tools::take(&mut fields)?;
    if grammar.is_some() && !tools.is_empty() && tool_choice != ToolChoice::None {
        let message = "`response_format` and `tools` exclude each other: an answer that must be JSON cannot call tools";
        return Err(ApiError::unsupported("response_format", message));
    }
    let (stream, include_usage) = stream(&mut fields)?;
    let user = user(&mut fields)?;
    let metadata = fields.optional("metadata", metadata)?.unwrap_or_default();
    let store = fields.optional("store", json::boolean)?;
    without_effect(&mut fields)?;
    refused(&mut fields)?;
    fields.finish()?;
    Ok(ChatRequest {
        model,
        messages,
        temperature,
        top_p,
        top_k,
        min_p,
        frequency_penalty,
        presence_penalty,
        logit_bias,
        seed,
        max_tokens,
        n,
        stop,
        logprobs,
        top_logprobs,
        grammar,
        tools,
        tool_choice,
        stream,
        include_usage,
        user,
        metadata,
        store,
    })
}

fn top_p(value: Value, at: &Path<'_>) -> Result<f64, ApiError> {
    let top_p = json::number(value, at, 0.0..=1.0)?;
    if top_p == 0.0 {
        return Err(ApiError::invalid(
            at,
            "`top_p` must be above 0 and at most 1; for the likeliest token at every step, set `temperature` to 0",
        ));
    }
    Ok(top_p)
}

fn penalty(value: Value, at: &Path<'_>) -> Result<f64, ApiError> {
    json::number(value, at, -2.0..=2.0)
}

fn logit_bias(value: Value, at: &Path<'_>) -> Result<Vec<(u32, f32)>, ApiError> {
    let Value::Object(entries) = value else { return Err(json::wrong_type(&value, at, "an object")) };
    let mut biases = Vec::with_capacity(entries.len());
    for (token, bias) in entries {
        let at = at.key(&token);
        let id = token.parse::<u32>().map_err(|_| ApiError::invalid(at, format!("`{at}` is no token id")))?;
        #[expect(clippy::cast_possible_truncation, reason = "-100 to 100 loses precision only")]
        let bias = json::number(bias, &at, -100.0..=100.0)? as f32;
        biases.push((id, bias));
    }
    Ok(biases)
}

/// OpenAI renamed `max_tokens`; both may be given if they agree.
fn max_tokens(fields: &mut Fields<'_>) -> Result<Option<usize>, ApiError> {
    let read = |value: Value, at: &Path<'_>| json::size(value, at, 1..=u32::MAX);
    let old = fields.optional("max_tokens", read)?;
    let new = fields.optional("max_completion_tokens", read)?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            let message =
                format!("`max_tokens` ({old}) and `max_completion_tokens` ({new}) say different things; give one");
            Err(ApiError::invalid("max_tokens", message))
        }
        (old, new) => Ok(new.or(old)),
    }
}

fn stop(value: Value, at: &Path<'_>) -> Result<Vec<String>, ApiError> {
    let one = |value: Value, at: &Path<'_>| {
        let text = json::short_string(value, at, MAX_STOP_LENGTH)?;
        if text.is_empty() {
            return Err(ApiError::invalid(at, format!("`{at}` is empty; a stop string has at least one character")));
        }
        Ok(text)
    };
    match value {
        Value::String(_) => Ok(vec![one(value, at)?]),
        Value::Array(values) if values.len() <= MAX_STOPS => {
            values.into_iter().enumerate().map(|(index, value)| one(value, &at.index(index))).collect()
        }
        Value::Array(values) => {
            let message = format!("`{at}` has {} strings; allowed: at most {MAX_STOPS}", values.len());
            Err(ApiError::invalid(at, message))
        }
        other => Err(json::wrong_type(&other, at, "a string or an array of strings")),
    }
}

fn logprobs(fields: &mut Fields<'_>) -> Result<(bool, usize), ApiError> {
    let logprobs = fields.optional("logprobs", json::boolean)?.unwrap_or(false);
    let top = fields.optional("top_logprobs", |v, at| json::size(v, at, 0..=20))?;
    match top {
        Some(_) if !logprobs => Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs: true`")),
        top => Ok((logprobs, top.unwrap_or(0))),
    }
}

fn stream(fields: &mut Fields<'_>) -> Result<(bool, bool), ApiError> {
    let stream = fields.optional("stream", json::boolean)?.unwrap_or(false);
    let include_usage = fields.optional("stream_options", |value, at| {
        if !stream {
            return Err(ApiError::invalid(at, "`stream_options` needs `stream: true`"));
        }
        let mut fields = Fields::of(value, at)?;
        let include_usage = fields.optional("include_usage", json::boolean)?.unwrap_or(false);
        // Padding against traffic analysis, which OpenAI adds unless told not to; this server never does.
        let off = "this server adds no padding";
        fields.optional("include_obfuscation", |value, at| only(&value, at, &Value::Bool(false), off))?;
        fields.finish()?;
        Ok(include_usage)
    })?;
    Ok((stream, include_usage.unwrap_or(false)))
}

/// `safety_identifier` is OpenAI's new name of `user`.
fn user(fields: &mut Fields<'_>) -> Result<Option<String>, ApiError> {
    let user = fields.optional("user", |v, at| json::short_string(v, at, 256))?;
    let identifier = fields.optional("safety_identifier", |v, at| json::short_string(v, at, 256))?;
    Ok(user.or(identifier))
}

/// OpenAI's limits: 16 pairs, keys of 64 and values of 512 characters.
pub(in crate::api) fn metadata(value: Value, at: &Path<'_>) -> Result<BTreeMap<String, String>, ApiError> {
    let Value::Object(entries) = value else { return Err(json::wrong_type(&value, at, "an object")) };
    if entries.len() > 16 {
        return Err(ApiError::invalid(at, format!("`{at}` has {} keys; allowed: at most 16", entries.len())));
    }
    let mut labels = BTreeMap::new();
    for (key, value) in entries {
        let at = at.key(&key);
        if key.chars().nth(64).is_some() {
            return Err(ApiError::invalid(at, format!("the key `{at}` has more than 64 characters")));
        }
        let value = json::short_string(value, &at, 512)?;
        labels.insert(key, value);
    }
    Ok(labels)
}

/// Parameters whose accepted values are what this server does anyway.
fn without_effect(fields: &mut Fields<'_>) -> Result<(), ApiError> {
    fields.optional("modalities", |value, at| {
        only(&value, at, &Value::from(vec!["text"]), "this server answers with text only")
    })?;
    fields.optional("service_tier", |v, at| json::one_of(v, at, &[("auto", ()), ("default", ())]))?;
    fields.optional("reasoning_effort", |v, at| json::one_of(v, at, &[("none", ())]))?;
    fields.optional("verbosity", |v, at| json::one_of(v, at, &[("medium", ())]))?;
    Ok(())
}

/// Parameters of OpenAI's that this server does not support.
fn refused(fields: &mut Fields<'_>) -> Result<(), ApiError> {
    fields.refused("functions", "use `tools`")?;
    fields.refused("function_call", "use `tool_choice`")?;
    fields.refused("audio", "this server answers with text only")?;
    fields.refused("prediction", "this server has no use for a predicted answer")?;
    fields.refused("web_search_options", "this server does not search the web")?;
    fields.refused("prompt_cache_key", "this server keeps no prompts between requests")?;
    fields.refused("prompt_cache_retention", "this server keeps no prompts between requests")
}

/// The one value that is taken.
fn only(value: &Value, at: &Path<'_>, taken: &Value, reason: &str) -> Result<(), ApiError> {
    if value == taken {
        return Ok(());
    }
    let error = ApiError::bad_request(code::UNSUPPORTED_VALUE, format!("`{at}` must be {taken}: {reason}"));
    Err(error.at(at))
}
