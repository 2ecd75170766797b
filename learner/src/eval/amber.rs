//! AMBER: its files, and its measures.
//!
//! In AMBER's `data` directory, queries are JSON lists `[{"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."}, …]`;
//! annotations are `[{"id": 1, "type": "generative", "truth": ["dog"], "hallu": ["person"]}, {"id": 1005, "type":
//! "discriminative-attribute-state", "truth": "yes"}, …]`; relations `{"sand": ["desert", "ground"], …}` name words that may
//! stand for an object, and one word may stand for several. AMBER's own script tags nouns and also takes words that an
//! embedding finds similar; here a word counts wherever it stands and only if it is in the relations. So figures compare
//! between models measured here, not with published ones.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::EvalError;
use super::measure::Measure;
use super::mention::{CaptionReader, Synonyms};
use super::pope::{self, Answered, Verdict};

/// The type of a query that asks for a description.
pub const GENERATIVE: &str = "generative";

/// A query of AMBER with its annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AmberItem {
    /// AMBER's number of the query.
    pub id: u64,
    /// The image's file name.
    pub image: String,
    /// What to ask.
    pub query: String,
    /// What is right.
    pub truth: AmberTruth,
}

/// What AMBER annotates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AmberTruth {
    /// For a description.
    Generative {
        /// Objects that are there.
        present: Vec<String>,
        /// Objects that people would expect there and that are not.
        expected: Vec<String>,
    },
    /// For a yes/no question.
    Discriminative {
        /// Which type of question, e.g. `discriminative-attribute-state`.
        kind: String,
        /// The right answer.
        answer: Verdict,
    },
}

impl AmberTruth {
    /// The type of the query.
    pub fn kind(&self) -> &str {
        match self {
            Self::Generative { .. } => GENERATIVE,
            Self::Discriminative { kind, .. } => kind,
        }
    }
}

#[derive(Deserialize)]
struct QueryLine {
    id: u64,
    image: String,
    query: String,
}

#[derive(Deserialize)]
struct AnnotationLine {
    id: u64,
    #[serde(rename = "type")]
    kind: String,
    truth: serde_json::Value,
    #[serde(default)]
    hallu: Vec<String>,
}

/// Reads AMBER's queries with their annotations.
///
/// # Errors
/// Unreadable or malformed files, a query without annotation, or an annotation of the wrong form.
pub fn read(queries: &Path, annotations: &Path) -> Result<Vec<AmberItem>, EvalError> {
    let mut known = BTreeMap::new();
    for annotation in json::<Vec<AnnotationLine>>(annotations)? {
        known.insert(annotation.id, annotation);
    }
    let items: Vec<AmberItem> = json::<Vec<QueryLine>>(queries)?
        .into_iter()
        .map(|query| {
            let bad = |path: &Path, reason: String| EvalError::File { path: path.to_owned(), reason };
            let annotation = known
                .get(&query.id)
                .ok_or_else(|| bad(annotations, format!("query {} has no annotation", query.id)))?;
            let truth =
                truth(annotation).map_err(|reason| bad(annotations, format!("annotation {}: {reason}", query.id)))?;
            Ok(AmberItem { id: query.id, image: query.image, query: query.query, truth })
        })
        .collect::<Result<_, EvalError>>()?;
    if items.is_empty() {
        return Err(EvalError::Empty(queries.display().to_string()));
    }
    Ok(items)
}

fn truth(annotation: &AnnotationLine) -> Result<AmberTruth, String> {
    let wrong = |error: serde_json::Error| format!("`truth` of type {}: {error}", annotation.kind);
    if annotation.kind == GENERATIVE {
        let present = serde_json::from_value(annotation.truth.clone()).map_err(wrong)?;
        Ok(AmberTruth::Generative { present, expected: annotation.hallu.clone() })
    } else if annotation.kind.starts_with("discriminative") {
        let answer = serde_json::from_value(annotation.truth.clone()).map_err(wrong)?;
        Ok(AmberTruth::Discriminative { kind: annotation.kind.clone(), answer })
    } else {
        Err(format!("unknown type {:?}", annotation.kind))
    }
}

/// Which words stand for which objects.
#[derive(Clone, Debug)]
pub struct Relations {
    /// Finds every word of the relations, each as itself.
    words: Synonyms,
    /// Object → the words that stand for it, itself included.
    of: BTreeMap<String, BTreeSet<String>>,
    /// Words that are never held against a description.
    safe: BTreeSet<String>,
}

impl Relations {
    /// Reads `relation.json` and `safe_words.txt`, which has one word a line.
    ///
    /// # Errors
    /// An unreadable or malformed file.
    pub fn read(relations: &Path, safe: &Path) -> Result<Self, EvalError> {
        let relations: BTreeMap<String, Vec<String>> = json(relations)?;
        let safe = fs_err::read_to_string(safe)?;
        Ok(Self::new(&relations, safe.lines()))
    }

    fn new<'a>(relations: &BTreeMap<String, Vec<String>>, safe: impl Iterator<Item = &'a str>) -> Self {
        let all = relations.iter().flat_map(|(object, words)| std::iter::once(object).chain(words));
        let words = Synonyms::new(all.map(|word| [word.clone()]));
        let of = relations.iter().map(|(object, related)| {
            let related = std::iter::once(object).chain(related).map(|word| words.canonical(word)).collect();
            (words.canonical(object), related)
        });
        Self { of: of.collect(), safe: safe.map(|word| words.canonical(word)).collect(), words }
    }

    /// The words of the relations in `text`, in order and as often as they stand there.
    fn said(&self, text: &str) -> Vec<String> {
        self.words.read(text).mentions.into_iter().map(|mention| mention.object).collect()
    }

    fn stands_for(&self, word: &str, object: &str) -> bool {
        let object = self.words.canonical(object);
        word == object || self.of.get(&object).is_some_and(|words| words.contains(word))
    }
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T, EvalError> {
    let bytes = fs_err::read(path)?;
    serde_json::from_slice(&bytes).map_err(|error| EvalError::File { path: path.to_owned(), reason: error.to_string() })
}

/// A description beside AMBER's annotation of it.
#[derive(Clone, Debug)]
pub struct Described<'a> {
    /// Objects that are there.
    pub present: &'a [String],
    /// Objects that people would expect there and that are not.
    pub expected: &'a [String],
    /// The description.
    pub text: &'a str,
}

/// AMBER's generative measures as its script has them: CHAIR (mentions of absent objects / mentions), Cover (present objects
/// mentioned / present), Hal (descriptions with a mention of an absent object / descriptions), Cog (expected but absent objects
/// mentioned / expected).
pub fn generative(descriptions: &[Described<'_>], relations: &Relations) -> Vec<Measure> {
    let counts: Vec<Counts> = descriptions.iter().map(|description| Counts::of(description, relations)).collect();
    let ratio = |name: &str, item: fn(&Counts) -> (usize, usize)| {
        Measure::new(name, counts.iter().map(item).map(|(part, whole)| (part as f64, whole as f64)))
    };
    vec![
        ratio("CHAIR", |one| (one.absent, one.said)),
        ratio("Cover", |one| (one.covered, one.present)),
        ratio("Hal", |one| (usize::from(one.absent > 0), 1)),
        ratio("Cog", |one| (one.imagined, one.expected)),
    ]
}

/// What is counted in one description.
struct Counts {
    /// Mentions.
    said: usize,
    /// Mentions of objects that are not there.
    absent: usize,
    /// Objects that are there.
    present: usize,
    /// Those of them that are mentioned.
    covered: usize,
    /// Objects that are expected and not there.
    expected: usize,
    /// Those of them that are mentioned.
    imagined: usize,
}

impl Counts {
    fn of(description: &Described<'_>, relations: &Relations) -> Self {
        let said = relations.said(description.text);
        let judged = || said.iter().filter(|word| !relations.safe.contains(*word));
        let is = |word: &str, objects: &[String]| objects.iter().any(|object| relations.stands_for(word, object));
        let absent: Vec<&String> = judged().filter(|word| !is(word, description.present)).collect();
        Self {
            said: said.len(),
            absent: absent.len(),
            present: description.present.len(),
            covered: number(description.present, judged(), relations),
            expected: description.expected.len(),
            imagined: number(description.expected, absent.iter().copied(), relations),
        }
    }
}

/// How many of `objects` the `words` stand for; each word counts for the first that it stands for.
fn number<'a>(objects: &[String], words: impl Iterator<Item = &'a String>, relations: &Relations) -> usize {
    let meant = words.filter_map(|word| objects.iter().position(|object| relations.stands_for(word, object)));
    meant.collect::<BTreeSet<_>>().len()
}

/// AMBER's discriminative measures. Its questions look for hallucinations, so positive means no. One item a picture.
pub fn discriminative(answers: &[Answered<'_>]) -> Vec<Measure> {
    pope::measures_of(Verdict::No, answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        file
    }

    const QUERIES: &str = r#"[{"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."},
        {"id": 1005, "image": "AMBER_1.jpg", "query": "Is the sky sunny in this image?"}]"#;

    #[test]
    fn files_are_joined() {
        let annotations = file(
            r#"[{"id": 1, "type": "generative", "truth": ["dog", "beach"], "hallu": ["person"]},
                {"id": 1005, "type": "discriminative-attribute-state", "truth": "yes"}]"#,
        );
        let items = read(file(QUERIES).path(), annotations.path()).unwrap();
        assert_eq!(
            items[0].truth,
            AmberTruth::Generative {
                present: vec!["dog".to_owned(), "beach".to_owned()],
                expected: vec!["person".to_owned()],
            }
        );
        assert_eq!(
            items[1].truth,
            AmberTruth::Discriminative { kind: "discriminative-attribute-state".to_owned(), answer: Verdict::Yes }
        );
    }

    #[test]
    fn bad_annotations_are_named() {
        let error = |annotations: &str| read(file(QUERIES).path(), file(annotations).path()).unwrap_err().to_string();
        assert!(error(r#"[{"id": 2, "type": "generative", "truth": []}]"#).contains("query 1 has no annotation"));
        assert!(
            error(r#"[{"id": 1, "type": "generative", "truth": "yes"}]"#)
                .contains("annotation 1: `truth` of type generative")
        );
        assert!(error(r#"[{"id": 1, "type": "other", "truth": []}]"#).contains("unknown type \"other\""));
        assert!(error("[").contains("EOF"));
    }

    #[test]
    fn values_counted_by_hand() {
        let relations = file(
            r#"{"dog": ["puppy"], "person": ["man"], "beach": ["sand", "ground"], "desert": ["sand"], "ball": [], "sign": []}"#,
        );
        let relations = Relations::read(relations.path(), file("sign\n").path()).unwrap();
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let (present, expected) = (words(&["dog", "desert"]), words(&["person", "ball"]));
        let describe = |text| Described { present: &present, expected: &expected, text };
        // First: two words for the dog, one for the person, and a sign, which is safe. Second: sand stands for a desert, too;
        // the ground stands for a beach alone.
        let descriptions = [describe("A puppy, two dogs, a man and a sign."), describe("Sand on the ground.")];
        let values: Vec<Option<f64>> = generative(&descriptions, &relations).iter().map(Measure::value).collect();
        assert_eq!(values, [Some(2.0 / 6.0), Some(2.0 / 4.0), Some(2.0 / 2.0), Some(1.0 / 4.0)]);
    }

    #[test]
    fn a_hallucination_found_is_a_hit() {
        let said = |label, answer: &str| Answered { image: "a", label, understood: pope::understand(answer) };
        let answers = [said(Verdict::No, "No."), said(Verdict::No, "Yes."), said(Verdict::Yes, "Yes.")];
        let values: Vec<Option<f64>> = discriminative(&answers).iter().map(Measure::value).collect();
        // Accuracy, precision, recall, F1, yes share.
        assert_eq!(values[..5], [Some(2.0 / 3.0), Some(1.0), Some(0.5), Some(2.0 / 3.0), Some(2.0 / 3.0)]);
    }
}
