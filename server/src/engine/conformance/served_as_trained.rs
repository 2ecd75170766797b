//! What was served is what is trained: an engine and the learner's own model read the same picture alike, whatever its size.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use image::imageops::FilterType;
use image::{DynamicImage, Rgb, RgbImage};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reground_learner::adapter::{AdapterConfig, Naming, PeftAdapter, TargetModules};
use reground_learner::model::{ALL_LINEAR, Completion, Lora, Message, Model, Request, Sampling, Workers};
use reground_learner::pocket::random::stream;
use reground_learner::pocket::text::Question;
use reground_learner::pocket::world::Statistics;
use reground_learner::pocket::{held_out, shipped};

use super::{about, answer, load};
use crate::engine::source::golden;
use crate::engine::{Engine, Generation, Token};

/// As far as a served token's log-probability may be from the learner's, nats.
const TOLERANCE: f32 = 1e-3;

/// A picture and what is asked about it.
struct Asked {
    image: DynamicImage,
    question: String,
}

/// The learner's greedy answers.
fn trained(learner: &Model, adapter: Option<&Lora>, asked: &[Asked], max_tokens: usize) -> Vec<Completion> {
    let requests: Vec<Request> = asked
        .iter()
        .map(|Asked { image, question }| {
            let seen = learner.preprocess(image).unwrap();
            let group = learner.group(&[Message::user(question.as_str(), 1)], &[seen], &[]).unwrap();
            let sampling = Sampling::greedy();
            Request { prompt: group.prompt, features: group.features, adapter, sampling, max_tokens }
        })
        .collect();
    learner.generate(&requests, &Workers::new(2).unwrap()).unwrap()
}

/// The engine gives the learner's answers, and whether they are said or scored, they have the learner's log-probabilities.
async fn check(generation: &Arc<dyn Generation>, asked: &[Asked], trained: &[Completion]) {
    for (Asked { image, question }, trained) in asked.iter().zip(trained) {
        let at = format!("{}, {question:?} at {}x{}", generation.id(), image.width(), image.height());
        let ask = async |forced| {
            let mut about = about(image.clone(), question, forced, trained.ids.len());
            about.top_logprobs = 2;
            answer(generation, about).await.1
        };
        let scored = ask(Some(trained.ids.clone())).await;
        assert_eq!(scored.len(), trained.ids.len(), "{at}");
        let said = ask(None).await;
        let expected = || trained.ids.iter().zip(&trained.log_probs);
        // Two tokens as likely as each other may change places by rounding; from there on it is another answer.
        let close = |token: &Token| token.top[0].1 - token.top[1].1 < TOLERANCE;
        let same = said.iter().zip(expected()).take_while(|(said, (id, _))| said.id == **id).count();
        let has_ended = same == said.len() && same == trained.ids.len();
        assert!(has_ended || said.get(same).is_some_and(close), "{at}: {said:?}");
        for (token, (id, log_prob)) in said[..same].iter().zip(expected()).chain(scored.iter().zip(expected())) {
            let difference = (token.logprob - log_prob).abs();
            assert!(token.id == *id && difference < TOLERANCE, "{at}: off by {difference}");
        }
    }
}

/// A picture of coloured noise, the same for the same size.
pub(in crate::engine) fn noise(width: u32, height: u32) -> DynamicImage {
    let shade = |x: u32, y: u32, channel: u32| {
        let mixed = (x * 7919 + y * 104_729 + channel * 1_299_709).wrapping_mul(2_654_435_761);
        (mixed >> 24) as u8
    };
    DynamicImage::ImageRgb8(RgbImage::from_fn(width, height, |x, y| Rgb([0, 1, 2].map(|channel| shade(x, y, channel)))))
}

const SIZES: [(u32, u32); 10] =
    [(64, 64), (128, 128), (1, 1), (63, 65), (200, 100), (100, 200), (640, 480), (17, 250), (300, 20), (512, 511)];

/// On the golden checkpoint, whose images are split and padded in every way.
pub(in crate::engine) async fn every_size_is_served_as_trained(engine: &dyn Engine) {
    every_size_is_served_as(&Model::load(&golden("model"), DType::F32, &Device::Cpu).unwrap(), engine).await;
}

/// The same with a model in the learner's place that has the golden checkpoint's shape.
pub(in crate::engine) async fn every_size_is_served_as(learner: &Model, engine: &dyn Engine) {
    let lora = Lora::load(learner.decoder(), &PeftAdapter::read(&golden("adapter")).unwrap()).unwrap();
    let asked = |(width, height)| Asked { image: noise(width, height), question: "describe the image".to_owned() };
    let asked = SIZES.map(asked);
    for (name, adapter) in [(None, None), (Some("adapter"), Some(&lora))] {
        check(&load(engine, name).await, &asked, &trained(learner, adapter, &asked, 12)).await;
    }
}

/// Held-out pictures of the pocket's world, half of them typical, a tenth of each size of [`SIZES`]; a description is asked for
/// of every other one.
fn pocket_pictures() -> Vec<Asked> {
    let examples = [Statistics::typical(), Statistics::Balanced].map(|world| held_out::examples(world, 50, 0));
    let asked = examples.into_iter().flatten().enumerate().map(|(index, example)| {
        let drawn = DynamicImage::from(example.image.as_ref().clone());
        let (width, height) = SIZES[index / 2 % SIZES.len()];
        let question = match index % 2 {
            0 => "Describe the image.".to_owned(),
            _ => Question::sample(&example.scene, &mut stream(0, "served as trained", index as u64)).text,
        };
        Asked { image: drawn.resize_exact(width, height, FilterType::CatmullRom), question }
    });
    asked.collect()
}

/// An adapter on every linear layer of the pocket, written into `directory`: random, and large enough to change answers.
fn random_adapter(learner: &Model, directory: &Path) {
    let config = AdapterConfig {
        target_modules: TargetModules::List(ALL_LINEAR.map(str::to_owned).to_vec()),
        ..AdapterConfig::uniform(8, 16.0)
    };
    let mut adapter = Lora::init(learner.decoder(), config, 0).unwrap().to_adapter().unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(0);
    for weights in adapter.modules.values_mut() {
        let values: Vec<f32> = (0..weights.b.elem_count()).map(|_| random.random_range(-0.25..0.25)).collect();
        weights.b = Tensor::from_vec(values, weights.b.dims(), &Device::Cpu).unwrap();
    }
    adapter.write(directory, Naming::Checkpoint).unwrap();
}

pub(in crate::engine) async fn a_hundred_pocket_pictures_are_served_as_trained(engine: &dyn Engine) {
    let source = shipped::source();
    let learner = Model::build(&source, &source.weights(DType::F32, &Device::Cpu).unwrap()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join("adapter");
    random_adapter(&learner, &directory);
    let lora = Lora::load(learner.decoder(), &PeftAdapter::read(&directory).unwrap()).unwrap();

    let asked = pocket_pictures();
    assert_eq!(asked.len(), 100);
    let base = trained(&learner, None, &asked, 64);
    let adapted = trained(&learner, Some(&lora), &asked, 64);
    let changed = base.iter().zip(&adapted).filter(|(base, adapted)| base.ids != adapted.ids).count();
    assert!(changed > 20, "the adapter changes {changed} answers: leaving it out would hardly show");
    check(&load(engine, None).await, &asked, &base).await;
    check(&engine.load("adapter".into(), Some(directory)).await.unwrap(), &asked, &adapted).await;
}
