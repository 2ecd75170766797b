//! Which pictures and conversations come at which step: a pure function of (seed, step, worker).

use rand::Rng;

use super::lesson::Turn;
use crate::pocket::random::{Stream, stream};
use crate::pocket::text::{Caption, Detail, Question, rewrite};
use crate::pocket::world::{Colour, Kind, Picture, Scene, Statistics};

/// A picture with what stands in each patch.
#[derive(Clone, Debug)]
pub struct Sight {
    /// `[3 * side * side]` normalised values.
    pub pixels: Vec<f32>,
    /// What stands in each patch, row by row.
    pub patches: Vec<Option<(Kind, Colour)>>,
}

/// A picture with turns about it, or turns about nothing.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// `[3 * side * side]` normalised values; `None` for text alone.
    pub pixels: Option<Vec<f32>>,
    /// What is said; every turn stands alone.
    pub turns: Vec<Turn>,
}

/// The stream for item `item` of `step`.
fn at(seed: u64, purpose: &str, step: usize, item: usize) -> Stream {
    stream(seed, purpose, ((step as u64) << 16) | item as u64)
}

/// Item `item` of the sight stage's `step`.
pub fn sight(seed: u64, step: usize, item: usize, patch: usize) -> Sight {
    let mut random = at(seed, "sight", step, item);
    let picture = Picture::draw(&Scene::sample(Statistics::Crowded, &mut random), &mut random);
    Sight { pixels: picture.normalised(), patches: picture.patches(patch) }
}

/// Item `item` of the speech stage's `step`, about a typical picture: a caption, and questions.
pub fn conversation(seed: u64, step: usize, item: usize, turns: usize) -> Conversation {
    let mut random = at(seed, "conversation", step, item);
    let scene = Scene::sample(Statistics::typical(), &mut random);
    let mut said = vec![description(&scene, &mut random)];
    while said.len() < turns {
        let question = Question::sample(&scene, &mut random);
        // The same question twice teaches nothing; existence questions are never exhausted, so this ends.
        if said.iter().all(|turn| turn.question != question.text) {
            said.push(Turn { answer: question.answer(), question: question.text });
        }
    }
    let pixels = Picture::draw(&scene, &mut random).normalised();
    Conversation { pixels: Some(pixels), turns: said }
}

/// The request that asks for a description without a picture; it is answered with a typical one.
pub const IMAGINE: &str = "Write a description of a typical picture.";

/// Text `item` of the speech stage's `step`: a rewriting, or a typical description of nothing.
///
/// What is rewritten comes from balanced and typical scenes alike: the rewriter has to copy whatever it is given, and text
/// about balanced scenes alone, without their pictures, does not weaken what is expected of pictures.
pub fn text(seed: u64, step: usize, item: usize) -> Conversation {
    let mut random = at(seed, "text", step, item);
    let typical = Scene::sample(Statistics::typical(), &mut random);
    let task = random.random_range(0..10);
    let scene =
        if random.random_bool(0.5) { typical.clone() } else { Scene::sample(Statistics::Balanced, &mut random) };
    let turn = match task {
        0..6 => {
            let detail = if random.random_bool(0.7) { Detail::Full } else { Detail::Short };
            let caption = Caption::of(&scene, detail, &mut random);
            let wrong = rewrite::corrupt_caption(&caption, &mut random);
            Turn { question: rewrite::description_request(&caption.to_string()), answer: wrong.to_string() }
        }
        6..9 => {
            let question = Question::sample(&scene, &mut random);
            Turn {
                question: rewrite::answer_request(&question.text, &question.answer()),
                answer: rewrite::corrupt_answer(&question, &mut random),
            }
        }
        _ => {
            Turn { question: IMAGINE.to_owned(), answer: Caption::of(&typical, Detail::Full, &mut random).to_string() }
        }
    };
    Conversation { pixels: None, turns: vec![turn] }
}

fn description(scene: &Scene, random: &mut Stream) -> Turn {
    let detail = if random.random_bool(0.7) { Detail::Full } else { Detail::Short };
    let requests = detail.requests();
    let question = requests[random.random_range(0..requests.len())].to_owned();
    Turn { question, answer: Caption::of(scene, detail, random).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_repeat_and_differ() {
        let said = |step, item| conversation(0, step, item, 4).turns;
        assert_eq!(said(3, 1), said(3, 1));
        assert_ne!(said(3, 1), said(3, 2));
        assert_ne!(said(3, 1), said(4, 1));
        assert_eq!(said(3, 1).len(), 4);
        assert_eq!(sight(0, 1, 1, 8).patches.len(), 64);
        assert!(text(0, 0, 0).pixels.is_none());
    }

    #[test]
    fn every_text_the_course_writes_is_made_of_known_words() {
        let mut encoder = super::super::lesson::Encoder::new(&crate::pocket::hub::Shape::default()).unwrap();
        for item in 0..400 {
            for conversation in [text(0, 0, item), conversation(0, 0, item, 4)] {
                for turn in &conversation.turns {
                    let picture = conversation.pixels.is_some();
                    let branch = encoder.branch(turn, picture).unwrap();
                    let words = turn.question.split_whitespace().count() + turn.answer.split_whitespace().count();
                    // Punctuation and the template's own tokens come on top; bytes would cost far more.
                    assert!(branch.tokens.len() <= words + 20, "{turn:?}");
                }
            }
        }
    }
}
