//! Messages in mistralrs' shape.

use either::Either;
use image::DynamicImage;
use indexmap::IndexMap;
use mistralrs::core::{MessageContent, ModelCategory, RequestMessage, Tool};
use serde_json::Value;

use super::EngineError;
use crate::engine::{Content, Message};

type TemplateMessage = IndexMap<String, MessageContent>;

/// The conversation for mistralrs' chat template.
pub(super) fn request_message(messages: Vec<Message>, category: &ModelCategory) -> RequestMessage {
    let mut images = Vec::new();
    let messages = messages.into_iter().map(|message| template_message(message, category, &mut images)).collect();
    if images.is_empty() {
        RequestMessage::Chat { messages, enable_thinking: None, reasoning_effort: None }
    } else {
        RequestMessage::MultimodalChat {
            images,
            audios: Vec::new(),
            videos: Vec::new(),
            messages,
            enable_thinking: None,
            reasoning_effort: None,
        }
    }
}

fn template_message(message: Message, category: &ModelCategory, images: &mut Vec<DynamicImage>) -> TemplateMessage {
    let Message { role, content, tool_calls, tool_call_id } = message;
    let mut entry = TemplateMessage::from([("role".into(), Either::Left(role.as_str().into()))]);
    let first_image = images.len();
    let has_image = content.iter().any(|part| matches!(part, Content::Image(_)));
    let content = if has_image {
        let mut parts: Vec<IndexMap<String, Value>> = Vec::new();
        for part in content {
            parts.push(match part {
                Content::Text(text) => IndexMap::from([("type".into(), "text".into()), ("text".into(), text.into())]),
                Content::Image(image) => {
                    images.push(DynamicImage::clone(&image));
                    IndexMap::from([("type".into(), "image".into())])
                }
            });
        }
        prefix(&mut parts, category, (first_image..images.len()).collect());
        Either::Right(parts)
    } else {
        // Templates of text models take a string only.
        let texts: Vec<String> = content
            .into_iter()
            .filter_map(|part| match part {
                Content::Text(text) => Some(text),
                Content::Image(_) => None,
            })
            .collect();
        Either::Left(texts.join("\n"))
    };
    entry.insert("content".into(), content);
    if !tool_calls.is_empty() {
        let calls = tool_calls.into_iter().map(|call| match call {
            Value::Object(call) => call.into_iter().collect(),
            other => IndexMap::from([("value".into(), other)]),
        });
        entry.insert("tool_calls".into(), Either::Right(calls.collect()));
    }
    if let Some(id) = tool_call_id {
        entry.insert("tool_call_id".into(), Either::Left(id));
    }
    entry
}

/// Families that mark images inside the text (Phi-3 Vision's `<|image_1|>`) get their marks before the first text.
fn prefix(parts: &mut [IndexMap<String, Value>], category: &ModelCategory, indices: Vec<usize>) {
    let ModelCategory::Multimodal { prefixer } = category else { return };
    let text = parts.iter_mut().find_map(|part| part.get_mut("text"));
    if let Some(text) = text {
        let prefixed = prefixer.prefix_image(indices, text.as_str().unwrap_or_default());
        *text = prefixed.into();
    }
}

/// Tools for the chat template.
pub(super) fn tools(tools: Vec<Value>) -> Result<Option<Vec<Tool>>, EngineError> {
    if tools.is_empty() {
        return Ok(None);
    }
    let parsed: Result<Vec<Tool>, _> = tools.into_iter().map(serde_json::from_value).collect();
    parsed.map(Some).map_err(|error| EngineError::Invalid(format!("tools: {error}")))
}
