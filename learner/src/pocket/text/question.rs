//! Questions about a scene, with their right answers.

use rand::Rng;

use super::claim::{number_word, place_phrase, to_be, with_article};
use crate::pocket::random::Stream;
use crate::pocket::world::scene::any;
use crate::pocket::world::{Colour, Kind, Place, Scene};

/// What a question asks, with the answer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// The colour of a kind that is there, and how many of it there are (for "is" or "are").
    Colour(Colour, u8),
    /// How many there are, at least one.
    Count(u8),
    /// Where the only one of its kind stands.
    Place(Place),
    /// Whether there is one; with how many (0 for none).
    Existence(u8),
}

/// A question about one kind of object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The kind it asks about.
    pub kind: Kind,
    /// What it asks and what is right.
    pub topic: Topic,
    /// The question as text.
    pub text: String,
}

impl Question {
    /// "What color is the apple?"; `american` chooses the spelling. `None` if the kind is not there.
    pub fn colour(scene: &Scene, kind: Kind, american: bool) -> Option<Self> {
        let group = scene.group(kind)?;
        let (colour, count) = (if american { "color" } else { "colour" }, group.count());
        let text = format!("What {colour} {} the {}?", to_be(count), kind.noun(count));
        Some(Self { kind, topic: Topic::Colour(group.colour, count), text })
    }

    /// "How many apples are there?" `None` if the kind is not there.
    pub fn count(scene: &Scene, kind: Kind) -> Option<Self> {
        let count = scene.group(kind)?.count();
        Some(Self { kind, topic: Topic::Count(count), text: format!("How many {} are there?", kind.plural()) })
    }

    /// "Where is the apple?" `None` unless exactly one is there.
    pub fn place(scene: &Scene, kind: Kind) -> Option<Self> {
        let place = scene.group(kind)?.place()?;
        Some(Self { kind, topic: Topic::Place(place), text: format!("Where is the {}?", kind.word()) })
    }

    /// POPE's question, "Is there an apple in the image?".
    pub fn existence(scene: &Scene, kind: Kind) -> Self {
        Self::existence_worded(scene, kind, 0)
    }

    /// An existence question in one of three wordings; 0 is POPE's.
    fn existence_worded(scene: &Scene, kind: Kind, wording: usize) -> Self {
        let count = scene.group(kind).map_or(0, |group| group.count());
        let text = match wording {
            0 => format!("Is there {} in the image?", with_article(kind.word())),
            1 => format!("Do you see {} in the picture?", with_article(kind.word())),
            _ => format!("Are there any {} in the image?", kind.plural()),
        };
        Self { kind, topic: Topic::Existence(count), text }
    }

    /// A question whose answer the scene decides: existence in half of the cases (yes and no equally often), else
    /// colour, number or place.
    pub fn sample(scene: &Scene, random: &mut Stream) -> Self {
        let present: Vec<Kind> = scene.groups.iter().map(|group| group.kind).collect();
        let kind = any(&present, random);
        let topic = random.random_range(0..6);
        let asked = match topic {
            0 => Self::colour(scene, kind, random.random_bool(0.5)),
            1 => Self::count(scene, kind),
            2 => Self::place(scene, kind).or_else(|| Self::colour(scene, kind, random.random_bool(0.5))),
            _ => None,
        };
        asked.unwrap_or_else(|| {
            let kind = if random.random_bool(0.5) { kind } else { any(&scene.absent(), random) };
            Self::existence_worded(scene, kind, random.random_range(0..3))
        })
    }

    /// The right answer as text. Existence is always answered "Yes, …" or "No, …".
    pub fn answer(&self) -> String {
        answer(self.kind, self.topic)
    }
}

/// What is answered about `kind` if `topic` holds.
pub(super) fn answer(kind: Kind, topic: Topic) -> String {
    match topic {
        Topic::Colour(colour, count) => format!("The {} {} {}.", kind.noun(count), to_be(count), colour.word()),
        Topic::Count(count) => format!("There {} {} {}.", to_be(count), number_word(count), kind.noun(count)),
        Topic::Place(place) => format!("The {} is {}.", kind.word(), place_phrase(place)),
        Topic::Existence(0) => format!("No, there is no {}.", kind.word()),
        Topic::Existence(1) => format!("Yes, there is {}.", with_article(kind.word())),
        Topic::Existence(count) => {
            format!("Yes, there are {} {}.", number_word(count), kind.plural())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pocket::random::stream;
    use crate::pocket::world::{Group, Statistics};

    fn scene() -> Scene {
        Scene {
            groups: vec![
                Group { kind: Kind::Apple, colour: Colour::Green, places: vec![Place::Top] },
                Group { kind: Kind::Fish, colour: Colour::Red, places: vec![Place::Left, Place::Right] },
            ],
        }
    }

    #[test]
    fn questions_and_answers() {
        let scene = scene();
        let said = |question: Option<Question>| question.map(|question| (question.text.clone(), question.answer()));
        let expect = |question: &str, answer: &str| Some((question.to_owned(), answer.to_owned()));
        assert_eq!(
            said(Question::colour(&scene, Kind::Apple, true)),
            expect("What color is the apple?", "The apple is green.")
        );
        assert_eq!(
            said(Question::colour(&scene, Kind::Fish, false)),
            expect("What colour are the fishes?", "The fishes are red.")
        );
        assert_eq!(
            said(Question::count(&scene, Kind::Fish)),
            expect("How many fishes are there?", "There are two fishes.")
        );
        assert_eq!(
            said(Question::place(&scene, Kind::Apple)),
            expect("Where is the apple?", "The apple is at the top.")
        );
        assert_eq!(said(Question::place(&scene, Kind::Fish)), None);
        assert_eq!(said(Question::count(&scene, Kind::Car)), None);
        assert_eq!(
            said(Some(Question::existence(&scene, Kind::Car))),
            expect("Is there a car in the image?", "No, there is no car.")
        );
        assert_eq!(
            said(Some(Question::existence(&scene, Kind::Apple))),
            expect("Is there an apple in the image?", "Yes, there is an apple.")
        );
    }

    #[test]
    fn sampled_existence_is_balanced_and_always_begins_with_yes_or_no() {
        let (mut yes, mut all) = (0u32, 0u32);
        for index in 0..3000 {
            let mut random = stream(0, "question test", index);
            let scene = Scene::sample(Statistics::typical(), &mut random);
            let question = Question::sample(&scene, &mut random);
            if let Topic::Existence(count) = question.topic {
                all += 1;
                yes += u32::from(count > 0);
                assert!(question.answer().starts_with(if count > 0 { "Yes, " } else { "No, " }));
                assert_eq!(scene.has(question.kind), count > 0);
            }
        }
        assert!((1300..1700).contains(&all), "{all}");
        assert!((0.45..0.55).contains(&(f64::from(yes) / f64::from(all))), "{yes} of {all}");
    }
}
