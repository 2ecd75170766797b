//! What every engine must do, and what only this one claims: answers side by side that do not touch each other.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use candle_core::Tensor;
use futures::future::join_all;
use reground_learner::adapter::{Naming, PeftAdapter};

use super::NativeEngine;
use crate::config::ModelConfig;
use crate::engine::conformance::{
    answer, attempt, check, conforms_to_all, golden_files, load, noise, pairs, pocket_files, question,
};
use crate::engine::sampler::LETHAL_SEED;
use crate::engine::source::golden;
use crate::engine::{Content, Engine, EngineError, Event, Finish, Generate, Generation, GenerationId, Sampling, Token};

async fn engine() -> NativeEngine {
    engine_with(ModelConfig::default()).await
}

async fn engine_with(config: ModelConfig) -> NativeEngine {
    NativeEngine::new(&config, golden_files().await).unwrap()
}

async fn pocket_engine() -> NativeEngine {
    NativeEngine::new(&ModelConfig::default(), pocket_files().await).unwrap()
}

conforms_to_all!(engine(), pocket_engine());

const REQUESTS: usize = 64;
const ROUNDS: usize = 10;
/// As close as an answer in company must be to the same answer alone.
const TOLERANCE: f32 = 1e-4;
/// Two tokens nearer to each other than this may change places by rounding.
const MARGIN: f32 = 1e-3;

/// Text and images of several sizes, 1 to 64 tokens, greedy and drawn.
fn request(at: usize) -> Generate {
    let pairs = pairs();
    let mut request = question(&pairs[at % pairs.len()], None, 1 + at);
    request.top_logprobs = 3;
    // Never the end-of-turn token, so that every length is as planned.
    request.sampling.logit_bias = vec![(2, -1000.0)];
    match at % 3 {
        0 => {
            request.messages[0].content.remove(0);
        }
        1 => request.messages[0].content[0] = Content::Image(Arc::new(noise(40 + at as u32, 64))),
        _ => {}
    }
    request.messages[0].content.push(Content::Text(" and then?".repeat(at)));
    if at % 2 == 1 {
        request.sampling = Sampling { temperature: 1.1, top_p: 0.95, seed: at as u64, ..request.sampling };
    }
    request
}

/// Whether an answer in company is the same answer as alone.
fn assert_same(at: usize, greedy: bool, alone: &[Token], together: &[Token]) {
    for (step, (a, b)) in alone.iter().zip(together).enumerate() {
        if a.id != b.id {
            let allowed: Vec<f32> = a.top.iter().filter(|(id, _)| *id != 2).map(|&(_, logprob)| logprob).collect();
            let margin = allowed[0] - allowed[1];
            assert!(greedy && margin < MARGIN, "request {at}, step {step}: {a:?} alone, {b:?} together");
            // From here on they are two answers.
            return;
        }
        let difference = (a.logprob - b.logprob).abs();
        assert!(difference < TOLERANCE, "request {at}, step {step}: off by {difference}");
    }
    assert_eq!(alone.len(), together.len(), "request {at}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_at_once_answer_as_each_does_alone() {
    let engine = engine_with(ModelConfig { max_parallel: REQUESTS, ..ModelConfig::default() }).await;
    let mut generations = Vec::new();
    for adapter in [None, Some("adapter"), Some("train_start"), Some("train_end")] {
        generations.push(load(&engine, adapter).await);
    }
    let generation = |at: usize| &generations[at / 3 % generations.len()];
    let mut alone = Vec::new();
    for at in 0..REQUESTS {
        alone.push(answer(generation(at), request(at)).await);
    }
    let mut different: Vec<Vec<u32>> =
        alone.iter().map(|(_, tokens, _)| tokens.iter().map(|t| t.id).collect()).collect();
    different.sort();
    different.dedup();
    assert!(different.len() > REQUESTS * 3 / 4, "{} different answers: a mix-up would not show", different.len());
    for round in 0..ROUNDS {
        let order: Vec<usize> = (0..REQUESTS).map(|at| (at * (2 * round + 1) + round) % REQUESTS).collect();
        let answers = join_all(order.iter().map(|&at| answer(generation(at), request(at)))).await;
        for (&at, (prompt, tokens, finish)) in order.iter().zip(&answers) {
            assert_eq!((*prompt, *finish), (alone[at].0, Finish::Length));
            assert_same(at, at % 2 == 0, &alone[at].1, tokens);
        }
    }
}

/// An adapter, written into `directory`, whose numbers are so large that every product with them overflows. NaN itself would
/// be refused when it is read.
fn poison(directory: &Path) {
    let mut adapter = PeftAdapter::read(&golden("adapter")).unwrap();
    for weights in adapter.modules.values_mut() {
        for tensor in [&mut weights.a, &mut weights.b] {
            *tensor = Tensor::full(1e30_f32, tensor.dims(), tensor.device()).unwrap();
        }
    }
    adapter.write(directory, Naming::default()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poisoned_neighbour_touches_nobody() {
    let engine = engine().await;
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join("adapter");
    poison(&directory);
    let poisoned = engine.load("poisoned".into(), Some(directory)).await.unwrap();
    let (base, adapter) = (load(&engine, None).await, load(&engine, Some("adapter")).await);
    // Before, between and after the healthy ones, as long as they are.
    let neighbours = async {
        for _ in 0..40 {
            let answers = join_all((0..3).map(|at| attempt(&poisoned, request(3 * at + 2)))).await;
            for answer in answers {
                let error = answer.unwrap_err();
                assert!(matches!(&error, EngineError::Failed(why) if why.contains("no finite logits")), "{error}");
            }
        }
    };
    tokio::join!(neighbours, check(&base, "base"), check(&adapter, "adapter"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panicking_step_ends_its_answers_and_the_engine_goes_on() {
    let engine = engine().await;
    let base = load(&engine, None).await;
    let mut lethal = request(50);
    lethal.sampling.seed = LETHAL_SEED;
    for _ in 0..3 {
        let (killed, beside) = tokio::join!(attempt(&base, lethal.clone()), attempt(&base, request(30)));
        assert!(matches!(killed, Err(EngineError::Failed(_))), "{killed:?}");
        // Whoever shared the step ended with it; whoever did not is whole.
        assert!(beside.as_ref().is_ok_and(|(_, tokens, _)| tokens.len() == 31) || beside.is_err(), "{beside:?}");
        assert!(base.is_ready());
    }
    check(&base, "base").await;
}

/// Counts the places that are taken.
struct Taken(Arc<AtomicUsize>);

impl Taken {
    fn new(count: &Arc<AtomicUsize>) -> Box<Self> {
        count.fetch_add(1, Ordering::SeqCst);
        Box::new(Self(count.clone()))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_frees_the_place_and_who_waits_comes_in() {
    // Room for one of the long answers at a time: 1024 tokens of 3 layers, 2 heads, 16 wide, keys and values, f32.
    let bytes = 1024 * 3 * 2 * 16 * 2 * 4;
    let engine = engine_with(ModelConfig { kv_cache_bytes: bytes, ..ModelConfig::default() }).await;
    assert_eq!(engine.info().max_len, 1024);
    let base = load(&engine, None).await;
    let taken = Arc::new(AtomicUsize::new(0));
    let mut long = request(0);
    long.max_tokens = None;
    let mut first = base.generate(long.clone(), Taken::new(&taken)).unwrap();
    assert!(matches!(first.next().await, Some(Event::Started { .. })));
    let mut second = base.generate(long.clone(), Taken::new(&taken)).unwrap();
    let third = base.generate(long, Taken::new(&taken)).unwrap();
    assert_eq!(taken.load(Ordering::SeqCst), 3);
    // One that never was inside leaves too.
    drop(third);
    until("a waiting answer that was cancelled kept its place", || taken.load(Ordering::SeqCst) <= 2).await;
    for _ in 0..5 {
        assert!(matches!(first.next().await, Some(Event::Token(_))));
    }
    drop(first);
    assert!(matches!(second.next().await, Some(Event::Started { .. })), "the second comes in when the first has left");
    until("an answer that was cancelled kept its place", || taken.load(Ordering::SeqCst) <= 1).await;
    drop(second);
    until("the last place is not free", || taken.load(Ordering::SeqCst) == 0).await;
    check(&base, "base").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_smaller_than_the_context_limits_the_context() {
    let engine = engine_with(ModelConfig { kv_cache_bytes: 100 * 3 * 2 * 16 * 2 * 4, ..ModelConfig::default() }).await;
    assert_eq!(engine.info().max_len, 100);
    let base = load(&engine, None).await;
    let mut whole = request(0);
    whole.max_tokens = None;
    let (prompt, tokens, finish) = answer(&base, whole).await;
    assert_eq!((prompt + tokens.len(), finish), (100, Finish::Length));
    assert!(matches!(attempt(&base, request(63)).await, Err(EngineError::TooLong { max_len: 100, .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_generation_is_gone_and_an_answer_keeps_it_until_its_end() {
    let engine = engine().await;
    let generation = load(&engine, Some("adapter")).await;
    let whole = answer(&generation, request(60)).await.1;
    let watched: Weak<dyn Generation> = Arc::downgrade(&generation);
    let mut stream = generation.generate(request(60), Box::new(generation.clone())).unwrap();
    assert!(matches!(stream.next().await, Some(Event::Started { .. })));
    drop(generation);
    let mut tokens = Vec::new();
    while let Some(event) = stream.next().await {
        match event {
            Event::Token(token) => tokens.push(token),
            Event::Finished(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_same(60, true, &whole, &tokens);
    until("the generation is still there", || watched.upgrade().is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_seen_before_gives_the_same_answer_on_every_generation() {
    let (kept, none) =
        (engine().await, engine_with(ModelConfig { vision_cache_bytes: 0, ..ModelConfig::default() }).await);
    for adapter in [None, Some("adapter")] {
        let (kept, none) = (load(&kept, adapter).await, load(&none, adapter).await);
        for at in [4, 5, 4, 5, 4] {
            let (cached, fresh) = (answer(&kept, request(at)).await, answer(&none, request(at)).await);
            assert_eq!(cached, fresh, "request {at} of {adapter:?}");
        }
    }
}

/// Thousands of adapters, one base: loading one is reading its file.
#[tokio::test(flavor = "multi_thread")]
async fn generations_come_and_go_under_answers() {
    let engine = Arc::new(engine().await);
    let base = load(&*engine, None).await;
    let expected = answer(&base, request(20)).await.1;
    let streams = async {
        let mut answered = 0;
        for _ in 0..20 {
            for (_, tokens, _) in join_all((0..4).map(|_| answer(&base, request(20)))).await {
                assert_same(20, true, &expected, &tokens);
                answered += 1;
            }
        }
        answered
    };
    let changes = async {
        for at in 0..200 {
            let id = GenerationId::from(format!("adapter-{at}").as_str());
            let generation = engine.load(id, Some(golden("adapter"))).await.unwrap();
            if at % 20 == 0 {
                assert_eq!(answer(&generation, request(2)).await.1.len(), 3);
            }
        }
    };
    let (answered, ()) = tokio::join!(streams, changes);
    assert_eq!(answered, 80);
}
