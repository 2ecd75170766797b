//! What every engine must do, as tests that each engine runs against itself.
//!
//! The golden numbers were made by PyTorch, transformers and PEFT.

mod served_as_trained;

use std::sync::Arc;

use image::DynamicImage;
use serde_json::Value;

pub(super) use served_as_trained::{
    a_hundred_pocket_pictures_are_served_as_trained, every_size_is_served_as, every_size_is_served_as_trained, noise,
};

use super::source::{ModelFiles, golden, read_json};
use super::{
    Content, Engine, EngineError, Event, Finish, Generate, Generation, GenerationId, Message, Role, Sampling, Token,
};

pub(super) async fn golden_files() -> ModelFiles {
    ModelFiles::open(golden("model").to_str().unwrap(), "").await.unwrap()
}

pub(super) async fn pocket_files() -> ModelFiles {
    ModelFiles::open("builtin", "").await.unwrap()
}

pub(super) async fn load(engine: &dyn Engine, adapter: Option<&str>) -> Arc<dyn Generation> {
    let id = GenerationId::from(adapter.unwrap_or("base"));
    engine.load(id, adapter.map(golden)).await.unwrap()
}

pub(super) fn pairs() -> Vec<Value> {
    read_json(&golden("expected.json")).unwrap()["pairs"].as_array().unwrap().clone()
}

/// A question of the golden pairs.
pub(super) fn question(pair: &Value, forced: Option<Vec<u32>>, max_tokens: usize) -> Generate {
    let image = image::open(golden(pair["image"].as_str().unwrap())).unwrap();
    about(image, pair["question"].as_str().unwrap(), forced, max_tokens)
}

/// A question about a picture.
fn about(image: DynamicImage, text: &str, forced: Option<Vec<u32>>, max_tokens: usize) -> Generate {
    Generate {
        messages: vec![Message {
            role: Role::User,
            content: vec![Content::Image(image.into()), Content::Text(text.to_owned())],
            tool_calls: Vec::new(),
            tool_call_id: None,
        }],
        tools: Vec::new(),
        sampling: Sampling::greedy(),
        max_tokens: Some(max_tokens),
        top_logprobs: 0,
        grammar: None,
        forced,
    }
}

/// Prompt tokens, answer tokens, and why it ended.
pub(super) async fn answer(generation: &Arc<dyn Generation>, request: Generate) -> (usize, Vec<Token>, Finish) {
    attempt(generation, request).await.unwrap()
}

/// As [`answer`], or why there is none.
pub(super) async fn attempt(
    generation: &Arc<dyn Generation>,
    request: Generate,
) -> Result<(usize, Vec<Token>, Finish), EngineError> {
    let mut stream = generation.generate(request, Box::new(()))?;
    let (mut prompt, mut tokens) = (0, Vec::new());
    while let Some(event) = stream.next().await {
        match event {
            Event::Started { prompt_tokens } => prompt = prompt_tokens,
            Event::Token(token) => tokens.push(token),
            Event::Finished(finish) => return Ok((prompt, tokens, finish)),
            Event::Failed(error) => return Err(error),
        }
    }
    panic!("the stream ended without an end");
}

pub(super) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Every golden number of one generation: `base` or `adapter`.
pub(super) async fn check(generation: &Arc<dyn Generation>, name: &str) {
    for pair in &pairs() {
        let greedy = ids(&pair[format!("{name}_greedy_ids")]);
        let (prompt, tokens, finish) = answer(generation, question(pair, None, greedy.len())).await;
        assert_eq!(prompt, pair["prompt_ids"].as_array().unwrap().len());
        assert_eq!(tokens.iter().map(|token| token.id).collect::<Vec<_>>(), greedy, "{name}, {}", pair["question"]);
        assert_eq!(finish, Finish::Length);
        // What is said token by token has the log-probabilities that scoring it finds, which are compared with the golden ones below.
        let (_, scored, _) = answer(generation, question(pair, Some(greedy), tokens.len())).await;
        for (said, scored) in tokens.iter().zip(&scored) {
            let difference = said.logprob - scored.logprob;
            assert!(
                said.id == scored.id && difference.abs() < 1e-4,
                "{name} {}: off by {difference}",
                pair["question"]
            );
        }
        for side in ["chosen", "rejected"] {
            let forced = ids(&pair[format!("{side}_ids")]);
            let (_, tokens, finish) = answer(generation, question(pair, Some(forced.clone()), forced.len())).await;
            assert_eq!(finish, Finish::Stop, "the answer ends with the end of the turn");
            let wanted = pair[format!("{name}_logp_{side}")].as_array().unwrap();
            assert_eq!(tokens.len(), wanted.len());
            for (token, wanted) in tokens.iter().zip(wanted) {
                let difference = f64::from(token.logprob) - wanted.as_f64().unwrap();
                assert!(difference.abs() < 1e-4, "{name} {side} {}: off by {difference}", pair["question"]);
            }
        }
    }
}

pub(super) async fn base_and_adapter_equal_transformers_and_peft_side_by_side_and_in_turn(engine: &dyn Engine) {
    let base = load(engine, None).await;
    check(&base, "base").await;
    let adapter = load(engine, Some("adapter")).await;
    check(&adapter, "adapter").await;
    check(&base, "base").await;
    // The other way round, and twice: nothing of an earlier load may stay behind.
    let (adapter, base) = (load(engine, Some("adapter")).await, load(engine, None).await);
    check(&base, "base").await;
    check(&adapter, "adapter").await;
}

pub(super) async fn an_adapter_with_a_tensor_that_finds_no_place_is_refused(engine: &dyn Engine) {
    let directory = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs_err::copy(golden("adapter").join(file), directory.path().join(file)).unwrap();
    }
    let weights = directory.path().join("adapter_model.safetensors");
    let renamed = String::from_utf8_lossy(&fs_err::read(&weights).unwrap()).contains("layers.2.");
    assert!(renamed);
    // Same length, so that the header stays well formed: layer 2 becomes layer 7, which the base does not have.
    let bytes = fs_err::read(&weights).unwrap();
    let text: Vec<u8> = replace(&bytes, b"layers.2.", b"layers.7.");
    fs_err::write(&weights, text).unwrap();
    let error = engine.load("bad".into(), Some(directory.path().to_owned())).await.err().unwrap().to_string();
    assert!(error.contains("layers.7"), "{error}");
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for at in 0..bytes.len() - from.len() {
        if bytes[at..].starts_with(from) {
            bytes[at..at + to.len()].copy_from_slice(to);
        }
    }
    bytes
}

pub(super) async fn a_prompt_that_does_not_fit_is_refused_and_the_engine_lives(engine: &dyn Engine) {
    let base = load(engine, None).await;
    let pair = &pairs()[0];
    for words in [1100, 2000] {
        let mut request = question(pair, None, 5);
        request.messages[0].content.push(Content::Text("red ".repeat(words)));
        let error = match base.generate(request, Box::new(())) {
            Err(error) => error,
            Ok(mut stream) => match stream.next().await {
                Some(Event::Failed(error)) => error,
                other => panic!("{other:?}"),
            },
        };
        assert!(error.to_string().contains("1024"), "{error}");
    }
    check(&base, "base").await;
}

/// Around the limit, where the quick check before the engine cannot be exact.
pub(super) async fn near_the_limit_every_length_is_answered_or_refused(engine: &dyn Engine) {
    let base = load(engine, None).await;
    let pair = &pairs()[0];
    let empty = answer(&base, question(pair, None, 1)).await.0;
    let mut request = question(pair, None, 1);
    request.messages[0].content.push(Content::Text(" red".repeat(100)));
    let per_word = (answer(&base, request).await.0 - empty) as f64 / 100.0;
    let fitting = ((1024 - empty) as f64 / per_word) as usize;
    for words in fitting - 12..fitting + 6 {
        let mut request = question(pair, None, 50);
        request.messages[0].content.push(Content::Text(" red".repeat(words)));
        match base.generate(request, Box::new(())) {
            Err(error) => assert!(error.to_string().contains("1024"), "{error}"),
            Ok(mut stream) => {
                let mut length = 0;
                while let Some(event) = stream.next().await {
                    match event {
                        Event::Started { prompt_tokens } => length += prompt_tokens,
                        Event::Token(_) => length += 1,
                        Event::Finished(_) => assert!(length <= 1024, "{length}"),
                        Event::Failed(error) => assert!(error.to_string().contains("1024"), "{error}"),
                    }
                }
            }
        }
    }
    check(&base, "base").await;
}

/// Tests of this module, run against an engine.
macro_rules! conforms {
    ($engine:expr; $($name:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            $crate::engine::conformance::$name(&$engine.await).await;
        }
    )*};
}
pub(super) use conforms;

/// All of them, run against an engine on the golden checkpoint and one on the pocket model.
macro_rules! conforms_to_all {
    ($golden:expr, $pocket:expr) => {
        $crate::engine::conformance::conforms! { $golden;
            base_and_adapter_equal_transformers_and_peft_side_by_side_and_in_turn,
            an_adapter_with_a_tensor_that_finds_no_place_is_refused,
            a_prompt_that_does_not_fit_is_refused_and_the_engine_lives,
            near_the_limit_every_length_is_answered_or_refused,
            every_size_is_served_as_trained,
        }
        $crate::engine::conformance::conforms! { $pocket;
            a_hundred_pocket_pictures_are_served_as_trained,
        }
    };
}
pub(super) use conforms_to_all;
