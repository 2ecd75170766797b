//! The second answer.

use std::pin::Pin;
use std::sync::Arc;

use futures::future::select_all;
use metrics::counter;
use tokio::sync::mpsc;

use super::Shadow;
use super::case::{Case, Timed};
use super::comparison::{Comparison, OUTCOMES};
use crate::admission::BackgroundPermit;
use crate::answer::text::TextBuilder;
use crate::engine::{EngineError, Event};
use crate::rollout::{Lease, Route};

/// Times that an answer is begun anew after live queries needed its place.
const ATTEMPTS: usize = 8;

/// Why there is no second answer.
enum Missed {
    /// Live queries needed the place.
    Preempted,
    /// The route has another shadow, or another generation is live.
    Overtaken,
    /// The engine failed.
    Failed(EngineError),
}

impl Shadow {
    /// Answers one query after the other, until the last sender is gone.
    pub(super) async fn work(&self, mut cases: mpsc::Receiver<Case>) {
        while let Some(case) = cases.recv().await {
            let answered = self.answer(&case).await;
            if let Err(missed) = &answered {
                counter!(OUTCOMES, "outcome" => missed.as_str()).increment(1);
            }
            if let Err(Missed::Failed(error)) = &answered {
                tracing::warn!(generation = %case.shadow, %error, "The shadow failed to answer a query");
            }
            self.note(&case, &answered);
        }
    }

    fn note(&self, case: &Case, answered: &Result<Timed, Missed>) {
        let mut state = self.state();
        if !state.comparison.is_of(&case.shadow, &case.live) {
            state.comparison = Comparison::new(case.shadow.clone(), case.live.clone());
        }
        match answered {
            Ok(answer) => state.comparison.add(&case.answer, answer),
            Err(Missed::Failed(_)) => state.comparison.failed += 1,
            Err(Missed::Preempted | Missed::Overtaken) => {}
        }
    }

    async fn answer(&self, case: &Case) -> Result<Timed, Missed> {
        for _ in 0..ATTEMPTS {
            let route = self.generations.route();
            let current = route.shadow.as_ref().is_some_and(|shadow| shadow.generation == case.shadow);
            let lease = self.generations.get(&case.shadow).filter(|_| current && route.live == case.live);
            let lease = lease.ok_or(Missed::Overtaken)?;
            let places = Arc::new(self.places(&route, &lease).await);
            match self.attempt(case, lease, places).await {
                Err(Missed::Preempted) => {}
                ended => return ended,
            }
        }
        Err(Missed::Preempted)
    }

    /// A place in front of everything that live queries go to, so that all of them come first. In the same order each time.
    async fn places(&self, route: &Route, lease: &Lease) -> Vec<BackgroundPermit> {
        let answering = std::iter::once(&route.live).chain(route.canary.as_ref().map(|canary| &canary.generation));
        let mut places = Vec::new();
        for id in answering {
            if let Some(admission) = self.generations.get(id).map(|lease| lease.admission) {
                places.push(admission.background().await);
            }
        }
        places.push(lease.admission.background().await);
        places
    }

    async fn attempt(&self, case: &Case, lease: Lease, places: Arc<Vec<BackgroundPermit>>) -> Result<Timed, Missed> {
        let vocabulary = &self.generations.info().vocabulary;
        let (generation, request) = (lease.generation.clone(), case.request.clone());
        // The engine frees the places when the sequence has left it.
        let place = Box::new((places.clone(), lease));
        let mut timed = Timed::begin();
        // A grammar is compiled first, which can take a while.
        let stream = tokio::task::spawn_blocking(move || generation.generate(request, place)).await;
        let stream = stream.unwrap_or_else(|error| Err(EngineError::Failed(error.to_string())));
        let mut stream = stream.map_err(Missed::Failed)?;
        let mut text = TextBuilder::new(case.stop.clone());
        type Preempted<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
        let mut preempted = select_all(places.iter().map(|place| Box::pin(place.preempted()) as Preempted<'_>));
        loop {
            let event = tokio::select! {
                event = stream.next() => event,
                _ = &mut preempted => return Err(Missed::Preempted),
            };
            match event {
                Some(Event::Started { .. }) => {}
                Some(Event::Token(token)) => {
                    timed.token(token.id, token.logprob);
                    text.push(vocabulary.bytes(token.id));
                    if text.is_stopped() {
                        return Ok(timed);
                    }
                }
                Some(Event::Finished(_)) => return Ok(timed),
                Some(Event::Failed(error)) => return Err(Missed::Failed(error)),
                None => return Err(Missed::Failed(EngineError::Failed("it died while it answered".into()))),
            }
        }
    }
}

impl Missed {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Preempted => "preempted",
            Self::Overtaken => "overtaken",
            Self::Failed(_) => "failed",
        }
    }
}
