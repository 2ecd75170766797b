//! Which pairs are kept. Every rejection is counted by its reason.
//!
//! A pair is kept only if the answers differ in content, neither is empty, a refusal or too long, their lengths are alike, the
//! rejected text was not produced as a chosen answer for the same image and question, the pair is no duplicate, and it is
//! under the caps per source, per API key and per question template: 1 to 5 % of poisoned pairs is enough to bend a model.
//!
//! A rejected text that is chosen only later is no reason here, where the pair is kept already;
//! [`Split`](crate::bpo::split::Split) leaves the pair out of every run from then on.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::bpo::pair::{PreferencePair, Source};

/// Beginnings of answers that say nothing about the picture, lower case.
const REFUSALS: [&str; 10] = [
    "i'm sorry",
    "i am sorry",
    "sorry,",
    "i cannot",
    "i can't",
    "i can not",
    "i'm unable",
    "i am unable",
    "i'm not able",
    "as an ai",
];

/// Why a pair is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rejection {
    /// One of the answers is empty.
    Empty,
    /// One of the answers has more words than the limit.
    TooLong,
    /// One of the answers refuses to answer.
    Refusal,
    /// The answers differ in case, spacing or punctuation at most.
    SameContent,
    /// One answer is too much longer than the other.
    LengthRatio,
    /// The rejected text is a chosen answer for the same images and question.
    RejectedIsChosen,
    /// The same pair is there already.
    Duplicate,
    /// The source of its chosen answer has given its share.
    SourceCap,
    /// The API key that it came with has given its share.
    KeyCap,
    /// Its question template has given its share.
    TemplateCap,
}

/// The limits.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Most words of an answer. Default 350, the paper's.
    pub max_words: usize,
    /// Largest factor between the answers' numbers of words. Default 2.
    pub max_length_ratio: f64,
    /// Most pairs with a chosen answer of one source; a source that is not named has no limit. Default none.
    pub per_source: BTreeMap<&'static str, usize>,
    /// Most pairs that came with one API key. Default no limit.
    pub per_key: Option<usize>,
    /// Most pairs of one question template. Default no limit.
    pub per_template: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_words: 350, max_length_ratio: 2.0, per_source: BTreeMap::new(), per_key: None, per_template: None }
    }
}

/// What the filter looks at.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The images by content, for example their digests joined.
    pub images: &'a str,
    /// The conversation up to the answer, as text.
    pub question: &'a str,
    /// y⁺.
    pub chosen: &'a str,
    /// y⁻.
    pub rejected: &'a str,
    /// Where y⁺ comes from.
    pub source: Source,
    /// The API key that the query came with, by name.
    pub key: Option<&'a str>,
    /// What is known of y⁺.
    pub standing: Standing,
}

/// What is known of a pair's chosen answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is taken for right.
    Chosen,
    /// A person has yet to look at it: it counts against the limits, and its text may be rejected.
    Waiting,
    /// A person refused it: all that is known is that the pair was there.
    Refused,
}

/// Decides pair by pair; remembers what it kept.
#[derive(Clone, Debug, Default)]
pub struct PairFilter {
    limits: Limits,
    /// Digests of (images, question, chosen answer).
    chosen: HashSet<[u8; 32]>,
    /// Digests of (images, question, chosen, rejected).
    pairs: HashSet<[u8; 32]>,
    kept: HashMap<String, usize>,
    rejections: BTreeMap<Rejection, u64>,
}

impl PairFilter {
    /// A filter that has seen nothing.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Remembers a chosen answer, also one without a pair so far: the same text is never rejected for this question.
    pub fn know_chosen(&mut self, images: &str, question: &str, chosen: &str) {
        self.chosen.insert(answer_digest(images, question, chosen));
    }

    /// Remembers a stored pair, as [`PairFilter::admit`] does with one that it keeps.
    pub fn know(&mut self, pair: &Candidate<'_>) {
        if pair.standing == Standing::Chosen {
            self.know_chosen(pair.images, pair.question, pair.chosen);
        }
        if self.pairs.insert(pair_digest(pair)) && pair.standing != Standing::Refused {
            for (group, _) in self.groups(pair) {
                *self.kept.entry(group).or_default() += 1;
            }
        }
    }

    /// Keeps the pair or says why not.
    ///
    /// # Errors
    /// The first reason against it, in the order of [`Rejection`].
    pub fn admit(&mut self, pair: &Candidate<'_>) -> Result<(), Rejection> {
        match self.judge(pair) {
            None => {
                self.know(pair);
                Ok(())
            }
            Some(reason) => {
                *self.rejections.entry(reason).or_default() += 1;
                Err(reason)
            }
        }
    }

    /// How many pairs were rejected, by reason.
    pub fn rejections(&self) -> &BTreeMap<Rejection, u64> {
        &self.rejections
    }

    fn judge(&self, pair: &Candidate<'_>) -> Option<Rejection> {
        let answers = [pair.chosen, pair.rejected];
        let words = answers.map(PreferencePair::words);
        let (shorter, longer) = (words[0].min(words[1]), words[0].max(words[1]));
        if shorter == 0 {
            Some(Rejection::Empty)
        } else if longer > self.limits.max_words {
            Some(Rejection::TooLong)
        } else if answers.into_iter().any(is_refusal) {
            Some(Rejection::Refusal)
        } else if PreferencePair::same_content(pair.chosen, pair.rejected) {
            Some(Rejection::SameContent)
        } else if longer as f64 > self.limits.max_length_ratio * shorter as f64 {
            Some(Rejection::LengthRatio)
        } else if self.chosen.contains(&answer_digest(pair.images, pair.question, pair.rejected)) {
            Some(Rejection::RejectedIsChosen)
        } else if self.pairs.contains(&pair_digest(pair)) {
            Some(Rejection::Duplicate)
        } else {
            let full = |(group, (limit, reason)): (String, (Option<usize>, Rejection))| {
                limit.is_some_and(|limit| self.kept.get(&group).copied().unwrap_or(0) >= limit).then_some(reason)
            };
            self.groups(pair).into_iter().find_map(full)
        }
    }

    /// The groups that a pair counts in, with their limits.
    fn groups(&self, pair: &Candidate<'_>) -> Vec<(String, (Option<usize>, Rejection))> {
        let source = source_name(pair.source);
        let limits = &self.limits;
        let mut groups = vec![
            (format!("source {source}"), (limits.per_source.get(source).copied(), Rejection::SourceCap)),
            (format!("template {}", template(pair.question)), (limits.per_template, Rejection::TemplateCap)),
        ];
        if let Some(key) = pair.key {
            groups.insert(1, (format!("key {key}"), (limits.per_key, Rejection::KeyCap)));
        }
        groups
    }
}

/// The name of a source, as it is in JSON.
pub fn source_name(source: Source) -> &'static str {
    match source {
        Source::Annotation => "annotation",
        Source::Correction => "correction",
        Source::Accepted => "accepted",
        Source::OwnAnswer => "self",
    }
}

/// A question without what is particular to it: case, punctuation and digits.
pub fn template(question: &str) -> String {
    let kept = question.chars().filter(|c| c.is_alphabetic() || c.is_whitespace());
    let text: String = kept.flat_map(char::to_lowercase).collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

pub(crate) fn is_refusal(answer: &str) -> bool {
    let answer = answer.trim().to_lowercase().replace('’', "'");
    REFUSALS.iter().any(|beginning| answer.starts_with(beginning))
}

/// What [`PreferencePair::same_content`] compares.
fn bare(answer: &str) -> String {
    let letters: String = answer.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    if letters.is_empty() { answer.trim().to_owned() } else { letters }
}

/// What an answer says to a question about images: equal for two of the same content.
pub(crate) fn answer_digest(images: &str, question: &str, answer: &str) -> [u8; 32] {
    digest(&[images, question, &bare(answer)])
}

fn pair_digest(pair: &Candidate<'_>) -> [u8; 32] {
    digest(&[pair.images, pair.question, &bare(pair.chosen), &bare(pair.rejected)])
}

fn digest(parts: &[&str]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        // With its length before each part, "ab" + "c" and "a" + "bc" differ.
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair<'a>(chosen: &'a str, rejected: &'a str) -> Candidate<'a> {
        let question = "What color is it?";
        Candidate {
            images: "0a",
            question,
            chosen,
            rejected,
            source: Source::Annotation,
            key: Some("app"),
            standing: Standing::Chosen,
        }
    }

    #[test]
    fn what_waits_or_was_refused_says_nothing_about_what_is_right() {
        let limits = || Limits { per_key: Some(2), max_length_ratio: 9.0, ..Limits::default() };
        for (standing, room) in [(Standing::Chosen, 1), (Standing::Waiting, 1), (Standing::Refused, 2)] {
            let mut filter = PairFilter::new(limits());
            let mistaken = Candidate { standing, ..pair("It is red.", "It is green.") };
            filter.know(&mistaken);
            assert_eq!(filter.admit(&mistaken), Err(Rejection::Duplicate), "{standing:?}");
            let corrected = filter.admit(&pair("It is blue.", "It is red."));
            let expected = if standing == Standing::Chosen { Err(Rejection::RejectedIsChosen) } else { Ok(()) };
            assert_eq!(corrected, expected, "{standing:?}");
            let left = room - usize::from(corrected.is_ok());
            let more =
                ["It is pink.", "It is grey.", "It is teal."].map(|rejected| filter.admit(&pair("A cat.", rejected)));
            assert_eq!(more.iter().filter(|kept| kept.is_ok()).count(), left, "{standing:?}");
        }
    }

    #[test]
    fn each_reason_is_found_and_counted() {
        let mut filter = PairFilter::new(Limits { max_words: 6, ..Limits::default() });
        filter.know_chosen("0a", "What color is it?", "It is green.");
        assert_eq!(filter.admit(&pair("It is red.", "It is blue.")), Ok(()));
        let cases = [
            (pair("It is red.", " "), Rejection::Empty),
            (pair("", "It is red."), Rejection::Empty),
            (pair("It is red.", "It is a dark shade of blue."), Rejection::TooLong),
            (pair("It is red.", "I’m sorry, I cannot"), Rejection::Refusal),
            (pair("It is red.", "it is RED"), Rejection::SameContent),
            (pair("Red.", "It is light blue."), Rejection::LengthRatio),
            (pair("It is red.", "it is green"), Rejection::RejectedIsChosen),
            (pair("It is blue!", "It is red."), Rejection::RejectedIsChosen),
            (pair("It is red!", "it is blue"), Rejection::Duplicate),
        ];
        for (candidate, reason) in cases {
            assert_eq!(filter.admit(&candidate), Err(reason), "{candidate:?}");
        }
        assert_eq!(filter.rejections()[&Rejection::Empty], 2);
        assert_eq!(filter.rejections().values().sum::<u64>(), 9);
        // What is chosen for one image may be wrong for another.
        let elsewhere = Candidate { images: "0b", ..pair("It is red.", "It is green.") };
        assert_eq!(filter.admit(&elsewhere), Ok(()));
    }

    #[test]
    fn caps_hold_per_source_key_and_template() {
        let annotations = BTreeMap::from([("annotation", 2)]);
        let limits = [
            (Limits { per_source: annotations, ..Limits::default() }, Rejection::SourceCap),
            (Limits { per_key: Some(2), ..Limits::default() }, Rejection::KeyCap),
            (Limits { per_template: Some(2), ..Limits::default() }, Rejection::TemplateCap),
        ];
        for (limits, reason) in limits {
            let mut filter = PairFilter::new(limits);
            // A stored pair counts, and counts once.
            filter.know(&pair("It is red.", "It is blue."));
            filter.know(&pair("It is red.", "It is blue."));
            assert_eq!(filter.admit(&pair("It is red.", "It is white.")), Ok(()));
            assert_eq!(filter.admit(&pair("It is red.", "It is black.")), Err(reason));
            let other = Candidate {
                source: Source::Correction,
                key: Some("web"),
                question: "Is it red?",
                ..pair("Yes, it is.", "No, it is black.")
            };
            assert_eq!(filter.admit(&other), Ok(()));
        }
    }

    #[test]
    fn templates_forget_numbers_and_punctuation() {
        assert_eq!(template("What is in image 17?"), template("what is in image 3"));
        assert_ne!(template("What is it?"), template("Where is it?"));
    }
}
