//! Tokens and what they stand for.

/// Tokens and what they stand for.
#[derive(Debug)]
pub struct Vocabulary {
    /// Control tokens as text (`<image>`, `<end_of_utterance>`).
    control: Vec<String>,
}

impl Vocabulary {
    /// The first control token that a text contains. Typed by a user it would be taken for a real one.
    #[must_use]
    pub fn control_token_in<'a>(&'a self, text: &str) -> Option<&'a str> {
        self.control.iter().map(String::as_str).find(|token| text.contains(token))
    }
}
