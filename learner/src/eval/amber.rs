//! AMBER: its files, and its measures.
//!
//! Queries are JSON lists `[{"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."}, …]`; annotations are
//! `[{"id": 1, "type": "generative", "truth": ["dog"], "hallu": ["person"]}, {"id": 1005, "type":
//! "discriminative-attribute-state", "truth": "yes"}, …]`; relations `{"dog": ["puppy"], …}` name the words for each object.
//! Objects are found by those names only; AMBER's own script also takes words that an embedding finds similar, so figures
//! compare between models measured here, not with published ones.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::EvalError;
use super::measure::Measure;
use super::mention::{CaptionReader, Synonyms};
use super::pope::Verdict;

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
        /// Which kind of question, e.g. `discriminative-attribute-state`.
        kind: String,
        /// The right answer.
        answer: Verdict,
    },
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
    if annotation.kind == "generative" {
        let present = serde_json::from_value(annotation.truth.clone()).map_err(wrong)?;
        Ok(AmberTruth::Generative { present, expected: annotation.hallu.clone() })
    } else if annotation.kind.starts_with("discriminative") {
        let answer = serde_json::from_value(annotation.truth.clone()).map_err(wrong)?;
        Ok(AmberTruth::Discriminative { kind: annotation.kind.clone(), answer })
    } else {
        Err(format!("unknown type {:?}", annotation.kind))
    }
}

/// Reads AMBER's relations as the names to look for.
///
/// # Errors
/// An unreadable or malformed file.
pub fn read_relations(path: &Path) -> Result<Synonyms, EvalError> {
    let relations: BTreeMap<String, Vec<String>> = json(path)?;
    Ok(Synonyms::new(relations.into_iter().map(|(object, words)| std::iter::once(object).chain(words))))
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

/// AMBER's generative measures: CHAIR (mentions of absent objects / mentions), Cover (present objects mentioned /
/// present), Hal (descriptions with a mention of an absent object), Cog (mentions of expected but absent objects /
/// mentions). An object mentioned several times in one description counts once, as in AMBER.
pub fn measures(descriptions: &[Described<'_>], names: &Synonyms) -> Vec<Measure> {
    let counts: Vec<[f64; 5]> = descriptions
        .iter()
        .map(|description| {
            let canonical =
                |objects: &[String]| -> Vec<String> { objects.iter().map(|object| names.canonical(object)).collect() };
            let (present, expected) = (canonical(description.present), canonical(description.expected));
            let mut said: Vec<String> =
                names.read(description.text).mentions.into_iter().map(|mention| mention.object).collect();
            said.sort();
            said.dedup();
            let number = |set: &[String], inside: bool| {
                said.iter().filter(|object| set.contains(object) == inside).count() as f64
            };
            [
                said.len() as f64,
                number(&present, false),
                number(&present, true),
                number(&expected, true),
                present.len() as f64,
            ]
        })
        .collect();
    let ratio = |name: &str, item: fn(&[f64; 5]) -> (f64, f64)| Measure::new(name, counts.iter().map(item));
    vec![
        ratio("CHAIR", |&[said, absent, ..]| (absent, said)),
        ratio("Cover", |&[_, _, covered, _, present]| (covered, present)),
        ratio("Hal", |&[_, absent, ..]| (f64::from(u8::from(absent > 0.0)), 1.0)),
        ratio("Cog", |&[said, _, _, expected, _]| (expected, said)),
    ]
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
        let names =
            read_relations(file(r#"{"dog": ["puppy"], "person": ["man"], "beach": ["shore"], "ball": []}"#).path())
                .unwrap();
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let (present, expected) = (words(&["dog", "beach"]), words(&["person"]));
        let describe = |text| Described { present: &present, expected: &expected, text };
        // First: dog (twice, once counted), person, ball. Second: beach.
        let descriptions = [describe("A puppy, a dog, a man and a ball."), describe("The shore.")];
        let values: Vec<Option<f64>> = measures(&descriptions, &names).iter().map(Measure::value).collect();
        assert_eq!(values, [Some(2.0 / 4.0), Some(2.0 / 4.0), Some(1.0 / 2.0), Some(1.0 / 4.0)]);
    }
}
