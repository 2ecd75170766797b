//! What every engine must do, and what this one does with the request that is ready ahead of its turn.

use std::time::Duration;

use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::MistralrsEngine;
use crate::config::{DeviceChoice, ModelConfig};
use crate::engine::conformance::{answer, conforms_to_all, golden_files, load, pairs, pocket_files, question};
use crate::engine::sampler::LETHAL_SEED;
use crate::engine::source::ModelFiles;
use crate::engine::{Engine, EngineError, Event, Finish, Generate, Place, Sampling, TokenStream};

const PATIENCE: Duration = Duration::from_secs(60);

fn engine(files: ModelFiles) -> MistralrsEngine {
    MistralrsEngine::new(&ModelConfig::default(), files).unwrap()
}

conforms_to_all!(async { engine(golden_files().await) }, async { engine(pocket_files().await) });

#[tokio::test]
async fn what_a_cpu_cannot_is_refused_whatever_is_allowed() {
    for (max_parallel, paged_attention, key) in [(2, false, "model.max_parallel"), (1, true, "model.paged_attention")] {
        let device = DeviceChoice::Cpu;
        let config =
            ModelConfig { device, max_parallel, paged_attention, unproven_parallel: true, ..ModelConfig::default() };
        match MistralrsEngine::new(&config, golden_files().await) {
            Err(EngineError::Load(reason)) => assert!(reason.contains(key), "{reason}"),
            _ => panic!("{key} was taken"),
        }
    }
}

/// A place, and what is ready once it is free.
fn place() -> (Place, oneshot::Receiver<()>) {
    let (place, free) = oneshot::channel::<()>();
    (Box::new(place), free)
}

/// As long as the model allows: the end of the turn (token 2) is ruled out.
fn endless() -> Generate {
    let sampling = Sampling { logit_bias: vec![(2, -100.0)], ..Sampling::greedy() };
    Generate { sampling, max_tokens: None, ..question(&pairs()[0], None, 1) }
}

async fn started(stream: &mut TokenStream) {
    let event = timeout(PATIENCE, stream.next()).await.unwrap();
    assert!(matches!(event, Some(Event::Started { .. })), "{event:?}");
}

/// Equal prompts, which mistralrs would put into one batch, each handed over as early as can be.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_inside_answer_as_alone() {
    let engine = engine(golden_files().await);
    let base = load(&engine, None).await;
    let pairs = pairs();
    let mut alone = Vec::new();
    for pair in &pairs {
        alone.push(answer(&base, question(pair, None, 40)).await);
    }
    for round in 0..5 {
        let together = (0..24).map(|n| answer(&base, question(&pairs[n * n % pairs.len()], None, 40)));
        let together = timeout(PATIENCE, futures::future::join_all(together)).await.unwrap();
        for (n, answered) in together.into_iter().enumerate() {
            assert_eq!(answered, alone[n * n % pairs.len()], "round {round}, request {n}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_up_before_its_turn_leaves_at_once() {
    let engine = engine(golden_files().await);
    let base = load(&engine, None).await;
    let (running_place, mut running_left) = place();
    let mut running = base.generate(endless(), running_place).unwrap();
    started(&mut running).await;
    let (ahead_place, ahead_left) = place();
    let ahead = base.generate(endless(), ahead_place).unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(ahead);
    assert!(timeout(PATIENCE, ahead_left).await.unwrap().is_err(), "the place was dropped");
    assert_eq!(running_left.try_recv(), Err(oneshot::error::TryRecvError::Empty), "while the other still runs");
    drop(running);
    assert!(timeout(PATIENCE, running_left).await.unwrap().is_err());
    answer(&base, question(&pairs()[0], None, 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_an_engine_that_dies_is_told_to_try_again() {
    let engine = engine(golden_files().await);
    let base = load(&engine, None).await;
    let mut lethal = question(&pairs()[0], None, 5);
    lethal.sampling.seed = LETHAL_SEED;
    let mut killed = base.generate(lethal, Box::new(())).unwrap();
    let mut ahead = base.generate(question(&pairs()[0], None, 5), Box::new(())).unwrap();
    let event = timeout(PATIENCE, killed.next()).await.unwrap();
    assert!(matches!(event, Some(Event::Failed(EngineError::Failed(_)))), "{event:?}");
    let event = timeout(PATIENCE, ahead.next()).await.unwrap();
    assert!(matches!(event, Some(Event::Failed(EngineError::Unavailable(_)))), "{event:?}");
    let back = async {
        while !base.is_ready() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, back).await.unwrap();
    answer(&base, question(&pairs()[0], None, 1)).await;
}

/// mistralrs looks for calls too, in notations of its own, and would end the answer after the first one.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_in_the_text_does_not_end_the_answer() {
    const TEXT: &str = r#"{"name": "look", "arguments": {}} and more"#;
    let engine = engine(golden_files().await);
    let base = load(&engine, None).await;
    let vocabulary = &engine.info().vocabulary;
    let id_of = |byte: u8| (0..vocabulary.len() as u32).find(|&id| vocabulary.bytes(id) == [byte]).unwrap();
    let forced: Vec<u32> = TEXT.bytes().map(id_of).collect();
    let tool = json!({"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}});
    let request = Generate { tools: vec![tool], ..question(&pairs()[0], Some(forced.clone()), forced.len()) };
    let (_, tokens, finish) = answer(&base, request).await;
    assert_eq!(tokens.iter().map(|token| token.id).collect::<Vec<_>>(), forced);
    assert_eq!(finish, Finish::Length);
}
