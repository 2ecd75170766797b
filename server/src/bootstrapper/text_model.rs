//! Another text model in this process, loaded through mistralrs.
//!
//! It is loaded when it is first asked and dropped when nobody has asked it for a while. One answer at a time, and only while no live
//! query is answered: it takes the same cores or the same device. When one comes, the answer ends at its next token and is begun anew.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::Context;
use reground_learner::generator::{Generated, Generator, GeneratorError, Question};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::info;

use crate::answer::asked;
use crate::config::{Config, ModelConfig};
use crate::engine::mistralrs::MistralrsEngine;
use crate::engine::source::ModelFiles;
use crate::engine::{Engine, EngineError, Generation, GenerationId, Vocabulary};
use crate::rollout::Generations;

/// A text model in this process.
pub(super) struct TextModel {
    generations: Arc<Generations>,
    /// Source, device and number format of the model.
    config: ModelConfig,
    idle: Duration,
    slot: Arc<Mutex<Slot>>,
    _stop: DropGuard,
}

#[derive(Default)]
struct Slot {
    loaded: Option<Loaded>,
}

struct Loaded {
    generation: Arc<dyn Generation>,
    vocabulary: Arc<Vocabulary>,
    /// Whether it stays loaded: each load leaves a thread behind, and of those that are allowed half are used up.
    stays: bool,
    last_asked: Instant,
}

impl TextModel {
    /// The model of the configuration. It is not loaded yet, but what lies on this machine is looked at.
    ///
    /// # Errors
    /// It is not there.
    pub(super) async fn new(config: &Config, generations: Arc<Generations>) -> anyhow::Result<Self> {
        let source = &config.bootstrap.injector_model;
        let model = ModelConfig {
            source: source.clone(),
            revision: config.bootstrap.injector_revision.clone(),
            device: config.model.device,
            dtype: config.model.dtype,
            max_loads: config.model.max_loads,
            ..ModelConfig::default()
        };
        // A hub id is fetched when it is needed: without a network, serving must begin all the same.
        if std::path::Path::new(source).exists() || source.ends_with(".gguf") {
            ModelFiles::open_text(source, "").await.context("bootstrap.injector_model")?;
        }
        let idle = Duration::from_secs(config.bootstrap.injector_idle_s);
        let (slot, stop) = (Arc::<Mutex<Slot>>::default(), CancellationToken::new());
        tokio::spawn(drop_when_unused(Arc::downgrade(&slot), idle, stop.clone()));
        Ok(Self { generations, config: model, idle, slot, _stop: stop.drop_guard() })
    }

    async fn ask(&self, question: Question) -> Result<Generated, GeneratorError> {
        if question.turns.iter().any(|turn| turn.images().next().is_some()) {
            return Err(GeneratorError::Invalid("the text model is asked about text only".to_owned()));
        }
        // Whoever has it is the one who asks.
        let mut slot = self.slot.lock().await;
        loop {
            if slot.loaded.is_none() {
                slot.loaded = Some(self.load().await.map_err(|error| {
                    GeneratorError::Failed(format!("bootstrap.injector_model {}: {error}", self.config.source))
                })?);
            }
            let Some(loaded) = &mut slot.loaded else { continue };
            self.generations.activity().idle().await;
            loaded.last_asked = Instant::now();
            let answered = tokio::select! {
                answered = answer(loaded, &question) => Some(answered),
                () = self.generations.activity().busy() => None,
            };
            loaded.last_asked = Instant::now();
            match answered {
                None => {}
                Some(Ok((text, tokens))) => {
                    return Ok(Generated { generation: self.config.source.clone(), text, tokens });
                }
                Some(Err(error @ (EngineError::Invalid(_) | EngineError::TooLong { .. }))) => {
                    return Err(GeneratorError::Invalid(error.to_string()));
                }
                Some(Err(error)) => {
                    // Whatever state it is in, it is loaded anew for the next question.
                    slot.loaded = None;
                    return Err(GeneratorError::Failed(format!("{}: {error}", self.config.source)));
                }
            }
        }
    }

    async fn load(&self) -> Result<Loaded, EngineError> {
        let began = Instant::now();
        let files = ModelFiles::open_text(&self.config.source, &self.config.revision).await?;
        let engine = MistralrsEngine::new(&self.config, files)?;
        engine.can_load()?;
        let generation = engine.load(GenerationId::base(), None).await?;
        let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        info!(
            model = self.config.source,
            duration_ms,
            idle_s = self.idle.as_secs(),
            "The text model that injects errors is loaded."
        );
        let (vocabulary, stays) = (engine.info().vocabulary.clone(), engine.loads_run_short());
        Ok(Loaded { generation, vocabulary, stays, last_asked: Instant::now() })
    }
}

impl Generator for TextModel {
    fn generate(
        &self,
        question: Question,
    ) -> Pin<Box<dyn Future<Output = Result<Generated, GeneratorError>> + Send + '_>> {
        Box::pin(self.ask(question))
    }
}

/// Drops the model once nobody has asked it for so long.
async fn drop_when_unused(slot: Weak<Mutex<Slot>>, idle: Duration, stop: CancellationToken) {
    let pause = (idle / 4).max(Duration::from_millis(100));
    while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        let Some(slot) = slot.upgrade() else { return };
        // Whoever has it is asking.
        let Ok(mut slot) = slot.try_lock() else { continue };
        if slot.loaded.as_ref().is_some_and(|loaded| !loaded.stays && loaded.last_asked.elapsed() >= idle) {
            slot.loaded = None;
            info!("The text model that injects errors was not used for a while and is unloaded.");
        }
    }
}

async fn answer(loaded: &Loaded, question: &Question) -> Result<asked::Whole, EngineError> {
    let stream = loaded.generation.generate(asked::request(question), Box::new(()))?;
    match asked::whole(stream, &loaded.vocabulary).await? {
        Some((text, tokens)) => Ok((text.trim_start().to_owned(), tokens)),
        None => Err(EngineError::Failed("it died while it answered".into())),
    }
}

#[cfg(test)]
mod tests {
    use reground_learner::generator::Turn;

    use super::*;
    use crate::api::testing::Echo;
    use crate::engine::mistralrs::tiny_text;
    use crate::rollout::Sticky;

    async fn model(source: &str) -> anyhow::Result<TextModel> {
        let mut config = Config::default();
        config.bootstrap.injector_model = source.to_owned();
        config.bootstrap.injector_idle_s = 1;
        let generations = Generations::start(Arc::new(Echo::new(false)), config.admission.clone()).await.unwrap();
        TextModel::new(&config, Arc::new(generations)).await
    }

    fn question(seed: u64) -> Question {
        let turn = Turn::user([], "what color is the circle?");
        Question {
            generation: None,
            turns: vec![turn],
            temperature: 0.8,
            top_p: 0.95,
            seed,
            max_tokens: 12,
            answer: None,
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_directory_and_a_gguf_file_of_one_model_say_the_same() {
        let (hub, gguf) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        tiny_text::checkpoint(hub.path());
        let file = tiny_text::gguf(gguf.path());
        let source = hub.path().to_str().unwrap();
        let hub = model(source).await.unwrap();
        let said = hub.generate(question(7)).await.unwrap();
        assert_eq!(said.generation, source);
        assert!(!said.text.is_empty() && !said.tokens.is_empty());
        assert_eq!(hub.generate(question(7)).await.unwrap(), said, "the same seed says the same");
        assert_ne!(hub.generate(question(8)).await.unwrap().tokens, said.tokens);
        let gguf = model(file.to_str().unwrap()).await.unwrap();
        let ids = |generated: &Generated| generated.tokens.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        assert_eq!(ids(&gguf.generate(question(7)).await.unwrap()), ids(&said));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn it_is_dropped_when_unused_and_live_queries_come_first() {
        let directory = tempfile::tempdir().unwrap();
        tiny_text::checkpoint(directory.path());
        let model = Arc::new(model(directory.path().to_str().unwrap()).await.unwrap());
        assert!(model.slot.lock().await.loaded.is_none(), "it is loaded when it is asked");
        let soon = Instant::now() + Duration::from_secs(60);
        let lease = model.generations.enter(Sticky::of("a"), "a", soon).await.unwrap();
        let live = lease.admission.enter("a", soon).await.unwrap();
        let asked = tokio::spawn({
            let model = model.clone();
            async move { model.generate(question(1)).await }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!asked.is_finished(), "a live query is answered");
        drop(live);
        asked.await.unwrap().unwrap();
        assert!(model.slot.lock().await.loaded.is_some());
        while model.slot.lock().await.loaded.is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        model.generate(question(1)).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_model_is_named_at_the_start() {
        let empty = tempfile::tempdir().unwrap();
        for source in [empty.path().to_str().unwrap(), "/nowhere/tiny.gguf"] {
            let error = model(source).await.err().unwrap();
            assert!(format!("{error:#}").contains("bootstrap.injector_model: "), "{error:#}");
        }
        // What looks like a hub id is fetched when it is needed.
        let error = model("no hub id").await.unwrap().generate(question(1)).await.unwrap_err();
        assert!(error.to_string().contains("neither"), "{error}");
    }

    #[tokio::test]
    async fn pictures_are_not_for_it() {
        let directory = tempfile::tempdir().unwrap();
        tiny_text::checkpoint(directory.path());
        let mut asked = question(1);
        asked.turns[0] = Turn::user([Arc::new(image::DynamicImage::new_rgb8(2, 2))], "what is it?");
        let error = model(directory.path().to_str().unwrap()).await.unwrap().generate(asked).await.unwrap_err();
        assert!(matches!(error, GeneratorError::Invalid(_)), "{error}");
    }
}
