//! The conversation of a chat request.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::api::error::{ApiError, code, shown};
use crate::api::json::{self, Fields, Path};
use crate::engine::Role;

/// One message, well formed.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatMessage {
    /// Who says it; `developer` is `System`.
    pub role: Role,
    /// Text and images, in order.
    pub content: Vec<Part>,
    /// Tool calls of an assistant message, as OpenAI writes them.
    pub tool_calls: Vec<Value>,
    /// The call that a tool message answers.
    pub tool_call_id: Option<String>,
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text.
    Text(String),
    /// The URL of an image, not yet looked at. `detail` is checked and dropped: the model sees every image the way its
    /// preprocessor makes it.
    Image(String),
}

/// Which parts a role's content may have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Allowed {
    Text,
    TextAndImages,
}

/// Reads `messages`.
pub(super) fn parse(value: Value, at: &Path<'_>) -> Result<Vec<ChatMessage>, ApiError> {
    let values = json::array(value, at)?;
    if values.is_empty() {
        return Err(ApiError::invalid(at, "`messages` is empty; at least one message with role `user` is needed"));
    }
    let mut messages = Vec::with_capacity(values.len());
    let mut calls = HashSet::new();
    for (index, value) in values.into_iter().enumerate() {
        let at = at.index(index);
        let message = message(value, &at)?;
        check_order(&message, &at, &mut calls)?;
        messages.push(message);
    }
    if !messages.iter().any(|message| message.role == Role::User) {
        return Err(ApiError::invalid(at, "`messages` has no message with role `user`; at least one is needed"));
    }
    Ok(messages)
}

/// A tool message answers a call that an earlier assistant message made.
fn check_order(message: &ChatMessage, at: &Path<'_>, calls: &mut HashSet<String>) -> Result<(), ApiError> {
    let ids = message.tool_calls.iter().filter_map(|call| call["id"].as_str());
    calls.extend(ids.map(str::to_owned));
    match &message.tool_call_id {
        Some(id) if !calls.contains(id) => {
            let at = at.key("tool_call_id");
            let message = format!("`{at}` is the `id` of no call in the `tool_calls` of an earlier assistant message");
            Err(ApiError::invalid(at, message))
        }
        _ => Ok(()),
    }
}

fn message(value: Value, at: &Path<'_>) -> Result<ChatMessage, ApiError> {
    let mut fields = Fields::of(value, at)?;
    let role = fields.required("role", role)?;
    fields.refused("name", "chat templates have no place for the name of a speaker; write it into the text")?;
    let message = match role {
        Role::System => said(&mut fields, role, Allowed::Text)?,
        Role::User => said(&mut fields, role, Allowed::TextAndImages)?,
        Role::Assistant => assistant(&mut fields, at)?,
        Role::Tool => {
            let id = fields.required("tool_call_id", |v, at| json::short_string(v, at, 256))?;
            ChatMessage { tool_call_id: Some(id), ..said(&mut fields, role, Allowed::Text)? }
        }
    };
    fields.finish()?;
    Ok(message)
}

fn role(value: Value, at: &Path<'_>) -> Result<Role, ApiError> {
    let roles = [
        ("system", Role::System),
        ("developer", Role::System),
        ("user", Role::User),
        ("assistant", Role::Assistant),
        ("tool", Role::Tool),
    ];
    json::one_of(value, at, &roles)
}

fn said(fields: &mut Fields<'_>, role: Role, allowed: Allowed) -> Result<ChatMessage, ApiError> {
    let content = fields.required("content", |value, at| content(value, at, allowed))?;
    Ok(ChatMessage { role, content, tool_calls: Vec::new(), tool_call_id: None })
}

fn assistant(fields: &mut Fields<'_>, at: &Path<'_>) -> Result<ChatMessage, ApiError> {
    let content = fields.optional("content", |value, at| content(value, at, Allowed::Text))?;
    let tool_calls = fields.optional("tool_calls", tool_calls)?.unwrap_or_default();
    // The SDKs give a message back the way they got it, with all of these as `null` or empty.
    fields.refused("refusal", "this server has no refusals")?;
    fields.refused("audio", "this server answers with text only")?;
    fields.refused("function_call", "use `tool_calls`")?;
    fields.optional("annotations", |value, at| match value.as_array() {
        Some(annotations) if annotations.is_empty() => Ok(()),
        _ => Err(ApiError::unsupported(at, format!("`{at}` must be empty: this server does not search the web"))),
    })?;
    if content.is_none() && tool_calls.is_empty() {
        let at = at.key("content");
        let message = format!("`{at}` is missing; an assistant message has `content`, `tool_calls` or both");
        return Err(ApiError::bad_request(code::MISSING, message).at(at));
    }
    Ok(ChatMessage { role: Role::Assistant, content: content.unwrap_or_default(), tool_calls, tool_call_id: None })
}

fn content(value: Value, at: &Path<'_>, allowed: Allowed) -> Result<Vec<Part>, ApiError> {
    match value {
        Value::String(text) => Ok(vec![Part::Text(text)]),
        Value::Array(parts) if parts.is_empty() => {
            Err(ApiError::invalid(at, format!("`{at}` is empty; at least one part is needed")))
        }
        Value::Array(parts) => {
            parts.into_iter().enumerate().map(|(index, value)| part(value, &at.index(index), allowed)).collect()
        }
        other => Err(json::wrong_type(&other, at, "a string or an array of parts")),
    }
}

fn part(value: Value, at: &Path<'_>, allowed: Allowed) -> Result<Part, ApiError> {
    let mut fields = Fields::of(value, at)?;
    let kind = fields.required("type", json::string)?;
    let part = match kind.as_str() {
        "text" => Part::Text(fields.required("text", json::string)?),
        "image_url" if allowed == Allowed::TextAndImages => Part::Image(fields.required("image_url", image_url)?),
        "image_url" => {
            let message = format!("`{at}` is an image; images are taken in messages with role `user` only");
            return Err(ApiError::unsupported(at.key("type"), message));
        }
        other => {
            let words = if allowed == Allowed::Text { "text" } else { "text, image_url" };
            let message = format!("`{at}.type` cannot be `{}`; allowed: {words}", shown(other));
            return Err(ApiError::unsupported(at.key("type"), message));
        }
    };
    fields.finish()?;
    Ok(part)
}

fn image_url(value: Value, at: &Path<'_>) -> Result<String, ApiError> {
    let mut fields = Fields::of(value, at)?;
    let url = fields.required("url", json::string)?;
    if url.is_empty() {
        let at = at.key("url");
        return Err(ApiError::invalid(at, format!("`{at}` is empty; it must be a URL, for example a data URL")));
    }
    fields.optional("detail", |v, at| json::one_of(v, at, &[("auto", ()), ("low", ()), ("high", ())]))?;
    fields.finish()?;
    Ok(url)
}

fn tool_calls(value: Value, at: &Path<'_>) -> Result<Vec<Value>, ApiError> {
    let calls = json::array(value, at)?;
    calls.into_iter().enumerate().map(|(index, value)| tool_call(value, &at.index(index))).collect()
}

fn tool_call(value: Value, at: &Path<'_>) -> Result<Value, ApiError> {
    let mut fields = Fields::of(value, at)?;
    let id = fields.required("id", |v, at| json::short_string(v, at, 256))?;
    fields.required("type", |v, at| json::one_of(v, at, &[("function", ())]))?;
    let (name, arguments) = fields.required("function", |value, at| {
        let mut fields = Fields::of(value, at)?;
        let name = fields.required("name", json::name)?;
        let arguments = fields.required("arguments", json::string)?;
        fields.finish()?;
        Ok((name, arguments))
    })?;
    fields.finish()?;
    Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
}
