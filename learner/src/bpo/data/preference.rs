//! OpenAI's preference fine-tuning rows.
//!
//! ```json
//! {"input": {"messages": [{"role": "user", "content": [
//!      {"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}},
//!      {"type": "text", "text": "What colour is the banana?"}]}]},
//!  "preferred_output": [{"role": "assistant", "content": "It is green."}],
//!  "non_preferred_output": [{"role": "assistant", "content": "It is yellow."}]}
//! ```
//!
//! `content` is a string or a list of parts. A key that is not shown here (tools, function calls) is refused by name.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Fault;
use super::draft::{Draft, refuse_placeholder};
use crate::bpo::pair::{Message, NegativeKind, Part, PreferencePair, Role};

/// A pair as such a row; `urls` are what its images are called there, in their order. `None` for an annotation, which prefers
/// nothing to anything. Where the answers come from is not part of the shape.
pub fn row(pair: &PreferencePair, urls: &[String]) -> Option<Value> {
    let rejected = pair.rejected.as_ref()?;
    let part = |part: &Part| match part {
        Part::Text { text } => json!({"type": "text", "text": text}),
        Part::Image { index } => json!({"type": "image_url", "image_url": {"url": urls.get(*index)}}),
    };
    let messages = pair.conversation.iter().map(|message| {
        json!({"role": message.role.as_str(), "content": message.content.iter().map(part).collect::<Vec<_>>()})
    });
    let answer = |text: &str| json!([{"role": "assistant", "content": text}]);
    Some(json!({
        "input": {"messages": messages.collect::<Vec<_>>()},
        "preferred_output": answer(&pair.chosen),
        "non_preferred_output": answer(rejected),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    input: Input,
    preferred_output: Vec<WireMessage>,
    non_preferred_output: Vec<WireMessage>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    messages: Vec<WireMessage>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireMessage {
    role: String,
    content: Value,
}

pub(super) fn parse(value: Value) -> Result<Vec<Draft>, Fault> {
    let row: Row = serde_json::from_value(value).map_err(|error| Fault::Json(error.to_string()))?;
    let mut images = Vec::new();
    let mut conversation = Vec::new();
    for (at, message) in row.input.messages.into_iter().enumerate() {
        let place = format!("input.messages[{at}]");
        let role = role(&place, &message.role)?;
        let content = parts(&format!("{place}.content"), message.content, &mut images)?;
        if role != Role::User && content.iter().any(|part| matches!(part, Part::Image { .. })) {
            return Err(wrong(&place, &format!("a {} message cannot hold an image", role.as_str())));
        }
        conversation.push(Message { role, content });
    }
    let chosen = answer("preferred_output", row.preferred_output)?;
    let rejected = answer("non_preferred_output", row.non_preferred_output)?;
    let (rejected, negative) = (Some(rejected), Some(NegativeKind::Given));
    Ok(vec![Draft { images, conversation, chosen, rejected, negative }])
}

fn role(place: &str, role: &str) -> Result<Role, Fault> {
    match role {
        "system" | "developer" => Ok(Role::System),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        other => Err(wrong(place, &format!("role {other:?} is not system, developer, user or assistant"))),
    }
}

fn parts(place: &str, content: Value, images: &mut Vec<String>) -> Result<Vec<Part>, Fault> {
    let list = match content {
        Value::String(text) => {
            refuse_placeholder(place, &text)?;
            return Ok(vec![Part::Text { text }]);
        }
        Value::Array(list) => list,
        _ => return Err(wrong(place, "it must be a string or a list of parts")),
    };
    let mut parts = Vec::new();
    for (at, part) in list.into_iter().enumerate() {
        let place = format!("{place}[{at}]");
        let Value::Object(part) = part else {
            return Err(wrong(&place, "it must be an object with a type"));
        };
        match part.get("type").and_then(Value::as_str) {
            Some("text") => {
                let text = part.get("text").and_then(Value::as_str).ok_or_else(|| wrong(&place, "it has no text"))?;
                refuse_placeholder(&place, text)?;
                parts.push(Part::Text { text: text.to_owned() });
            }
            Some("image_url") => {
                parts.push(Part::Image { index: images.len() });
                images.push(image_url(&place, &part)?);
            }
            Some(other) => {
                return Err(wrong(&place, &format!("a part of type {other:?} cannot be learnt from")));
            }
            None => return Err(wrong(&place, "it has no type")),
        }
    }
    Ok(parts)
}

fn image_url(place: &str, part: &Map<String, Value>) -> Result<String, Fault> {
    let url = match part.get("image_url") {
        Some(Value::Object(inner)) => inner.get("url").and_then(Value::as_str),
        // Older rows put the address there without an object around it.
        Some(Value::String(url)) => Some(url.as_str()),
        _ => None,
    };
    url.map(str::to_owned).ok_or_else(|| wrong(place, "image_url has no url"))
}

fn answer(field: &'static str, mut messages: Vec<WireMessage>) -> Result<String, Fault> {
    let message = match (messages.len(), messages.pop()) {
        (1, Some(message)) if message.role == "assistant" => message,
        (1, Some(message)) => {
            return Err(Fault::NotOneAnswer { field, got: format!("role {:?}", message.role) });
        }
        (count, _) => {
            return Err(Fault::NotOneAnswer { field, got: format!("{count} messages") });
        }
    };
    let mut images = Vec::new();
    let content = parts(&format!("{field}[0].content"), message.content, &mut images)?;
    if !images.is_empty() {
        return Err(Fault::NotOneAnswer { field, got: "an image".to_owned() });
    }
    let texts = content.into_iter().filter_map(|part| match part {
        Part::Text { text } => Some(text),
        Part::Image { .. } => None,
    });
    Ok(texts.collect())
}

fn wrong(place: &str, what: &str) -> Fault {
    Fault::Content { place: place.to_owned(), what: what.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpo::pair::{ImageRef, Source};

    #[test]
    fn a_row_reads_as_the_pair_that_it_was_written_from() {
        let user = |content| Message { role: Role::User, content };
        let text = |text: &str| Part::Text { text: text.to_owned() };
        let pair = PreferencePair {
            id: "pair-1".to_owned(),
            images: vec![ImageRef { digest: "0".repeat(64), width: 1, height: 1 }],
            conversation: vec![
                Message { role: Role::System, content: vec![text("Be short.")] },
                user(vec![Part::Image { index: 0 }, text("What is it?")]),
                Message { role: Role::Assistant, content: vec![text("A hat.")] },
                user(vec![text("Which colour?")]),
            ],
            chosen: "Red.".to_owned(),
            rejected: Some("Blue.".to_owned()),
            distortion: None,
            source: Source::Correction,
            negative: Some(NegativeKind::Injected),
        };
        let url = "data:image/png;base64,AA==".to_owned();
        let drafts = parse(row(&pair, std::slice::from_ref(&url)).unwrap()).unwrap();
        let [draft] = &drafts[..] else { panic!("{drafts:?}") };
        assert_eq!((&draft.images, &draft.conversation), (&vec![url], &pair.conversation));
        assert_eq!((&draft.chosen, &draft.rejected), (&pair.chosen, &pair.rejected));
        assert_eq!(row(&PreferencePair { rejected: None, ..pair }, &[]), None);
    }
}
