//! Asks everything about the held-out pictures and measures the answers.

use std::sync::Arc;

use super::{Example, PocketReader, Size, caption_items, examples, pope_items};
use crate::eval::answerer::{Answerer, ImageSource, Query};
use crate::eval::error::EvalError;
use crate::eval::measure::{Bootstrap, Measure};
use crate::eval::pope_sampling::Absent;
use crate::eval::report::Report;
use crate::eval::run::{self, Asker};
use crate::pocket::random::stream;
use crate::pocket::text::{Caption, Detail, Question, Reading, Topic, read_caption, rewrite};
use crate::pocket::world::{Kind, Scene, Statistics};

/// Questions that are asked at once.
const BATCH: usize = 64;

/// Asks everything and measures: captions, questions about attributes, POPE, on typical and on balanced pictures, and
/// rewriting without a picture.
///
/// # Errors
/// What the answerer says.
pub fn evaluate(
    subject: &str,
    answerer: &mut dyn Answerer,
    size: Size,
    bootstrap: Bootstrap,
    progress: &mut dyn FnMut(&str, usize),
) -> Result<Report, EvalError> {
    let mut report = Report::new(subject, bootstrap);
    let mut ask = |name: &str, work: &mut Work<'_>| -> Result<(), EvalError> {
        let mut asker = Asker { answerer: &mut *answerer, batch: BATCH, progress: &mut |done| progress(name, done) };
        report.add(name, &work(&mut asker)?, bootstrap);
        Ok(())
    };
    for statistics in [Statistics::typical(), Statistics::Balanced] {
        let examples = examples(statistics, size.images, size.seed);
        let world = statistics.name();
        let image = |name: &str| picture(&examples, name);
        let items = caption_items(&examples);
        ask(&format!("captions, {world}"), &mut |asker| run::captions(asker, &items, &PocketReader, &image))?;
        ask(&format!("questions, {world}"), &mut |asker| attributes(asker, &examples))?;
        for absent in Absent::ALL {
            let items = pope_items(&examples, absent, size);
            ask(&format!("POPE {}, {world}", absent.name()), &mut |asker| run::pope(asker, &items, &image))?;
        }
    }
    ask("rewriting", &mut |asker| rewriting(asker, size))?;
    Ok(report)
}

/// Captions and the hardest POPE questions about typical pictures, where habit is right, and balanced ones, where it is not: what
/// a change of the model is judged by. By name of the set.
///
/// # Errors
/// What the answerer says.
pub fn habits(asker: &mut Asker<'_>, size: Size) -> Result<Vec<(String, Vec<Measure>)>, EvalError> {
    let mut sets = Vec::new();
    for statistics in [Statistics::typical(), Statistics::Balanced] {
        let examples = examples(statistics, size.images, size.seed);
        let world = statistics.name();
        let image = |name: &str| picture(&examples, name);
        let captions = run::captions(asker, &caption_items(&examples), &PocketReader, &image)?;
        sets.push((format!("captions, {world}"), captions));
        let pope = run::pope(asker, &pope_items(&examples, Absent::Adversarial, size), &image)?;
        sets.push((format!("POPE adversarial, {world}"), pope));
    }
    Ok(sets)
}

/// One section of the report.
type Work<'a> = dyn FnMut(&mut Asker<'_>) -> Result<Vec<Measure>, EvalError> + 'a;

fn source(example: &Example) -> ImageSource {
    ImageSource::Memory(Arc::clone(&example.image))
}

fn picture(examples: &[Example], name: &str) -> Result<ImageSource, EvalError> {
    let found = examples.iter().find(|example| example.name == name);
    found
        .map(source)
        .ok_or_else(|| EvalError::File { path: name.into(), reason: "no such held-out picture".to_owned() })
}

/// Wrong answers to questions for colour, number and place.
fn attributes(asker: &mut Asker<'_>, examples: &[Example]) -> Result<Vec<Measure>, EvalError> {
    let asked: Vec<(&Example, Question)> = examples.iter().flat_map(attribute_questions).collect();
    let queries: Vec<Query> = asked
        .iter()
        .map(|(example, question)| Query { image: Some(source(example)), question: question.text.clone() })
        .collect();
    let answers = asker.ask(&queries)?;
    let right =
        asked.iter().zip(&answers).map(|((_, question), answer)| (question.topic, *answer == question.answer()));
    Ok(topic_measures(&right.collect::<Vec<_>>()))
}

/// Colour, number and place of everything in a picture, as far as they can be asked for.
fn attribute_questions(example: &Example) -> Vec<(&Example, Question)> {
    let ask = |kind: Kind| {
        let scene = &example.scene;
        [Question::colour(scene, kind, true), Question::count(scene, kind), Question::place(scene, kind)]
    };
    example
        .scene
        .groups
        .iter()
        .flat_map(|group| ask(group.kind))
        .flatten()
        .map(|question| (example, question))
        .collect()
}

fn topic_measures(answers: &[(Topic, bool)]) -> Vec<Measure> {
    let of = |name: &str, wanted: fn(&Topic) -> bool| {
        let items = answers.iter().map(|(topic, right)| {
            let counts = f64::from(u8::from(wanted(topic)));
            (counts * f64::from(u8::from(!right)), counts)
        });
        Measure::new(name, items)
    };
    vec![
        of("colour error", |topic| matches!(topic, Topic::Colour(..))),
        of("number error", |topic| matches!(topic, Topic::Count(_))),
        of("place error", |topic| matches!(topic, Topic::Place(_))),
    ]
}

/// How right captions of balanced scenes come back when they are to be made wrong.
fn rewriting(asker: &mut Asker<'_>, size: Size) -> Result<Vec<Measure>, EvalError> {
    let right: Vec<Caption> = (0..size.images as u64)
        .map(|index| {
            let mut random = stream(size.seed, "held out rewriting", index);
            let scene = Scene::sample(Statistics::Balanced, &mut random);
            Caption::of(&scene, Detail::Full, &mut random)
        })
        .collect();
    let queries: Vec<Query> = right
        .iter()
        .map(|caption| Query { image: None, question: rewrite::description_request(&caption.to_string()) })
        .collect();
    Ok(rewriting_measures(&right, &asker.ask(&queries)?))
}

fn rewriting_measures(right: &[Caption], rewritten: &[String]) -> Vec<Measure> {
    let readings: Vec<_> = right.iter().zip(rewritten.iter().map(|text| read_caption(text))).collect();
    let kept = |(caption, reading): &(&Caption, Reading)| {
        let kept = caption.claims.iter().filter(|claim| reading.claims.contains(claim)).count();
        (kept as f64, caption.claims.len() as f64)
    };
    vec![
        Measure::share("malformed", readings.iter().map(|(_, reading)| reading.malformed.is_some())),
        Measure::share("changed", readings.iter().map(|(caption, reading)| reading.claims != caption.claims)),
        Measure::new("claims kept", readings.iter().map(kept)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Knows every scene, and answers from it; a stand-in that shows what the measures say of a perfect model.
    struct Oracle(Vec<Example>);

    impl Answerer for Oracle {
        fn answer(&mut self, queries: &[Query]) -> Result<Vec<String>, EvalError> {
            let answer = |query: &Query| {
                let Some(ImageSource::Memory(image)) = &query.image else {
                    return query.question.clone();
                };
                let example = self.0.iter().find(|example| example.image == *image).unwrap();
                let scene = &example.scene;
                let asked = Kind::ALL.iter().flat_map(|&kind| {
                    let existence = Some(Question::existence(scene, kind));
                    [
                        existence,
                        Question::colour(scene, kind, true),
                        Question::count(scene, kind),
                        Question::place(scene, kind),
                    ]
                });
                let known = asked.flatten().find(|question| question.text == query.question);
                known.map_or_else(
                    || Caption::of(scene, Detail::Full, &mut stream(0, "oracle", 0)).to_string(),
                    |question| question.answer(),
                )
            };
            Ok(queries.iter().map(answer).collect())
        }
    }

    #[test]
    fn a_perfect_model_has_perfect_figures() {
        let size = Size { images: 40, pope_per_image: 2, seed: 3 };
        let known = [Statistics::typical(), Statistics::Balanced].map(|statistics| examples(statistics, 40, 3));
        let bootstrap = Bootstrap { resamples: 50, ..Bootstrap::default() };
        let report = evaluate("oracle", &mut Oracle(known.concat()), size, bootstrap, &mut |_, _| ()).unwrap();
        assert_eq!(report.sections.len(), 11);
        let value = |section: &str, measure: &str| report.estimate(section, measure).unwrap().value.unwrap();
        for statistics in ["typical", "balanced"] {
            let captions = format!("captions, {statistics}");
            assert_eq!(value(&captions, "Cover"), 1.0);
            for measure in ["CHAIR_i", "CHAIR_s", "malformed", "colour error", "number error", "place error"] {
                assert_eq!(value(&captions, measure), 0.0, "{measure}");
            }
            assert_eq!(value(&format!("questions, {statistics}"), "place error"), 0.0);
            assert_eq!(value(&format!("POPE adversarial, {statistics}"), "accuracy"), 1.0);
            assert_eq!(value(&format!("POPE adversarial, {statistics}"), "yes share"), 0.5);
        }
        // The oracle repeats what it should rewrite, introduction included.
        assert_eq!(value("rewriting", "malformed"), 1.0);
    }
}
