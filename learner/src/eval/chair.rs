//! CHAIR and its company: what captions mention against what is there.
//!
//! CHAIR_i = mentions of objects that are not in the image / all mentions ·
//! CHAIR_s = captions with at least one such mention / captions ·
//! Cover = annotated objects mentioned / annotated objects (short answers lower CHAIR for free, and Cover shows it) ·
//! errors of colour, number and place = wrong attributes / attributes given to objects that are there.

use serde::{Deserialize, Serialize};

use super::measure::Measure;
use super::mention::{Mention, Said};

/// What is annotated of one kind of object in an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "NameOrTruth")]
pub struct Truth {
    /// Its canonical name.
    pub object: String,
    /// Its colour, if annotated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub colour: Option<String>,
    /// How many there are, if annotated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Where they are; empty if not annotated.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<String>,
}

impl Truth {
    /// An object of which only the presence is annotated.
    pub fn named(object: impl Into<String>) -> Self {
        Self { object: object.into(), colour: None, count: None, places: Vec::new() }
    }
}

/// In a file an object may be just its name.
#[derive(Deserialize)]
#[serde(untagged)]
enum NameOrTruth {
    Name(String),
    Truth(FullTruth),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FullTruth {
    object: String,
    colour: Option<String>,
    count: Option<u32>,
    #[serde(default)]
    places: Vec<String>,
}

impl From<NameOrTruth> for Truth {
    fn from(written: NameOrTruth) -> Self {
        match written {
            NameOrTruth::Name(object) => Self::named(object),
            NameOrTruth::Truth(FullTruth { object, colour, count, places }) => Self { object, colour, count, places },
        }
    }
}

/// One caption, read, beside what its image shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captioned {
    /// What is there.
    pub truth: Vec<Truth>,
    /// What the caption says.
    pub said: Said,
    /// The caption's length in words.
    pub words: usize,
}

impl Captioned {
    /// Puts a caption beside its truth.
    pub fn new(truth: Vec<Truth>, said: Said, caption: &str) -> Self {
        Self { truth, said, words: caption.split_whitespace().count() }
    }

    fn truth_of(&self, mention: &Mention) -> Option<&Truth> {
        self.truth.iter().find(|truth| truth.object == mention.object)
    }

    fn absent_mentions(&self) -> usize {
        self.said.mentions.iter().filter(|mention| self.truth_of(mention).is_none()).count()
    }

    fn covered(&self) -> usize {
        let mentioned = |truth: &&Truth| self.said.mentions.iter().any(|mention| mention.object == truth.object);
        self.truth.iter().filter(mentioned).count()
    }

    /// (wrong, judged) over the mentions of objects that are there. `judge` says whether an attribute is wrong, or `None`
    /// where the caption does not name it or the annotation does not know it.
    fn errors(&self, judge: impl Fn(&Mention, &Truth) -> Option<bool>) -> (f64, f64) {
        let verdicts = self.said.mentions.iter().filter_map(|mention| judge(mention, self.truth_of(mention)?));
        verdicts.fold((0.0, 0.0), |(wrong, judged), verdict| (wrong + f64::from(u8::from(verdict)), judged + 1.0))
    }
}

fn wrong_colour(mention: &Mention, truth: &Truth) -> Option<bool> {
    Some(mention.colour.as_ref()? != truth.colour.as_ref()?)
}

fn wrong_number(mention: &Mention, truth: &Truth) -> Option<bool> {
    Some(mention.count? != truth.count?)
}

fn wrong_place(mention: &Mention, truth: &Truth) -> Option<bool> {
    let place = mention.place.as_ref()?;
    (!truth.places.is_empty()).then(|| !truth.places.contains(place))
}

/// All measures of a set of captions, in the order of the tables. One item a caption.
pub fn measures(captions: &[Captioned]) -> Vec<Measure> {
    let per_caption =
        |name: &str, item: &dyn Fn(&Captioned) -> (f64, f64)| Measure::new(name, captions.iter().map(item));
    vec![
        per_caption("CHAIR_i", &|caption| (caption.absent_mentions() as f64, caption.said.mentions.len() as f64)),
        Measure::share("CHAIR_s", captions.iter().map(|caption| caption.absent_mentions() > 0)),
        per_caption("Cover", &|caption| (caption.covered() as f64, caption.truth.len() as f64)),
        Measure::mean("mean length", captions.iter().map(|caption| caption.words as f64)),
        Measure::share("malformed", captions.iter().map(|caption| caption.said.malformed)),
        per_caption("colour error", &|caption| caption.errors(wrong_colour)),
        per_caption("number error", &|caption| caption.errors(wrong_number)),
        per_caption("place error", &|caption| caption.errors(wrong_place)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth(object: &str, colour: &str, count: u32, places: &[&str]) -> Truth {
        Truth {
            object: object.to_owned(),
            colour: Some(colour.to_owned()),
            count: Some(count),
            places: places.iter().map(|&place| place.to_owned()).collect(),
        }
    }

    fn mention(object: &str, colour: Option<&str>, count: Option<u32>, place: Option<&str>) -> Mention {
        Mention { object: object.to_owned(), colour: colour.map(str::to_owned), count, place: place.map(str::to_owned) }
    }

    fn value(captions: &[Captioned], name: &str) -> Option<f64> {
        measures(captions).iter().find(|measure| measure.name() == name).and_then(Measure::value)
    }

    #[test]
    fn values_counted_by_hand() {
        let captions = [
            // Two objects there; apple right in colour and wrong in number, hat not there.
            Captioned {
                truth: vec![truth("apple", "red", 2, &["top", "left"]), truth("cat", "black", 1, &["right"])],
                said: Said {
                    mentions: vec![
                        mention("apple", Some("red"), Some(3), None),
                        mention("hat", Some("black"), Some(1), Some("top")),
                    ],
                    malformed: false,
                },
                words: 8,
            },
            // One object there; mentioned twice, once with a wrong colour and a wrong place.
            Captioned {
                truth: vec![truth("car", "blue", 1, &["middle"])],
                said: Said {
                    mentions: vec![
                        mention("car", Some("red"), Some(1), Some("left")),
                        mention("car", Some("blue"), None, Some("middle")),
                    ],
                    malformed: true,
                },
                words: 4,
            },
            // Nothing mentioned.
            Captioned { truth: vec![Truth::named("tree")], said: Said::default(), words: 0 },
        ];
        assert_eq!(value(&captions, "CHAIR_i"), Some(1.0 / 4.0));
        assert_eq!(value(&captions, "CHAIR_s"), Some(1.0 / 3.0));
        assert_eq!(value(&captions, "Cover"), Some(2.0 / 4.0));
        assert_eq!(value(&captions, "mean length"), Some(4.0));
        assert_eq!(value(&captions, "malformed"), Some(1.0 / 3.0));
        assert_eq!(value(&captions, "colour error"), Some(1.0 / 3.0));
        assert_eq!(value(&captions, "number error"), Some(1.0 / 2.0));
        assert_eq!(value(&captions, "place error"), Some(1.0 / 2.0));
    }

    #[test]
    fn attributes_that_are_not_annotated_are_not_judged() {
        let captions = [Captioned {
            truth: vec![Truth::named("apple")],
            said: Said { mentions: vec![mention("apple", Some("red"), Some(1), Some("top"))], malformed: false },
            words: 3,
        }];
        for name in ["colour error", "number error", "place error"] {
            assert_eq!(value(&captions, name), None);
        }
        assert_eq!(value(&captions, "CHAIR_i"), Some(0.0));
    }
}
