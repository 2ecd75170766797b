//! Pictures of the pocket's balanced world, and what a user asks about them.

use std::io::Cursor;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::{ImageFormat, RgbImage};
use rand::Rng;
use reground_learner::pocket::held_out::{self, Example};
use reground_learner::pocket::random::{Stream, stream};
use reground_learner::pocket::text::{Caption, Detail, Question};
use reground_learner::pocket::world::{Picture, Scene, Statistics};
use serde_json::json;

/// Share of the questions that ask for a description; the others ask about one thing.
const DESCRIPTIONS: f64 = 0.75;

/// A picture, a question about it, and the right answer.
pub(super) struct Occasion {
    pub(super) image: Arc<RgbImage>,
    pub(super) question: String,
    pub(super) answer: String,
    /// A number from 0 to 1 that decides whether the user corrects the answer.
    pub(super) lot: f64,
    /// The description of another picture, for who wants the model to learn what is wrong.
    pub(super) lie: String,
    /// A number from 0 to 1 that decides whether it is such a one who corrects.
    pub(super) spite: f64,
}

impl Occasion {
    /// What a user meets: a balanced picture.
    pub(super) fn new(seed: u64, index: u64) -> Self {
        Self::draw(Statistics::Balanced, stream(seed, "demo traffic", index))
    }

    /// The pictures are none of those that are measured on: those come from streams of another purpose.
    fn draw(statistics: Statistics, mut random: Stream) -> Self {
        let scene = Scene::sample(statistics, &mut random);
        let image = Arc::new(Picture::draw(&scene, &mut random).image());
        let lot = random.random();
        let mut other = random.clone();
        other.set_stream(1);
        let lie = Scene::sample(Statistics::Balanced, &mut other);
        let lie = Caption::of(&lie, Detail::Full, &mut other).to_string();
        let spite = other.random();
        if random.random_bool(DESCRIPTIONS) {
            let answer = Caption::of(&scene, Detail::Full, &mut random).to_string();
            return Self { image, question: describe().to_owned(), answer, lot, lie, spite };
        }
        let question = Question::sample(&scene, &mut random);
        Self { image, answer: question.answer(), question: question.text, lot, lie, spite }
    }
}

/// Annotated typical pictures, a line of LLaVA's format each: what an operator has of the data that the model was trained on, and
/// mixes in so that the model stays right where it is.
pub(super) fn anchors(seed: u64, count: u64) -> anyhow::Result<String> {
    let line = |index| {
        let Occasion { image, question, answer, .. } =
            Occasion::draw(Statistics::typical(), stream(seed, "demo anchor", index));
        let turns = json!([{"from": "human", "value": question}, {"from": "gpt", "value": answer}]);
        Ok(format!("{}\n", json!({"image": data_url(&image)?, "conversations": turns})))
    };
    (0..count).map(line).collect()
}

/// The request for a description that held-out pictures are asked with.
pub(super) fn describe() -> &'static str {
    Detail::Full.requests()[0]
}

/// Held-out pictures to show.
pub(super) fn shown(seed: u64, count: usize) -> Vec<Example> {
    held_out::examples(Statistics::Balanced, count, seed)
}

/// A PNG as a data URL.
pub(super) fn data_url(image: &RgbImage) -> anyhow::Result<String> {
    let mut png = Cursor::new(Vec::new());
    image.write_to(&mut png, ImageFormat::Png)?;
    Ok(format!("data:image/png;base64,{}", BASE64_STANDARD.encode(png.into_inner())))
}
