//! Watching, over an engine that repeats what it is told.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use reground_learner::bpo::data::blobs::Blobs;
use reground_learner::bpo::pair::{ImageRef, Part};
use reground_learner::generator::{Generated, Generator, GeneratorError, Question};
use reground_learner::store::rows::{Answer, Feedback, Finish, Record, RecordedMessage, Row};
use reground_learner::store::{Options, Store, id};
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::api::testing::Echo;
use crate::config::Config;
use crate::engine::GenerationId;
use crate::engine::source::golden;
use crate::rollout::{Generations, Observation, Origin, Rollout, Route};

struct Place {
    _data: TempDir,
    store: Arc<Store>,
    generations: Arc<Generations>,
    rollout: Arc<Rollout>,
    watcher: Watcher,
    new: GenerationId,
}

const BASE: &str = "base";

fn said(record: &str, key: &str, rating: f64) -> Feedback {
    Feedback {
        id: id::new("fb"),
        created_ms: id::now_ms(),
        record: record.into(),
        key: key.into(),
        trusted: false,
        rating: Some(rating),
        correction: None,
        comment: None,
    }
}

impl Place {
    /// An adapter beside the base, which answers.
    async fn new(set: impl FnOnce(&mut Config)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        set(&mut config);
        let generations = Generations::start(Arc::new(Echo::new(false)), config.admission.clone()).await.unwrap();
        let (generations, store) =
            (Arc::new(generations), Arc::new(Store::open(data.path(), Options::default()).unwrap()));
        let rollout = Arc::new(Rollout::new(generations.clone(), store.clone(), &config));
        let new = rollout.import(golden("adapter"), Origin::default()).await.unwrap().id;
        let watcher = Watcher::new(generations.clone(), rollout.clone(), store.clone(), config.watch);
        Self { _data: data, store, generations, rollout, watcher, new: new.as_str().into() }
    }

    fn answers(&self, generation: &str, count: usize, failed: bool) {
        let observed = self.generations.get(&generation.into()).unwrap().observed;
        // What ends in the millisecond of a change belongs before it.
        std::thread::sleep(Duration::from_millis(2));
        for _ in 0..count {
            let first_token = Some(Duration::from_millis(10));
            observed.note(Observation { at_ms: id::now_ms(), failed: Some(failed), first_token, per_token: None });
        }
    }

    fn record(&self, generation: &str, image: bool) -> String {
        let images = if image { vec![self.image()] } else { Vec::new() };
        let mut content = vec![Part::Text { text: "What is this?".into() }];
        content.extend((0..images.len()).map(|index| Part::Image { index }));
        let record: Record = serde_json::from_value(json!({
            "id": id::new("chatcmpl"), "created_ms": id::now_ms(), "model": "reground", "generation": generation,
            "key": "ann", "conversation": "c", "images": images, "parameters": {},
            "messages": [RecordedMessage { role: "user".into(), content, ..RecordedMessage::default() }],
            "answers": [Answer { text: "A cat.".into(), finish: Finish::Stop, token_ids: vec![1, 2], ..Answer::default() }],
            "prompt_tokens": 3, "timings": {"first_token_ms": 1, "total_ms": 2}, "config_digest": "",
        }))
        .unwrap();
        self.store.insert(&record).unwrap();
        record.id
    }

    fn image(&self) -> ImageRef {
        let mut png = std::io::Cursor::new(Vec::new());
        image::DynamicImage::new_rgb8(4, 4).write_to(&mut png, image::ImageFormat::Png).unwrap();
        let digest = Blobs::put(&*self.store, &png.into_inner()).unwrap();
        ImageRef { digest, width: 4, height: 4 }
    }

    fn rated(&self, generation: &str, count: usize, rating: f64) {
        // What was asked in the millisecond of a change belongs before it.
        std::thread::sleep(Duration::from_millis(2));
        for _ in 0..count {
            let record = self.record(generation, false);
            // What a key said before does not count.
            self.store.add_feedback(&said(&record, "ann", -rating), false).unwrap();
            self.store.add_feedback(&said(&record, "ann", rating), false).unwrap();
        }
    }

    async fn activate(&self) {
        self.rollout.activate(&self.new, None, "test").await.unwrap();
    }

    async fn taken_back_for(&self) -> Option<String> {
        self.watcher.look().await;
        let change = self.rollout.changes(1).await.unwrap().remove(0);
        (change.what == "watch").then(|| change.why.unwrap())
    }
}

#[tokio::test]
async fn a_generation_that_fails_is_taken_back_and_the_audit_says_why() {
    let place = Place::new(|config| config.watch.min_answers = 10).await;
    place.answers(BASE, 100, false);
    place.activate().await;
    place.answers(place.new.as_str(), 9, true);
    assert_eq!(place.taken_back_for().await, None, "nine answers say nothing");
    let report = place.watcher.reports().remove(0);
    assert_eq!((report.state, report.figures[0].verdict), (State::Watching, Verdict::TooFew));
    place.answers(place.new.as_str(), 1, true);
    let why = place.taken_back_for().await.unwrap();
    assert_eq!(why, "failures: 1.0000 answers that failed (n = 10) against 0.0000 (n = 100); 0.05 more is allowed");
    assert_eq!(place.rollout.route(), Route::default());
    assert_eq!(place.watcher.reports(), []);
}

#[tokio::test]
async fn a_canary_is_compared_with_what_is_live_meanwhile() {
    let place = Place::new(|config| config.watch.min_answers = 10).await;
    place.answers(BASE, 100, false);
    place.rollout.canary(&place.new, 50, None, "test").await.unwrap();
    // Something is wrong with both.
    place.answers(place.new.as_str(), 20, true);
    place.answers(BASE, 20, true);
    assert_eq!(place.taken_back_for().await, None);
    place.answers(BASE, 200, false);
    assert!(place.taken_back_for().await.unwrap().starts_with("failures: 1.0000"));
    assert_eq!(place.rollout.route(), Route::default());
}

#[tokio::test]
async fn what_is_pinned_is_reported_and_stays() {
    let place = Place::new(|config| config.watch.min_answers = 10).await;
    place.activate().await;
    place.rollout.pin(&place.new, true, None, "test").await.unwrap();
    place.answers(place.new.as_str(), 20, true);
    assert_eq!(place.taken_back_for().await, None);
    assert_eq!(place.rollout.route().live, place.new);
    assert_eq!(place.watcher.reports().remove(0).state, State::Held);
}

#[tokio::test]
async fn a_window_ends_after_a_last_look() {
    let place = Place::new(|config| (config.watch.min_answers, config.watch.window_s) = (10, 1)).await;
    place.activate().await;
    assert_eq!(place.taken_back_for().await, None);
    assert_eq!(place.watcher.reports().remove(0).state, State::Watching);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for _ in 0..2 {
        assert_eq!(place.taken_back_for().await, None);
        let report = place.watcher.reports().remove(0);
        assert_eq!((report.state, report.figures.len()), (State::Passed, 5));
        place.answers(place.new.as_str(), 20, true);
    }
}

#[tokio::test]
async fn what_came_between_two_looks_is_judged_after_the_window() {
    let place = Place::new(|config| (config.watch.min_answers, config.watch.window_s) = (10, 1)).await;
    place.activate().await;
    assert_eq!(place.taken_back_for().await, None);
    place.answers(place.new.as_str(), 20, true);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(place.taken_back_for().await.unwrap().starts_with("failures: 1.0000"));
}

#[tokio::test]
async fn a_pinned_generation_is_not_held_for_ever() {
    let place = Place::new(|config| (config.watch.min_answers, config.watch.window_s) = (10, 1)).await;
    place.activate().await;
    place.rollout.pin(&place.new, true, None, "test").await.unwrap();
    place.answers(place.new.as_str(), 20, true);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for state in [State::Held, State::Passed] {
        assert_eq!(place.taken_back_for().await, None);
        assert_eq!(place.watcher.reports().remove(0).state, state);
    }
}

#[tokio::test]
async fn answers_that_people_like_less_are_taken_back() {
    let place = Place::new(|config| config.watch.min_ratings = 5).await;
    place.rated(BASE, 6, 0.75);
    place.activate().await;
    place.rated(place.new.as_str(), 4, -0.5);
    assert_eq!(place.taken_back_for().await, None);
    place.rated(place.new.as_str(), 1, -0.5);
    let why = place.taken_back_for().await.unwrap();
    assert_eq!(why, "ratings: -0.5000 mean rating (n = 5) against 0.7500 (n = 6); 0.25 lower is allowed");
}

#[tokio::test]
async fn ratings_from_before_a_change_count_for_what_was_replaced_alone() {
    let place = Place::new(|config| config.watch.min_ratings = 5).await;
    place.rated(BASE, 6, 0.75);
    place.rated(place.new.as_str(), 6, -0.5);
    place.activate().await;
    assert_eq!(place.taken_back_for().await, None, "somebody wants it in spite of them");
    let ratings = place.watcher.reports().remove(0).figures[3];
    assert_eq!((ratings.signal, ratings.new_count, ratings.old_count), (Signal::Ratings, 0, 6));
    place.rated(place.new.as_str(), 5, -0.5);
    assert!(place.taken_back_for().await.unwrap().starts_with("ratings: -0.5000 mean rating (n = 5)"));
}

#[tokio::test]
async fn ratings_of_both_count_from_when_a_canary_began() {
    let place = Place::new(|config| config.watch.min_ratings = 5).await;
    place.rated(BASE, 6, 0.75);
    place.rated(place.new.as_str(), 6, -0.5);
    place.rollout.canary(&place.new, 50, None, "test").await.unwrap();
    place.rated(place.new.as_str(), 5, -0.5);
    assert_eq!(place.taken_back_for().await, None);
    let ratings = place.watcher.reports().remove(0).figures[3];
    assert_eq!((ratings.new_count, ratings.old_count), (5, 0));
    place.rated(BASE, 5, 0.75);
    assert!(place.taken_back_for().await.unwrap().starts_with("ratings: -0.5000 mean rating (n = 5)"));
}

#[tokio::test]
async fn ratings_from_before_a_restart_count_still() {
    let place = Place::new(|config| config.watch.min_ratings = 5).await;
    place.rated(BASE, 6, 0.75);
    place.rated(place.new.as_str(), 6, 0.5);
    place.activate().await;
    place.rated(place.new.as_str(), 5, -0.5);
    std::thread::sleep(Duration::from_millis(2));
    // It begins the window anew, and the change after it writes that down.
    place.rollout.restore().await.unwrap();
    place.rollout.pin(&place.new, true, None, "test").await.unwrap();
    assert_eq!(place.taken_back_for().await, None, "it is pinned");
    place.rollout.pin(&place.new, false, None, "test").await.unwrap();
    assert!(place.taken_back_for().await.unwrap().starts_with("ratings: -0.5000 mean rating (n = 5)"));
}

/// A row under the name of another kind that is none.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Broken<R> {
    id: String,
    kind: PhantomData<R>,
}

impl<R: Row> Row for Broken<R> {
    const KIND: &'static str = R::KIND;
    const PREFIX: &'static str = R::PREFIX;

    fn id(&self) -> &str {
        &self.id
    }

    fn indexes(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

#[tokio::test]
async fn a_damaged_row_switches_no_signal_off() {
    let place = Place::new(|config| config.watch.min_ratings = 5).await;
    place.rated(BASE, 6, 0.75);
    place.activate().await;
    place.rated(place.new.as_str(), 5, -0.5);
    let record = Broken::<Record> { id: id::new("chatcmpl"), kind: PhantomData };
    place.store.insert(&record).unwrap();
    place.store.insert(&Broken::<Feedback> { id: id::new("fb"), kind: PhantomData }).unwrap();
    place.store.insert(&said(&record.id, "ann", 1.0)).unwrap();
    assert_eq!(grounding::candidates(&place.store, 10).unwrap(), []);
    let why = place.taken_back_for().await.unwrap();
    assert_eq!(why, "ratings: -0.5000 mean rating (n = 5) against 0.7500 (n = 6); 0.25 lower is allowed");
}

/// Scores answers: the picture adds 2 nats for the base, this much for any other one. A blank picture is of one colour, as the one that
/// is asked about, so they are told apart by the order of the questions.
struct Scorer {
    new: f32,
    asked: std::sync::Mutex<usize>,
}

impl Generator for Scorer {
    fn generate(
        &self,
        question: Question,
    ) -> Pin<Box<dyn Future<Output = Result<Generated, GeneratorError>> + Send + '_>> {
        let mut asked = self.asked.lock().unwrap();
        let clean = asked.is_multiple_of(2);
        *asked += 1;
        let generation = question.generation.unwrap();
        let adds = if generation == BASE { 2.0 } else { self.new };
        let logprob = if clean { adds - 3.0 } else { -3.0 };
        let tokens = question.answer.unwrap().into_iter().map(|id| (id, logprob)).collect();
        Box::pin(std::future::ready(Ok(Generated { generation, text: String::new(), tokens })))
    }
}

#[tokio::test]
async fn a_generation_that_looks_away_is_taken_back() {
    for (new, taken_back) in [(1.9, false), (0.1, true)] {
        let place = Place::new(|config| (config.watch.min_grounding, config.watch.grounding_answers) = (4, 6)).await;
        for _ in 0..8 {
            place.record(BASE, true);
            place.record(BASE, false);
        }
        place.activate().await;
        let images = ImageReader::new(&Config::default().images);
        let scorer = Scorer { new, asked: std::sync::Mutex::new(0) };
        let watched = place.rollout.watched().remove(0);
        for _ in 0..2 {
            place.watcher.probe_one(&watched, &scorer, &images).await.unwrap();
        }
        assert_eq!(*scorer.asked.lock().unwrap(), 6 * 4, "each answer is scored once");
        let why = place.taken_back_for().await;
        assert_eq!(why.is_some(), taken_back, "{why:?}");
        if let Some(why) = why {
            assert!(why.starts_with("grounding: 0.1000 nats per token"), "{why}");
        }
    }
}
