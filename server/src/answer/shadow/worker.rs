//! The second answer.

use std::sync::Arc;

use metrics::counter;
use tokio::sync::mpsc;

use super::Shadow;
use super::case::{Case, Timed};
use super::comparison::{Comparison, OUTCOMES};
use crate::answer::text::TextBuilder;
use crate::engine::{EngineError, Event};
use crate::rollout::{Behind, Lease};

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
            let behind = self.generations.behind_live(&lease.admission).await;
            match self.attempt(case, lease, Arc::new(behind)).await {
                Err(Missed::Preempted) => {}
                ended => return ended,
            }
        }
        Err(Missed::Preempted)
    }

    async fn attempt(&self, case: &Case, lease: Lease, behind: Arc<Behind>) -> Result<Timed, Missed> {
        let vocabulary = &self.generations.info().vocabulary;
        let (generation, request) = (lease.generation.clone(), case.request.clone());
        // The engine frees the places when the sequence has left it.
        let place = Box::new((behind.clone(), lease));
        let mut timed = Timed::begin();
        // A grammar is compiled first, which can take a while.
        let stream = tokio::task::spawn_blocking(move || generation.generate_behind(request, place)).await;
        let stream = stream.unwrap_or_else(|error| Err(EngineError::Failed(error.to_string())));
        let mut stream = stream.map_err(Missed::Failed)?;
        let mut text = TextBuilder::new(case.stop.clone());
        let (preempted, busy) = (behind.preempted(), self.generations.activity().busy());
        tokio::pin!(preempted, busy);
        loop {
            let event = tokio::select! {
                biased;
                () = &mut preempted => return Err(Missed::Preempted),
                () = &mut busy, if !timed.is_disturbed() => {
                    timed.disturb();
                    continue;
                }
                event = stream.next() => event,
            };
            match event {
                Some(Event::Started { .. }) => {}
                Some(Event::Token(token)) => {
                    timed.token(token.id, token.logprob, stream.reported());
                    if !vocabulary.ends_turn(token.id) {
                        text.push(vocabulary.bytes(token.id));
                    }
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
