//! LLaVA's instruction data: annotations, one per answer of the conversation.
//!
//! ```json
//! {"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
//!  "conversations": [{"from": "human", "value": "<image>\nWhat are the colors of the bus?"},
//!                    {"from": "gpt", "value": "White and red."}]}
//! ```
//!
//! `image` is a path, a list of them, or absent for text. A question without `<image>` gets the images in front.

use serde::Deserialize;
use serde_json::Value;

use super::Fault;
use super::draft::{Draft, check_size, count_images, refuse_placeholder, split_placeholders};
use crate::bpo::pair::{Message, Part, Role};

/// Data sets of this shape carry keys of their own (`id`, `model`, `source`), so unknown ones are let through.
#[derive(Deserialize)]
struct Row {
    #[serde(default)]
    image: Images,
    conversations: Vec<Turn>,
}

/// One image, several or none.
#[derive(Default, Deserialize)]
#[serde(untagged, expecting = "image must be a path or a list of paths")]
pub(super) enum Images {
    #[default]
    None,
    One(String),
    Several(Vec<String>),
}

impl Images {
    pub(super) fn into_names(self) -> Vec<String> {
        match self {
            Self::None => Vec::new(),
            Self::One(name) => vec![name],
            Self::Several(names) => names,
        }
    }
}

#[derive(Deserialize)]
pub(super) struct Turn {
    from: String,
    value: String,
}

impl Turn {
    pub(super) fn human(value: String) -> Self {
        Self { from: "human".to_owned(), value }
    }
}

/// `bytes`: size of the entry.
pub(super) fn parse(value: Value, bytes: usize) -> Result<Vec<Draft>, Fault> {
    let row: Row = serde_json::from_value(value).map_err(|error| Fault::Json(error.to_string()))?;
    let images = row.image.into_names();
    let messages = messages(row.conversations, images.len())?;
    check_size(messages.iter().filter(|message| message.role == Role::Assistant).count(), bytes)?;
    let mut drafts = Vec::new();
    for (at, message) in messages.iter().enumerate().filter(|(_, message)| message.role == Role::Assistant) {
        let chosen = text(&message.content);
        let conversation = messages[..at].to_vec();
        // Those of later questions are not seen yet.
        let seen = conversation.iter().map(|message| count_images(&message.content)).sum();
        let images = images.iter().take(seen).cloned().collect();
        drafts.push(Draft { images, conversation, chosen, rejected: None, negative: None });
    }
    if drafts.is_empty() {
        return Err(Fault::Content {
            place: "conversations".to_owned(),
            what: "there is no answer of gpt to learn from".to_owned(),
        });
    }
    Ok(drafts)
}

/// The conversation with its placeholders turned into image parts.
pub(super) fn messages(turns: Vec<Turn>, images: usize) -> Result<Vec<Message>, Fault> {
    let mut messages = Vec::new();
    let mut placed = 0;
    for (at, turn) in turns.into_iter().enumerate() {
        let place = format!("conversations[{at}]");
        let role = match turn.from.as_str() {
            "system" => Role::System,
            "human" | "user" => Role::User,
            "gpt" | "assistant" => Role::Assistant,
            other => {
                return Err(Fault::Content { place, what: format!("from {other:?} is not system, human or gpt") });
            }
        };
        let content = if role == Role::User {
            split_placeholders(&turn.value, placed)
        } else {
            refuse_placeholder(&place, &turn.value)?;
            vec![Part::Text { text: turn.value }]
        };
        placed += count_images(&content);
        messages.push(Message { role, content });
    }
    place_images(&mut messages, placed, images)?;
    Ok(messages)
}

/// Without any placeholder the images stand before the first question.
fn place_images(messages: &mut [Message], placeholders: usize, images: usize) -> Result<(), Fault> {
    if placeholders == images {
        return Ok(());
    }
    match messages.iter_mut().find(|message| message.role == Role::User) {
        Some(first) if placeholders == 0 => {
            first.content.splice(0..0, (0..images).map(|index| Part::Image { index }));
            Ok(())
        }
        _ => Err(Fault::Placeholders { placeholders, images }),
    }
}

fn text(parts: &[Part]) -> String {
    let texts = parts.iter().filter_map(|part| match part {
        Part::Text { text } => Some(text.as_str()),
        Part::Image { .. } => None,
    });
    texts.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_before_an_image_is_one_without_it() {
        let turn = |from: &str, value: &str| json!({"from": from, "value": value});
        let entry = json!({"image": ["a.png", "b.png"], "conversations": [
            turn("human", "Who are you?"), turn("gpt", "A model."),
            turn("human", "<image>\nWhat is it?"), turn("gpt", "A hat."),
            turn("human", "<image>\nAnd this?"), turn("gpt", "A cat."),
        ]});
        let bytes = entry.to_string().len();
        let images: Vec<_> = parse(entry, bytes).unwrap().into_iter().map(|draft| draft.images).collect();
        assert_eq!(images, [vec![], vec!["a.png"], vec!["a.png", "b.png"]]);
    }
}
