//! A loaded generation, and its revival when its engine dies.

use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use mistralrs::core::{
    Constraint, ModelCategory, NormalRequest, Request, Response, SamplingParams, StopTokens, ToolChoice,
};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::adapter::PreparedAdapter;
use super::load::{Loaded, Settings, load};
use super::prompt;
use super::tap::Tap;
use crate::engine::sampler::Sampler;
use crate::engine::{EngineError, EngineInfo, Generate, Generation, GenerationId, Place, TokenStream};

/// Pause before the first attempt to load a dead engine again; doubled for each further one.
const REVIVAL_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A generation with an engine of its own.
pub(super) struct MistralrsGeneration {
    id: GenerationId,
    info: EngineInfo,
    settings: Arc<Settings>,
    adapter: Option<Arc<PreparedAdapter>>,
    category: ModelCategory,
    /// `None` while a dead engine is loaded again.
    loaded: RwLock<Option<Arc<Loaded>>>,
    tasks: TaskTracker,
    me: Weak<Self>,
}

impl MistralrsGeneration {
    pub(super) async fn load(
        id: GenerationId,
        settings: Arc<Settings>,
        adapter: Option<Arc<PreparedAdapter>>,
        info: &EngineInfo,
    ) -> Result<Arc<Self>, EngineError> {
        let loaded = load(settings.clone(), adapter.clone()).await?;
        let category =
            loaded.model.config().map_err(|error| EngineError::Load(format!("mistralrs: {error}")))?.category;
        Ok(Arc::new_cyclic(|me| Self {
            id,
            info: info.clone(),
            settings,
            adapter,
            category,
            loaded: RwLock::new(Some(Arc::new(loaded))),
            tasks: TaskTracker::new(),
            me: me.clone(),
        }))
    }

    fn loaded(&self) -> Option<Arc<Loaded>> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a dead engine out and loads a new one. Called by every answer that found it dead; the first one acts.
    fn revive(&self, dead: &Arc<Loaded>) {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        if !loaded.as_ref().is_some_and(|current| Arc::ptr_eq(current, dead)) {
            return;
        }
        *loaded = None;
        drop(loaded);
        error!(generation = %self.id, "The engine died; loading it again.");
        let me = self.me.clone();
        let (settings, adapter) = (self.settings.clone(), self.adapter.clone());
        self.tasks.spawn(async move {
            let mut pause = REVIVAL_PAUSE;
            loop {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                // Unloaded meanwhile: nobody needs it any more.
                if me.strong_count() == 0 {
                    return;
                }
                match load(settings.clone(), adapter.clone()).await {
                    Ok(fresh) => {
                        if let Some(me) = me.upgrade() {
                            *me.loaded.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(fresh));
                            info!(generation = %me.id, "The engine is back.");
                        }
                        return;
                    }
                    Err(error) => {
                        warn!(%error, "The engine does not load; the next attempt is in {} s.", pause.as_secs_f32())
                    }
                }
            }
        });
    }
}

impl Generation for MistralrsGeneration {
    fn id(&self) -> &GenerationId {
        &self.id
    }

    fn is_ready(&self) -> bool {
        self.loaded().is_some()
    }

    fn generate(&self, request: Generate, place: Place) -> Result<TokenStream, EngineError> {
        let loaded = self.loaded().ok_or_else(|| EngineError::Unavailable(self.id.clone()))?;
        // mistralrs checks the length before it puts the images into the prompt.
        let prompt = self.info.check_length(&request)?;
        let max_tokens = request.forced.as_ref().map(Vec::len).or(request.max_tokens);
        let vocabulary = self.info.vocabulary.clone();
        let sampler = Sampler::new(&request, vocabulary.clone())?;
        let (stream, events) = TokenStream::channel();
        let cancelled = events.cancelled();
        let tap = Arc::new(Tap::new(sampler, events, vocabulary.clone(), self.info.max_len, prompt, max_tokens));

        let sampling_params = SamplingParams {
            // Greedy over the tap's logits, which leave one token.
            temperature: Some(0.0),
            max_len: max_tokens,
            stop_toks: Some(StopTokens::Ids(vocabulary.end_of_turn().to_vec())),
            ..SamplingParams::deterministic()
        };
        // One message comes back, at the end.
        let (response, mut responses) = mpsc::channel(1);
        let request = NormalRequest {
            logits_processors: Some(vec![tap.clone()]),
            constraint: Constraint::None,
            ..NormalRequest::new_simple(
                prompt::request_message(request.messages, &self.category),
                sampling_params,
                response,
                0,
                prompt::tools(request.tools)?,
                // The template sees them all the same; without it mistralrs ends an answer after what it takes for a call.
                Some(ToolChoice::None),
            )
        };
        let (me, id) = (self.me.clone(), self.id.clone());
        self.tasks.spawn(async move {
            let turn = tokio::select! {
                biased;
                // The next one in the queue can be made ready instead.
                () = cancelled => return,
                turn = loaded.turns.clone().acquire_owned() => turn,
            };
            match turn {
                Ok(turn) => {
                    tap.hold(turn);
                    let request = Request::Normal(Box::new(request));
                    if let Err(Died) = attend(&loaded, request, &mut responses, &tap).await {
                        loaded.turns.close();
                        if let Some(me) = me.upgrade() {
                            me.revive(&loaded);
                        }
                    }
                }
                Err(_closed) => tap.finish(Some(EngineError::Unavailable(id))),
            }
            // Free only now that the sequence has left the engine; a dead engine's place once it is taken out.
            drop((place, loaded));
            // A failed step can be reported twice, and the engine dies if nobody is there to listen.
            while responses.recv().await.is_some() {}
        });
        Ok(stream)
    }
}

/// The engine's thread is gone.
struct Died;

/// Hands a request to the engine, waits until the sequence has left it, and reports the end.
async fn attend(
    loaded: &Loaded,
    request: Request,
    responses: &mut mpsc::Receiver<Response>,
    tap: &Tap,
) -> Result<(), Died> {
    let sent = loaded.requests.send(request).await.is_ok();
    let response = if sent {
        tokio::select! {
            response = responses.recv() => response,
            () = loaded.requests.closed() => None,
        }
    } else {
        None
    };
    let error = match response {
        Some(Response::Done(_)) => None,
        Some(Response::ValidationError(error)) => Some(EngineError::Invalid(error.to_string())),
        Some(Response::InternalError(error)) => Some(EngineError::Failed(error.to_string())),
        Some(Response::ModelError(message, _)) => Some(EngineError::Failed(message)),
        Some(_) => Some(EngineError::Failed("mistralrs sent a response of another kind".into())),
        None => {
            tap.finish(Some(EngineError::Failed("it died while it answered; it is being restarted".into())));
            return Err(Died);
        }
    };
    tap.finish(error);
    Ok(())
}
