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
            let (lease, permit) = self.enter(question.generation.as_deref()).await?;
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

    /// Waits for a place, and gives it with the generation that is behind it then. Who waits holds no lease: where one generation at a time
    /// is loaded, callers wait until the last lease of what is replaced is gone.
    async fn enter(&self, pinned: Option<&str>) -> Result<(Lease, BackgroundPermit), GeneratorError> {
        loop {
            let admission = self.lease(pinned)?.admission;
            let permit = admission.background().await;
            let lease = self.lease(pinned)?;
            // Else it was loaded anew, or another one is live now: this place is not in front of it.
            if Arc::ptr_eq(&lease.admission, &admission) {
                return Ok((lease, permit));
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use futures::FutureExt;
    use reground_learner::generator::Turn;
    use tokio::time::Instant;

    use super::*;
    use crate::admission::Permit;
    use crate::api::testing::Echo;
    use crate::config::AdmissionConfig;
    use crate::rollout::Route;

    const OTHER: &str = "other";

    /// Another generation beside the base, each with a queue of its own.
    async fn two() -> Arc<Generations> {
        let generations = Generations::start(Arc::new(Echo::new(false)), AdmissionConfig::default()).await.unwrap();
        generations.load(OTHER, PathBuf::new()).await.unwrap();
        Arc::new(generations)
    }

    fn question(generation: Option<&str>) -> Question {
        Question {
            generation: generation.map(str::to_owned),
            turns: vec![Turn::user([], "hello")],
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
            max_tokens: 20,
            answer: None,
        }
    }

    /// All places of a generation.
    async fn full(lease: &Lease) -> [Permit; 2] {
        let (admission, later) = (&lease.admission, Instant::now() + Duration::from_secs(3600));
        [admission.enter("key", later).await.unwrap(), admission.enter("key", later).await.unwrap()]
    }

    #[tokio::test]
    async fn who_waits_for_a_place_keeps_no_generation_loaded() {
        let generations = two().await;
        let lease = generations.get(&OTHER.into()).unwrap();
        let places = full(&lease).await;
        let generator = BackgroundGenerator::new(generations.clone());
        let mut answer = generator.generate(question(Some(OTHER)));
        assert!((&mut answer).now_or_never().is_none(), "there is no place");
        let (generation, admission) = (Arc::downgrade(&lease.generation), lease.admission.clone());
        drop(lease);
        generations.unload(&OTHER.into()).unwrap();
        assert_eq!(generation.strong_count(), 0, "it waits with a lease");
        drop(places);
        assert_eq!(answer.await.unwrap_err(), GeneratorError::NotLoaded(OTHER.to_owned()));
        assert_eq!(admission.snapshot().background, 0, "the place is given back");
    }

    #[tokio::test]
    async fn what_is_live_when_there_is_a_place_answers() {
        let generations = two().await;
        let places = full(&generations.live().unwrap()).await;
        let generator = BackgroundGenerator::new(generations.clone());
        let (mut live, mut pinned) = (generator.generate(question(None)), generator.generate(question(Some("base"))));
        assert!((&mut live).now_or_never().is_none() && (&mut pinned).now_or_never().is_none(), "there is no place");
        generations.set_route(Route::of(OTHER.into(), Some(GenerationId::base()))).unwrap();
        drop(places);
        for (answer, generation) in [(live, OTHER), (pinned, "base")] {
            let answer = answer.await.unwrap();
            assert_eq!((answer.generation.as_str(), answer.text.as_str()), (generation, "hello"));
        }
    }
}
