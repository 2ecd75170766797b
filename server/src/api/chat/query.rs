//! From a well-formed request to queries: what depends on the model, the generations and the images.

use std::sync::Arc;

use serde_json::Value;
use tokio::time::Instant;

use super::messages::Part;
use super::request::ChatRequest;
use crate::answer::{Query, ToolChoice};
use crate::api::error::{ApiError, code, shown};
use crate::engine::{Content, EngineInfo, GenerationId, Message, Role, Sampling, Vocabulary, text_bytes};
use crate::images::{FailedImage, ImageError, Pixels};
use crate::rollout::{Generations, Lease, Sticky};

/// Seconds after which images that the server cannot take now may be sent again.
const RETRY_AFTER_S: u64 = 5;

/// The generation that `model` pins; `None`: the live one.
///
/// # Errors
/// 404: another model, or a generation that is not loaded.
pub(in crate::api) fn generation(
    model: &str,
    name: &str,
    generations: &Generations,
) -> Result<Option<GenerationId>, ApiError> {
    let pinned = match model.strip_prefix(name) {
        Some("") => return Ok(None),
        Some(rest) => rest.strip_prefix('@').map(GenerationId::from),
        None => None,
    };
    let loaded = generations.list();
    match pinned {
        Some(id) if loaded.contains(&id) => Ok(Some(id)),
        _ => {
            let known: String = loaded.iter().map(|id| format!(", `{name}@{id}`")).collect();
            let message = format!("there is no model `{}`; there is `{name}`{known}", shown(model));
            Err(ApiError::not_found(code::MODEL_NOT_FOUND, message).at("model"))
        }
    }
}

/// Checks what depends on the model.
///
/// # Errors
/// 400 that names the parameter at fault.
pub(super) fn check(request: &ChatRequest, info: &EngineInfo) -> Result<(), ApiError> {
    if let Some(max_tokens) = request.max_tokens.filter(|tokens| *tokens > info.max_len) {
        let message = format!(
            "`max_tokens` is {max_tokens}; this model takes at most {} tokens for prompt and answer together",
            info.max_len
        );
        return Err(ApiError::invalid("max_tokens", message));
    }
    for (id, _) in &request.logit_bias {
        if *id as usize >= info.vocabulary.len() {
            let message = format!(
                "`logit_bias.{id}` is no token of this model, whose ids go up to {}",
                info.vocabulary.len() - 1
            );
            return Err(ApiError::invalid(format_args!("logit_bias.{id}"), message));
        }
    }
    if !info.tools && !request.tools.is_empty() {
        return Err(ApiError::unsupported(
            "tools",
            "`tools` is not supported: this model's chat template has no place for them",
        ));
    }
    for (index, message) in request.messages.iter().enumerate() {
        if !info.tools && (!message.tool_calls.is_empty() || message.tool_call_id.is_some()) {
            let text = format!(
                "`messages[{index}]` belongs to a tool call; this model's chat template has no place for tools"
            );
            return Err(ApiError::unsupported(format_args!("messages[{index}]"), text));
        }
        if !info.images && message.content.iter().any(|part| matches!(part, Part::Image(_))) {
            let text = format!("`messages[{index}]` has an image; this model reads text only");
            return Err(ApiError::unsupported(format_args!("messages[{index}].content"), text));
        }
    }
    check_size(request, info)?;
    check_control_tokens(request, &info.vocabulary)
}

/// What surely does not fit is refused here: in the queue it would be kept, once for each choice, until its turn comes.
fn check_size(request: &ChatRequest, info: &EngineInfo) -> Result<(), ApiError> {
    let (mut bytes, mut images) = (0, 0);
    for message in &request.messages {
        bytes += message.tool_calls.iter().map(text_bytes).sum::<usize>();
        for part in &message.content {
            match part {
                Part::Text(text) => bytes += text.len(),
                Part::Image(_) => images += 1,
            }
        }
    }
    if request.tool_choice != ToolChoice::None {
        bytes += request.tools.iter().map(text_bytes).sum::<usize>();
    }
    Ok(info.check_sizes(bytes, images)?)
}

/// Control tokens are the model's own punctuation. Typed by a user, they would be taken for real ones: an image where
/// there is none, or a system message in the middle of a user's.
fn check_control_tokens(request: &ChatRequest, vocabulary: &Vocabulary) -> Result<(), ApiError> {
    let refuse = |token: &str, param: &dyn std::fmt::Display| Err(ApiError::control_token(token, param));
    for (index, message) in request.messages.iter().enumerate() {
        if let Some(token) = in_content(&message.content, vocabulary) {
            return refuse(token, &format_args!("messages[{index}].content"));
        }
        if let Some(token) = message.tool_calls.iter().find_map(|call| in_value(call, vocabulary)) {
            return refuse(token, &format_args!("messages[{index}].tool_calls"));
        }
        if let Some(token) = message.tool_call_id.as_deref().and_then(|id| vocabulary.control_token_in(id)) {
            return refuse(token, &format_args!("messages[{index}].tool_call_id"));
        }
    }
    for (index, tool) in request.tools.iter().enumerate() {
        if let Some(token) = in_value(tool, vocabulary) {
            return refuse(token, &format_args!("tools[{index}]"));
        }
    }
    Ok(())
}

/// The first control token in the texts of a message. Templates write neighbouring parts one after the other, so what
/// none of them holds alone they may hold together.
fn in_content<'a>(parts: &[Part], vocabulary: &'a Vocabulary) -> Option<&'a str> {
    let text = |part: &Part| match part {
        Part::Text(text) => Some(text.clone()),
        Part::Image(_) => None,
    };
    parts.chunk_by(|a, b| matches!((a, b), (Part::Text(_), Part::Text(_)))).find_map(|neighbours| match neighbours {
        [Part::Text(text)] => vocabulary.control_token_in(text),
        several => vocabulary.control_token_in(&several.iter().filter_map(text).collect::<String>()),
    })
}

/// The first control token in any string of a value, keys included. Values nest at most as deep as bodies may.
fn in_value<'a>(value: &Value, vocabulary: &'a Vocabulary) -> Option<&'a str> {
    match value {
        Value::String(text) => vocabulary.control_token_in(text),
        Value::Array(values) => values.iter().find_map(|value| in_value(value, vocabulary)),
        Value::Object(fields) => fields
            .iter()
            .find_map(|(key, value)| vocabulary.control_token_in(key).or_else(|| in_value(value, vocabulary))),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

/// The URLs of all images, in order.
pub(super) fn image_urls(request: &mut ChatRequest) -> Vec<String> {
    let parts = request.messages.iter_mut().flat_map(|message| &mut message.content);
    parts
        .filter_map(|part| match part {
            // A data URL is the larger part of most requests; it is moved, not copied.
            Part::Image(url) => Some(std::mem::take(url)),
            Part::Text(_) => None,
        })
        .collect()
}

/// An image was refused: the error names the part that it came in.
pub(super) fn failed_image(request: &ChatRequest, failed: &FailedImage) -> ApiError {
    let FailedImage { index, error } = failed;
    if let ImageError::NoRoom { .. } = error {
        return ApiError::too_many(error.code(), error.to_string(), RETRY_AFTER_S);
    }
    if error.is_server_fault() {
        return ApiError::unavailable(error.code(), error.to_string(), RETRY_AFTER_S);
    }
    let error = ApiError::bad_request(error.code(), error.to_string());
    let mut places = request.messages.iter().enumerate().flat_map(|(message, said)| {
        let images = said.content.iter().enumerate().filter(|(_, part)| matches!(part, Part::Image(_)));
        images.map(move |(part, _)| format!("messages[{message}].content[{part}].image_url.url"))
    });
    match places.nth(*index) {
        Some(place) => error.at(place),
        None => error.at("messages"),
    }
}

/// Whom and when a request belongs to.
#[derive(Clone)]
pub(super) struct Asker {
    /// The name of the API key.
    pub(super) key: Arc<str>,
    /// When the last token must be there.
    pub(super) deadline: Instant,
    /// The pinned generation.
    pub(super) generation: Option<GenerationId>,
    /// What the route gave already.
    pub(super) lease: Option<Lease>,
    /// Whom a canary keeps.
    pub(super) sticky: Sticky,
}

/// Whom a canary keeps: the end user if the request names one, else the conversation, by how it began.
pub(super) fn sticky(request: &ChatRequest) -> Sticky {
    if let Some(user) = &request.user {
        return Sticky::of(user);
    }
    let first = request.messages.iter().find(|message| message.role == Role::User);
    let parts = first.map_or(&[] as &[Part], |message| &message.content);
    Sticky::of_parts(parts.iter().map(|part| match part {
        Part::Text(text) | Part::Image(text) => text.as_str(),
    }))
}

/// One query per choice. The choices of a seeded request have the seeds `seed`, `seed + 1`, …: each is reproducible, and
/// they differ.
pub(super) fn queries(request: &mut ChatRequest, images: Vec<Pixels>, asker: &Asker) -> Vec<Query> {
    let mut images = images.into_iter();
    let messages: Vec<Message> = std::mem::take(&mut request.messages)
        .into_iter()
        .map(|said| Message {
            role: said.role,
            content: said
                .content
                .into_iter()
                .filter_map(|part| match part {
                    Part::Text(text) => Some(Content::Text(text)),
                    Part::Image(_) => images.next().map(Content::Image),
                })
                .collect(),
            tool_calls: said.tool_calls,
            tool_call_id: said.tool_call_id,
        })
        .collect();
    let seed = request.seed.unwrap_or_else(rand::random);
    let query = Query {
        key: asker.key.clone(),
        generation: asker.generation.clone(),
        sticky: asker.sticky,
        lease: asker.lease.clone(),
        messages,
        tools: std::mem::take(&mut request.tools),
        tool_choice: request.tool_choice.clone(),
        sampling: Sampling {
            temperature: request.temperature,
            top_p: request.top_p,
            top_k: request.top_k,
            min_p: request.min_p,
            frequency_penalty: request.frequency_penalty,
            presence_penalty: request.presence_penalty,
            logit_bias: std::mem::take(&mut request.logit_bias),
            seed,
        },
        max_tokens: request.max_tokens,
        top_logprobs: request.top_logprobs,
        grammar: request.grammar.take().map(Arc::new),
        stop: std::mem::take(&mut request.stop),
        live: request.stream,
        deadline: asker.deadline,
    };
    let mut queries = vec![query; request.n];
    for (query, offset) in queries.iter_mut().zip(0_u64..) {
        query.sampling.seed = seed.wrapping_add(offset);
    }
    queries
}
