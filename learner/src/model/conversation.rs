//! A conversation as the chat template sees it.

use serde::Serialize;

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Part {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// The place of an image. The images themselves are given in the same order.
    Image,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant`.
    pub role: String,
    /// Its pieces, in order.
    pub content: Vec<Part>,
}

impl Message {
    /// A user's question, about an image or not.
    pub fn user(text: impl Into<String>, images: usize) -> Self {
        let mut content = vec![Part::Image; images];
        content.push(Part::Text { text: text.into() });
        Self {
            role: "user".to_owned(),
            content,
        }
    }

    /// An answer.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self {
            role: "assistant".to_owned(),
            content: vec![Part::Text { text: text.into() }],
        }
    }

    /// Number of image places.
    pub fn images(&self) -> usize {
        self.content
            .iter()
            .filter(|part| **part == Part::Image)
            .count()
    }
}
