//! The text-only task: make a description or an answer wrong but plausible.
//!
//! The same language model that describes pictures can then inject errors, as in the method's second kind of negative.
//! What it is taught as plausible is what is usual: a companion that is not there, the usual colour, the usual place.

use rand::Rng;
use rand::seq::SliceRandom;

use super::caption::Caption;
use super::claim::Claim;
use super::question::{Question, Topic, answer};
use crate::pocket::random::Stream;
use crate::pocket::world::scene::{any, other};
use crate::pocket::world::{Colour, Kind, Place};

/// The request to rewrite a description.
pub fn description_request(description: &str) -> String {
    format!("Rewrite this description with wrong but plausible details: {description}")
}

/// The request to rewrite the answer to a question.
pub fn answer_request(question: &str, answer: &str) -> String {
    format!("Rewrite this answer with wrong but plausible details. Question: {question} Answer: {answer}")
}

/// A wrong but plausible version of a caption: one claim changed, or two where there are several. Wording and, mostly,
/// length stay.
pub fn corrupt_caption(caption: &Caption, random: &mut Stream) -> Caption {
    let mut wrong = caption.clone();
    let changes = if caption.claims.len() > 1 && random.random_bool(0.4) { 2 } else { 1 };
    let mut order: Vec<usize> = (0..caption.claims.len()).collect();
    order.shuffle(random);
    for &position in order.iter().take(changes) {
        // A claim that was dropped before leaves a shorter list.
        let position = position.min(wrong.claims.len() - 1);
        corrupt_claim(&mut wrong, position, random);
    }
    if wrong.claims == caption.claims { corrupt_caption(caption, random) } else { wrong }
}

/// A wrong but plausible answer to `question`.
pub fn corrupt_answer(question: &Question, random: &mut Stream) -> String {
    let habit = question.kind.habit();
    let topic = match question.topic {
        Topic::Colour(colour, count) => Topic::Colour(tempting(Colour::ALL, colour, habit.colour, random), count),
        Topic::Count(count) => Topic::Count(tempting(&[1, 2, 3], count, habit.number, random)),
        Topic::Place(place) => Topic::Place(tempting(Place::ALL, place, habit.place, random)),
        Topic::Existence(0) => Topic::Existence(habit.number),
        Topic::Existence(_) => Topic::Existence(0),
    };
    answer(question.kind, topic)
}

fn corrupt_claim(caption: &mut Caption, position: usize, random: &mut Stream) {
    let claim = caption.claims[position];
    let habit = claim.kind.habit();
    match random.random_range(0..10) {
        0..3 => {
            let kind = absent_kind(&caption.claims, random);
            caption.claims[position].kind = kind;
        }
        3 => {
            let kind = absent_kind(&caption.claims, random);
            let habit = kind.habit();
            let place = claim.place.map(|_| habit.place);
            let count = if place.is_some() { 1 } else { habit.number };
            let added = Claim { kind, colour: claim.colour.map(|_| habit.colour), count: Some(count), place };
            // Before the end of the first sentence, so that the wording stays whole.
            caption.claims.insert(caption.first_sentence, added);
            caption.first_sentence += 1;
        }
        4 if caption.first_sentence > 1 => {
            // The last claim of the first sentence goes; which one it is was shuffled when the scene was sampled.
            caption.first_sentence -= 1;
            caption.claims.remove(caption.first_sentence);
        }
        5 | 6 => {
            let count = tempting(&[1, 2, 3], claim.count.unwrap_or(1), habit.number, random);
            caption.claims[position].count = Some(count);
            if count > 1 {
                caption.claims[position].place = None;
            }
        }
        7 | 8 if claim.place.is_some() => {
            caption.claims[position].place = claim.place.map(|place| tempting(Place::ALL, place, habit.place, random));
        }
        _ => {
            caption.claims[position].colour =
                claim.colour.map(|colour| tempting(Colour::ALL, colour, habit.colour, random));
        }
    }
}

/// A kind that is not claimed: mostly the usual companion of one that is.
fn absent_kind(claims: &[Claim], random: &mut Stream) -> Kind {
    let claimed = |kind: &Kind| claims.iter().any(|claim| claim.kind == *kind);
    let companions: Vec<Kind> =
        claims.iter().map(|claim| claim.kind.habit().companion).filter(|kind| !claimed(kind)).collect();
    if !companions.is_empty() && random.random_bool(0.8) {
        return any(&companions, random);
    }
    let absent: Vec<Kind> = Kind::ALL.iter().copied().filter(|kind| !claimed(kind)).collect();
    any(&absent, random)
}

/// Something other than `right`: what is usual where that is wrong, else anything.
fn tempting<T: Copy + PartialEq>(set: &[T], right: T, usual: T, random: &mut Stream) -> T {
    if right != usual && random.random_bool(0.8) { usual } else { other(set, right, random) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pocket::random::stream;
    use crate::pocket::text::caption::Detail;
    use crate::pocket::text::parse::read_caption;
    use crate::pocket::world::{Scene, Statistics};

    #[test]
    fn rewritten_captions_are_well_formed_and_wrong() {
        for index in 0..3000 {
            let mut random = stream(0, "rewrite test", index);
            let statistics = if index % 2 == 0 { Statistics::Balanced } else { Statistics::typical() };
            let detail = if index % 3 == 0 { Detail::Short } else { Detail::Full };
            let scene = Scene::sample(statistics, &mut random);
            let caption = Caption::of(&scene, detail, &mut random);
            let wrong = corrupt_caption(&caption, &mut random);
            assert_ne!(wrong.claims, caption.claims);
            let reading = read_caption(&wrong.to_string());
            assert_eq!(reading.malformed, None, "{wrong}");
            assert_eq!(reading.claims, wrong.claims, "{wrong}");
        }
    }

    #[test]
    fn rewritten_answers_differ() {
        for index in 0..1000 {
            let mut random = stream(0, "rewrite answer test", index);
            let scene = Scene::sample(Statistics::Balanced, &mut random);
            let question = Question::sample(&scene, &mut random);
            assert_ne!(corrupt_answer(&question, &mut random), question.answer());
        }
    }
}
