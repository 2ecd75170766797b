//! The whole server in this process, where an engine can be killed and background work can be watched.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reground_learner::generator::{Generated, Generator, Question, Turn};
use serde_json::{Value, json};

use super::{Running, start};
use crate::answer::BackgroundGenerator;
use crate::config::{Config, EngineKind};
use crate::engine::sampler::LETHAL_SEED;
use crate::engine::source::golden;

const ENGINES: [EngineKind; 2] = [EngineKind::Native, EngineKind::Mistralrs];

/// One place inside, so that requests get into each other's way.
async fn running(engine: EngineKind) -> Running {
    let mut config = Config::default();
    config.server.port = 0;
    // Never removed by hand: the store is in it until the process ends.
    config.data.dir = tempfile::tempdir().unwrap().keep();
    config.model.engine = engine;
    config.model.max_parallel = 1;
    // It has random weights, so its answers are long: the pocket's end.
    config.model.source = golden("model").display().to_string();
    start(config).await.unwrap()
}

/// Status and body of a chat completion with this seed.
async fn ask(running: &Running, seed: u64) -> (u16, Value) {
    let url = format!("http://{}/v1/chat/completions", running.address());
    // Without the end of the turn (token 2), which the golden checkpoint could draw as its first token.
    let body = json!({"model": "reground", "seed": seed, "max_tokens": 40, "logit_bias": {"2": -100},
        "messages": [{"role": "user", "content": "describe the image"}]});
    let response = reqwest::Client::new().post(url).json(&body).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

async fn ready(running: &Running) -> u16 {
    reqwest::get(format!("http://{}/ready", running.address())).await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_engine_comes_back() {
    for engine in ENGINES {
        a_killed_engine_comes_back_with(engine).await;
    }
}

async fn a_killed_engine_comes_back_with(engine: EngineKind) {
    let running = running(engine).await;
    let before = ask(&running, 1).await;
    assert_eq!(before.0, 200, "{}", before.1);

    // One request kills the engine, others wait behind it.
    let (killed, waiting) = tokio::join!(ask(&running, LETHAL_SEED), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        futures::future::join_all((0..8).map(|_| ask(&running, 1))).await
    });
    assert_eq!(killed.0, 500, "{}", killed.1);
    assert_eq!(killed.1["error"]["type"], "server_error", "{}", killed.1);
    for (status, body) in waiting {
        assert!(matches!(status, 200 | 500 | 503), "{status} {body}");
        assert!(status == 200 || body["error"]["message"].is_string(), "{body}");
    }

    let deadline = Instant::now() + Duration::from_secs(30);
    while ready(&running).await != 200 {
        assert!(Instant::now() < deadline, "the engine did not come back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let after = ask(&running, 1).await;
    assert_eq!(after.0, 200, "{}", after.1);
    assert_eq!(after.1["choices"][0]["message"], before.1["choices"][0]["message"], "the same seed, the same answer");
    running.stop().await.unwrap();
}

fn question(seed: u64) -> Question {
    Question {
        generation: None,
        turns: vec![Turn::user([], "describe the image")],
        temperature: 1.0,
        top_p: 1.0,
        seed,
        max_tokens: 900,
        answer: None,
    }
}

/// The place is one: were background work not pre-empted or paused, the live answer would wait for hundreds of tokens; did it
/// not go on or start again, there would be no answer; were it not seeded, the answer would differ.
#[tokio::test(flavor = "multi_thread")]
async fn live_queries_go_before_background_work_which_ends_all_the_same() {
    for engine in ENGINES {
        live_queries_go_before_background_work_which_ends_all_the_same_with(engine).await;
    }
}

async fn live_queries_go_before_background_work_which_ends_all_the_same_with(engine: EngineKind) {
    let running = running(engine).await;
    let generator = Arc::new(BackgroundGenerator::new(running.generations().clone()));
    let alone = generator.generate(question(5)).await.unwrap();
    assert!(alone.tokens.len() > 100, "long enough to be interrupted: {}", alone.tokens.len());

    let background = tokio::spawn({
        let generator = generator.clone();
        async move { generator.generate(question(5)).await }
    });
    let admission = running.generations().live().unwrap().admission;
    let mut interrupted = 0;
    for seed in 0..5 {
        while admission.snapshot().background == 0 && !background.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        interrupted += usize::from(!background.is_finished());
        let (status, body) = ask(&running, seed).await;
        assert_eq!(status, 200, "{body}");
    }
    assert!(interrupted > 0, "the background answer was never under way when a live query came");
    assert_same(&background.await.unwrap().unwrap(), &alone);
    running.stop().await.unwrap();
}

/// The same tokens with the same log-probabilities, but for rounding: the second time a part of the prompt may be kept.
fn assert_same(a: &Generated, b: &Generated) {
    let ids = |generated: &Generated| generated.tokens.iter().map(|&(id, _)| id).collect::<Vec<_>>();
    assert_eq!((&a.generation, &a.text, ids(a)), (&b.generation, &b.text, ids(b)));
    for ((_, a), (_, b)) in a.tokens.iter().zip(&b.tokens) {
        assert!((a - b).abs() < 1e-4, "{a} and {b}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_answer_is_scored() {
    for engine in ENGINES {
        a_given_answer_is_scored_with(engine).await;
    }
}

async fn a_given_answer_is_scored_with(engine: EngineKind) {
    let running = running(engine).await;
    let generator = BackgroundGenerator::new(running.generations().clone());
    let greedy = Question { temperature: 0.0, max_tokens: 12, ..question(0) };
    let generated = generator.generate(greedy.clone()).await.unwrap();
    let ids = generated.tokens.iter().map(|&(id, _)| id).collect();
    let scored = generator.generate(Question { answer: Some(ids), ..greedy.clone() }).await.unwrap();
    assert_same(&scored, &generated);
    let unknown = generator.generate(Question { answer: Some(vec![1_000_000]), ..greedy }).await.unwrap_err();
    assert!(unknown.to_string().contains("1000000"), "{unknown}");
    running.stop().await.unwrap();
}
