//! Asks everything about the held-out pictures and measures the answers.

use std::sync::Arc;

use super::{Example, PocketReader, Size, examples, pope_items, truth};
use crate::eval::answerer::{Answerer, ImageSource, Query, ask_all};
use crate::eval::chair::{self, Captioned};
use crate::eval::error::EvalError;
use crate::eval::measure::{Bootstrap, Measure};
use crate::eval::mention::CaptionReader;
use crate::eval::pope;
use crate::eval::pope_sampling::Absent;
use crate::eval::report::Report;
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
    let mut ask = |name: &str, queries: &[Query]| {
        ask_all(answerer, queries, BATCH, &mut |done| progress(name, done))
    };
    for statistics in [Statistics::typical(), Statistics::Balanced] {
        let examples = examples(statistics, size.images, size.seed);
        let source = |example: &Example| Some(ImageSource::Memory(Arc::clone(&example.image)));

        let name = format!("captions, {}", statistics.name());
        let request = Detail::Full.requests()[0];
        let queries: Vec<Query> = examples
            .iter()
            .map(|example| Query {
                image: source(example),
                question: request.to_owned(),
            })
            .collect();
        let captions: Vec<Captioned> = ask(&name, &queries)?
            .iter()
            .zip(&examples)
            .map(|(caption, example)| {
                Captioned::new(truth(&example.scene), PocketReader.read(caption), caption)
            })
            .collect();
        report.add(&name, &chair::measures(&captions), bootstrap);

        let name = format!("questions, {}", statistics.name());
        let asked: Vec<(&Example, Question)> =
            examples.iter().flat_map(attribute_questions).collect();
        let queries: Vec<Query> = asked
            .iter()
            .map(|(example, question)| Query {
                image: source(example),
                question: question.text.clone(),
            })
            .collect();
        let answers = ask(&name, &queries)?;
        let right = asked
            .iter()
            .zip(&answers)
            .map(|((_, question), answer)| (question.topic, *answer == question.answer()));
        report.add(
            &name,
            &topic_measures(&right.collect::<Vec<_>>()),
            bootstrap,
        );

        for absent in Absent::ALL {
            let name = format!("POPE {}, {}", absent.name(), statistics.name());
            let items = pope_items(&examples, absent, size);
            let queries: Vec<Query> = items
                .iter()
                .map(|item| {
                    let example = examples.iter().find(|example| example.name == item.image);
                    Query {
                        image: example.and_then(source),
                        question: item.text.clone(),
                    }
                })
                .collect();
            let answers = ask(&name, &queries)?;
            let understood: Vec<_> = items
                .iter()
                .zip(&answers)
                .map(|(item, answer)| (item.label, pope::understand(answer)))
                .collect();
            report.add(&name, &pope::measures(&understood), bootstrap);
        }
    }
    let right = right_captions(size);
    let queries: Vec<Query> = right
        .iter()
        .map(|caption| Query {
            image: None,
            question: rewrite::description_request(&caption.to_string()),
        })
        .collect();
    let rewritten = ask("rewriting", &queries)?;
    report.add(
        "rewriting",
        &rewriting_measures(&right, &rewritten),
        bootstrap,
    );
    Ok(report)
}

/// Colour, number and place of everything in a picture, as far as they can be asked for.
fn attribute_questions(example: &Example) -> Vec<(&Example, Question)> {
    let ask = |kind: Kind| {
        let scene = &example.scene;
        [
            Question::colour(scene, kind, true),
            Question::count(scene, kind),
            Question::place(scene, kind),
        ]
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

/// Right captions of balanced scenes, to be rewritten.
fn right_captions(size: Size) -> Vec<Caption> {
    (0..size.images as u64)
        .map(|index| {
            let mut random = stream(size.seed, "held out rewriting", index);
            Caption::of(
                &Scene::sample(Statistics::Balanced, &mut random),
                Detail::Full,
                &mut random,
            )
        })
        .collect()
}

fn rewriting_measures(right: &[Caption], rewritten: &[String]) -> Vec<Measure> {
    let readings: Vec<_> = right
        .iter()
        .zip(rewritten.iter().map(|text| read_caption(text)))
        .collect();
    let kept = |(caption, reading): &(&Caption, Reading)| {
        let kept = caption
            .claims
            .iter()
            .filter(|claim| reading.claims.contains(claim))
            .count();
        (kept as f64, caption.claims.len() as f64)
    };
    vec![
        Measure::share(
            "malformed",
            readings
                .iter()
                .map(|(_, reading)| reading.malformed.is_some()),
        ),
        Measure::share(
            "changed",
            readings
                .iter()
                .map(|(caption, reading)| reading.claims != caption.claims),
        ),
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
                let example = self
                    .0
                    .iter()
                    .find(|example| example.image == *image)
                    .unwrap();
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
                let known = asked
                    .flatten()
                    .find(|question| question.text == query.question);
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
        let size = Size {
            images: 40,
            pope_per_image: 2,
            seed: 3,
        };
        let known = [Statistics::typical(), Statistics::Balanced]
            .map(|statistics| examples(statistics, 40, 3));
        let bootstrap = Bootstrap {
            resamples: 50,
            ..Bootstrap::default()
        };
        let report = evaluate(
            "oracle",
            &mut Oracle(known.concat()),
            size,
            bootstrap,
            &mut |_, _| (),
        )
        .unwrap();
        assert_eq!(report.sections.len(), 11);
        let value = |section: &str, measure: &str| {
            report.estimate(section, measure).unwrap().value.unwrap()
        };
        for statistics in ["typical", "balanced"] {
            let captions = format!("captions, {statistics}");
            assert_eq!(value(&captions, "Cover"), 1.0);
            for measure in [
                "CHAIR_i",
                "CHAIR_s",
                "malformed",
                "colour error",
                "number error",
                "place error",
            ] {
                assert_eq!(value(&captions, measure), 0.0, "{measure}");
            }
            assert_eq!(
                value(&format!("questions, {statistics}"), "place error"),
                0.0
            );
            assert_eq!(
                value(&format!("POPE adversarial, {statistics}"), "accuracy"),
                1.0
            );
            assert_eq!(
                value(&format!("POPE adversarial, {statistics}"), "yes share"),
                0.5
            );
        }
        // The oracle repeats what it should rewrite, introduction included.
        assert_eq!(value("rewriting", "malformed"), 1.0);
    }
}
