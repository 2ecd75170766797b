//! From a caption back to claims.
//!
//! The grammar of [`super::caption`] is read strictly; text that does not follow it is malformed and says why, which is
//! how a garbled model shows. Claims are still picked out of malformed text as far as they go, so that garbling does not
//! look like silence.

use thiserror::Error;

use super::claim::{Claim, NUMBER_WORDS, place_phrase};
use crate::pocket::world::{Colour, Kind, Place};

/// What a caption says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// What it claims, in order of mention.
    pub claims: Vec<Claim>,
    /// Why it is not a well-formed caption, if it is not.
    pub malformed: Option<Malformed>,
}

/// Why a text is not a well-formed caption. Positions count words and punctuation marks from 0.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// Nothing is said.
    #[error("the text is empty")]
    Empty,
    /// A word stands where the grammar has another.
    #[error("expected {expected} at word {position}, found {found:?}")]
    Unexpected {
        /// Where.
        position: usize,
        /// What the grammar has there.
        expected: &'static str,
        /// What stands there, or an empty string at the end of the text.
        found: String,
    },
    /// "two apple", "a apples", or a place for several objects.
    #[error("number and noun disagree at word {position} ({noun:?})")]
    NumberMismatch {
        /// Where the noun is.
        position: usize,
        /// The noun.
        noun: String,
    },
    /// One kind is claimed twice.
    #[error("{0:?} is mentioned twice")]
    Repeated(Kind),
}

/// Reads a caption.
pub fn read_caption(text: &str) -> Reading {
    let words = words(text);
    let mut parser = Parser { words: &words, position: 0 };
    match parser.caption() {
        Ok(claims) => Reading { claims, malformed: None },
        Err(malformed) => Reading { claims: pick_claims(&words), malformed: Some(malformed) },
    }
}

/// Lower-case words and punctuation marks.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for chunk in text.split_whitespace() {
        let mut word = String::new();
        for letter in chunk.chars() {
            if letter.is_alphanumeric() || letter == '\'' || letter == '-' {
                word.extend(letter.to_lowercase());
            } else {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                words.push(letter.to_string());
            }
        }
        if !word.is_empty() {
            words.push(word);
        }
    }
    words
}

/// The kind that a noun names, and whether it is the plural.
pub fn noun(word: &str) -> Option<(Kind, bool)> {
    Kind::ALL.iter().find_map(|&kind| {
        if word == kind.word() { Some((kind, false)) } else { (word == kind.plural()).then_some((kind, true)) }
    })
}

fn number(word: &str) -> Option<u8> {
    match word {
        "a" | "an" => Some(1),
        _ => NUMBER_WORDS.iter().position(|&number| number == word).map(|position| position as u8 + 1),
    }
}

/// The place whose phrase `words` begins with, and its length in words; the longest one, as "in the top left" has no
/// shorter phrase inside but other grammars might.
fn place(words: &[String]) -> Option<(Place, usize)> {
    Place::ALL
        .iter()
        .filter_map(|&place| {
            let phrase: Vec<&str> = place_phrase(place).split(' ').collect();
            let found = words.len() >= phrase.len() && phrase.iter().zip(words).all(|(a, b)| a == b);
            found.then_some((place, phrase.len()))
        })
        .max_by_key(|&(_, length)| length)
}

struct Parser<'a> {
    words: &'a [String],
    position: usize,
}

impl Parser<'_> {
    fn peek(&self) -> &str {
        self.words.get(self.position).map_or("", String::as_str)
    }

    fn unexpected(&self, expected: &'static str) -> Malformed {
        Malformed::Unexpected { position: self.position, expected, found: self.peek().to_owned() }
    }

    /// Steps over `phrase` if it stands here.
    fn skip(&mut self, phrase: &[&str]) -> bool {
        let here = &self.words[self.position.min(self.words.len())..];
        let found = here.len() >= phrase.len() && phrase.iter().zip(here).all(|(a, b)| a == b);
        if found {
            self.position += phrase.len();
        }
        found
    }

    fn caption(&mut self) -> Result<Vec<Claim>, Malformed> {
        if self.words.is_empty() {
            return Err(Malformed::Empty);
        }
        let mut claims = self.sentence(&[
            &["there", "is"],
            &["there", "are"],
            &["the", "picture", "shows"],
            &["i", "can", "see"],
            &[],
        ])?;
        if self.position < self.words.len() {
            claims.extend(self.sentence(&[&["there", "is", "also"], &["there", "are", "also"]])?);
        }
        if self.position < self.words.len() {
            return Err(self.unexpected("the end"));
        }
        for (position, claim) in claims.iter().enumerate() {
            if claims[..position].iter().any(|earlier| earlier.kind == claim.kind) {
                return Err(Malformed::Repeated(claim.kind));
            }
        }
        Ok(claims)
    }

    fn sentence(&mut self, openings: &[&[&str]]) -> Result<Vec<Claim>, Malformed> {
        if !openings.iter().any(|opening| self.skip(opening)) {
            return Err(self.unexpected("the opening of a sentence"));
        }
        let mut claims = vec![self.claim()?];
        let mut closed = false;
        while !self.skip(&["."]) {
            // "A, B and C": nothing follows the phrase after "and".
            if closed {
                return Err(self.unexpected("\".\""));
            }
            closed = self.skip(&["and"]);
            if !closed && !self.skip(&[","]) {
                return Err(self.unexpected("\",\", \"and\" or \".\""));
            }
            claims.push(self.claim()?);
        }
        if claims.len() > 1 && !closed {
            self.position -= 1;
            return Err(self.unexpected("\"and\" before the last phrase"));
        }
        Ok(claims)
    }

    fn claim(&mut self) -> Result<Claim, Malformed> {
        let count = number(self.peek()).ok_or_else(|| self.unexpected("a number or an article"))?;
        self.position += 1;
        let colour = Colour::from_word(self.peek());
        self.position += usize::from(colour.is_some());
        let (kind, plural) = noun(self.peek()).ok_or_else(|| self.unexpected("a noun"))?;
        let mismatch = Malformed::NumberMismatch { position: self.position, noun: self.peek().to_owned() };
        self.position += 1;
        let place = place(&self.words[self.position..]);
        self.position += place.map_or(0, |(_, length)| length);
        if plural != (count > 1) || (plural && place.is_some()) {
            return Err(mismatch);
        }
        Ok(Claim { kind, colour, count: Some(count), place: place.map(|(place, _)| place) })
    }
}

/// Every noun with what stands next to it; repeated mentions stay, since each is something the text said.
fn pick_claims(words: &[String]) -> Vec<Claim> {
    let before = |position: usize, back: usize| position.checked_sub(back).map_or("", |at| words[at].as_str());
    words
        .iter()
        .enumerate()
        .filter_map(|(position, word)| {
            let (kind, _) = noun(word)?;
            let colour = Colour::from_word(before(position, 1));
            let count = number(before(position, if colour.is_some() { 2 } else { 1 }));
            let place = place(&words[position + 1..]).map(|(place, _)| place);
            Some(Claim { kind, colour, count, place })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pocket::random::stream;
    use crate::pocket::text::caption::{Caption, Detail};
    use crate::pocket::world::{Scene, Statistics};
    use proptest::prelude::*;

    #[test]
    fn every_caption_reads_back_to_its_claims() {
        for index in 0..4000 {
            let mut random = stream(0, "parse test", index);
            let statistics = if index % 2 == 0 { Statistics::Balanced } else { Statistics::typical() };
            let detail = if index % 3 == 0 { Detail::Short } else { Detail::Full };
            let caption = Caption::of(&Scene::sample(statistics, &mut random), detail, &mut random);
            let expected = Reading { claims: caption.claims.clone(), malformed: None };
            assert_eq!(read_caption(&caption.to_string()), expected, "{caption}");
        }
    }

    #[test]
    fn malformed_captions_say_why_and_keep_their_claims() {
        let reason = |text: &str| read_caption(text).malformed;
        let unexpected = |position, expected, found: &str| {
            Some(Malformed::Unexpected { position, expected, found: found.to_owned() })
        };
        assert_eq!(reason("  "), Some(Malformed::Empty));
        assert_eq!(reason("A red apple"), unexpected(3, "\",\", \"and\" or \".\"", ""));
        assert_eq!(reason("A red red apple."), unexpected(2, "a noun", "red"));
        assert_eq!(reason("Apple."), unexpected(0, "a number or an article", "apple"));
        assert_eq!(reason("A cat, a hat."), unexpected(5, "\"and\" before the last phrase", "."));
        assert_eq!(reason("A cat and a hat and a car."), unexpected(5, "\".\"", "and"));
        assert_eq!(reason("A cat. A hat."), unexpected(3, "the opening of a sentence", "a"));
        assert_eq!(reason("Two apple."), Some(Malformed::NumberMismatch { position: 1, noun: "apple".to_owned() }));
        assert_eq!(reason("A cat and two cats."), Some(Malformed::Repeated(Kind::Cat)));
        let claims = read_caption("red apple on the left two blue cars cars").claims;
        let kinds: Vec<Kind> = claims.iter().map(|claim| claim.kind).collect();
        assert_eq!(kinds, [Kind::Apple, Kind::Car, Kind::Car]);
        assert_eq!((claims[0].colour, claims[0].place, claims[0].count), (Some(Colour::Red), Some(Place::Left), None));
        assert_eq!((claims[1].colour, claims[1].count), (Some(Colour::Blue), Some(2)));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*") {
            let _ = read_caption(&text);
        }

        #[test]
        fn any_shuffle_of_known_words_is_read_without_panic(
            words in prop::collection::vec(prop::sample::select(vec![
                "a", "two", "red", "apple", "apples", "in", "the", "top", "left", "at", "and", ",", ".", "there", "is", "also",
            ]), 0..20)
        ) {
            let reading = read_caption(&words.join(" "));
            let nouns = words.iter().filter(|word| noun(word).is_some()).count();
            prop_assert_eq!(reading.claims.len(), nouns);
        }
    }
}
