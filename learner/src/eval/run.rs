//! Asking whole sets: from items and an answerer to measures.
//!
//! Images are found by a function of their name, so that the same code asks about files ([`super::set::image_in`]) and
//! about pictures that were just drawn.

use std::collections::{BTreeMap, HashSet};

use super::amber::{self, AmberItem, AmberTruth, Described, Relations};
use super::answerer::{Answerer, ImageSource, Query, ask_all};
use super::chair::{self, Captioned, Truth};
use super::error::EvalError;
use super::measure::Measure;
use super::mention::CaptionReader;
use super::pope::{self, Answered, PopeItem};
use super::set::CaptionItem;

/// What asks: the answerer, how many questions at once, and who is told the number of answers so far.
pub struct Asker<'a> {
    /// Who answers.
    pub answerer: &'a mut dyn Answerer,
    /// Questions that are asked at once.
    pub batch: usize,
    /// Called with the number of answers so far.
    pub progress: &'a mut dyn FnMut(usize),
}

impl Asker<'_> {
    /// Asks everything.
    ///
    /// # Errors
    /// As [`ask_all`].
    pub fn ask(&mut self, queries: &[Query]) -> Result<Vec<String>, EvalError> {
        ask_all(self.answerer, queries, self.batch, self.progress)
    }

    fn ask_about<'a>(
        &mut self,
        questions: impl Iterator<Item = (&'a str, &'a str)>,
        image: &dyn Fn(&str) -> Result<ImageSource, EvalError>,
    ) -> Result<Vec<String>, EvalError> {
        let queries = questions
            .map(|(name, question)| Ok(Query { image: Some(image(name)?), question: question.to_owned() }))
            .collect::<Result<Vec<_>, EvalError>>()?;
        self.ask(&queries)
    }
}

/// CHAIR and its company on a caption set.
///
/// # Errors
/// An image that cannot be found or read, or what the answerer says.
pub fn captions(
    asker: &mut Asker<'_>,
    items: &[CaptionItem],
    reader: &dyn CaptionReader,
    image: &dyn Fn(&str) -> Result<ImageSource, EvalError>,
) -> Result<Vec<Measure>, EvalError> {
    let questions = items.iter().map(|item| (item.image.as_str(), item.question.as_str()));
    let answers = asker.ask_about(questions, image)?;
    let captions: Vec<Captioned> = items
        .iter()
        .zip(&answers)
        .map(|(item, answer)| {
            let canonical = |truth: &Truth| Truth { object: reader.canonical(&truth.object), ..truth.clone() };
            // Two names of one object are one thing to be covered.
            let mut named = HashSet::new();
            let truths = item.objects.iter().map(canonical).filter(|truth| named.insert(truth.object.clone()));
            Captioned::new(truths.collect(), reader.read(answer), answer)
        })
        .collect();
    Ok(chair::measures(&captions))
}

/// POPE's measures on a set of its questions.
///
/// # Errors
/// As [`captions`].
pub fn pope(
    asker: &mut Asker<'_>,
    items: &[PopeItem],
    image: &dyn Fn(&str) -> Result<ImageSource, EvalError>,
) -> Result<Vec<Measure>, EvalError> {
    let answers = asker.ask_about(items.iter().map(|item| (item.image.as_str(), item.text.as_str())), image)?;
    let answered: Vec<Answered<'_>> = items
        .iter()
        .zip(&answers)
        .map(|(item, answer)| Answered { image: &item.image, label: item.label, understood: pope::understand(answer) })
        .collect();
    Ok(pope::measures(&answered))
}

/// AMBER's measures by type of query: `generative`, and each kind of discriminative ones.
///
/// # Errors
/// As [`captions`].
pub fn amber(
    asker: &mut Asker<'_>,
    items: &[AmberItem],
    relations: &Relations,
    image: &dyn Fn(&str) -> Result<ImageSource, EvalError>,
) -> Result<BTreeMap<String, Vec<Measure>>, EvalError> {
    let answers = asker.ask_about(items.iter().map(|item| (item.image.as_str(), item.query.as_str())), image)?;
    let mut described = Vec::new();
    let mut answered: BTreeMap<&str, Vec<Answered<'_>>> = BTreeMap::new();
    for (item, text) in items.iter().zip(&answers) {
        match &item.truth {
            AmberTruth::Generative { present, expected } => described.push(Described { present, expected, text }),
            AmberTruth::Discriminative { kind, answer } => {
                let understood = pope::understand(text);
                answered.entry(kind).or_default().push(Answered { image: &item.image, label: *answer, understood });
            }
        }
    }
    let mut measures: BTreeMap<String, Vec<Measure>> =
        answered.into_iter().map(|(kind, answers)| (kind.to_owned(), amber::discriminative(&answers))).collect();
    if !described.is_empty() {
        measures.insert(amber::GENERATIVE.to_owned(), amber::generative(&described, relations));
    }
    Ok(measures)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use image::RgbImage;

    use super::*;
    use crate::eval::mention::Synonyms;
    use crate::eval::pope::Verdict;

    /// Answers each question with the same text.
    struct Says(&'static str);

    impl Answerer for Says {
        fn answer(&mut self, queries: &[Query]) -> Result<Vec<String>, EvalError> {
            Ok(vec![self.0.to_owned(); queries.len()])
        }
    }

    fn blank(_: &str) -> Result<ImageSource, EvalError> {
        Ok(ImageSource::Memory(Arc::new(RgbImage::new(1, 1))))
    }

    fn with<R>(says: &'static str, work: impl FnOnce(&mut Asker<'_>) -> R) -> R {
        work(&mut Asker { answerer: &mut Says(says), batch: 2, progress: &mut |_| () })
    }

    fn values(measures: &[Measure]) -> Vec<Option<f64>> {
        measures.iter().map(Measure::value).collect()
    }

    #[test]
    fn captions_are_held_against_canonical_names() {
        let names = Synonyms::new([vec!["dog".to_owned(), "puppy".to_owned()], vec!["cat".to_owned()]]);
        let item = |objects: &[&str]| CaptionItem {
            image: "a.png".to_owned(),
            objects: objects.iter().map(|&object| Truth::named(object)).collect(),
            question: "Describe the image.".to_owned(),
        };
        let items = [item(&["puppy"]), item(&["cat", "dog"]), item(&[])];
        let measures = with("Two dogs.", |asker| captions(asker, &items, &names, &blank)).unwrap();
        // CHAIR_i 1/3, CHAIR_s 1/3, Cover 2/3, two words, nothing malformed.
        let expected = [Some(1.0 / 3.0), Some(1.0 / 3.0), Some(2.0 / 3.0), Some(2.0), Some(0.0)];
        assert_eq!(values(&measures)[..5], expected);
        // A thing of two names is covered once.
        let measures =
            with("A cat.", |asker| captions(asker, &[item(&["dog", "puppy", "cat"])], &names, &blank)).unwrap();
        assert_eq!(values(&measures)[2], Some(0.5));
    }

    #[test]
    fn pope_questions_are_asked_and_understood() {
        let label = |question_id, label| PopeItem { question_id, image: "a".to_owned(), text: "?".to_owned(), label };
        let items = [label(1, Verdict::Yes), label(2, Verdict::No), label(3, Verdict::No)];
        let measures = with("No.", |asker| pope(asker, &items, &blank)).unwrap();
        assert_eq!(measures[0], Measure::new("accuracy", [(2.0, 3.0)]), "one picture is one item");
    }
}
