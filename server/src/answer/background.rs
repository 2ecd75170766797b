//! The engine as the learner sees it: background work that yields to live queries.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use reground_learner::generator::{Generated, Generator, GeneratorError, Question, Speaker, Turn};

use super::text::TextBuilder;
use crate::admission::BackgroundPermit;
use crate::engine::{Content, EngineError, Event, Generate, GenerationId, Message, Role, Sampling};
use crate::rollout::{Generations, Lease};

/// Pause before a dead engine is asked again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Attempts while the engine is being restarted.
const RETRIES: usize = 60;

/// Answers the learner's questions while no live query waits. An engine with one batch for all pauses the work by itself
/// while it answers live queries. In any other, a live query that needs the place ends the work at its next token, and it
/// starts again when the place is free; seeds make the second start give the same answer.
pub struct BackgroundGenerator {
    generations: Arc<Generations>,
}

/// A live query took the place.
struct Preempted;

impl BackgroundGenerator {
    /// Answers with these generations.
    #[must_use]
    pub fn new(generations: Arc<Generations>) -> Self {
        Self { generations }
    }

    async fn answer(&self, question: Question) -> Result<Generated, GeneratorError> {
        let mut retries = 0;
        loop {
            let lease = self.lease(question.generation.as_deref())?;
            let permit = lease.admission.background().await;
            match self.attempt(lease, permit, &question).await {
                Ok(Ok(generated)) => return Ok(generated),
                Ok(Err(EngineError::Unavailable(_))) if retries < RETRIES => {
                    retries += 1;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Ok(Err(error @ (EngineError::Invalid(_) | EngineError::TooLong { .. }))) => {
                    return Err(GeneratorError::Invalid(error.to_string()));
                }
                Ok(Err(error)) => return Err(GeneratorError::Failed(error.to_string())),
                Err(Preempted) => {}
            }
        }
    }

    fn lease(&self, pinned: Option<&str>) -> Result<Lease, GeneratorError> {
        let Some(id) = pinned else { return Ok(self.generations.live()) };
        let lease = self.generations.get(&GenerationId::from(id));
        lease.ok_or_else(|| GeneratorError::NotLoaded(id.to_owned()))
    }

    async fn attempt(
        &self,
        lease: Lease,
        permit: BackgroundPermit,
        question: &Question,
    ) -> Result<Result<Generated, EngineError>, Preempted> {
        let vocabulary = &self.generations.info().vocabulary;
        let generation = lease.generation.clone();
        let permit = Arc::new(permit);
        let preempted = permit.preempted();
        let mut stream = match generation.generate_behind(request(question), Box::new((permit.clone(), lease))) {
            Ok(stream) => stream,
            Err(error) => return Ok(Err(error)),
        };
        stream.be_patient();
        let mut text = TextBuilder::new(Vec::new());
        let mut generated =
            Generated { generation: generation.id().to_string(), text: String::new(), tokens: Vec::new() };
        tokio::pin!(preempted);
        loop {
            let event = tokio::select! {
                event = stream.next() => event,
                () = &mut preempted => return Err(Preempted),
            };
            match event {
                Some(Event::Started { .. }) => {}
                Some(Event::Token(token)) => {
                    generated.text.push_str(&text.push(vocabulary.bytes(token.id)));
                    generated.tokens.push((token.id, token.logprob));
                }
                Some(Event::Finished(_)) => {
                    generated.text.push_str(&text.finish());
                    return Ok(Ok(generated));
                }
                Some(Event::Failed(error)) => return Ok(Err(error)),
                None => return Ok(Err(EngineError::Unavailable(generation.id().clone()))),
            }
        }
    }
}

impl Generator for BackgroundGenerator {
    fn generate(
        &self,
        question: Question,
    ) -> Pin<Box<dyn Future<Output = Result<Generated, GeneratorError>> + Send + '_>> {
        Box::pin(self.answer(question))
    }
}

fn request(question: &Question) -> Generate {
    Generate {
        messages: question.turns.iter().map(message).collect(),
        tools: Vec::new(),
        sampling: Sampling {
            temperature: question.temperature,
            top_p: question.top_p,
            seed: question.seed,
            ..Sampling::greedy()
        },
        max_tokens: Some(question.max_tokens),
        top_logprobs: 0,
        grammar: None,
        forced: question.answer.clone(),
    }
}

fn message(turn: &Turn) -> Message {
    let role = match turn.speaker {
        Speaker::System => Role::System,
        Speaker::User => Role::User,
        Speaker::Assistant => Role::Assistant,
    };
    let images = turn.images.iter().cloned().map(Content::Image);
    Message {
        role,
        content: images.chain([Content::Text(turn.text.clone())]).collect(),
        tool_calls: Vec::new(),
        tool_call_id: None,
    }
}
