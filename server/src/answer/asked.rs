//! A question of the learner's, as an engine is asked it, and the answer as the learner takes it.

use reground_learner::generator::{Piece, Question, Speaker, Turn};

use super::text::TextBuilder;
use crate::engine::{Content, EngineError, Event, Generate, Message, Role, Sampling, TokenStream, Vocabulary};

/// The request that asks a question.
pub(crate) fn request(question: &Question) -> Generate {
    Generate {
        messages: question.turns.iter().map(message).collect(),
        tools: Vec::new(),
        sampling: Sampling {
            temperature: question.temperature,
            top_p: question.top_p,
            seed: question.seed,
            ..Sampling::greedy()
        },
        max_tokens: Some(question.max_tokens),
        top_logprobs: 0,
        grammar: None,
        forced: question.answer.clone(),
    }
}

fn message(turn: &Turn) -> Message {
    let role = match turn.speaker {
        Speaker::System => Role::System,
        Speaker::User => Role::User,
        Speaker::Assistant => Role::Assistant,
    };
    let piece = |piece: &Piece| match piece {
        Piece::Text(text) => Content::Text(text.clone()),
        Piece::Image(image) => Content::Image(image.clone().into()),
    };
    Message { role, content: turn.content.iter().map(piece).collect(), tool_calls: Vec::new(), tool_call_id: None }
}

/// A whole answer: its text, and its tokens with their log-probabilities.
pub(crate) type Whole = (String, Vec<(u32, f32)>);

/// Reads an answer to its end; `None` if it broke off because its engine died. Dropping the future ends the answer at its next
/// token.
///
/// # Errors
/// What the engine says of it.
pub(crate) async fn whole(mut stream: TokenStream, vocabulary: &Vocabulary) -> Result<Option<Whole>, EngineError> {
    stream.be_patient();
    let (mut builder, mut text, mut tokens) = (TextBuilder::new(Vec::new()), String::new(), Vec::new());
    while let Some(event) = stream.next().await {
        match event {
            Event::Started { .. } => {}
            Event::Token(token) => {
                if !vocabulary.ends_turn(token.id) {
                    text.push_str(&builder.push(vocabulary.bytes(token.id)));
                }
                tokens.push((token.id, token.logprob));
            }
            Event::Finished(_) => {
                text.push_str(&builder.finish());
                return Ok(Some((text, tokens)));
            }
            Event::Failed(error) => return Err(error),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use image::DynamicImage;

    use super::*;

    #[test]
    fn texts_and_images_stay_in_their_order() {
        let image = Arc::new(DynamicImage::new_rgb8(2, 2));
        let text = |text: &str| Piece::Text(text.to_owned());
        let content =
            vec![text("First:"), Piece::Image(image.clone()), text("Second:"), Piece::Image(image), text("?")];
        let asked = message(&Turn { speaker: Speaker::User, content }).content;
        let words = asked.iter().map(|part| match part {
            Content::Text(text) => text.as_str(),
            Content::Image(_) => "*",
        });
        assert_eq!(words.collect::<Vec<_>>(), ["First:", "*", "Second:", "*", "?"]);
    }
}
