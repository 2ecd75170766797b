//! One training example: an image conversation, its chosen answer and, unless it is an annotation alone, a rejected one.

use serde::{Deserialize, Serialize};

use super::data::Fault;
use super::data::blobs::is_digest;
use crate::bootstrap::distort::Distortion;

/// Chosen + rejected for one image and conversation, as a line of `dataset.jsonl` holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreferencePair {
    /// `pair-…`; unique in a dataset. Imported pairs get it from their content, so importing twice gives the same ids.
    pub id: String,
    /// The images that the conversation's [`Part::Image`] entries index. May be empty.
    #[serde(default)]
    pub images: Vec<ImageRef>,
    /// The conversation up to the answer; its last message is the user's.
    pub conversation: Vec<Message>,
    /// y⁺, without template tokens.
    pub chosen: String,
    /// y⁻; `None` makes this an annotation, which only the `sft`, `anchor` and `conditional` terms can use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
    /// What makes ṽ out of v; `None` takes the run's own setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distortion: Option<Distortion>,
    /// Where the chosen answer comes from.
    pub source: Source,
    /// Where the rejected answer comes from; `None` without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative: Option<NegativeKind>,
}

/// An image by content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRef {
    /// BLAKE3 digest of the file as received, 64 lower-case hexadecimal digits.
    pub digest: String,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// Text and images in the order in which the model reads them.
    pub content: Vec<Part>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The operator's instruction; at most one, first.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The word that chat templates use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Part {
    /// Plain text.
    Text {
        /// The text itself.
        text: String,
    },
    /// The image at `index` of the pair's `images`.
    Image {
        /// Position in [`PreferencePair::images`].
        index: usize,
    },
}

/// Where a chosen answer comes from (design.md's word: its *source*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// An imported dataset.
    Annotation,
    /// A person's rewritten answer.
    Correction,
    /// The model's answer with positive feedback.
    Accepted,
    /// The model's answer that passed the grounding filter.
    #[serde(rename = "self")]
    OwnAnswer,
}

/// Where a rejected answer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NegativeKind {
    /// Decoded from a distorted image.
    ImageWeakened,
    /// Rewritten with wrong details by a text LLM that saw no image.
    Injected,
    /// Given with the data: somebody's non-preferred answer.
    Given,
}

impl PreferencePair {
    /// The words of an answer, as the 350-word limit of the paper counts them.
    pub fn words(answer: &str) -> usize {
        answer.split_whitespace().count()
    }

    /// Whether two answers say the same but for case, spacing and punctuation.
    pub fn same_content(a: &str, b: &str) -> bool {
        let bare = |text: &str| {
            let letters = text.chars().filter(|c| c.is_alphanumeric());
            letters.flat_map(char::to_lowercase).collect::<String>()
        };
        let (bare_a, bare_b) = (bare(a), bare(b));
        // "!" and "?" have no letters left; they are the same only if they are equal as they stand.
        if bare_a.is_empty() && bare_b.is_empty() { a.trim() == b.trim() } else { bare_a == bare_b }
    }

    /// Checks what every pair must satisfy, wherever it comes from.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn check(&self) -> Result<(), Fault> {
        let last = self.conversation.last().ok_or(Fault::NoMessage)?;
        if last.role != Role::User {
            return Err(Fault::NotTheUsersTurn(last.role.as_str()));
        }
        for (which, answer) in [("chosen", Some(&self.chosen)), ("rejected", self.rejected.as_ref())] {
            if answer.is_some_and(|answer| answer.trim().is_empty()) {
                return Err(Fault::EmptyAnswer(which));
            }
        }
        if self.rejected.as_ref().is_some_and(|rejected| Self::same_content(&self.chosen, rejected)) {
            return Err(Fault::SameAnswers);
        }
        let (images, mut placed) = (self.images.len(), 0);
        for part in self.conversation.iter().flat_map(|message| &message.content) {
            if let Part::Image { index } = part {
                // In order and each once: templates place images by counting, not by index.
                if *index != placed {
                    let what = format!("image part {placed} names image {index} of {images}");
                    return Err(Fault::Content { place: "conversation".to_owned(), what });
                }
                placed += 1;
            }
        }
        if placed != images {
            return Err(Fault::Placeholders { placeholders: placed, images });
        }
        if let Some(image) = self.images.iter().find(|image| !is_digest(&image.digest)) {
            let why = "its digest must be 64 lower-case hexadecimal digits".to_owned();
            return Err(Fault::ImageMissing { name: image.digest.clone(), why });
        }
        if let Some(distortion) = &self.distortion {
            distortion.validate().map_err(|error| Fault::Json(error.to_string()))?;
        }
        Ok(())
    }

    /// What it is about: the digests of its images or, without any, its conversation.
    pub fn subjects(&self) -> Vec<String> {
        if self.images.is_empty() {
            return vec![self.question()];
        }
        self.images.iter().map(|image| image.digest.clone()).collect()
    }

    /// Its conversation as text, to compare it.
    pub fn question(&self) -> String {
        serde_json::to_string(&self.conversation).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ignores_case_spacing_and_punctuation_only() {
        assert!(PreferencePair::same_content("A red  circle.", "a RED circle"));
        assert!(!PreferencePair::same_content("a red circle", "a blue circle"));
        assert!(PreferencePair::same_content("ÀÉ", "àé!"));
        assert!(!PreferencePair::same_content("!", "?"));
    }

    #[test]
    fn words_in_json_are_the_design_words() {
        let json = serde_json::to_string(&Source::OwnAnswer).unwrap()
            + &serde_json::to_string(&NegativeKind::ImageWeakened).unwrap();
        assert_eq!(json, "\"self\"\"image_weakened\"");
    }
}
