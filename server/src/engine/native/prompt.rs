//! Messages in the template's shape.

use serde_json::{Map, Value, json};

use crate::engine::{Content, Message};

/// A message as chat templates of multimodal models read it: content as a list of parts.
///
/// Text without an image becomes one part, its pieces on lines of their own, as the other engine has it.
pub(super) fn template_message(message: &Message) -> Value {
    let has_image = message.content.iter().any(|part| matches!(part, Content::Image(_)));
    let part = |part: &Content| match part {
        Content::Text(text) => json!({"type": "text", "text": text}),
        Content::Image(_) => json!({"type": "image"}),
    };
    let parts: Vec<Value> = if has_image {
        message.content.iter().map(part).collect()
    } else {
        let texts = message.content.iter().filter_map(|part| match part {
            Content::Text(text) => Some(text.as_str()),
            Content::Image(_) => None,
        });
        // An empty list has no first part, which templates look at.
        vec![json!({"type": "text", "text": texts.collect::<Vec<_>>().join("\n")})]
    };
    let mut entry = Map::from_iter([
        ("role".to_owned(), Value::from(message.role.as_str())),
        ("content".to_owned(), Value::from(parts)),
    ]);
    if !message.tool_calls.is_empty() {
        entry.insert("tool_calls".into(), message.tool_calls.clone().into());
    }
    if let Some(id) = &message.tool_call_id {
        entry.insert("tool_call_id".into(), id.as_str().into());
    }
    entry.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Role;

    #[test]
    fn text_is_one_part_and_a_call_is_kept() {
        let message = Message {
            role: Role::Assistant,
            content: vec![Content::Text("a".into()), Content::Text("b".into())],
            tool_calls: vec![json!({"id": "x"})],
            tool_call_id: None,
        };
        let expected =
            json!({"role": "assistant", "content": [{"type": "text", "text": "a\nb"}], "tool_calls": [{"id": "x"}]});
        assert_eq!(template_message(&message), expected);
        let empty = Message { role: Role::Tool, content: vec![], tool_calls: vec![], tool_call_id: Some("x".into()) };
        let expected = json!({"role": "tool", "content": [{"type": "text", "text": ""}], "tool_call_id": "x"});
        assert_eq!(template_message(&empty), expected);
    }
}
