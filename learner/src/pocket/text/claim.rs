//! One thing said of a scene, and the phrases it is said with.

use crate::pocket::world::{Colour, Group, Kind, Place};

/// What a description says of one kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The kind that is said to be there.
    pub kind: Kind,
    /// Its colour, if one is named.
    pub colour: Option<Colour>,
    /// How many, 1 to 9, if it is said; captions always say it, garbled text may not.
    pub count: Option<u8>,
    /// Where, if it is said; only of a single object.
    pub place: Option<Place>,
}

impl From<&Group> for Claim {
    fn from(group: &Group) -> Self {
        Self { kind: group.kind, colour: Some(group.colour), count: Some(group.count()), place: group.place() }
    }
}

impl Claim {
    /// The noun phrase, e.g. "a red apple in the top left" or "two birds".
    pub fn phrase(&self) -> String {
        let count = self.count.unwrap_or(1);
        let noun = self.kind.noun(count);
        let described = match self.colour {
            Some(colour) => format!("{} {noun}", colour.word()),
            None => noun.to_owned(),
        };
        let mut phrase =
            if count == 1 { with_article(&described) } else { format!("{} {described}", number_word(count)) };
        if let Some(place) = self.place {
            phrase.push(' ');
            phrase.push_str(place_phrase(place));
        }
        phrase
    }
}

/// "a" or "an" before `noun_phrase`.
pub fn with_article(noun_phrase: &str) -> String {
    let article = if noun_phrase.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {noun_phrase}")
}

/// The words for 1 to 9.
pub const NUMBER_WORDS: [&str; 9] = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];

/// The word for `count`; outside 1 to 9, which no scene reaches, the nearest one that has a word.
pub fn number_word(count: u8) -> &'static str {
    NUMBER_WORDS[usize::from(count.clamp(1, 9)) - 1]
}

/// How `place` is said after a noun.
pub fn place_phrase(place: Place) -> &'static str {
    match place {
        Place::TopLeft => "in the top left",
        Place::Top => "at the top",
        Place::TopRight => "in the top right",
        Place::Left => "on the left",
        Place::Middle => "in the middle",
        Place::Right => "on the right",
        Place::BottomLeft => "in the bottom left",
        Place::Bottom => "at the bottom",
        Place::BottomRight => "in the bottom right",
    }
}

/// "is" for one, "are" for more.
pub fn to_be(count: u8) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

/// `text` with its first letter in upper case.
pub fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phrases_agree_in_number_and_article() {
        let claim = |kind, colour, count, place| Claim { kind, colour, count: Some(count), place };
        assert_eq!(
            claim(Kind::Apple, Some(Colour::Orange), 1, Some(Place::TopLeft)).phrase(),
            "an orange apple in the top left"
        );
        assert_eq!(claim(Kind::Apple, None, 1, None).phrase(), "an apple");
        assert_eq!(claim(Kind::House, Some(Colour::Red), 1, Some(Place::Left)).phrase(), "a red house on the left");
        assert_eq!(claim(Kind::Fish, Some(Colour::Black), 3, None).phrase(), "three black fishes");
    }
}
