//! A query and its live answer, until they are compared.

use std::time::Duration;

use metrics::counter;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::comparison::OUTCOMES;
use crate::engine::{Generate, GenerationId};

/// A query and its live answer, as it comes.
#[derive(Debug)]
pub(in crate::answer) struct Case {
    pub(super) shadow: GenerationId,
    pub(super) live: GenerationId,
    pub(super) request: Generate,
    pub(super) stop: Vec<String>,
    pub(super) answer: Timed,
    queue: mpsc::Sender<Case>,
}

/// An answer's tokens and how long they took.
#[derive(Clone, Debug)]
pub(super) struct Timed {
    /// Ids and log-probabilities, the end of the turn included.
    pub(super) tokens: Vec<(u32, f32)>,
    began: Instant,
    first: Option<Instant>,
    last: Instant,
    /// Since when its times are not its own.
    disturbed: Option<Instant>,
}

impl Timed {
    pub(super) fn begin() -> Self {
        let now = Instant::now();
        Self { tokens: Vec::new(), began: now, first: None, last: now, disturbed: None }
    }

    /// The engine made a token.
    pub(super) fn token(&mut self, id: u32, logprob: f32, at: Instant) {
        self.last = at;
        self.first.get_or_insert(self.last);
        self.tokens.push((id, logprob));
    }

    /// A live query is answered beside it, or instead.
    pub(super) fn disturb(&mut self) {
        self.disturbed.get_or_insert_with(Instant::now);
    }

    pub(super) fn is_disturbed(&self) -> bool {
        self.disturbed.is_some()
    }

    /// From its place in the engine to the first token; `None` if there was none, or it was disturbed before.
    pub(super) fn first_token(&self) -> Option<Duration> {
        let first = self.first.filter(|first| self.disturbed.is_none_or(|disturbed| *first <= disturbed));
        first.map(|first| first - self.began)
    }

    /// From there to the next one, in the mean; `None` if it was disturbed.
    pub(super) fn per_token(&self) -> Option<Duration> {
        if self.is_disturbed() {
            return None;
        }
        let more = u32::try_from(self.tokens.len()).ok()?.checked_sub(1).filter(|more| *more > 0)?;
        self.first.map(|first| (self.last - first) / more)
    }

    /// Mean log-probability of its tokens.
    pub(super) fn logprob(&self) -> Option<f64> {
        let sum: f64 = self.tokens.iter().map(|(_, logprob)| f64::from(*logprob)).sum();
        (!self.tokens.is_empty()).then(|| sum / self.tokens.len() as f64)
    }
}

impl Case {
    pub(super) fn new(
        shadow: GenerationId,
        live: GenerationId,
        request: Generate,
        stop: Vec<String>,
        queue: mpsc::Sender<Self>,
    ) -> Self {
        Self { shadow, live, request, stop, answer: Timed::begin(), queue }
    }

    /// The live answer has one more token.
    pub(in crate::answer) fn token(&mut self, id: u32, logprob: f32, at: Instant) {
        self.answer.token(id, logprob, at);
    }

    /// The live answer is complete. An answer that never is is not compared.
    pub(in crate::answer) fn submit(self) {
        let queue = self.queue.clone();
        if queue.try_send(self).is_err() {
            counter!(OUTCOMES, "outcome" => "dropped").increment(1);
        }
    }
}
