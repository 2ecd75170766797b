//! Every word that the pocket writes, for the tokenizer.

use std::collections::BTreeSet;

use super::claim::{NUMBER_WORDS, capitalised};
use crate::pocket::world::{Colour, Kind, Place};

/// Words inside sentences that belong to no closed set.
const INNER: &[&str] = &[
    "a",
    "also",
    "and",
    "any",
    "are",
    "at",
    "but",
    "can",
    "caption",
    "color",
    "colour",
    "description",
    "details",
    "do",
    "image",
    "in",
    "is",
    "many",
    "no",
    "of",
    "on",
    "picture",
    "plausible",
    "see",
    "short",
    "shows",
    "the",
    "there",
    "this",
    "answer",
    "typical",
    "with",
    "wrong",
    "you",
    "an",
];

/// Words that begin a sentence. They occur with and without a space before them.
const INITIAL: &[&str] = &[
    "A", "An", "Answer", "Are", "Describe", "Do", "How", "I", "Is", "No", "Question", "Rewrite", "The", "There",
    "What", "Where", "Write", "Yes",
];

/// The roles that the chat template writes.
const ROLES: &[&str] = &["Assistant", "System", "User"];

/// The pieces that get one token each, a leading space included where it belongs to the piece, sorted.
pub fn pieces() -> Vec<String> {
    let mut pieces = BTreeSet::new();
    let inner = Kind::ALL
        .iter()
        .flat_map(|kind| [kind.word(), kind.plural()])
        .chain(Colour::ALL.iter().map(|colour| colour.word()))
        .chain(Place::ALL.iter().flat_map(|place| place.word().split(' ')))
        .chain(NUMBER_WORDS)
        .chain(INNER.iter().copied());
    pieces.extend(inner.map(|word| format!(" {word}")));
    let initial =
        INITIAL.iter().map(|&word| word.to_owned()).chain(NUMBER_WORDS[1..4].iter().map(|word| capitalised(word)));
    for word in initial {
        pieces.insert(format!(" {word}"));
        pieces.insert(word);
    }
    pieces.extend(ROLES.iter().map(|&role| role.to_owned()));
    pieces.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_few_and_distinct() {
        let pieces = pieces();
        assert!((100..200).contains(&pieces.len()), "{}", pieces.len());
        assert!(pieces.contains(&" apples".to_owned()) && pieces.contains(&"Two".to_owned()));
    }
}
