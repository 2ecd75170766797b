//! What every engine must do, and what only this one claims: answers side by side that do not touch each other.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use candle_core::Tensor;
use futures::FutureExt;
use futures::future::join_all;
use reground_learner::adapter::{Naming, PeftAdapter};

use super::NativeEngine;
use crate::config::ModelConfig;
use crate::engine::conformance::{
    answer, attempt, check, conforms_to_all, golden_files, load, noise, pairs, pocket_files, question,
};
use crate::engine::sampler::LETHAL_SEED;
use crate::engine::source::golden;
use crate::engine::{
    Content, Engine, EngineError, Event, Finish, Generate, Generation, GenerationId, Sampling, Token, TokenStream,
};

async fn engine() -> NativeEngine {
    engine_with(ModelConfig::default()).await
}

pub(super) async fn engine_with(config: ModelConfig) -> NativeEngine {
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
        1 => request.messages[0].content[0] = Content::Image(noise(40 + at as u32, 64).into()),
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
    together_is_alone(ModelConfig::default(), ROUNDS).await;
}

pub(super) async fn together_is_alone(config: ModelConfig, rounds: usize) {
    let engine = engine_with(ModelConfig { max_parallel: REQUESTS, ..config }).await;
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
    for round in 0..rounds {
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
    // What its length in bytes does not tell is counted off this thread.
    let mut stream = base.generate(request(63), Box::new(())).unwrap();
    assert!(matches!(stream.next().await, Some(Event::Failed(EngineError::TooLong { max_len: 100, .. }))));
    let mut megabytes = request(0);
    megabytes.messages[0].content.push(Content::Text("x".repeat(1 << 20)));
    assert!(matches!(base.generate(megabytes, Box::new(())), Err(EngineError::TooLong { max_len: 100, .. })));
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

/// A question about one picture, greedy; `at` is what differs.
fn about(picture: u32, at: usize) -> Generate {
    let mut request = request(6);
    request.messages[0].content =
        vec![Content::Image(noise(picture, 64).into()), Content::Text(format!("what is {at} beside it?"))];
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_prefix_gives_the_same_answer_on_every_generation() {
    kept_is_read(ModelConfig::default()).await;
}

pub(super) async fn kept_is_read(config: ModelConfig) {
    let kept = engine_with(config.clone()).await;
    let none = engine_with(ModelConfig { prefix_cache_bytes: 0, ..config }).await;
    let mut found = 0;
    for adapter in [None, Some("adapter")] {
        let mut asked = Vec::new();
        let (kept_generation, fresh) = (load(&kept, adapter).await, load(&none, adapter).await);
        for (picture, at) in [(1, 1), (1, 2), (2, 2), (1, 1), (2, 1)] {
            let (cached, fresh) =
                (answer(&kept_generation, about(picture, at)).await, answer(&fresh, about(picture, at)).await);
            assert_eq!(cached.0, fresh.0, "tokens of the prompt");
            assert_same(at, true, &fresh.1, &cached.1);
            let now = kept.core.prefixes.found();
            asked.push(picture);
            let is_new = asked.iter().filter(|other| **other == picture).count() == 1;
            // What the template begins with is the same for all pictures.
            assert_eq!(now < found + 16, is_new, "picture {picture}, question {at} of {adapter:?}");
            found = now;
        }
    }
    assert!(found > 0, "nothing was found");
    assert_eq!(none.core.prefixes.bytes(), 0);
}

/// Other weights under the same name find nothing; the same ones find what they read before.
#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_is_its_weights_and_not_its_names() {
    let engine = engine().await;
    let ask = async |name: &str, adapter: &str| {
        let generation = engine.load(GenerationId::from(name), Some(golden(adapter))).await.unwrap();
        let before = engine.core.prefixes.found();
        let answer = answer(&generation, about(1, 1)).await.1;
        (answer, engine.core.prefixes.found() > before)
    };
    let (first, found) = ask("adapter", "adapter").await;
    assert!(!found);
    let (second, found) = ask("adapter", "train_end").await;
    assert!(!found);
    assert_ne!(first, second, "a mix-up would not show");
    for name in ["adapter", "another"] {
        let (again, found) = ask(name, "adapter").await;
        assert!(found, "{name} read again what was kept");
        assert_same(1, true, &first, &again);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_begin_alike_at_once_read_it_once() {
    let engine = engine().await;
    let base = load(&engine, None).await;
    let (prompt, alone, _) = answer(&base, about(1, 0)).await;
    let found = engine.core.prefixes.found();
    for (_, tokens, _) in join_all((0..8).map(|_| answer(&base, about(1, 0)))).await {
        assert_same(0, true, &alone, &tokens);
    }
    let found = engine.core.prefixes.found() - found;
    assert!(found > 8 * (prompt - 16), "{found} tokens of 8 prompts of {prompt}");
    let found = engine.core.prefixes.found();
    // A picture that nobody has asked about: the first of them reads it.
    let (prompt, alone, _) = answer(&load(&self::engine().await, Some("adapter")).await, about(2, 0)).await;
    let adapted = load(&engine, Some("adapter")).await;
    for (_, tokens, _) in join_all((0..8).map(|_| answer(&adapted, about(2, 0)))).await {
        assert_same(0, true, &alone, &tokens);
    }
    let found = engine.core.prefixes.found() - found;
    assert!(found > 7 * (prompt - 16), "{found} tokens of 8 prompts of {prompt}");
}

/// What there is of an answer now.
fn drain(stream: &mut TokenStream, tokens: &mut Vec<Token>) -> usize {
    let before = tokens.len();
    while let Some(Some(Event::Token(token))) = stream.next().now_or_never() {
        tokens.push(token);
    }
    tokens.len() - before
}

/// The rest of an answer that has begun; what it says of its beginning a second time is an error.
async fn rest(stream: &mut TokenStream, tokens: &mut Vec<Token>) {
    loop {
        match stream.next().await.unwrap() {
            Event::Token(token) => tokens.push(token),
            Event::Finished(_) => return,
            other => panic!("{other:?}"),
        }
    }
}

/// Long enough that it does not end by itself while a test looks at it.
fn long(at: usize) -> Generate {
    Generate { max_tokens: Some(800), ..request(at) }
}

/// Background work stops while a live answer is inside and goes on from where it was after: `bytes` of keys and values.
async fn pauses_and_goes_on(bytes: usize) {
    let engine = engine_with(ModelConfig { kv_cache_bytes: bytes, max_parallel: 1, ..ModelConfig::default() }).await;
    let base = load(&engine, None).await;
    for at in [6, 7] {
        let alone = answer(&base, long(at)).await.1;
        let taken = Arc::new(AtomicUsize::new(0));
        let mut behind = base.generate_behind(long(at), Box::new(())).unwrap();
        assert!(matches!(behind.next().await, Some(Event::Started { .. })));
        let mut tokens = Vec::new();
        for interruption in 1..=3 {
            until("background work does not go on", || drain(&mut behind, &mut tokens) > 0).await;
            let mut live = base.generate(long(8), Taken::new(&taken)).unwrap();
            assert!(matches!(live.next().await, Some(Event::Started { .. })));
            drain(&mut behind, &mut tokens);
            for _ in 0..5 {
                assert!(matches!(live.next().await, Some(Event::Token(_))));
            }
            let meanwhile = drain(&mut behind, &mut tokens);
            if taken.load(Ordering::SeqCst) == 1 {
                assert_eq!(meanwhile, 0, "interruption {interruption}");
            }
            drop(live);
            until("the live answer is still inside", || taken.load(Ordering::SeqCst) == 0).await;
        }
        rest(&mut behind, &mut tokens).await;
        assert_eq!(tokens.len(), 800);
        assert_same(at, at % 2 == 0, &alone, &tokens);
    }
}

/// 3 layers, 2 heads, 16 wide, keys and values, f32.
const TOKEN_BYTES: usize = 3 * 2 * 16 * 2 * 4;

#[tokio::test(flavor = "multi_thread")]
async fn background_work_is_paused_in_place_while_a_live_answer_is_inside() {
    pauses_and_goes_on(4096 * TOKEN_BYTES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn background_work_gives_its_memory_to_a_live_answer_and_goes_on_after() {
    // Room for one of the two.
    pauses_and_goes_on(1024 * TOKEN_BYTES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn background_work_that_was_begun_and_dropped_leaves() {
    let engine = engine_with(ModelConfig { max_parallel: 1, ..ModelConfig::default() }).await;
    let base = load(&engine, None).await;
    let taken = Arc::new(AtomicUsize::new(0));
    let mut live = base.generate(long(6), Box::new(())).unwrap();
    assert!(matches!(live.next().await, Some(Event::Started { .. })));
    // It never is computed, because the live answer is inside.
    drop(base.generate_behind(long(7), Taken::new(&taken)).unwrap());
    until("it stayed", || taken.load(Ordering::SeqCst) == 0).await;
    rest(&mut live, &mut Vec::new()).await;
}

/// The request to score an answer to a question.
fn scored(question: Generate, said: &[Token]) -> Generate {
    Generate { forced: Some(said.iter().map(|token| token.id).collect()), ..question }
}

/// An answer is scored by reading it, and was said by one step a token.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_scored_as_it_was_said() {
    let engine = engine_with(ModelConfig { max_parallel: REQUESTS, ..ModelConfig::default() }).await;
    let generations = [load(&engine, None).await, load(&engine, Some("adapter")).await];
    let generation = |at: usize| &generations[at / 2 % 2];
    // From one token to more than are read at once.
    let question = |at: usize| Generate { max_tokens: Some(1 + at * at / 4), ..request(at) };
    let ats = || (0..32).chain([1, 1]);
    let said = join_all(ats().map(|at| answer(generation(at), question(at)))).await;
    assert!(said.iter().any(|(_, tokens, _)| tokens.len() > 200));
    for _ in 0..3 {
        let scores = ats().zip(&said).map(|(at, said)| answer(generation(at), scored(question(at), &said.1)));
        for ((at, said), scored) in ats().zip(&said).zip(join_all(scores).await) {
            assert_eq!((said.0, said.1.len()), (scored.0, scored.1.len()), "request {at}");
            // Also where a near tie makes no difference, the tokens are those that were given.
            assert!(said.1.iter().zip(&scored.1).all(|(said, scored)| said.id == scored.id), "request {at}");
            assert_same(at, true, &said.1, &scored.1);
        }
    }
    let nothing = answer(&generations[0], scored(question(3), &[])).await;
    assert_eq!((nothing.1.len(), nothing.2), (0, Finish::Length));
}

/// What a probe tells apart from rounding: asked a second time, whoever has the base's numbers gives the base's numbers.
#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_of_zeros_scores_as_the_base() {
    let engine = engine().await;
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join("adapter");
    let mut adapter = PeftAdapter::read(&golden("adapter")).unwrap();
    for weights in adapter.modules.values_mut() {
        weights.b = weights.b.zeros_like().unwrap();
    }
    adapter.write(&directory, Naming::default()).unwrap();
    let base = load(&engine, None).await;
    let zeros = engine.load("zeros".into(), Some(directory)).await.unwrap();
    let question = || request(6);
    let said = answer(&base, question()).await.1;
    let twice = async |generation: &Arc<dyn Generation>| {
        answer(generation, scored(question(), &said)).await;
        answer(generation, scored(question(), &said)).await.1
    };
    let (base, zeros) = (twice(&base).await, twice(&zeros).await);
    assert!(base.iter().zip(&zeros).all(|(a, b)| (a.logprob - b.logprob).abs() < 1e-6), "{base:?}, {zeros:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_scored_gives_its_memory_to_a_live_answer_and_goes_on_after() {
    // Room for one of the two.
    let bytes = 1024 * TOKEN_BYTES;
    let engine = engine_with(ModelConfig { kv_cache_bytes: bytes, max_parallel: 1, ..ModelConfig::default() }).await;
    let base = load(&engine, None).await;
    let said = answer(&base, long(6)).await.1;
    let mut interrupted = 0;
    for _ in 0..10 {
        let mut behind = base.generate_behind(scored(long(6), &said), Box::new(())).unwrap();
        assert!(matches!(behind.next().await, Some(Event::Started { .. })));
        let mut live = base.generate(long(8), Box::new(())).unwrap();
        assert!(matches!(live.next().await, Some(Event::Started { .. })));
        let mut tokens = Vec::new();
        drain(&mut behind, &mut tokens);
        interrupted += usize::from(tokens.len() < said.len());
        drop(live);
        rest(&mut behind, &mut tokens).await;
        assert_eq!(tokens.len(), said.len());
        assert_same(6, true, &said, &tokens);
    }
    assert!(interrupted > 0, "scoring was always over before a live answer came");
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
