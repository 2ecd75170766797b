//! Held-out pictures of the pocket world, and everything that a model can be asked about them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use image::RgbImage;

use super::random::stream;
use super::text::{Caption, Detail, Question, Topic, read_caption, rewrite};
use super::world::{Kind, Picture, Scene, Statistics};
use crate::eval::answerer::{Answerer, ImageSource, Query, ask_all};
use crate::eval::chair::{self, Captioned, Truth};
use crate::eval::error::EvalError;
use crate::eval::measure::{Bootstrap, Measure};
use crate::eval::mention::{CaptionReader, Mention, Said};
use crate::eval::pope::{self, PopeItem};
use crate::eval::pope_sampling::{Absent, Frequencies, questions};
use crate::eval::report::Report;
use crate::eval::set::{CaptionItem, write_jsonl};

/// Typical scenes that POPE's frequencies are counted on.
const REFERENCE_SCENES: u64 = 4000;

/// Questions that are asked at once.
const BATCH: usize = 64;

/// Which questions are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Pictures of each kind of statistics.
    pub images: usize,
    /// Present objects that POPE asks for per picture, and as many absent ones.
    pub pope_per_image: usize,
    /// Decides pictures and questions. Whatever it is, the pictures are none of those that a build is trained on: those
    /// come from streams of other purposes.
    pub seed: u64,
}

impl Default for Size {
    fn default() -> Self {
        Self { images: 400, pope_per_image: 2, seed: 0 }
    }
}

/// A held-out picture with what it shows.
#[derive(Clone, Debug)]
pub struct Example {
    /// Its name, which is also its file name.
    pub name: String,
    /// What it shows.
    pub scene: Scene,
    /// The picture.
    pub image: Arc<RgbImage>,
}

/// The first `count` held-out pictures under `statistics`.
pub fn examples(statistics: Statistics, count: usize, seed: u64) -> Vec<Example> {
    let purpose = format!("held out {}", statistics.name());
    (0..count)
        .map(|index| {
            let mut random = stream(seed, &purpose, index as u64);
            let scene = Scene::sample(statistics, &mut random);
            let image = Arc::new(Picture::draw(&scene, &mut random).image());
            Example { name: format!("{}_{index:05}.png", statistics.name()), scene, image }
        })
        .collect()
}

/// What captions of `scene` are held against.
pub fn truth(scene: &Scene) -> Vec<Truth> {
    scene
        .groups
        .iter()
        .map(|group| Truth {
            object: group.kind.word().to_owned(),
            colour: Some(group.colour.word().to_owned()),
            count: Some(u32::from(group.count())),
            places: group.places.iter().map(|place| place.word().to_owned()).collect(),
        })
        .collect()
}

/// Reads the pocket's captions with all their attributes, and sees when one is garbled.
#[derive(Clone, Copy, Debug, Default)]
pub struct PocketReader;

impl CaptionReader for PocketReader {
    fn read(&self, caption: &str) -> Said {
        let reading = read_caption(caption);
        let mentions = reading
            .claims
            .iter()
            .map(|claim| Mention {
                object: claim.kind.word().to_owned(),
                colour: claim.colour.map(|colour| colour.word().to_owned()),
                count: claim.count.map(u32::from),
                place: claim.place.map(|place| place.word().to_owned()),
            })
            .collect();
        Said { mentions, malformed: reading.malformed.is_some() }
    }
}

/// POPE questions about `examples`, with the frequencies of typical scenes: adversarial questions ask for what a model
/// expects from habit.
pub fn pope_items(examples: &[Example], absent: Absent, size: Size) -> Vec<PopeItem> {
    let objects = |scene: &Scene| -> BTreeSet<String> {
        scene.groups.iter().map(|group| group.kind.word().to_owned()).collect()
    };
    let reference: Vec<BTreeSet<String>> = (0..REFERENCE_SCENES)
        .map(|index| objects(&Scene::sample(Statistics::typical(), &mut stream(size.seed, "pope reference", index))))
        .collect();
    let images: Vec<(String, BTreeSet<String>)> =
        examples.iter().map(|example| (example.name.clone(), objects(&example.scene))).collect();
    let nowhere = Scene { groups: Vec::new() };
    questions(&images, &Frequencies::count(&reference), absent, size.pope_per_image, size.seed, |object| {
        // Every object of the reference is a kind of the world.
        Kind::from_word(object).map_or_else(String::new, |kind| Question::existence(&nowhere, kind).text)
    })
}

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
    let mut ask = |name: &str, queries: &[Query]| ask_all(answerer, queries, BATCH, &mut |done| progress(name, done));
    for statistics in [Statistics::typical(), Statistics::Balanced] {
        let examples = examples(statistics, size.images, size.seed);
        let source = |example: &Example| Some(ImageSource::Memory(Arc::clone(&example.image)));

        let name = format!("captions, {}", statistics.name());
        let request = Detail::Full.requests()[0];
        let queries: Vec<Query> = examples
            .iter()
            .map(|example| Query { image: source(example), question: request.to_owned() })
            .collect();
        let captions: Vec<Captioned> = ask(&name, &queries)?
            .iter()
            .zip(&examples)
            .map(|(caption, example)| Captioned::new(truth(&example.scene), PocketReader.read(caption), caption))
            .collect();
        report.add(&name, &chair::measures(&captions), bootstrap);

        let name = format!("questions, {}", statistics.name());
        let asked: Vec<(&Example, Question)> = examples.iter().flat_map(attribute_questions).collect();
        let queries: Vec<Query> = asked
            .iter()
            .map(|(example, question)| Query { image: source(example), question: question.text.clone() })
            .collect();
        let answers = ask(&name, &queries)?;
        let right = asked.iter().zip(&answers).map(|((_, question), answer)| (question.topic, *answer == question.answer()));
        report.add(&name, &topic_measures(&right.collect::<Vec<_>>()), bootstrap);

        for absent in Absent::ALL {
            let name = format!("POPE {}, {}", absent.name(), statistics.name());
            let items = pope_items(&examples, absent, size);
            let queries: Vec<Query> = items
                .iter()
                .map(|item| {
                    let example = examples.iter().find(|example| example.name == item.image);
                    Query { image: example.and_then(source), question: item.text.clone() }
                })
                .collect();
            let answers = ask(&name, &queries)?;
            let understood: Vec<_> =
                items.iter().zip(&answers).map(|(item, answer)| (item.label, pope::understand(answer))).collect();
            report.add(&name, &pope::measures(&understood), bootstrap);
        }
    }
    let right = right_captions(size);
    let queries: Vec<Query> = right
        .iter()
        .map(|caption| Query { image: None, question: rewrite::description_request(&caption.to_string()) })
        .collect();
    let rewritten = ask("rewriting", &queries)?;
    report.add("rewriting", &rewriting_measures(&right, &rewritten), bootstrap);
    Ok(report)
}

/// Colour, number and place of everything in a picture, as far as they can be asked for.
fn attribute_questions(example: &Example) -> Vec<(&Example, Question)> {
    let ask = |kind: Kind| {
        let scene = &example.scene;
        [Question::colour(scene, kind, true), Question::count(scene, kind), Question::place(scene, kind)]
    };
    example.scene.groups.iter().flat_map(|group| ask(group.kind)).flatten().map(|question| (example, question)).collect()
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
            Caption::of(&Scene::sample(Statistics::Balanced, &mut random), Detail::Full, &mut random)
        })
        .collect()
}

fn rewriting_measures(right: &[Caption], rewritten: &[String]) -> Vec<Measure> {
    let readings: Vec<_> = right.iter().zip(rewritten.iter().map(|text| read_caption(text))).collect();
    let kept = |(caption, reading): &(&Caption, super::text::Reading)| {
        let kept = caption.claims.iter().filter(|claim| reading.claims.contains(claim)).count();
        (kept as f64, caption.claims.len() as f64)
    };
    vec![
        Measure::share("malformed", readings.iter().map(|(_, reading)| reading.malformed.is_some())),
        Measure::share("changed", readings.iter().map(|(caption, reading)| reading.claims != caption.claims)),
        Measure::new("claims kept", readings.iter().map(kept)),
    ]
}

/// Writes the held-out pictures and questions as files: `images/*.png`, `captions_<statistics>.jsonl`,
/// `pope_<kind>_<statistics>.jsonl`.
///
/// # Errors
/// What the file system says.
pub fn write(directory: &Path, size: Size) -> Result<(), EvalError> {
    let images = directory.join("images");
    fs_err::create_dir_all(&images)?;
    for statistics in [Statistics::typical(), Statistics::Balanced] {
        let examples = examples(statistics, size.images, size.seed);
        for example in &examples {
            let path = images.join(&example.name);
            example.image.save(&path).map_err(|error| EvalError::Image { path, reason: error.to_string() })?;
        }
        let captions: Vec<CaptionItem> = examples
            .iter()
            .map(|example| CaptionItem {
                image: example.name.clone(),
                objects: truth(&example.scene),
                question: Detail::Full.requests()[0].to_owned(),
            })
            .collect();
        write_jsonl(&directory.join(format!("captions_{}.jsonl", statistics.name())), &captions)?;
        for absent in Absent::ALL {
            let file = format!("pope_{}_{}.jsonl", absent.name(), statistics.name());
            write_jsonl(&directory.join(file), &pope_items(&examples, absent, size))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::set::{image_in, read_jsonl};

    /// Knows every scene, and answers from it; a stand-in that shows what the measures say of a perfect model.
    struct Oracle(Vec<Example>);

    impl Answerer for Oracle {
        fn answer(&mut self, queries: &[Query]) -> Result<Vec<String>, EvalError> {
            let answer = |query: &Query| {
                let Some(ImageSource::Memory(image)) = &query.image else { return query.question.clone() };
                let example = self.0.iter().find(|example| example.image == *image).unwrap();
                let scene = &example.scene;
                let asked = Kind::ALL.iter().flat_map(|&kind| {
                    let existence = Some(Question::existence(scene, kind));
                    [existence, Question::colour(scene, kind, true), Question::count(scene, kind), Question::place(scene, kind)]
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

    #[test]
    fn written_sets_are_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let size = Size { images: 3, ..Size::default() };
        write(directory.path(), size).unwrap();
        let captions: Vec<CaptionItem> = read_jsonl(&directory.path().join("captions_balanced.jsonl")).unwrap();
        let examples = examples(Statistics::Balanced, 3, 0);
        for (item, example) in captions.iter().zip(&examples) {
            assert_eq!(item.objects, truth(&example.scene));
            let image = image_in(&directory.path().join("images"), &item.image).unwrap().load().unwrap();
            assert_eq!(image, example.image);
        }
        let pope: Vec<PopeItem> = read_jsonl(&directory.path().join("pope_adversarial_typical.jsonl")).unwrap();
        assert!(!pope.is_empty() && pope.len() % 2 == 0);
    }
}
