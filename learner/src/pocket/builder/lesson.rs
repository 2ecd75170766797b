//! Conversations as tokens, with the places that are learnt.
//!
//! All turns about one picture share its pass through the model: the prompt up to the picture is computed once and every
//! turn continues from it without seeing the others, exactly as if each were a conversation of its own.

use std::collections::HashMap;
use std::sync::Arc;

use tokenizers::Tokenizer;

use super::error::BuildError;
use crate::pocket::hub::Shape;
use crate::pocket::tokenizer::{BEGIN, END, IMAGE, SPECIAL, tokenizer_json};

/// A question with the answer to be learnt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The user's text.
    pub question: String,
    /// The assistant's.
    pub answer: String,
}

/// Tokens after the prompt, of which the last `learnt` are to be predicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// The tokens.
    pub tokens: Arc<[u32]>,
    /// How many of them, at the end, belong to the answer (its end-of-turn token included).
    pub learnt: usize,
}

/// Turns texts into tokens as the chat template would, remembering every text it has seen: the pocket repeats itself.
pub struct Encoder {
    tokenizer: Tokenizer,
    known: HashMap<String, Arc<[u32]>>,
    image_tokens: usize,
}

impl Encoder {
    /// An encoder with the pocket's tokenizer.
    ///
    /// # Errors
    /// The tokenizer does not load, which would be a bug.
    pub fn new(shape: &Shape) -> Result<Self, BuildError> {
        let tokenizer = tokenizer_json().to_string().parse().map_err(BuildError::Tokenizer)?;
        Ok(Self { tokenizer, known: HashMap::new(), image_tokens: shape.image_tokens() })
    }

    fn encode(&mut self, text: &str) -> Result<Arc<[u32]>, BuildError> {
        /// Beyond this many texts remembering costs more memory than it saves time.
        const MOST: usize = 50_000;
        if let Some(tokens) = self.known.get(text) {
            return Ok(Arc::clone(tokens));
        }
        let encoding = self.tokenizer.encode(text, false).map_err(BuildError::Tokenizer)?;
        let tokens: Arc<[u32]> = encoding.get_ids().into();
        if self.known.len() < MOST {
            self.known.insert(text.to_owned(), Arc::clone(&tokens));
        }
        Ok(tokens)
    }

    /// The tokens that all turns share: up to the picture's end, or up to the user's text if there is no picture.
    ///
    /// # Errors
    /// As [`Encoder::new`].
    pub fn prompt(&mut self, picture: bool) -> Result<Arc<[u32]>, BuildError> {
        let mut text = format!("{}User:", SPECIAL[BEGIN as usize]);
        if picture {
            let border = "<fake_token_around_image>";
            let features = SPECIAL[IMAGE as usize].repeat(self.image_tokens);
            text.push_str(&format!("{border}<global-img>{features}{border}"));
        }
        self.encode(&text)
    }

    /// The tokens of one turn after [`Encoder::prompt`].
    ///
    /// # Errors
    /// As [`Encoder::new`].
    pub fn branch(&mut self, turn: &Turn, picture: bool) -> Result<Branch, BuildError> {
        // The template puts a space before text, but none between a picture and text.
        let space = if picture { "" } else { " " };
        let end = SPECIAL[END as usize];
        let asked = self.encode(&format!("{space}{}{end}\nAssistant:", turn.question))?;
        let answered = self.encode(&format!(" {}{end}", turn.answer))?;
        Ok(Branch { tokens: asked.iter().chain(answered.iter()).copied().collect(), learnt: answered.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoder() -> Encoder {
        Encoder::new(&Shape::default()).unwrap()
    }

    fn whole(picture: bool, text: &str) {
        let turn =
            Turn { question: "Is there a cat in the image?".to_owned(), answer: "No, there is no cat.".to_owned() };
        let mut encoder = encoder();
        let prompt = encoder.prompt(picture).unwrap();
        let branch = encoder.branch(&turn, picture).unwrap();
        let tokens: Vec<u32> = prompt.iter().chain(branch.tokens.iter()).copied().collect();
        let expected = encoder.tokenizer.encode(text, false).unwrap();
        assert_eq!(tokens, expected.get_ids());
        let learnt = &branch.tokens[branch.tokens.len() - branch.learnt..];
        let answer = encoder.tokenizer.encode(" No, there is no cat.<end_of_utterance>", false).unwrap();
        assert_eq!(learnt, answer.get_ids());
    }

    #[test]
    fn pieces_join_to_the_tokens_of_the_whole_conversation() {
        let asked = "Is there a cat in the image?<end_of_utterance>\nAssistant: No, there is no cat.<end_of_utterance>";
        whole(false, &format!("<|im_start|>User: {asked}"));
        let images = "<image>".repeat(16);
        let border = "<fake_token_around_image>";
        whole(true, &format!("<|im_start|>User:{border}<global-img>{images}{border}{asked}"));
    }
}
