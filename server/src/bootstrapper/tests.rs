//! What becomes of records, with a model that answers by script.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use reground_learner::bootstrap::distort::Normalisation;
use reground_learner::bootstrap::instruction::Wording;
use reground_learner::bpo::pair::{ImageRef, NegativeKind, Part, Source};
use reground_learner::generator::{Generated, Generator, GeneratorError, Question};
use reground_learner::store::rows::{
    Answer, BootstrapState, Feedback, Finish, Pair, PairState, Record, RecordedMessage, Review, Timings, Verdict,
};
use reground_learner::store::{Options, Query, Store, id};
use tempfile::TempDir;

use super::choose::{Decision, SUPERSEDED, Skip, UNTRUSTED_CORRECTION, UNTRUSTED_RATING, choose};
use super::models::Models;
use super::worker::Worker;
use crate::admission::Activity;
use crate::config::{BootstrapConfig, ChosenSource, ImagesConfig, RecordConfig, WhenUnloaded};
use crate::images::ImageReader;
use crate::recorder::Rules;

const QUESTION: &str = "What color is the apple?";
const ANSWER: &str = "The apple is red.";
const CORRECTION: &str = "The apple is green.";

/// What a test says that the model does.
type Answerer = dyn Fn(&Question) -> Result<Generated, GeneratorError> + Send + Sync;

/// Answers as the test says, and keeps what it was asked.
struct Script {
    answer: Box<Answerer>,
    asked: Mutex<Vec<Question>>,
}

impl Generator for Script {
    fn generate(
        &self,
        question: Question,
    ) -> Pin<Box<dyn Future<Output = Result<Generated, GeneratorError>> + Send + '_>> {
        self.asked.lock().unwrap().push(question.clone());
        Box::pin(std::future::ready((self.answer)(&question)))
    }
}

fn said(question: &Question, text: &str) -> Generated {
    let generation = question.generation.clone().unwrap_or_else(|| "live".to_owned());
    Generated { generation, text: text.to_owned(), tokens: Vec::new() }
}

/// Gives scores of 0 with the clean image and -1 without, repeats the answer when asked again, and else says something wrong.
fn usual(question: &Question) -> Result<Generated, GeneratorError> {
    let last = question.turns.last().unwrap();
    let clean = last.images().any(|image| image.to_rgb8().get_pixel(0, 0).0 == [200, 40, 40]);
    Ok(match &question.answer {
        Some(tokens) => {
            let logprob = if clean { 0.0 } else { -1.0 };
            let tokens = tokens.iter().map(|id| (*id, logprob)).collect();
            Generated { tokens, ..said(question, "") }
        }
        None if clean => said(question, ANSWER),
        None if last.images().next().is_some() => said(question, "The apple is blue."),
        None => said(question, "Wrong answer: \"The apple is white.\""),
    })
}

struct Bench {
    store: Arc<Store>,
    script: Arc<Script>,
    config: BootstrapConfig,
    directory: TempDir,
}

impl Bench {
    fn new(answer: impl Fn(&Question) -> Result<Generated, GeneratorError> + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path(), options()).unwrap());
        let script = Arc::new(Script { answer: Box::new(answer), asked: Mutex::default() });
        let config = BootstrapConfig {
            sources: vec![ChosenSource::Correction, ChosenSource::Accepted, ChosenSource::OwnAnswer],
            self_after_s: 0,
            // Strong enough that no pixel stays what it was by chance.
            strength: 900.0,
            ..BootstrapConfig::default()
        };
        Self { store, script, config, directory }
    }

    fn worker(&self) -> Worker {
        let models = Models {
            served: self.script.clone(),
            injector: None,
            wording: Wording::Instructed,
            activity: Activity::default(),
            normalisation: Normalisation::default(),
            rules: Rules::new(&RecordConfig::default().redact, &[]).unwrap(),
        };
        let images = Arc::new(ImageReader::new(&ImagesConfig::default()));
        Worker::new(self.store.clone(), models, images, self.config.clone())
    }

    async fn pass(&self) {
        self.worker().pass().await.unwrap();
    }

    fn add(&self, record: &Record) {
        let images = if record.images.is_empty() { Vec::new() } else { vec![picture().0] };
        self.store.add_record(record, &images).unwrap();
    }

    fn hear(
        &self,
        record: &Record,
        key: &str,
        trusted: bool,
        rating: Option<f64>,
        correction: Option<&str>,
    ) -> Feedback {
        let feedback = feedback(record, key, trusted, rating, correction);
        self.store.add_feedback(&feedback, false).unwrap();
        feedback
    }

    fn pairs(&self) -> Vec<Pair> {
        self.store.list::<Pair>(&Query::default()).unwrap().rows
    }

    fn state(&self, record: &Record) -> BootstrapState {
        self.store.need::<Record>(&record.id).unwrap().bootstrap
    }

    fn asked(&self) -> Vec<Question> {
        std::mem::take(&mut *self.script.asked.lock().unwrap())
    }
}

fn options() -> Options {
    Options { min_free_bytes: 0, ..Options::default() }
}

/// A PNG, and what the record says of it.
fn picture() -> (Vec<u8>, ImageRef) {
    let mut png = std::io::Cursor::new(Vec::new());
    let image = image::RgbImage::from_pixel(8, 8, image::Rgb([200, 40, 40]));
    image::DynamicImage::from(image).write_to(&mut png, image::ImageFormat::Png).unwrap();
    let bytes = png.into_inner();
    let digest = blake3::hash(&bytes).to_hex().to_string();
    (bytes, ImageRef { digest, width: 8, height: 8 })
}

fn record(with_image: bool) -> Record {
    let mut content = if with_image { vec![Part::Image { index: 0 }] } else { Vec::new() };
    content.push(Part::Text { text: QUESTION.into() });
    Record {
        id: id::new("chatcmpl"),
        created_ms: id::now_ms(),
        model: "pocket".into(),
        generation: "ad-1".into(),
        key: "app".into(),
        user: None,
        conversation: "c".into(),
        stored: false,
        metadata: BTreeMap::new(),
        images: if with_image { vec![picture().1] } else { Vec::new() },
        messages: vec![RecordedMessage { role: "user".into(), content, ..RecordedMessage::default() }],
        tools: Vec::new(),
        parameters: serde_json::Map::new(),
        answers: vec![Answer {
            text: ANSWER.into(),
            finish: Finish::Stop,
            token_ids: vec![3, 1, 4],
            token_logprobs: vec![-0.1; 3],
            ..Answer::default()
        }],
        prompt_tokens: 3,
        timings: Timings::default(),
        config_digest: String::new(),
        redactions: 0,
        bootstrap: BootstrapState::Waiting,
    }
}

fn feedback(record: &Record, key: &str, trusted: bool, rating: Option<f64>, correction: Option<&str>) -> Feedback {
    Feedback {
        id: id::new("fb"),
        created_ms: id::now_ms(),
        record: record.id.clone(),
        key: key.into(),
        trusted,
        rating,
        correction: correction.map(str::to_owned),
        comment: None,
    }
}

#[test]
fn the_chosen_answer_is_decided_by_who_said_what() {
    let config = BootstrapConfig {
        sources: vec![ChosenSource::Correction, ChosenSource::Accepted, ChosenSource::OwnAnswer],
        ..BootstrapConfig::default()
    };
    let base = record(true);
    let later = base.created_ms + 61_000;
    let changed = |change: &dyn Fn(&mut Record)| {
        let mut record = base.clone();
        change(&mut record);
        record
    };
    let said = |key, trusted, rating, correction| feedback(&base, key, trusted, rating, correction);
    let decide = |record: &Record, feedback: &[Feedback]| match choose(record, feedback, &config, later) {
        Decision::Make(choice) => Ok((choice.source, choice.text, choice.review)),
        Decision::Skip(skip) => Err(skip),
        Decision::Later => panic!("there was time enough"),
    };
    let own = Ok((Source::OwnAnswer, ANSWER.to_owned(), None));
    let accepted = |trusted: bool| Ok((Source::Accepted, ANSWER.to_owned(), (!trusted).then_some(UNTRUSTED_RATING)));
    let corrected =
        |text: &str, review: bool| Ok((Source::Correction, text.to_owned(), review.then_some(UNTRUSTED_CORRECTION)));
    let cases = [
        (vec![], own.clone()),
        (vec![said("a", false, Some(0.2), None)], own.clone()),
        (vec![said("a", false, Some(0.5), None)], accepted(false)),
        (vec![said("a", true, Some(0.5), None)], accepted(true)),
        // Who is trusted must be who calls it right.
        (vec![said("a", false, Some(1.0), None), said("b", true, Some(0.0), None)], accepted(false)),
        (vec![said("a", false, Some(0.2), None), said("b", true, Some(1.0), None)], accepted(true)),
        (vec![said("a", false, Some(-0.1), None)], Err(Skip::Disapproved)),
        // The latest rating of a key counts, and keys weigh the same.
        (vec![said("a", false, Some(-1.0), None), said("a", false, Some(1.0), None)], accepted(false)),
        // Nobody may have called it wrong.
        (vec![said("a", false, Some(1.0), None), said("b", false, Some(-1.0), None)], Err(Skip::Disapproved)),
        (vec![said("a", false, Some(1.0), None), said("b", true, Some(-0.5), None)], Err(Skip::Disapproved)),
        (vec![said("a", false, Some(0.2), None), said("b", false, Some(0.0), None)], own),
        (vec![said("a", false, None, Some("x y"))], corrected("x y", true)),
        (vec![said("a", true, None, Some("call [redacted:phone]"))], Err(Skip::Redacted)),
        (vec![said("a", true, None, Some("x y")), said("b", false, None, Some("p q"))], corrected("x y", false)),
        (vec![said("a", true, None, Some("x y")), said("b", true, None, Some("p q"))], corrected("p q", false)),
        (vec![said("a", true, None, Some(" x y ")), said("a", true, Some(1.0), None)], corrected("x y", false)),
    ];
    for (feedback, expected) in cases {
        assert_eq!(decide(&base, &feedback), expected, "{feedback:?}");
    }
    let two = |record: &mut Record| record.answers.push(record.answers[0].clone());
    for (record, skip) in [
        (changed(&|record| record.tools.push(serde_json::json!({}))), Skip::Tools),
        (changed(&|record| record.messages.insert(0, record.messages[0].clone())), Skip::Conversation),
        (changed(&|record| record.answers[0].finish = Finish::Length), Skip::Unfinished),
        (changed(&two), Skip::SeveralAnswers),
        (changed(&|record| record.answers[0].token_ids.clear()), Skip::NoSource),
        (changed(&|record| record.images.clear()), Skip::NoSource),
        (changed(&|record| record.answers[0].text = "Ask [redacted:email].".into()), Skip::Redacted),
    ] {
        assert_eq!(decide(&record, &[]), Err(skip));
    }
    // What only looks so because it was asked for is no answer to the question alone; a correction is.
    for (name, value) in [
        ("response_format", serde_json::json!({"type": "json_schema"})),
        ("logit_bias", serde_json::json!({"5": 100.0})),
        ("stop", serde_json::json!(["."])),
    ] {
        let shaped = changed(&|record| drop(record.parameters.insert(name.to_owned(), value.clone())));
        for feedback in [vec![], vec![said("a", true, Some(1.0), None)]] {
            assert_eq!(decide(&shaped, &feedback), Err(Skip::Shaped), "{name}");
        }
        assert_eq!(decide(&shaped, &[said("a", true, None, Some("x"))]), corrected("x", false));
    }
    let plain = changed(&|record| {
        record.parameters.extend(
            [("stop", serde_json::json!([])), ("logit_bias", serde_json::Value::Null)]
                .map(|(name, value)| (name.to_owned(), value)),
        );
    });
    assert!(decide(&plain, &[]).is_ok());
    // A correction tells what is right, whatever became of the answer.
    let cancelled = changed(&|record| record.answers[0].finish = Finish::Cancelled);
    assert_eq!(decide(&cancelled, &[said("a", true, None, Some("x"))]), corrected("x", false));
    assert_eq!(choose(&base, &[], &config, base.created_ms + 59_000), Decision::Later);
    let few = BootstrapConfig { sources: vec![ChosenSource::Accepted], ..BootstrapConfig::default() };
    assert_eq!(choose(&base, &[], &few, later), Decision::Skip(Skip::NoSource));
    let correction = [said("a", true, Some(1.0), Some("x"))];
    assert_eq!(choose(&base, &correction, &few, later), Decision::Skip(Skip::Disapproved));
}

#[test]
fn an_answer_is_given_as_wrong_only_if_it_is_whole_and_nobody_shaped_it() {
    let (base, config) = (record(true), BootstrapConfig::default());
    let given = |change: &dyn Fn(&mut Record)| {
        let mut record = base.clone();
        change(&mut record);
        let said = feedback(&record, "a", true, None, Some(CORRECTION));
        match choose(&record, &[said], &config, base.created_ms) {
            Decision::Make(choice) => choice.corrected,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(given(&|_| ()).as_deref(), Some(ANSWER));
    for finish in [Finish::Length, Finish::Cancelled, Finish::Failed] {
        assert_eq!(given(&|record| record.answers[0].finish = finish), None, "{finish:?}");
    }
    for (name, value) in [
        ("response_format", serde_json::json!({"type": "json_schema"})),
        ("logit_bias", serde_json::json!({"5": 100.0})),
        ("stop", serde_json::json!(["."])),
    ] {
        let shape = |record: &mut Record| drop(record.parameters.insert(name.to_owned(), value.clone()));
        assert_eq!(given(&shape), None, "{name}");
    }
}

#[tokio::test]
async fn what_must_not_be_written_down_is_no_rejected_answer() {
    let mut bench = Bench::new(|question| {
        let images = question.turns.last().unwrap().images().count();
        Ok(said(question, if images > 0 { "Ask ann@mail.example.org." } else { "The apple is white." }))
    });
    bench.config.attempts = 3;
    let mut record = record(true);
    // As if it was recorded under other rules.
    record.answers[0].text = "Ask bob@mail.example.org.".into();
    bench.add(&record);
    bench.hear(&record, "ann", true, None, Some(CORRECTION));
    bench.pass().await;
    let pairs = bench.pairs();
    assert_eq!(pairs.len(), 1, "{pairs:?}");
    assert_eq!(pairs[0].data.rejected.as_deref(), Some("The apple is white."));
    assert_eq!(bench.asked().len(), 4, "three draws of the first kind, one of the second");
}

#[tokio::test]
async fn a_correction_becomes_pairs_with_their_provenance() {
    let bench = Bench::new(usual);
    let record = record(true);
    bench.add(&record);
    let heard = bench.hear(&record, "ann", true, None, Some(CORRECTION));
    bench.pass().await;
    let pairs = bench.pairs();
    let kinds: Vec<_> =
        pairs.iter().map(|pair| (pair.data.negative.unwrap(), pair.data.rejected.as_deref().unwrap())).collect();
    assert_eq!(
        kinds,
        [
            (NegativeKind::Given, ANSWER),
            (NegativeKind::ImageWeakened, "The apple is blue."),
            (NegativeKind::Injected, "The apple is white."),
        ]
    );
    for pair in &pairs {
        assert_eq!((pair.data.source, pair.data.chosen.as_str()), (Source::Correction, CORRECTION));
        assert_eq!((pair.state, pair.reason.as_deref()), (PairState::New, None));
        assert_eq!(pair.record.as_deref(), Some(record.id.as_str()));
        assert_eq!((pair.feedback.as_deref(), pair.key.as_deref()), (Some(heard.id.as_str()), Some("ann")));
        assert_eq!((pair.generation.as_deref(), &pair.data.images), (Some("ad-1"), &record.images));
    }
    let distortion = pairs[1].data.distortion.unwrap();
    assert_eq!((distortion.kind, distortion.strength), (bench.config.distortion, 900.0));
    let [weakened, injected] = [&pairs[1], &pairs[2]].map(|pair| pair.made.clone().unwrap());
    assert_eq!(
        (weakened.by.as_str(), weakened.edge, weakened.temperature, weakened.seed),
        ("ad-1", Some(512), 0.2, distortion.seed)
    );
    assert_eq!((injected.by.as_str(), injected.temperature, injected.top_p), ("ad-1", 0.8, 0.95));
    let instruction = injected.instruction.unwrap();
    assert_eq!(
        (instruction.injector.as_str(), instruction.wording.as_str(), instruction.task.as_str()),
        ("self", "instructed", "answer")
    );
    let asked = bench.asked();
    assert!(asked.iter().all(|question| question.generation.as_deref() == Some("ad-1")));
    let prompt = &asked.last().unwrap().turns[0];
    assert!(prompt.images().next().is_none() && prompt.text().contains(CORRECTION));
    assert_eq!(instruction.digest, blake3::hash(prompt.text().as_bytes()).to_hex().to_string());
    assert_eq!(bench.state(&record), BootstrapState::Done);

    bench.pass().await;
    assert_eq!((bench.pairs().len(), bench.asked().len()), (3, 0), "what is done is not looked at again");
    bench.hear(&record, "ann", true, Some(-1.0), None);
    assert_eq!(bench.state(&record), BootstrapState::Waiting);
    bench.pass().await;
    assert_eq!((bench.pairs(), bench.asked().len()), (pairs, 0), "nothing was said that changes the choice");
    assert_eq!(bench.state(&record), BootstrapState::Done);
}

#[tokio::test]
async fn an_untrusted_correction_waits_for_review() {
    let bench = Bench::new(usual);
    let record = record(true);
    bench.add(&record);
    bench.hear(&record, "stranger", false, None, Some(CORRECTION));
    bench.pass().await;
    let pairs = bench.pairs();
    assert_eq!(pairs.len(), 3);
    assert!(
        pairs
            .iter()
            .all(|pair| pair.state == PairState::Review && pair.reason.as_deref() == Some(UNTRUSTED_CORRECTION))
    );
    // A trusted one takes its place; what a person has decided stays.
    let kept = &pairs[0].data.id;
    let review = Review { at_ms: 1, by: "root".into(), verdict: Verdict::Accept };
    bench.store.update::<Pair>(kept, |pair| (pair.state, pair.reviews) = (PairState::Accepted, vec![review])).unwrap();
    bench.hear(&record, "ann", true, None, Some("The apple is yellow."));
    bench.pass().await;
    let states: Vec<_> = bench.pairs().into_iter().map(|pair| (pair.state, pair.reason)).collect();
    let superseded = (PairState::Discarded, Some(SUPERSEDED.to_owned()));
    let new = (PairState::New, None);
    let accepted = (PairState::Accepted, Some(UNTRUSTED_CORRECTION.to_owned()));
    assert_eq!(states, [accepted, superseded.clone(), superseded, new.clone(), new.clone(), new]);
}

#[tokio::test]
async fn an_untrusted_rating_waits_for_review_until_a_trusted_key_agrees() {
    let bench = Bench::new(usual);
    let record = record(true);
    bench.add(&record);
    bench.hear(&record, "stranger", false, Some(1.0), None);
    bench.pass().await;
    let pairs = bench.pairs();
    assert_eq!(pairs.len(), 2);
    assert!(
        pairs.iter().all(|pair| pair.state == PairState::Review && pair.reason.as_deref() == Some(UNTRUSTED_RATING))
    );
    bench.hear(&record, "stranger", false, Some(0.9), None);
    bench.pass().await;
    assert_eq!(bench.pairs(), pairs, "a stranger's word again changes nothing");
    bench.hear(&record, "ann", true, Some(1.0), None);
    bench.pass().await;
    let pairs = bench.pairs();
    assert_eq!(pairs.iter().filter(|pair| pair.reason.as_deref() == Some(SUPERSEDED)).count(), 2);
    assert_eq!(pairs.iter().filter(|pair| pair.state == PairState::New).count(), 2);
}

#[tokio::test]
async fn an_own_answer_must_be_grounded() {
    let bench = Bench::new(usual);
    let first = record(true);
    bench.add(&first);
    bench.pass().await;
    let pairs = bench.pairs();
    assert_eq!(pairs.len(), 2);
    for pair in &pairs {
        assert_eq!((pair.data.source, pair.data.chosen.as_str()), (Source::OwnAnswer, ANSWER));
        assert_eq!(pair.filters["grounding_margin"], 1.0);
        assert_eq!(pair.filters["grounding_agreeing"], 3.0);
    }
    // The answer is withdrawn when somebody corrects it, and is what the correction is paired with.
    bench.hear(&first, "ann", true, None, Some(CORRECTION));
    bench.pass().await;
    let given =
        |pair: &Pair| pair.data.negative == Some(NegativeKind::Given) && pair.data.rejected.as_deref() == Some(ANSWER);
    let pairs = bench.pairs();
    assert_eq!(pairs.iter().filter(|pair| pair.state == PairState::Discarded).count(), 2);
    assert_eq!(pairs.iter().filter(|pair| pair.state == PairState::New).count(), 3);
    assert!(pairs.iter().any(given));

    let mut guess = Bench::new(|question| {
        let mut answer = usual(question)?;
        answer.tokens.iter_mut().for_each(|token| token.1 = -0.5);
        Ok(answer)
    });
    guess.config.self_margin = 0.1;
    let record = record(true);
    guess.add(&record);
    guess.pass().await;
    assert_eq!((guess.pairs().len(), guess.asked().len()), (0, 2), "an answer without grounding costs two looks");
    assert_eq!(guess.state(&record), BootstrapState::Skipped);
}

#[tokio::test]
async fn without_an_image_there_are_injected_negatives_only() {
    let bench = Bench::new(usual);
    let record = record(false);
    bench.add(&record);
    bench.hear(&record, "ann", true, Some(1.0), None);
    bench.pass().await;
    let pairs = bench.pairs();
    assert_eq!(pairs.len(), 1);
    assert_eq!((pairs[0].data.source, pairs[0].data.negative), (Source::Accepted, Some(NegativeKind::Injected)));
}

#[tokio::test]
async fn a_generation_that_is_gone_is_replaced_as_configured() {
    let gone = |question: &Question| match &question.generation {
        Some(id) => Err(GeneratorError::NotLoaded(id.clone())),
        None => usual(question),
    };
    for (when, pairs, state) in
        [(WhenUnloaded::Live, 3, BootstrapState::Done), (WhenUnloaded::Skip, 0, BootstrapState::Skipped)]
    {
        let mut bench = Bench::new(gone);
        bench.config.when_unloaded = when;
        let record = record(true);
        bench.add(&record);
        bench.hear(&record, "ann", true, None, Some(CORRECTION));
        bench.pass().await;
        assert_eq!((bench.pairs().len(), bench.state(&record)), (pairs, state), "{when:?}");
        for pair in bench.pairs() {
            assert_eq!(pair.generation.as_deref(), Some("ad-1"));
            assert!(pair.made.is_none_or(|made| made.by == "live"));
        }
    }
}

#[tokio::test]
async fn what_the_filters_refuse_is_drawn_again_and_caps_hold() {
    let mut bench = Bench::new(|question| {
        let images = question.turns.last().unwrap().images().count();
        // The third draw is another one.
        Ok(said(question, if images == 0 && question.seed % 2 == 0 { "The apple is white." } else { CORRECTION }))
    });
    (bench.config.attempts, bench.config.corrected) = (16, false);
    let record = record(true);
    bench.add(&record);
    bench.hear(&record, "ann", true, None, Some(CORRECTION));
    bench.pass().await;
    assert_eq!(bench.pairs().len(), 1);
    assert!(bench.asked().len() > 16, "all draws of the first kind, and at least one of the second");

    bench.config.max_per_key = 1;
    let next = self::record(true);
    bench.add(&next);
    bench.hear(&next, "ann", true, None, Some("The apple is orange."));
    bench.pass().await;
    assert_eq!(
        (bench.pairs().len(), bench.state(&next)),
        (1, BootstrapState::Skipped),
        "the cap holds across restarts"
    );
}

#[tokio::test]
async fn a_model_that_fails_is_asked_again_later() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let bench = Bench::new(move |question| match counted.fetch_add(1, Ordering::SeqCst) {
        // The first negative is made; then the model dies.
        1 => Err(GeneratorError::Failed("it died".into())),
        _ => usual(question),
    });
    let record = record(true);
    bench.add(&record);
    bench.hear(&record, "ann", true, None, Some(CORRECTION));
    let mut worker = bench.worker();
    assert_eq!(worker.pass().await, Err("it died".into()));
    assert_eq!(
        (bench.pairs().len(), bench.state(&record)),
        (0, BootstrapState::Waiting),
        "nothing half done is stored"
    );
    worker.pass().await.unwrap();
    assert_eq!((bench.pairs().len(), bench.state(&record)), (3, BootstrapState::Done));
}

#[tokio::test]
async fn records_that_always_fail_do_not_block_those_behind() {
    let bench = Bench::new(|question| match question.turns.last() {
        Some(turn) if turn.text().contains("poison") => Err(GeneratorError::Failed("it died".into())),
        _ => usual(question),
    });
    let mut bad = Vec::new();
    for _ in 0..4 {
        let mut record = record(true);
        record.messages[0].content[1] = Part::Text { text: "poison".into() };
        bench.add(&record);
        bench.hear(&record, "ann", true, None, Some(CORRECTION));
        bad.push(record);
    }
    let good = record(true);
    bench.add(&good);
    bench.hear(&good, "ann", true, None, Some(CORRECTION));
    let mut worker = bench.worker();
    assert_eq!(worker.pass().await, Err("it died".into()));
    assert_eq!(bench.state(&good), BootstrapState::Waiting, "three in a row: the model may be gone");
    assert_eq!(worker.pass().await, Err("it died".into()));
    assert_eq!(bench.state(&good), BootstrapState::Done);
    bench.asked();
    worker.pass().await.unwrap_err();
    worker.pass().await.unwrap();
    bench.asked();
    worker.pass().await.unwrap();
    assert_eq!(bench.asked().len(), 0, "who fails again and again is not asked at once");
    assert!(bad.iter().all(|record| bench.state(record) == BootstrapState::Waiting));
}

#[test]
fn a_stop_between_negative_and_store_loses_and_doubles_nothing() {
    // One thread for what blocks: whoever holds it decides how far the work gets.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(stop_everywhere());
}

async fn stop_everywhere() {
    let bench = Bench::new(usual);
    let record = record(true);
    bench.add(&record);
    bench.hear(&record, "ann", true, None, Some(CORRECTION));
    // Stops at every point at which the work waits for something, the one before the store among them.
    let mut stops = 0;
    for polls in 0.. {
        let mut worker = bench.worker();
        let mut work = Box::pin(worker.pass());
        let mut done = false;
        for _ in 0..=polls {
            let (let_go, held) = std::sync::mpsc::channel::<()>();
            let holder = tokio::task::spawn_blocking(move || held.recv());
            done = futures::poll!(&mut work).is_ready();
            drop(let_go);
            holder.await.unwrap().unwrap_err();
            // What the poll has asked for is done before this.
            tokio::task::spawn_blocking(|| ()).await.unwrap();
            if done {
                break;
            }
        }
        drop(work);
        // What a thread has begun it ends: all is stored, or nothing.
        let whole = || {
            matches!(
                (bench.state(&record), bench.pairs().len()),
                (BootstrapState::Done, 3) | (BootstrapState::Waiting, 0)
            )
        };
        let begun = std::time::Instant::now();
        while !whole() {
            assert!(begun.elapsed().as_secs() < 10, "half of it is stored when stopped after {polls} polls");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        if done {
            break;
        }
        stops += 1;
    }
    assert!(stops > 3, "the work was stopped {stops} times only");
    let pairs = bench.pairs();
    assert_eq!(pairs.len(), 3);
    let Bench { store, directory, script, config } = bench;
    drop(store);
    let store = Arc::new(Store::open(directory.path(), options()).unwrap());
    let bench = Bench { store, directory, script, config };
    bench.pass().await;
    assert_eq!(bench.pairs(), pairs, "after a restart nothing is done twice");
}

#[tokio::test]
async fn feedback_that_comes_meanwhile_is_not_overlooked() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path(), options()).unwrap());
    let record = record(true);
    let (late, target) = (store.clone(), record.clone());
    let first = AtomicUsize::new(0);
    let answer = move |question: &Question| {
        if first.fetch_add(1, Ordering::SeqCst) == 0 {
            late.add_feedback(&feedback(&target, "ann", true, None, Some("The apple is yellow.")), false).unwrap();
        }
        usual(question)
    };
    let bench = Bench { store, directory, ..Bench::new(answer) };
    bench.add(&record);
    bench.hear(&record, "bob", false, None, Some(CORRECTION));
    bench.pass().await;
    assert_eq!((bench.pairs().len(), bench.state(&record)), (0, BootstrapState::Waiting));
    bench.pass().await;
    assert!(
        bench.pairs().iter().all(|pair| pair.data.chosen == "The apple is yellow." && pair.state == PairState::New)
    );
    assert_eq!(bench.pairs().len(), 3);
}
