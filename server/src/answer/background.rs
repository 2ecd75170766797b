//! The engine as the learner sees it: background work that yields to live queries.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use reground_learner::generator::{Generated, Generator, GeneratorError, Question};

use super::asked;
use crate::admission::BackgroundPermit;
use crate::engine::{EngineError, GenerationId};
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
        let Some(id) = pinned else {
            let replaced = || GeneratorError::Failed("the live generation is being replaced".to_owned());
            return self.generations.live().ok_or_else(replaced);
        };
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
        let place = Box::new((permit.clone(), lease));
        let stream = match generation.generate_behind(asked::request(question), place) {
            Ok(stream) => stream,
            Err(error) => return Ok(Err(error)),
        };
        let id = generation.id();
        tokio::select! {
            () = preempted => Err(Preempted),
            answer = asked::whole(stream, vocabulary) => Ok(match answer {
                Ok(Some((text, tokens))) => Ok(Generated { generation: id.to_string(), text, tokens }),
                Ok(None) => Err(EngineError::Unavailable(id.clone())),
                Err(error) => Err(error),
            }),
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
