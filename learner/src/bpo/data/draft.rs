//! A pair as an entry describes it, before its images are looked at; and the checks that every shape shares.

use super::images::Importer;
use super::{Fault, ReadOptions};
use crate::bpo::pair::{Message, NegativeKind, Part, PreferencePair, Role, Source};

/// Most answers of one entry; conversations of LLaVA's kind have some tens.
const MAX_ANSWERS: usize = 256;

/// Largest product of an entry's answers and bytes.
const MAX_COPIED_BYTES: usize = 128 << 20;

/// What a shape's parser makes of an entry.
#[derive(Debug)]
pub(super) struct Draft {
    /// As the entry names them, in the order of the conversation's image parts.
    pub(super) images: Vec<String>,
    pub(super) conversation: Vec<Message>,
    pub(super) chosen: String,
    pub(super) rejected: Option<String>,
    pub(super) negative: Option<NegativeKind>,
}

impl Draft {
    /// The pair, or the first thing that is wrong with it. Cheap checks come first: an image is decoded only for a pair that
    /// is good otherwise.
    pub(super) fn check(self, options: &ReadOptions, importer: &mut Importer<'_>) -> Result<PreferencePair, Fault> {
        check_turns(&self.conversation)?;
        check_answer("chosen", &self.chosen, options)?;
        if let Some(rejected) = &self.rejected {
            check_answer("rejected", rejected, options)?;
            if PreferencePair::same_content(&self.chosen, rejected) {
                return Err(Fault::SameAnswers);
            }
        }
        if self.images.len() > options.max_images {
            return Err(Fault::TooManyImages { images: self.images.len(), limit: options.max_images });
        }
        let images = self.images.iter().map(|name| importer.import(name)).collect::<Result<Vec<_>, _>>()?;
        let mut pair = PreferencePair {
            id: String::new(),
            images,
            conversation: self.conversation,
            chosen: self.chosen.trim().to_owned(),
            rejected: self.rejected.map(|text| text.trim().to_owned()),
            distortion: None,
            source: Source::Annotation,
            negative: self.negative,
        };
        let content = serde_json::to_vec(&pair).map_err(|error| Fault::Json(error.to_string()))?;
        pair.id = format!("pair-{}", &blake3::hash(&content).to_hex()[..32]);
        Ok(pair)
    }
}

/// Checks an entry of so many answers and bytes before there are drafts of it. Each has a copy of the conversation, so
/// that memory would grow with the square of the entry.
pub(super) fn check_size(answers: usize, bytes: usize) -> Result<(), Fault> {
    if answers > MAX_ANSWERS {
        return Err(Fault::TooManyAnswers { answers, limit: MAX_ANSWERS });
    }
    // One answer is as large as the entry at the most, and that has a limit of its own.
    if answers > 1 && answers.saturating_mul(bytes) > MAX_COPIED_BYTES {
        return Err(Fault::TooManyCopies { answers, bytes, limit: MAX_COPIED_BYTES });
    }
    Ok(())
}

fn check_answer(which: &'static str, answer: &str, options: &ReadOptions) -> Result<(), Fault> {
    let (words, limit) = (PreferencePair::words(answer), options.max_answer_words);
    if words == 0 {
        return Err(Fault::EmptyAnswer(which));
    }
    if words > limit {
        return Err(Fault::AnswerTooLong { which, words, limit });
    }
    refuse_placeholder(&format!("the {which} answer"), answer)
}

/// Checks that a conversation is one that templates can write: system first, then user and assistant by turns, the user
/// last and with something to say.
///
/// # Errors
/// The first message that is out of place.
pub fn check_turns(conversation: &[Message]) -> Result<(), Fault> {
    let last = conversation.last().ok_or(Fault::NoMessage)?;
    for (at, message) in conversation.iter().enumerate() {
        if message.role == Role::System && at > 0 {
            return Err(Fault::SystemNotFirst(at));
        }
        if at > 0 && conversation[at - 1].role == message.role {
            return Err(Fault::SameSpeakerTwice(at - 1, at, message.role.as_str()));
        }
    }
    if last.role != Role::User {
        return Err(Fault::NotTheUsersTurn(last.role.as_str()));
    }
    if last.content.iter().all(|part| matches!(part, Part::Text { text } if text.trim().is_empty())) {
        let place = format!("messages[{}]", conversation.len() - 1);
        return Err(Fault::Content { place, what: "it is empty".to_owned() });
    }
    Ok(())
}

/// `<image>` in text would be tokenised as an image that is not there.
pub(super) fn refuse_placeholder(place: &str, text: &str) -> Result<(), Fault> {
    if text.contains("<image>") { Err(Fault::LiteralPlaceholder(place.to_owned())) } else { Ok(()) }
}

/// Splits text at its `<image>` placeholders; image parts count up from `first`. The line break that such data sets put
/// beside a placeholder belongs to their template, not to the question.
pub(super) fn split_placeholders(text: &str, first: usize) -> Vec<Part> {
    let mut parts = Vec::new();
    for (nth, piece) in text.split("<image>").enumerate() {
        if nth > 0 {
            parts.push(Part::Image { index: first + nth - 1 });
        }
        let piece = piece.trim_matches('\n');
        if !piece.trim().is_empty() {
            parts.push(Part::Text { text: piece.to_owned() });
        }
    }
    parts
}

/// Images in `parts`.
pub(super) fn count_images(parts: &[Part]) -> usize {
    parts.iter().filter(|part| matches!(part, Part::Image { .. })).count()
}
