//! Whole descriptions of a scene.

use std::fmt;

use rand::Rng;

use super::claim::{Claim, capitalised, to_be};
use crate::pocket::random::Stream;
use crate::pocket::world::Scene;

/// How much a caption says; the request decides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Kinds, numbers, colours, and the places of single objects.
    Full,
    /// Kinds, numbers and colours.
    Short,
}

impl Detail {
    /// The requests that ask for this much detail.
    pub fn requests(self) -> &'static [&'static str] {
        match self {
            Self::Full => &["Describe the image.", "What is in the picture?", "What do you see in the image?"],
            Self::Short => &["Write a short caption.", "Describe the image in short."],
        }
    }
}

/// How a caption begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// "There is …".
    ThereIs,
    /// "The picture shows …".
    ThePictureShows,
    /// "I can see …".
    ICanSee,
    /// The first noun phrase itself.
    Bare,
}

impl Opening {
    const ALL: [Self; 4] = [Self::ThereIs, Self::ThePictureShows, Self::ICanSee, Self::Bare];

    /// The words before the first noun phrase, lower case; `count` is that phrase's number.
    pub(super) fn words(self, count: u8) -> String {
        match self {
            Self::ThereIs => format!("there {}", to_be(count)),
            Self::ThePictureShows => "the picture shows".to_owned(),
            Self::ICanSee => "I can see".to_owned(),
            Self::Bare => String::new(),
        }
    }
}

/// A description as structure; [`fmt::Display`] gives the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caption {
    /// How it begins.
    pub opening: Opening,
    /// How many claims the first sentence makes; the rest follow in a second one ("There is also …").
    pub first_sentence: usize,
    /// What it says, in order; at least one.
    pub claims: Vec<Claim>,
}

impl Caption {
    /// A right description of `scene`, with a sampled wording.
    pub fn of(scene: &Scene, detail: Detail, random: &mut Stream) -> Self {
        let claims: Vec<Claim> = scene
            .groups
            .iter()
            .map(|group| {
                let claim = Claim::from(group);
                match detail {
                    Detail::Full => claim,
                    Detail::Short => Claim { place: None, ..claim },
                }
            })
            .collect();
        let opening = Opening::ALL[random.random_range(0..Opening::ALL.len())];
        let first_sentence = if claims.len() > 1 && random.random_bool(0.25) {
            random.random_range(1..claims.len())
        } else {
            claims.len()
        };
        Self { opening, first_sentence, claims }
    }
}

impl fmt::Display for Caption {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, second) = self.claims.split_at(self.first_sentence.min(self.claims.len()));
        let count = first.first().and_then(|claim| claim.count).unwrap_or(1);
        let sentence = format!("{} {}", self.opening.words(count), list(first));
        write!(formatter, "{}.", capitalised(sentence.trim()))?;
        if let Some(claim) = second.first() {
            write!(formatter, " There {} also {}.", to_be(claim.count.unwrap_or(1)), list(second))?;
        }
        Ok(())
    }
}

/// "A", "A and B", "A, B and C".
fn list(claims: &[Claim]) -> String {
    let phrases: Vec<String> = claims.iter().map(Claim::phrase).collect();
    match phrases.as_slice() {
        [rest @ .., last] if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => phrases.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pocket::world::{Colour, Kind, Place};

    fn claim(kind: Kind, colour: Colour, count: u8, place: Option<Place>) -> Claim {
        Claim { kind, colour: Some(colour), count: Some(count), place }
    }

    #[test]
    fn captions_read_like_english() {
        let claims = vec![
            claim(Kind::Bird, Colour::Blue, 2, None),
            claim(Kind::Tree, Colour::Green, 1, Some(Place::Left)),
            claim(Kind::Hat, Colour::Orange, 1, Some(Place::Top)),
        ];
        let caption = |opening, first_sentence| Caption { opening, first_sentence, claims: claims.clone() }.to_string();
        assert_eq!(
            caption(Opening::ThereIs, 3),
            "There are two blue birds, a green tree on the left and an orange hat at the top."
        );
        assert_eq!(
            caption(Opening::Bare, 1),
            "Two blue birds. There is also a green tree on the left and an orange hat at the top."
        );
        assert_eq!(
            caption(Opening::ICanSee, 2),
            "I can see two blue birds and a green tree on the left. There is also an orange hat at the top."
        );
    }
}
